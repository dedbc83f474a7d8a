"""The table of the supported environments: what is counted, and what they install."""

import re
import sys
from collections import Counter
from pathlib import Path

import pytest
from lanes import LANES, ROOT, main, run

SUITE = """
import pytest

def test_passes():
    assert True

def test_fails():
    assert False

@pytest.mark.parametrize('n', [1, 2])
@pytest.mark.skipif(True, reason='requires torch 99: everything')
def test_skipped(n):
    assert False
"""


def test_outcomes_and_reasons_of_skipped_tests_are_counted(tmp_path):
    (tmp_path / 'test_one.py').write_text(SUITE)
    counts, reasons = run(Path(sys.executable), [str(tmp_path)])
    assert counts == Counter(passed=1, failed=1, skipped=2)
    assert reasons == Counter({'requires torch 99: everything': 2})


def test_a_lane_without_tests_counts_nothing(tmp_path):
    assert run(Path(sys.executable), [str(tmp_path)])[0]['passed'] == 0


def test_an_unknown_lane_is_named(capsys):
    with pytest.raises(SystemExit):
        main(['oldest', 'elder'])
    assert "unknown lanes ['elder']; there are newest, oldest" in capsys.readouterr().err


def test_the_oldest_lane_has_the_versions_that_setup_promises():
    promised = dict(re.findall(r"'(\w+)>=([\d.]+)'", (ROOT / 'setup.py').read_text()))
    oldest = (ROOT / LANES['oldest'].requirements).read_text()
    for package, version in promised.items():
        assert f'\n{package}=={version}' in oldest
