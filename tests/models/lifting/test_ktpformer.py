"""KTPFormer: the authors' outputs and counts, and the graphs of its priors."""

import pytest
import torch
from golden_rule import golden_tensor
from lifters import (
    GOLDEN,
    assert_golden,
    golden_lifter,
    golden_window,
    lifter,
    parameters,
    records,
)
from torch.utils.flop_counter import FlopCounterMode

from trunchier.conventions import H36M_17_PARENTS
from trunchier.models import KTPFormer
from trunchier.models.lifting.ktpformer import GraphLayer, adjacency

pytest.importorskip('mmpose')


@torch.no_grad()
def test_the_priors_are_the_authors(tmp_path):
    model = lifter(dict(type='KTPFormer', seq_len=27, depth=1))
    network = golden_lifter(model, 'ktpformer_keys', tmp_path).backbone
    names = 'kinematic.graphs.0', 'kinematic', 'spatial_norm', 'trajectory.graphs.0', 'trajectory'
    found = records(network, *names, 'temporal_norm')
    convolved = []
    norm = network.kinematic.graphs[0].norm
    norm.register_forward_pre_hook(lambda _, args: convolved.append(args[0].mT))
    network.embed(golden_window('ktpformer_t27'))
    kpa, kpa_block, kpa_normed, tpa_first, tpa_block, tpa_normed = (each[0] for each in found)
    check = dict(kpa_graph_conv=convolved[0], kpa=kpa, kpa_block=kpa_block)
    check |= dict(kpa_block_normed=kpa_normed[0], tpa_first=tpa_first, tpa_block=tpa_block)
    check |= dict(tpa_block_normed=tpa_normed[0].transpose(0, 1))
    for output, tensor in check.items():
        assert_golden(tensor, 'ktpformer_t27', output)


@pytest.mark.slow
@pytest.mark.parametrize('frames', [27, 81])
@torch.no_grad()
def test_outputs_are_the_authors(frames, tmp_path):
    model = lifter(dict(type='KTPFormer', seq_len=frames))
    model = golden_lifter(model, 'ktpformer_keys', tmp_path)
    name = f'ktpformer_t{frames}'
    assert_golden(model(golden_window(name), None, mode='tensor'), name, 'output')


def test_counts_are_the_papers():
    with torch.device('meta'):
        model = lifter(dict(type='KTPFormer')).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.zeros(1, 243, 17, 2), None, mode='tensor')
    assert parameters(model) == 35_213_430
    macs = counter.get_total_flops() / 2
    assert round(macs / 1e9, 1) == 152.8
    # The authors multiply by diagonal matrices in full, once a graph layer; here these are vectors.
    diagonals = 512 * (243 * 17**2 + 2 * 17 * 243**2)
    assert round((macs + diagonals) / 1e9, 1) == 153.9


def test_the_skeleton_is_the_authors():
    bones = [(joint, parent) for joint, parent in enumerate(H36M_17_PARENTS) if parent >= 0]
    record = dict(GOLDEN['ktpformer_t27']['outputs']['adj_spatial'], dtype='float64')
    graph = adjacency(bones, 17)
    assert torch.equal(graph.double(), golden_tensor(record))
    assert torch.allclose(graph.sum(1), torch.full((17,), 2.0))


def test_frames_are_neighbors_of_the_next_and_the_last():
    graph = adjacency([(i, i + 1) for i in range(4)], 5)
    wanted = torch.eye(5) + torch.diag(torch.tensor([1, 0.5, 0.5, 0.5]), 1)
    assert torch.equal(graph, wanted + torch.diag(torch.tensor([0.5, 0.5, 0.5, 1]), -1))


def test_a_graph_without_edges_is_a_linear_layer():
    layer = GraphLayer(3, 4, torch.eye(5))
    torch.nn.init.zeros_(layer.learned)
    x = torch.randn(2, 5, 3)
    assert torch.allclose(layer.convolve(x), x @ layer.weight[0], atol=1e-6)


def test_every_parameter_learns():
    model = KTPFormer(width=16, depth=1, num_heads=2, seq_len=5)
    model(torch.randn(3, 5, 17, 2)).square().mean().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_shorter_window_has_the_first_positions():
    model = KTPFormer(width=16, depth=1, num_heads=2, seq_len=9).eval()
    assert model(torch.randn(2, 4, 17, 2)).shape == (2, 4, 17, 16)
