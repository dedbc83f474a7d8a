# `make help` lists the targets. Each installs what it needs, once.

PYTHON  ?=
VENV    := .venv
LANES   ?=
VENV_DOCS := .venv-docs
VENV_AUDIT := .venv-audit
WORKERS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); [ $$n -lt 8 ] && echo $$n || echo 8)

# Stamps are named by a checksum of the requirements, so that only a change there reinstalls.
SOURCES := requirements.txt $(sort $(filter-out %/docs.txt %/runtime.txt,$(wildcard requirements/*.txt))) \
           setup.py tools/make_venv.sh
KEY     := $(shell cat $(SOURCES) | cksum | cut -d' ' -f1)
READY   := $(VENV)/.ready-$(KEY)
READY_DOCS := $(VENV_DOCS)/.ready-$(shell cksum < requirements/docs.txt | cut -d' ' -f1)

# One thread per worker: the workers occupy all cores.
PYTEST  := OMP_NUM_THREADS=1 %/bin/python -m pytest -n $(WORKERS) --dist loadgroup

# Whether PyPI's advisories answer: those of an old version of a package that has some
REACH := import json, urllib.request as u; \
         page = u.urlopen('https://pypi.org/pypi/pillow/9.0.0/json', timeout=20); \
         assert json.load(page)['vulnerabilities']

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-video test test-lanes test-upstream test-slow lint format docs web audit \
        doctor clean

help:  ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/\1|\2/p' $(firstword $(MAKEFILE_LIST)) | \
	    while IFS='|' read -r name text; do printf '  make %-12s %s\n' "$$name" "$$text"; done

setup: $(READY)  ## create .venv and install all requirements

demo: $(READY)  ## train, test and draw models on synthetic people; PHOTOS=dir: predict on yours too
	$(VENV)/bin/python tools/demo.py $(if $(PHOTOS),--photos "$(PHOTOS)")

demo-video: $(READY)  ## draw a clip of people who walk, and lift it to bodies; VIDEO=file: yours
	$(VENV)/bin/python tools/demo_video.py $(if $(VIDEO),--video "$(VIDEO)") \
	    $(if $(DETECTOR),--detector "$(DETECTOR)")

test: $(READY) lint  ## lint, then the test suite
	$(subst %,$(VENV),$(PYTEST))

test-lanes: $(READY)  ## the test suite in each supported environment; LANES="oldest ..." chooses
	$(VENV)/bin/python tests/lanes.py $(LANES) $(if $(CHECKOUT),--checkout "$(CHECKOUT)") \
	    --pytest="-n $(WORKERS) --dist loadgroup"

test-upstream: $(READY)  ## tests of CHECKOUTS="../mmpose ...", without and with this package
	$(VENV)/bin/python tests/upstream.py $(CHECKOUTS)

test-slow: $(READY)  ## the tests that train for minutes
	$(subst %,$(VENV),$(PYTEST)) -m slow

lint: $(READY)  ## check rules and format (ruff) and types (mypy)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(READY)  ## format the code and fix what ruff can fix
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

docs: $(READY_DOCS)  ## the documentation as a site that works offline, into site/
	NO_MKDOCS_2_WARNING=1 $(VENV_DOCS)/bin/mkdocs build --strict --quiet
	@echo 'site/index.html is the first page; with search: python3 -m http.server -d site'

web: $(READY)  ## the page for browsers (poses and bodies, onnxruntime-web from npm), into examples/web/dist
	npm ci --prefix examples/web --ignore-scripts --no-audit --no-fund
	PYTHONPATH=. $(VENV)/bin/python examples/web/build.py
	@echo 'python3 -m http.server -d examples/web/dist, then open http://localhost:8000'

audit: $(READY)  ## known vulnerabilities of the installed packages, if PyPI's advisories can be reached
	@if ! $(VENV)/bin/python -c "$(REACH)" 2>/dev/null; then \
	    echo 'audit: the advisories at pypi.org cannot be reached; nothing was checked'; \
	else \
	    $(VENV)/bin/python -m venv --clear $(VENV_AUDIT) && \
	    $(VENV_AUDIT)/bin/python -m pip install --quiet pip-audit==2.10.1 && \
	    $(VENV_AUDIT)/bin/pip-audit --progress-spinner off --skip-editable \
	        --path $(VENV)/lib/python3.*/site-packages; \
	fi

doctor: $(READY)  ## report what is installed, patched and missing
	$(VENV)/bin/python tools/doctor.py

clean:  ## remove environments, builds and caches
	rm -rf $(VENV) .lanes $(VENV_DOCS) $(VENV_AUDIT) site build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache

$(READY):
	tools/make_venv.sh $(VENV) requirements.txt $(PYTHON) python3.11 python3.10 python3.12 python3
	rm -f $(VENV)/.ready-* && touch $@

$(READY_DOCS):
	$(or $(PYTHON),python3) -m venv --clear $(VENV_DOCS)
	$(VENV_DOCS)/bin/python -m pip install --quiet -r requirements/docs.txt
	touch $@
