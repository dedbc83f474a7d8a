"""Encoders of timm, cut after a stage."""

import re

import cv2
import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, init_default_scope
from small_models import ROOT
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from trunchier.inference import command
from trunchier.models import create_model
from trunchier.synthetic.coco import write_coco
from trunchier.weights.find import find_config

pytest.importorskip('timm')
import timm

from trunchier.deploy.export import export
from trunchier.deploy.fuse import deploy
from trunchier.models.backbones.timm import TruncatedTimm, _build

SIZE = (64, 64)
ROWS = re.findall(
    r'^\| `(\w+)` \| (\d+) \| ([\d.]+) \| ([\d.]+) \|$',
    (ROOT / 'docs' / 'encoders.md').read_text(encoding='utf-8'),
    re.MULTILINE,
)


# Convolutions, attention (NHWC inside, built for one size), families whose blocks are nested.
@pytest.mark.parametrize(
    'name',
    [
        *('convnext_atto', 'swin_tiny_patch4_window7_224', 'starnet_s1', 'pvt_v2_b0'),
        *('mobilenetv4_conv_small', 'efficientvit_b0', 'fastvit_t8'),
    ],
)
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
        features = whole.forward_intermediates(images, intermediates_only=True)
    sides = [16, 8]
    assert [tuple(y.shape[2:]) for y in found] == [(side, side) for side in sides]
    for side, y in zip(sides, found, strict=True):
        assert torch.equal(y, [x for x in features if x.shape[2] == side][-1])
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


def same_when_deployed(name):
    """Largest error of the deployed network, in standard deviations of its heatmaps."""
    torch.manual_seed(0)
    model = create_model(name).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values, low, high in (
                (module.weight, 0.5, 1.5),
                (module.bias, -0.2, 0.2),
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.5, 2),
            ):
                nn.init.uniform_(values, low, high)
    images = torch.randn(1, 3, 256, 192)
    fast = deploy(model)
    with torch.no_grad():
        slow, found = (each.head(each.extract_feat(images)) for each in (model, fast))
    return (found - slow).abs().max() / slow.std()


# Families whose branches of training timm joins itself, one by `fuse`, one by `reparameterize`.
@pytest.mark.parametrize('name', ['repvit_m0_9-s3', 'fastvit_t8-s3'])
def test_a_deployed_network_has_fewer_parts_and_the_same_heatmaps(name):
    assert same_when_deployed(name) < 1e-4
    model = create_model(name)
    fast = deploy(model)
    before, after = (
        sum(map(torch.numel, each.backbone.state_dict().values())) for each in (model, fast)
    )
    assert after < before


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


def gradients(model, images):
    (y,) = model(images)
    (y * y).sum().backward()
    return {name: param.grad for name, param in model.named_parameters()}


def test_blocks_that_are_recomputed_give_the_same_gradients():
    plain = TruncatedTimm('convnext_atto', 2)
    saving = TruncatedTimm('convnext_atto', 2, with_cp=True)
    saving.load_state_dict(plain.state_dict())
    calls = []
    block = saving.net.model.stages[1].blocks[0]
    block.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    images = torch.randn(1, 3, *SIZE)
    found, expected = gradients(saving, images), gradients(plain, images)
    assert len(calls) == 2
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    'name, freeze, frozen, learning',
    [
        ('pvt_v2_b0', ('attn',), ('attn', 'norm1'), ('mlp', 'norm2', 'patch_embed')),
        ('convnext_atto', ('ffn',), ('mlp', 'norm'), ('conv_dw', 'stem', 'downsample')),
    ],
)
def test_kinds_of_layers_are_frozen_and_stay_in_eval_mode(name, freeze, frozen, learning):
    model = TruncatedTimm(name, 2, freeze=freeze).train()
    params = [*model.named_parameters()]
    for parts, trained in ((frozen, False), (learning, True)):
        for part in parts:
            assert {p.requires_grad for key, p in params if part in key} == {trained}
    evals = [key for key, module in model.named_modules() if not module.training]
    assert evals and all(any(part in key for part in frozen) for key in evals)


