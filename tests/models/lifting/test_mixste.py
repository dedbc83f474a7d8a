"""MixSTE: the authors' outputs, counts and keys."""

import pytest
import torch
from lifters import (
    assert_golden,
    golden_checkpoint,
    golden_lifter,
    golden_window,
    lifter,
    linear_macs,
    parameters,
    records,
)
from mmengine.registry import MODELS

from trunchier.models import MixSTE
from trunchier.weights.load import CheckpointError, load_checkpoint

pytest.importorskip('mmpose')
SMALL = dict(type='MixSTE', width=16, depth=2, num_heads=2, seq_len=9)


@torch.no_grad()
def test_the_first_pair_is_the_authors(tmp_path):
    model = golden_lifter(lifter(dict(type='MixSTE', seq_len=27, depth=1)), 'mixste_keys', tmp_path)
    spatial, temporal = records(model.backbone, 'spatial_norm', 'temporal_norm')
    model.backbone(golden_window('mixste_t27'))
    assert_golden(spatial[0][0], 'mixste_t27', 'spatial_norm_0')
    assert_golden(temporal[0][0].transpose(0, 1), 'mixste_t27', 'temporal_norm_0')


@pytest.mark.slow
@pytest.mark.parametrize('frames', [27, 81, 243])
@torch.no_grad()
def test_outputs_are_the_authors(frames, tmp_path):
    model = golden_lifter(lifter(dict(type='MixSTE', seq_len=frames)), 'mixste_keys', tmp_path)
    name = f'mixste_t{frames}'
    spatial, temporal = records(model.backbone, 'spatial_norm', 'temporal_norm')
    assert_golden(model(golden_window(name), None, mode='tensor'), name, 'output')
    assert_golden(spatial[0][0], name, 'spatial_norm_0')
    if frames == 27:
        assert_golden(spatial[-1][0], name, 'spatial_norm_7')
        assert_golden(temporal[-1][0].transpose(0, 1), name, 'temporal_norm_7')


def test_counts_are_the_papers():
    with torch.device('meta'):
        model = lifter(dict(type='MixSTE'))
        macs = linear_macs(model, torch.zeros(1, 243, 17, 2), None, 'tensor')
    assert parameters(model) == 33_783_811
    assert round(2 * macs / 1e9, 3) == 277.248


def test_a_file_of_other_lengths_is_refused(tmp_path):
    model = lifter(dict(type='MixSTE', seq_len=27, depth=1))
    checkpoint = golden_checkpoint(model, 'mixste_keys', tmp_path, seq_len=81)
    with pytest.raises(CheckpointError, match=r'temporal_position: file \(1, 81, 512\)'):
        load_checkpoint(model, checkpoint)


@pytest.mark.parametrize('shape', [(1, 10, 17, 2), (1, 9, 17, 3), (9, 17, 2), (1, 0, 17, 2)])
def test_other_windows_are_refused(shape):
    with pytest.raises(ValueError, match=r'takes \(B, T, 17, 2\) with T of 1 to 9 frames'):
        MODELS.build(SMALL)(torch.zeros(shape))


def test_a_shorter_window_has_the_first_positions():
    model = MODELS.build(SMALL).eval()
    short = MODELS.build(dict(SMALL, seq_len=4)).eval()
    state = model.state_dict()
    state['temporal_position'] = torch.nn.init.normal_(state['temporal_position'])
    short.load_state_dict(dict(state, temporal_position=state['temporal_position'][:, :4]))
    window = torch.randn(2, 4, 17, 2)
    assert torch.equal(model(window), short(window))


def test_every_parameter_learns():
    model = MixSTE(width=16, depth=2, num_heads=2, seq_len=5, drop_path_rate=0.5).train()
    torch.manual_seed(1)
    model(torch.randn(3, 5, 17, 2)).square().mean().backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_a_width_that_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match='width=20 is no multiple of num_heads=8'):
        MixSTE(width=20)
