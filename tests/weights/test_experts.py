"""ViTPose++: one data set's plain ViTPose out of a file with experts."""

import runpy
from pathlib import Path

import pytest
import torch

from trunchier.weights.experts import split_expert
from trunchier.weights.load import read_weights, unwrap

SPLIT = runpy.run_path(str(Path(__file__).parents[2] / 'tools' / 'split.py'))['main']


def plus(kind='mlp'):
    """A ViTPose++ of two blocks: 6 channels, 2 of them from one of three experts; three heads."""
    torch.manual_seed(0)
    state = {}
    for i in range(2):
        start = f'backbone.blocks.{i}.'
        state |= {f'{start}norm2.bias': torch.randn(6), f'{start}mlp.fc1.weight': torch.randn(8, 6)}
        state |= {
            f'{start}mlp.fc2.weight': torch.randn(4, 8),
            f'{start}mlp.fc2.bias': torch.randn(4),
        }
        for k in range(3):
            state[f'{start}mlp.experts.{k}.weight'] = torch.randn(2, 8)
            state[f'{start}mlp.experts.{k}.bias'] = torch.randn(2)
    state['keypoint_head.final_layer.weight'] = torch.randn(17, 5, 1, 1)
    state['associate_keypoint_heads.0.final_layer.weight'] = torch.randn(14, 5, 1, 1)
    state['associate_keypoint_heads.1.final_layer.weight'] = torch.randn(16, 5, 1, 1)
    return state


@pytest.mark.parametrize('expert, number, joints', [('coco', 0, 17), ('mpii', 2, 16), (1, 1, 14)])
def test_rows_of_one_expert_follow_the_shared_rows(expert, number, joints):
    state = plus()
    plain = split_expert(state, expert)
    key = 'backbone.blocks.1.mlp.fc2.weight'
    assert torch.equal(plain[key][:4], state[key])
    assert torch.equal(plain[key][4:], state[f'backbone.blocks.1.mlp.experts.{number}.weight'])
    assert not any('experts' in key or 'associate' in key for key in plain)
    assert plain['keypoint_head.final_layer.weight'].shape[0] == joints


def test_the_names_of_other_libraries_are_kept():
    theirs = {
        key.replace('backbone.blocks', 'backbone.encoder.layer')
        .replace('norm2', 'layernorm_after')
        .replace('mlp.experts', 'mlp.experts.experts')
        .replace('keypoint_head.', 'head.'): value
        for key, value in plus().items()
        if 'associate' not in key
    }
    plain = split_expert(theirs, 'coco')
    assert plain['backbone.encoder.layer.0.mlp.fc2.bias'].shape == (6,)
    assert 'head.final_layer.weight' in plain
    with pytest.raises(ValueError, match='no head for data set 1.*--no-head'):
        split_expert(theirs, 'aic')
    assert not any('head' in key for key in split_expert(theirs, 'aic', head=False))


def test_what_cannot_be_split_is_refused_with_the_remedy():
    state = plus()
    with pytest.raises(ValueError, match='no data set .cocoo.; give one of coco, aic'):
        split_expert(state, 'cocoo')
    with pytest.raises(ValueError, match=r'has 0 \(coco\), 1 \(aic\), 2 \(mpii\)'):
        split_expert(state, 'wholebody')
    with pytest.raises(ValueError, match='no experts'):
        split_expert(split_expert(state, 'coco'), 'coco')
    merged = state | {k: v for k, v in split_expert(state, 'coco').items() if '.fc2.' in k}
    with pytest.raises(ValueError, match='was split already'):
        split_expert(merged, 'coco')


def test_the_command_writes_the_plain_model(tmp_path, capsys):
    torch.save(dict(state_dict=plus()), tmp_path / 'plus.pth')
    SPLIT([str(tmp_path / 'plus.pth'), '--expert', 'mpii'])
    assert 'expert mpii of 3' in capsys.readouterr().out
    written = unwrap(read_weights(tmp_path / 'plus-mpii.pth'))
    expected = split_expert(plus(), 'mpii')
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[key], expected[key]) for key in expected)
    with pytest.raises(SystemExit, match='ValueError: no data set'):
        SPLIT([str(tmp_path / 'plus.pth'), '--expert', 'dogs'])