@pytest.mark.parametrize('frozen_stages, last', [(0, 'stem.1.bias'), (1, 'stages.0.blocks.1')])
def test_stages_are_frozen_with_the_stem(frozen_stages, last):
    model = TruncatedTimm('convnext_atto', 2, frozen_stages=frozen_stages)
    learns = [param.requires_grad for param in model.parameters()]
    first = learns.index(True)
    names = [name for name, _ in model.named_parameters()]
    assert all(learns[first:]) and names[first - 1].startswith(f'net.model.{last}')
    assert not model.net.model.stem.training and model.net.model.stages[1].training


# Files with another number of classes and for another image size, and of the features alone.
@pytest.mark.parametrize('classes, wrapper', [(7, 'model'), (0, None)])
def test_a_file_in_the_layout_of_timm_starts_a_training(tmp_path, classes, wrapper):
    name = 'swin_tiny_patch4_window7_224'
    whole = timm.create_model(name, num_classes=classes)
    state = whole.state_dict()
    torch.save({wrapper: state} if wrapper else state, tmp_path / 'w.pth')
    init_cfg = dict(type='TimmPretrained', checkpoint=str(tmp_path / 'w.pth'))
    cut = TruncatedTimm(name, 3, img_size=SIZE, init_cfg=init_cfg)
    cut.init_weights()
    own = cut.net.model.state_dict()
    same = [key for key in own if torch.equal(own[key], state[key])]
    resized = own.keys() - same
    assert resized and all('relative_position_bias_table' in key for key in resized)


def test_a_file_of_another_network_is_refused(tmp_path):
    torch.save(timm.create_model('convnext_femto').state_dict(), tmp_path / 'w.pth')
    init_cfg = dict(type='TimmPretrained', checkpoint=str(tmp_path / 'w.pth'))
    with pytest.raises(RuntimeError, match='size mismatch'):
        TruncatedTimm('convnext_atto', 2, init_cfg=init_cfg).init_weights()


def test_an_encoder_of_timm_makes_a_mesh_model_too():
    with torch.device('meta'):
        model = create_model('convnext_atto-s3', task='mesh', body_model=None)
    assert type(model).__name__ == 'MeshEstimator'
    assert model.neck.num_stages == 3 and not find_config('convnext_atto-s3').cfg.get('init_cfg')


def test_the_command_predicts_with_an_encoder_of_timm(tmp_path):
    name = 'convnext_atto-s2'
    torch.save(create_model(name).state_dict(), tmp_path / 'w.pth')
    cv2.imwrite(str(tmp_path / 'a.png'), np.zeros((64, 48, 3), np.uint8))
    out = tmp_path / 'out'
    options = ['--weights', tmp_path / 'w.pth', '--out-dir', out, '--detector', 'whole_image']
    given = [tmp_path / 'a.png', '--model', name, *options, '--save', 'json']
    assert command.main([str(each) for each in given]) == 0
    assert [*out.rglob('a.json')]


@pytest.mark.parametrize(
    'options, words',
    [
        (dict(freeze=('attn',)), 'no block of convnext_atto has attn layers'),
        (dict(freeze='ffn'), "give a tuple of 'attn', 'ffn'"),
        (dict(frozen_stages=3), r'give -1 .none., 0 .stem. or 1 to 2'),
        (dict(num_stages=5), 'give 1 to 4 stages'),
    ],
)
def test_options_that_do_not_fit_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        TruncatedTimm('convnext_atto', **dict(dict(num_stages=2), **options))


def test_images_of_another_size_than_the_windows_are_refused_with_the_remedy():
    model = TruncatedTimm('swin_tiny_patch4_window7_224', 2, img_size=(64, 64))
    with pytest.raises(ValueError, match=r'give the backbone img_size=\(64, 96\)'):
        model(torch.zeros(1, 3, 64, 96))
    with pytest.raises(ValueError, match=r'img_size=\(100, 70\); give multiples of 32'):
        TruncatedTimm('swin_tiny_patch4_window7_224', 2, img_size=(100, 70))


@pytest.mark.parametrize(
    'name, words',
    [
        ('convnext_tinyy-s3', 'near: convnext_tiny'),
        ('vmt-s3', 'near: VM'),
        ('shvit_s1-s2', 'no map of 1/8 .stage 2.; its maps are 1/16, 1/32'),
        ('nest_tiny-s3', 'square images alone'),
    ],
)
def test_what_cannot_be_cut_is_refused_by_name(name, words):
    with pytest.raises(ValueError, match=words):
        create_model(name)


