"""Command line and output of tools/make_synthetic.py."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('numba', reason='rendering requires numba')

TOOLS = Path(__file__).resolve().parents[2] / 'tools'
sys.path.insert(0, str(TOOLS))

import make_synthetic  # noqa: E402


def test_the_tool_writes_a_data_set_and_prints_one_line(tmp_path):
    command = [sys.executable, str(TOOLS / 'make_synthetic.py'), '--num', '3', '--size', '96x64']
    command += ['--workers', '1', '--out', str(tmp_path / 'set')]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=TOOLS.parent)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('\n') == 1
    assert '3 images' in done.stdout
    assert 'images' not in done.stderr  # no progress bar if stderr is not a terminal
    assert len(list((tmp_path / 'set/images').iterdir())) == 3


def test_a_second_call_leaves_the_data_set_unchanged(tmp_path, capsys):
    arguments = ['--num', '2', '--size', '64', '--workers', '1', '--out', str(tmp_path / 'set')]
    make_synthetic.main(arguments)
    make_synthetic.main(arguments)
    assert 'already there' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--num', '0'], 'num is 0; expected 1 or more'),
        (['--num', '1', '--backgrounds', '/no/such/folder'], 'no folder /no/such/folder'),
        (['--num', '1', '--size', '7'], 'size is 7; expected'),
        (['--num', '1', '--workers', '-2'], 'workers is -2; expected'),
    ],
)
def test_errors_are_one_line_that_names_the_option(tmp_path, arguments, message):
    with pytest.raises(SystemExit) as error:
        make_synthetic.main([*arguments, '--out', str(tmp_path / 'set')])
    assert message in str(error.value)
    assert not (tmp_path / 'set').exists()


def test_an_invalid_size_is_rejected(tmp_path, capsys):
    with pytest.raises(SystemExit):
        make_synthetic.main(['--num', '1', '--size', 'large', '--out', str(tmp_path / 'set')])
    assert "'large' is not a size; expected 256 or 320x256" in capsys.readouterr().err
