"""examples/distillation.py and progressive.py: tables that resume, on a few steps."""

import csv
import importlib
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parents[1] / 'examples'
SMALL = ('--width', '0.125', '--steps', '1', '--batch', '4', '--people', '8', '--tested', '4')

pytest.importorskip('mmpose')


@pytest.fixture
def example(monkeypatch, tmp_path):
    """Function: a name and options to the lines of its table."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(sys, 'path', list(sys.path))

    def run(name, *options):
        module = importlib.import_module(name)
        if name == 'distillation':
            monkeypatch.setattr(module, 'STUDENTS', ('swin-t-s2',))
            monkeypatch.setattr(module, 'VARIANTS', ('labels', 'both'))
        monkeypatch.setattr(sys, 'argv', [name, '--out', str(tmp_path), *options])
        module.main()
        with open(tmp_path / 'results.csv', newline='') as file:
            return list(csv.reader(file))

    yield run
    for name in ('distillation', 'progressive'):
        sys.modules.pop(name, None)


@pytest.mark.slow
def test_the_experiment_continues_where_it_ended(example, tmp_path):
    options = (*SMALL, '--teacher-steps', '1', '--token-steps', '1')
    first = example('distillation', *options, '--seeds', '0')
    assert [row[:3] for row in first[1:]] == [
        ['vm-t-s4', 'labels', '0'],
        ['vm-t-s4', 'token alone', '0'],
        ['swin-t-s2', 'labels', '0'],
        ['swin-t-s2', 'both', '0'],
    ]
    again = example('distillation', *options, '--seeds', '0')
    assert again == first
    with pytest.raises(SystemExit, match='was begun with'):
        example('distillation', *options, '--seeds', '0', '--batch', '2')


def test_rounds_of_the_progressive_loop_continue_where_they_ended(example, tmp_path):
    options = (*SMALL, '--labels', '4', '--model', 'swin-t-s2')
    first = example('progressive', *options, '--rounds', '1')
    both = example('progressive', *options, '--rounds', '2')
    assert both[:2] == first and len(both) == 3
    assert [row[-1] for row in both] == ['people', '4', '6']  # half of the other four
    weights = torch.load(tmp_path / 'round-1.pth')
    (tmp_path / 'results.csv').unlink()
    assert example('progressive', *options, '--rounds', '2') == both
    again = torch.load(tmp_path / 'round-1.pth')
    assert all(again[key].equal(value) for key, value in weights.items())
