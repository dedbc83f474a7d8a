"""Idle threads of OpenMP sleep soon in the commands, unless the user chose otherwise."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMES = ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT', 'KMP_BLOCKTIME')


def policy(script, **chosen):
    """What OpenMP reads when a script imports torch: values of NAMES, '-' where one is not set."""
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    environment |= dict(PYTHONPATH=os.pathsep.join([str(ROOT), str(ROOT / 'tools')]), **chosen)
    watch = (
        'import builtins, os, sys\n'
        'found = []\n'
        'class Watch:\n'
        '    def find_spec(self, name, *_):\n'
        "        if name == 'torch':\n"
        f"            found.append([os.environ.get(each, '-') for each in {NAMES}])\n"
        'sys.meta_path.insert(0, Watch())\n'
        f'{script}\n'
        'print(*found[0])\n'
    )
    run = subprocess.run(
        [sys.executable, '-c', watch], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.split()[-3:]


@pytest.mark.parametrize(
    'script',
    [
        'import launch',
        "sys.argv = ['/usr/bin/trunchier', 'train']; import trunchier.__main__, torch",
        "sys.argv = ['-m', 'train']; sys.orig_argv[1:] = ['-m', 'trunchier', 'train']; "
        'import trunchier.__main__, torch',
    ],
)
def test_training_and_the_command_choose_before_torch_is_imported(script):
    assert policy(script) == ['-', '30000', '1']


@pytest.mark.parametrize('name', NAMES)
def test_the_choice_of_the_user_is_kept(name):
    value = 'active' if name == 'OMP_WAIT_POLICY' else '1000'
    expected = [value if each == name else '-' for each in NAMES]
    assert policy('import idle_threads, torch', **{name: value}) == expected


def test_importing_the_package_in_another_program_changes_nothing():
    assert policy("sys.argv = ['mine.py']; import trunchier") == ['-', '-', '-']


@pytest.mark.parametrize('tool', ['train.py', 'test.py', 'predict.py', 'benchmark/__main__.py'])
def test_each_tool_that_computes_lets_idle_threads_sleep(tool):
    text = (ROOT / 'tools' / tool).read_text()
    assert 'import idle_threads' in text or 'from launch import' in text
