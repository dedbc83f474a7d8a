"""MotionAGFormer, alone and in a tokenizer: the authors' outputs, counts and graphs."""

import pytest
import torch
from lifters import (
    assert_golden,
    golden_lifter,
    golden_window,
    lifter,
    linear_macs,
    parameters,
    records,
)
from test_hourglass import check_golden, hourglass

from trunchier.conventions import H36M_17_PARENTS
from trunchier.models import MotionAGFormer
from trunchier.models.lifting.motionagformer import GraphMixer, normalized, skeleton

pytest.importorskip('mmpose')

HEAD = dict(type='LiftingHead', in_channels=128, embedding_size=512)
HOT = dict(type='MotionAGFormer', num_heads=4, neighbors=4)
SMALL = dict(type='MotionAGFormer', in_channels=2, width=16, depth=3, num_heads=2, seq_len=9)


@torch.no_grad()
def test_the_first_layer_is_the_authors(tmp_path):
    model = lifter(dict(type='MotionAGFormer', seq_len=81, depth=1), HEAD)
    network = golden_lifter(model, 'motionagformer_keys', tmp_path).backbone
    parts = 'att_spatial', 'att_temporal', 'graph_spatial', 'graph_temporal'
    found = records(network, *(f'layers.0.{part}' for part in parts))
    tokens = network.run_layer(0, network.embed(golden_window('motionagformer_t81')))
    assert_golden(tokens, 'motionagformer_t81', 'layer_0')
    for part, outputs in zip(parts, found, strict=True):
        over_time = part.endswith('temporal')
        tensor = outputs[0].transpose(0, 1) if over_time else outputs[0]
        assert_golden(tensor[None], 'motionagformer_t81', part)


@pytest.mark.slow
@torch.no_grad()
def test_outputs_are_the_authors(tmp_path):
    model = lifter(dict(type='MotionAGFormer', seq_len=81), HEAD)
    model = golden_lifter(model, 'motionagformer_keys', tmp_path)
    seventh = records(model.backbone, 'layers.7')[0]
    joints = model(golden_window('motionagformer_t81'), None, mode='tensor')
    assert_golden(seventh[0], 'motionagformer_t81', 'layer_7')
    assert_golden(joints, 'motionagformer_t81', 'output')


@pytest.mark.slow
@pytest.mark.parametrize(('frames', 'kept'), [(81, 27), (243, 81)])
@torch.no_grad()
def test_hot_on_it_is_the_authors(frames, kept, tmp_path):
    model = hourglass(dict(HOT, seq_len=frames), {7: kept}, head=HEAD)
    name = f'hot_motionagformer_t{frames}_n7_f{kept}'
    check_golden(name, model, 'hot_motionagformer_keys', tmp_path, 7, {})


@pytest.mark.parametrize(
    ('schedule', 'count', 'giga'),
    [
        pytest.param(None, 11_723_811, 95.922, marks=pytest.mark.slow),
        ({7: 81}, 11_828_031, 60.521),
    ],
)
def test_counts_are_the_papers(schedule, count, giga):
    with torch.device('meta'):
        if schedule is None:
            model = lifter(dict(type='MotionAGFormer'), HEAD).eval()
        else:
            model = hourglass(HOT, schedule, head=HEAD).eval()
            model.backbone.choose = lambda kept, *_: torch.arange(kept)[None]
        macs = linear_macs(model, torch.zeros(1, 243, 17, 3), None, 'tensor')
    assert parameters(model) == count
    assert round(2 * macs / 1e9, 3) == giga


def test_the_skeleton_lacks_three_bones_in_one_direction():
    edges = skeleton().tolist()
    bones = {frozenset(bone) for bone in enumerate(H36M_17_PARENTS) if bone[1] >= 0}
    found = {(a, b) for a in range(17) for b in range(17) if edges[a][b]}
    assert {frozenset(pair) for pair in found} == bones
    assert {(b, a) for a, b in found} - found == {(0, 4), (8, 11), (8, 14)}


def test_frames_are_neighbors_of_the_most_similar_ones():
    mixer = GraphMixer(2, 4, 2)
    x = torch.tensor([[[3.0, 0], [2, 0], [0, 1], [0, 1]]])
    assert mixer.edges_of(x)[0].tolist() == [
        [1, 1, 0, 0],
        [1, 1, 0, 0],
        [0, 0, 1, 1],
        [0, 0, 1, 1],
    ]
    tie = mixer.edges_of(torch.ones(1, 3, 2))
    assert torch.equal(tie, torch.ones(1, 3, 3))
    assert torch.allclose(normalized(tie), torch.full((1, 3, 3), 1 / 3))


@pytest.mark.parametrize('recovery', ['TRA', 'TRI', None])
def test_every_parameter_learns_in_a_tokenizer(recovery):
    model = hourglass(SMALL, {1: 5}, recovery=recovery, head=dict(HEAD, in_channels=16)).train()
    joints = model.head.joints(model.backbone(torch.randn(2, 9, 17, 2)))
    joints.square().mean().backward()
    assert [name for name, each in model.named_parameters() if each.grad is None] == []


def test_a_shorter_window_has_the_norms_of_the_first_frames():
    options = dict(SMALL)
    options.pop('type')
    model = MotionAGFormer(**options)
    model(torch.randn(2, 4, 17, 2))
    mean = model.layers[0].graph_temporal.mixer.norm.running_mean
    assert mean[:4].all() and not mean[4:].any()
