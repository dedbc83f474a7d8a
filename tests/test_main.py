"""The command `trunchier NAME ...` is `python tools/NAME.py ...`."""

import runpy
import sys

import pytest

from trunchier import __main__ as command
from trunchier import __version__


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, 'argv', ['trunchier', *arguments])
    monkeypatch.setattr(sys, 'path', [*sys.path])
    return command.main()


@pytest.mark.parametrize('name', command.COMMANDS)
def test_every_command_is_a_script_with_a_summary(name):
    assert command.script(name).exists()
    lines = [each.split() for each in command.usage().splitlines()]
    (line,) = [words for words in lines if words[:1] == [name.replace('_', '-')]]
    assert len(line) > 3


def test_help_and_version_go_to_stdout(monkeypatch, capsys):
    assert run(monkeypatch, '--help') == 0
    assert 'predict' in capsys.readouterr().out
    assert run(monkeypatch, '--version') == 0
    assert capsys.readouterr().out == f'trunchier {__version__}\n'


@pytest.mark.parametrize('arguments', [(), ('paint',)])
def test_an_unknown_command_is_an_error(monkeypatch, capsys, arguments):
    assert run(monkeypatch, *arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == '' and 'usage: trunchier COMMAND' in captured.err


def test_a_command_gets_its_arguments(monkeypatch, capsys):
    assert run(monkeypatch, 'convert-weights', '--help') == 0
    assert 'usage: convert_weights' in capsys.readouterr().out


def test_a_failing_command_gives_its_status(monkeypatch, capsys):
    assert run(monkeypatch, 'convert-weights', 'absent.pth', 'out.pth') == 1
    assert 'absent.pth' in capsys.readouterr().err


def test_the_module_runs_too(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['trunchier', '--version'])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module('trunchier', run_name='__main__')
    assert stop.value.code == 0 and __version__ in capsys.readouterr().out
