"""The command `trunchier NAME ...` is `python tools/NAME.py ...`."""

import re
import runpy
import subprocess
import sys

import cv2
import numpy as np
import pytest

import trunchier
from trunchier import __main__ as command
from trunchier import __version__, zoo


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
    assert captured.out == '' and 'usage: trunchier' in captured.err


@pytest.mark.parametrize('name', command.COMMANDS)
def test_help_names_the_command_not_a_script_of_the_checkout(monkeypatch, capsys, name):
    monkeypatch.setenv('COLUMNS', '1000')
    name = name.replace('_', '-')
    assert run(monkeypatch, name, '--help') == 0
    text = capsys.readouterr().out
    assert text.startswith(f'usage: trunchier {command.ALIASES.get(name, name)} ')
    own = r"(?<!_)(?<!mmpose's )(python tools/|tools/\w+\.py|tools/(benchmark|inspect|report)\b)"
    assert not re.search(own, text)


@pytest.mark.parametrize('name', ['predict', 'annotate'])
def test_help_says_how_models_are_named(monkeypatch, capsys, name):
    monkeypatch.setenv('COLUMNS', '1000')
    run(monkeypatch, name, '--help')
    line = capsys.readouterr().out.partition('\n  --model NAME')[2].partition('\n  --')[0]
    assert '`trunchier models`' in line and ' NAME+lift: ' in line
    for task in [*zoo.TASKS, 'lift']:
        assert re.search(rf'\b{task}\b', line)
    assert zoo.lifted_of('lift', None) and zoo.lifted_of('VMPose-T-S2+lift', None)
    named = re.search(r'an encoder \((.*?), (.*?)\)', line)
    assert named[1] in zoo.ENCODERS and zoo.timm_name(named[2])


@pytest.mark.parametrize('name', ['train', 'export', 'doctor', 'predict', 'benchmark'])
def test_an_error_in_the_command_line_names_the_command(monkeypatch, capsys, name):
    assert run(monkeypatch, name, '--colour') == 2
    assert f'\ntrunchier {name}: error: ' in capsys.readouterr().err


def test_a_failing_command_gives_its_status(monkeypatch, capsys):
    assert run(monkeypatch, 'convert-weights', 'absent.pth', 'out.pth') == 1
    assert 'absent.pth' in capsys.readouterr().err


def test_the_module_runs_too(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['trunchier', '--version'])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module('trunchier', run_name='__main__')
    assert stop.value.code == 0 and __version__ in capsys.readouterr().out


def test_offline_is_an_option_of_every_command(monkeypatch, capsys):
    monkeypatch.setenv('TRUNCHIER_OFFLINE', '0')
    assert run(monkeypatch, '--offline', 'download', 'yolox-s') == 1
    assert 'TRUNCHIER_OFFLINE' in capsys.readouterr().err


@pytest.mark.parametrize(
    'arguments',
    [
        ('--help',),
        ('models', 'ViT*'),
        ('download', 'absent'),
        ('predict', 'absent.jpg'),
        ('predict', 'camera', '--model', 'VMPose-T'),
    ],
)
def test_what_needs_no_network_imports_no_torch(arguments):
    script = (
        'import runpy, sys\n'
        f"sys.orig_argv = ['python', '-m', 'trunchier']; sys.argv = ['-m', *{arguments}]\n"
        "try: runpy.run_module('trunchier', run_name='__main__')\n"
        "except SystemExit: print('torch' in sys.modules, 'mmengine' in sys.modules)"
    )
    process = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
    assert process.stdout.splitlines()[-1] == 'False False', process.stderr


@pytest.mark.parametrize(
    ('program', 'words', 'is_command'),
    [
        ('/usr/bin/trunchier', ['trunchier'], True),
        ('trunchier.exe', ['trunchier.exe'], True),
        ('-m', ['-X', 'dev', '-m', 'trunchier', '--help'], True),
        ('-m', ['-m', 'another.package', '-m', 'trunchier'], False),
        ('-c', ['-c', 'import trunchier'], False),
        ('tools/train.py', ['tools/train.py', 'trunchier'], False),
        ('', [], False),
    ],
)
def test_importing_registers_unless_the_process_is_the_command(
    monkeypatch, program, words, is_command
):
    monkeypatch.setattr(sys, 'argv', [program])
    monkeypatch.setattr(sys, 'orig_argv', ['python', *words])
    assert trunchier._is_command() is is_command


def test_registering_makes_every_public_name_what_importing_makes_it():
    assert trunchier.register() is None
    assert trunchier.deploy is not sys.modules['trunchier.deploy']
    assert {*trunchier.__all__} <= {*dir(trunchier)}


def test_a_photo_is_predicted_without_what_prediction_does_not_need(tmp_path):
    """Each of these packages takes long to import; the fast path stays fast without a clock."""
    cv2.imwrite(str(tmp_path / 'photo.png'), np.full((60, 80, 3), 128, np.uint8))
    script = (
        'import runpy, sys\n'
        "sys.orig_argv = ['python', '-m', 'trunchier']\n"
        "sys.argv = ['-m', 'predict', 'photo.png', '--detector', 'whole_image']\n"
        "try: runpy.run_module('trunchier', run_name='__main__')\n"
        'except SystemExit as stop: print(stop.code)\n'
        "slow = ('torch.distributed.fsdp', 'numba', 'mmcv', 'mmpose', 'scipy', 'matplotlib')\n"
        'print([name for name in slow if name in sys.modules])'
    )
    process = subprocess.run(
        [sys.executable, '-c', script], capture_output=True, text=True, cwd=tmp_path
    )
    assert process.stdout.splitlines() == ['0', '[]'], process.stderr
    assert (tmp_path / 'outputs/visualizations/photo.jpg').is_file()
