# `make help` lists the targets. Each sets up what it needs; a second call installs nothing.

PYTHON  ?=
VENV    := .venv
VENV2   := .venv-numpy2
WORKERS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); [ $$n -lt 8 ] && echo $$n || echo 8)

# The stamp's name is a checksum of what was installed: any change there, and only that, installs.
SOURCES := requirements.txt $(sort $(wildcard requirements/*.txt)) setup.py tools/make_venv.sh
KEY     := $(shell cat $(SOURCES) | cksum | cut -d' ' -f1)
READY   := $(VENV)/.ready-$(KEY)
READY2  := $(VENV2)/.ready-$(KEY)

# One thread a worker: workers already fill the cores.
PYTEST  := OMP_NUM_THREADS=1 %/bin/python -m pytest -n $(WORKERS) --dist loadgroup

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-numpy2 test-slow lint format doctor clean

help:  ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/\1|\2/p' $(firstword $(MAKEFILE_LIST)) | \
	    while IFS='|' read -r name text; do printf '  make %-12s %s\n' "$$name" "$$text"; done

setup: $(READY)  ## create .venv and install everything

demo: $(READY)  ## train, test and draw a truncated model on synthetic people; PHOTOS=dir: then on yours
	$(VENV)/bin/python tools/demo.py $(if $(PHOTOS),--photos "$(PHOTOS)")

test: $(READY) lint  ## lint, then the test suite
	$(subst %,$(VENV),$(PYTEST))

test-numpy2: $(READY2)  ## the test suite on numpy 2, current OpenCV and Python 3.12 where there is one
	$(subst %,$(VENV2),$(PYTEST))

test-slow: $(READY)  ## the tests that train for minutes
	$(subst %,$(VENV),$(PYTEST)) -m slow

lint: $(READY)  ## ruff: rules and format
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(READY)  ## ruff: repair what can be repaired
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

doctor: $(READY)  ## what is installed, patched, found and missing
	$(VENV)/bin/python tools/doctor.py

clean:  ## remove the environments and what tools wrote into the checkout
	rm -rf $(VENV) $(VENV2) build dist *.egg-info .pytest_cache .ruff_cache

$(READY):
	tools/make_venv.sh $(VENV) requirements.txt $(PYTHON) python3.11 python3.10 python3.12 python3
	rm -f $(VENV)/.ready-* && touch $@

$(READY2):
	tools/make_venv.sh $(VENV2) requirements/numpy2.txt \
	    $(PYTHON) python3.12 python3.11 python3.10 python3
	rm -f $(VENV2)/.ready-* && touch $@
