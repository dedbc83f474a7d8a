"""The comparison of upstream suites finds what this package makes worse, and nothing else."""

from upstream import main

ONE = """
import os, sys
import pytest

def test_same():
    assert True

def test_fails_either_way():
    assert False

def test_better_with():
    assert 'trunchier' in sys.modules

@pytest.mark.skip
def test_skipped():
    assert False
"""
WORSE = (
    ONE
    + """
def test_worse_with():
    assert 'trunchier' not in sys.modules
"""
)


def checkout(folder, source):
    (folder / 'tests').mkdir(parents=True)
    (folder / 'tests' / 'test_one.py').write_text(source)
    (folder / 'tests' / 'test_two.py').write_text('import no_such_package')  # never collected
    return str(folder)


def test_a_suite_that_is_not_made_worse_passes(tmp_path, capsys):
    assert main([checkout(tmp_path / 'mmone', ONE)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        'mmone without trunchier: 1 error, 2 failed, 1 passed, 1 skipped',
        'mmone with trunchier: 1 error, 1 failed, 2 passed, 1 skipped',
    ]


def test_a_test_that_is_made_worse_is_named(tmp_path, capsys):
    assert main([checkout(tmp_path / 'mmtwo', WORSE)]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith('passes without, failed with trunchier: ')
    assert last.endswith('test_one::test_worse_with')
