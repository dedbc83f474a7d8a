"""Encoders of timm, cut after a stage."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from trunchier.models import create_model
from trunchier.weights.find import find_config

pytest.importorskip('timm')
import timm

from trunchier.models.backbones.timm import TruncatedTimm

SIZE = (64, 64)


# Convolutions, attention (NHWC inside, built for one size), a family whose blocks are nested.
@pytest.mark.parametrize('name', ['convnext_atto', 'swin_tiny_patch4_window7_224', 'starnet_s1'])
def test_the_cut_network_has_the_feature_of_the_whole(name):
    torch.manual_seed(0)
    options = dict(img_size=SIZE) if 'swin' in name else {}
    whole = timm.create_model(name, **options).eval()
    cut = TruncatedTimm(name, 2, out_indices=(0, 1), img_size=SIZE).eval()
    state = whole.state_dict()
    cut.net.model.load_state_dict({key: state[key] for key in cut.net.model.state_dict()})
    images = torch.randn(1, 3, *SIZE)
    with torch.no_grad():
        found = cut(images)
        expected = whole.forward_intermediates(images, intermediates_only=True)
    assert [tuple(y.shape[2:]) for y in found] == [(16, 16), (8, 8)]
    assert all(torch.equal(y, x) for y, x in zip(found, expected, strict=False))
    assert sum(map(torch.numel, cut.parameters())) < sum(map(torch.numel, whole.parameters()))


# Up to 1/16 at 256 x 192: millions of parameters, 1e9 multiply-accumulates.
@pytest.mark.parametrize(
    'name, parameters, macs',
    [
        ('mobilenetv4_conv_small', 0.318, 0.127),
        ('levit_192', 1.263, 0.344),
        ('convnext_tiny', 12.348, 3.622),
    ],
)
def test_costs_are_those_of_the_stages_kept(name, parameters, macs):
    with torch.device('meta'):
        model = TruncatedTimm(name, 3).eval()
    with torch.device('meta'), FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, 256, 192))
    assert sum(map(torch.numel, model.parameters())) / 1e6 == pytest.approx(parameters, abs=6e-4)
    assert counter.get_total_flops() / 2e9 == pytest.approx(macs, abs=6e-4)


@pytest.mark.parametrize('name', ['convnext_atto-s2', 'repvit_m0_9-s3', 'fasternet_t0-s4'])
def test_a_name_makes_a_pose_model_with_adapter_and_decoder(name):
    with torch.device('meta'):
        model = create_model(name)
        heatmaps = model.head(model.extract_feat(torch.empty(1, 3, 256, 192)))
    assert heatmaps.shape == (1, 17, 64, 48)
    assert model.neck.num_stages == int(name[-1])
    (note,) = find_config(name).notes
    assert note.startswith("license of timm's weights of")


def test_layers_are_in_the_order_of_depth():
    model = TruncatedTimm('convnext_atto', 3)
    depth = {
        name: model.get_layer_depth(f'backbone.{name}', 'backbone.')
        for name, _ in model.named_parameters()
    }
    stem = depth['net.model.stem.0.weight']
    last = depth['net.model.stages.2.blocks.5.conv_dw.weight']
    assert stem[0] == 0 and last[0] == last[1] - 2
    with torch.device('meta'):
        ungrouped = TruncatedTimm('poolformer_s12', 3)
    assert ungrouped.get_layer_depth('net.model.stem.conv.weight') == (0, 14)
    assert ungrouped.get_layer_depth('net.model.stages.2.blocks.5.mlp.fc1.weight') == (12, 14)
    assert model.get_layer_depth('head.final_layer.weight', 'backbone.')[0] == last[1] - 1


def test_every_parameter_learns():
    model = TruncatedTimm('starnet_s1', 3).train()
    (y,) = model(torch.randn(2, 3, 64, 64))
    (y * torch.randn_like(y)).sum().backward()
    assert all(param.grad is not None for param in model.parameters())


@pytest.mark.parametrize(
    'name, words',
    [
        ('convnext_tinyy-s3', 'near: convnext_tiny'),
        ('shvit_s1-s2', 'no map of 1/8 .stage 2.; its maps are 1/16, 1/32'),
        ('nest_tiny-s3', 'square images alone'),
    ],
)
def test_what_cannot_be_cut_is_refused_by_name(name, words):
    with pytest.raises(ValueError, match=words):
        create_model(name)