@pytest.mark.slow
@pytest.mark.parametrize('name, channels, parameters, macs', ROWS, ids=lambda value: value)
def test_every_row_of_the_table_is_what_the_cut_network_costs(name, channels, parameters, macs):
    """Up to 1/16 at 256 x 192; two decimals of millions and of 1e9 multiply-accumulates."""
    with torch.device('meta'):
        model = TruncatedTimm(name, 3).eval()
    with torch.device('meta'), FlopCounterMode(display=False) as counter, torch.no_grad():
        *_, feature = model(torch.empty(1, 3, 256, 192))
    assert feature.shape == (1, int(channels), 16, 12)
    count = sum(map(torch.numel, model.parameters()))
    assert abs(count / 1e6 - float(parameters)) < 0.006
    assert abs(counter.get_total_flops() / 2e9 - float(macs)) < 0.006


@pytest.mark.slow
@pytest.mark.parametrize('name', [row[0] for row in ROWS])
def test_every_row_of_the_table_has_the_feature_of_the_whole_up_to_one_sixteenth(name):
    torch.manual_seed(0)
    cut = TruncatedTimm(name, 3).eval()
    whole, _ = _build(name, (256, 192))
    whole.eval()
    state = whole.state_dict()
    cut.net.model.load_state_dict({key: state[key] for key in cut.net.model.state_dict()})
    images = torch.randn(1, 3, 256, 192)
    with torch.no_grad():
        (found,) = cut(images)
        features = whole.forward_intermediates(images, intermediates_only=True)
    assert torch.equal(found, [x for x in features if x.shape[2:] == (16, 12)][-1])


@pytest.mark.slow
@pytest.mark.parametrize('name', [row[0] for row in ROWS])
def test_every_row_of_the_table_has_the_same_heatmaps_when_deployed(name):
    assert same_when_deployed(f'{name}-s3') < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize('name', [row[0] for row in ROWS])
def test_every_row_of_the_table_runs_as_an_onnx_file(name, tmp_path):
    torch.manual_seed(0)
    written = export(f'{name}-s3', tmp_path / 'a.onnx', 'random')
    assert written.network.metadata['model'].startswith(name)
    assert written.errors['heatmaps'] < 1e-4


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    """A batch of 4 synthetic people with heatmaps, crops of 128 x 96."""
    folder = tmp_path_factory.mktemp('people')
    write_coco(folder / 'drawn', 4, size=128)
    init_default_scope('mmpose')
    pipeline = [
        *(dict(type='LoadImage'), dict(type='GetBBoxCenterScale')),
        dict(type='TopdownAffine', input_size=(96, 128), use_udp=True),
        *(dict(type='GenerateTarget', encoder=CODEC), dict(type='PackPoseInputs')),
    ]
    dataset = dict(type='CocoDataset', data_mode='topdown', data_root=str(folder / 'drawn'))
    dataset.update(ann_file='annotations.json', data_prefix=dict(img='images/'))
    return pseudo_collate(list(DATASETS.build(dict(dataset, pipeline=pipeline))))


CODEC = dict(type='UDPHeatmap', input_size=(96, 128), heatmap_size=(24, 32), sigma=2)


@pytest.mark.slow
@pytest.mark.parametrize(
    'name',
    [
        *('mobilenetv4_conv_small', 'efficientvit_b0', 'repvit_m0_9', 'fastvit_t8', 'starnet_s1'),
        *('pvt_v2_b0', 'convnext_atto', 'edgenext_xx_small', 'efficientformerv2_s0', 'resnet18'),
        *('mambaout_femto', 'swin_tiny_patch4_window7_224'),
    ],
)
def test_a_model_of_every_kind_learns_in_30_steps(name, drawn):
    torch.manual_seed(0)
    size = dict(img_size=(128, 96))
    model = create_model(f'{name}-s3', backbone=size, head=dict(decoder=CODEC)).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    data = model.data_preprocessor(drawn, training=True)
    losses = []
    for _ in range(30):
        loss = model.loss(**data)['loss_kpt']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.8 * losses[0]
    print(f'{name}: {losses[0]:.5f} -> {np.mean(losses[-5:]):.5f}')
