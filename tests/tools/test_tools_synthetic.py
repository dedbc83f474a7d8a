"""tools/make_synthetic.py: what a user types and what comes back."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('numba', reason='synthetic people are drawn with numba')

TOOLS = Path(__file__).resolve().parents[2] / 'tools'
sys.path.insert(0, str(TOOLS))

import make_synthetic  # noqa: E402


def test_the_tool_makes_a_set_and_says_so_in_one_line(tmp_path):
    command = [sys.executable, str(TOOLS / 'make_synthetic.py'), '--num', '3', '--size', '96x64']
    command += ['--workers', '1', '--out', str(tmp_path / 'set')]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=TOOLS.parent)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('\n') == 1
    assert '3 images' in done.stdout
    assert '#' not in done.stderr  # no bar where nobody looks
    assert len(list((tmp_path / 'set/images').iterdir())) == 3


def test_a_second_call_finds_the_set_there(tmp_path, capsys):
    arguments = ['--num', '2', '--size', '64', '--workers', '1', '--out', str(tmp_path / 'set')]
    make_synthetic.main(arguments)
    make_synthetic.main(arguments)
    assert 'already there' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--num', '0'], 'num is 0; wanted 1 or more'),
        (['--num', '1', '--backgrounds', '/no/such/folder'], 'no folder /no/such/folder'),
        (['--num', '1', '--size', '7'], 'size is 7; wanted'),
        (['--num', '1', '--workers', '-2'], 'workers is -2; wanted'),
    ],
)
def test_errors_are_one_line_that_says_what_to_do(tmp_path, arguments, message):
    with pytest.raises(SystemExit) as error:
        make_synthetic.main([*arguments, '--out', str(tmp_path / 'set')])
    assert message in str(error.value)
    assert not (tmp_path / 'set').exists()


def test_a_size_that_is_no_size_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        make_synthetic.main(['--num', '1', '--size', 'large', '--out', str(tmp_path / 'set')])
    assert "'large' is not a size; wanted 256 or 320x256" in capsys.readouterr().err
