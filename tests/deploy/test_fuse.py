"""Deployed models equal the original ones, and the authors' values; they only predict."""

import copy
import io
import pickle

import pytest
import small_models
import torch
from golden_rule import assert_matches, golden_input, golden_state, load_golden, official_shapes
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from small_models import BACKBONES, backbone, estimator, lively
from torch import nn

import trunchier
from trunchier.deploy.fuse import deploy
from trunchier.models import HMR2Head, StageAdapter, TruncatedGMF, TruncatedSwin, TruncatedVMamba
from trunchier.models.heatmaps import HeatmapHead
from trunchier.ops import int8, linear
from trunchier.ops.folding import fold
from trunchier.ops.linear import PackedConv2d, PackedLinear
from trunchier.weights.families import from_groupmixformer, from_swin, from_vmamba

needs_int8 = pytest.mark.skipif(not int8.available(), reason=int8.ABSENT)


def outputs(model, images):
    """{name: tensor} of any of these models."""
    with torch.no_grad():
        y = model(images, None, mode='tensor') if hasattr(model, 'backbone') else model(images)
    if torch.is_tensor(y):
        return {'': y}
    return y if isinstance(y, dict) else dict(enumerate(y))


def error(found, expected):
    """Largest error of any output, in standard deviations of it."""
    assert found.keys() == expected.keys()
    return max(float((found[k] - expected[k]).abs().max() / expected[k].std()) for k in expected)


# --- equal ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    'kind, convert, keys, golden',
    [
        (TruncatedSwin, from_swin, 'swin_tiny_keys', 'swin_tiny_det'),
        (TruncatedGMF, from_groupmixformer, 'gmf_tiny_keys', 'gmf_tiny'),
        (TruncatedVMamba, from_vmamba, 'vmamba_tiny_keys', 'vmamba_tiny'),
    ],
)
def test_every_stage_has_the_official_values(kind, convert, keys, golden):
    golden = load_golden(golden)
    model = kind('tiny', out_indices=(0, 1, 2, 3), out_norm=False)
    state = convert(golden_state(official_shapes(keys)))
    model.load_state_dict({key: state[key] for key in model.state_dict()})
    model = deploy(model, inplace=True)
    for stage, output in outputs(model, golden_input(**golden['input'])).items():
        assert_matches(output, golden[f'stage{stage + 1}_raw'])


@pytest.fixture
def choose(monkeypatch):
    """Function that selects the backend of linear layers."""
    return lambda name: monkeypatch.setattr(linear, '_choice', lambda: name)


@pytest.mark.parametrize('family', BACKBONES)
@pytest.mark.parametrize('size', [(64, 48), (61, 37)])
@pytest.mark.parametrize('backend', ['mkl', 'onednn'])
def test_backbones_are_equal_at_any_size(family, size, backend, choose):
    model = backbone(family, out_indices=(0, 1, 2, 3))
    images = torch.randn(3, 3, *size)
    choose('mkl')
    expected = outputs(model, images)
    choose(backend)
    assert error(outputs(deploy(model), images), expected) < 1e-5


@pytest.mark.parametrize('family', BACKBONES)
@pytest.mark.parametrize('task', ['pose', 'mesh'])
def test_whole_models_are_equal(task, family):
    model = estimator(task, family)
    images = torch.randn(2, 3, 256, 192)
    expected = outputs(model, images)
    deployed = deploy(model)
    assert type(deployed) is type(model)
    assert error(outputs(deployed, images), expected) < 1e-5


def test_plain_vits_are_equal():
    pytest.importorskip('mmpretrain')
    from mmpretrain.models import VisionTransformer

    arch = dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64)
    vit = VisionTransformer(
        arch, (256, 192), 16, patch_cfg=dict(padding=2), with_cls_token=False, out_type='featmap'
    )
    lively(vit)
    images = torch.randn(2, 3, 256, 192)
    deployed = deploy(vit)
    assert error(outputs(deployed, images), outputs(vit, images)) < 1e-5
    layers = [module for module in deployed.modules() if isinstance(module, nn.Linear)]
    assert {type(layer) for layer in layers} == {PackedLinear}
    assert [layer.activation for layer in layers].count('gelu') == arch['num_layers']
    assert not any(type(module) is nn.GELU for module in deployed.modules())


@pytest.mark.parametrize(
    'part, shape',
    [
        (StageAdapter(16, 24, 4), (2, 16, 8, 6)),
        (HMR2Head(16, depth=2, num_heads=2, head_dim=8, mlp_dim=32), (2, 16, 16, 12)),
    ],
    ids=['neck', 'head'],
)
def test_parts_are_equal(part, shape):
    x = torch.randn(shape)
    given = (x,) if isinstance(part, StageAdapter) else x
    assert error(outputs(deploy(part), given), outputs(part, given)) < 1e-5


@pytest.mark.parametrize('family', BACKBONES)
def test_in_double_precision_it_is_the_same_function(family):
    model = backbone(family).double()
    images = torch.randn(1, 3, 40, 40, dtype=torch.float64)
    assert error(outputs(deploy(model), images), outputs(model, images)) < 1e-13


@pytest.mark.parametrize(
    'layer', [nn.Conv2d(6, 4, 3), nn.ConvTranspose2d(6, 4, 3), nn.Linear(5, 4, bias=False)],
    ids=lambda layer: type(layer).__name__,
)  # fmt: skip
@pytest.mark.parametrize('affine', [True, False])
@torch.no_grad()
def test_a_norm_is_folded_into_the_layer_before_it(layer, affine):
    is_linear = isinstance(layer, nn.Linear)
    norm = (nn.BatchNorm1d if is_linear else nn.BatchNorm2d)(4, affine=affine)
    both = lively(nn.Sequential(copy.deepcopy(layer), norm))
    x = torch.randn(3, 5) if is_linear else torch.randn(2, 6, 5, 5)
    expected = both(x)
    folded, rest = fold(*both)
    assert type(rest) is nn.Identity
    torch.testing.assert_close(folded(x), expected)


def test_a_norm_without_statistics_stays():
    norm = nn.BatchNorm2d(4, track_running_stats=False)
    assert fold(nn.Conv2d(3, 4, 1), norm)[1] is norm


@torch.no_grad()
def test_activations_join_the_linear_layer_before_them():
    sequence = [nn.Linear(6, 8), nn.BatchNorm1d(8), nn.GELU(), nn.Hardswish(), nn.Linear(8, 4)]
    model = lively(nn.Sequential(*sequence, nn.GELU(approximate='tanh'), nn.Conv1d(4, 4, 1)))
    x = torch.randn(4, 6)
    expected = model[:-1](x)
    folded = fold(*model)
    kinds = [type(module).__name__ for module in folded]
    assert kinds == ['PackedLinear', 'Identity', 'Identity', 'Hardswish', 'PackedLinear', 'GELU',
                     'Conv1d']  # fmt: skip
    torch.testing.assert_close(nn.Sequential(*folded[:-1])(x), expected)


# --- families of users ----------------------------------------------------------------------------
class Scaled(nn.Module):
    """x times a parameter, which is a linear layer in inference."""

    def __init__(self, width):
        super().__init__()
        self.scale = nn.Parameter(torch.randn(width))

    def forward(self, x):
        return x * self.scale

    def fuse(self):
        layer = nn.Linear(len(self.scale), len(self.scale), bias=False)
        layer.weight.data = self.scale.diag()
        return layer


class UserBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.scaled, self.norm = Scaled(width), nn.BatchNorm1d(width)
        self.fused = 0

    def forward(self, x):
        return self.norm(self.scaled(x))

    def fuse(self):
        assert isinstance(self.scaled, nn.Linear), 'children come first'
        self.scaled, self.norm = fold(self.scaled, self.norm)
        self.fused += 1


class UserBackbone(BaseModule):
    def __init__(self):
        super().__init__()
        shared = UserBlock(6)
        self.layers = nn.ModuleList([UserBlock(6), shared, shared])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return (x,)


def test_a_family_of_a_user_folds_itself():
    MODELS.register_module(module=UserBackbone, force=True)
    model = lively(MODELS.build(dict(type='UserBackbone')))
    x = torch.randn(3, 6)
    deployed = deploy(model)
    assert error(outputs(deployed, x), outputs(model, x)) < 1e-5
    assert [layer.fused for layer in deployed.layers] == [1, 1, 1]
    assert deployed.layers[1] is deployed.layers[2], 'a shared module stays shared'
    assert not any(isinstance(module, nn.BatchNorm1d) for module in deployed.modules())


# --- cheaper --------------------------------------------------------------------------------------
def test_nothing_is_left_to_fold():
    for task in ('pose', 'mesh'):
        deployed = deploy(estimator(task, 'gmf'))
        left = [
            name for name, module in deployed.named_modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and not name.endswith('norm1')
        ]  # fmt: skip
        assert left == [], 'the output norm of the backbone has no layer before it'


def test_linear_layers_are_packed_once_and_follow_their_weights(choose):
    choose('onednn')
    model = backbone('swin')
    deployed = deploy(model)
    images = torch.randn(1, 3, 64, 48)
    before = outputs(deployed, images)
    layer = deployed.stages[0].blocks[0].mlp.fc1
    kept = layer.packed()
    assert kept.layout == torch._mkldnn
    assert layer.packed() is kept
    with torch.no_grad():
        layer.weight.mul_(2)
        model.stages[0].blocks[0].mlp.fc1.weight.mul_(2)
    assert error(outputs(deployed, images), outputs(model, images)) < 1e-5
    assert error(outputs(deployed, images), before) > 1e-3, 'the copy follows its weight'


def test_packed_convolutions_are_equal_at_any_size(monkeypatch):
    conv = PackedConv2d(6, 8, 3, stride=2, padding=1)
    plain = nn.Conv2d(6, 8, 3, stride=2, padding=1)
    plain.load_state_dict(conv.state_dict())
    for size in ((1, 6, 9, 7), (3, 6, 20, 31), (1, 6, 1, 1)):
        for layout in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(size).contiguous(memory_format=layout)
            with torch.no_grad():
                torch.testing.assert_close(conv(x), plain(x))
    assert conv._kept is not None
    strange = torch.randn(2, 9, 6, 14)[..., ::2].transpose(1, 2)
    with torch.no_grad():
        torch.testing.assert_close(conv(strange), plain(strange))


@pytest.mark.parametrize(
    'options',
    [
        dict(groups=2),
        dict(bias=False),
        dict(dilation=2),
        dict(padding='same', stride=1),
        dict(padding='valid'),
        dict(padding_mode='reflect'),
    ],
    ids=str,
)
def test_convolutions_of_any_kind_are_equal(options):
    options = dict(dict(stride=2, padding=1), **options)
    conv, plain = (kind(6, 8, 3, **options) for kind in (PackedConv2d, nn.Conv2d))
    plain.load_state_dict(conv.state_dict())
    x = torch.randn(2, 6, 9, 7)
    torch.testing.assert_close(conv(x), plain(x))
    with torch.no_grad():
        torch.testing.assert_close(conv(x), plain(x))
        torch.testing.assert_close(conv(x[0]), plain(x[0]))
        torch.testing.assert_close(conv.double()(x.double()), plain.double()(x.double()))


# --- separate -------------------------------------------------------------------------------------
@pytest.mark.parametrize('family', BACKBONES)
def test_the_original_model_is_unchanged(family):
    model = estimator('pose', family)
    model.train()
    state = copy.deepcopy(model.state_dict())
    outputs(deploy(model), torch.randn(1, 3, 256, 192))
    assert model.training
    assert all(param.requires_grad for param in model.parameters())
    after = model.state_dict()
    assert after.keys() == state.keys()
    assert all(torch.equal(after[key], state[key]) for key in state)
    model.train()


def test_in_place_it_is_the_same_model():
    model = backbone('gmf')
    expected = outputs(model, images := torch.randn(1, 3, 40, 40))
    assert deploy(model, inplace=True) is model
    assert error(outputs(model, images), expected) < 1e-5


def test_outputs_require_no_gradient(choose):
    choose('onednn')
    (output,) = deploy(backbone('gmf'))(torch.randn(2, 3, 64, 48))
    assert not output.requires_grad


def test_deployed_models_can_be_copied_and_saved():
    deployed = deploy(backbone('gmf'))
    images = torch.randn(1, 3, 64, 48)
    expected = outputs(deployed, images)
    file = io.BytesIO()
    torch.save(deployed, file)
    file.seek(0)
    for again in (copy.deepcopy(deployed), pickle.loads(pickle.dumps(deployed)),
                  torch.load(file, weights_only=False)):  # fmt: skip
        assert error(outputs(again, images), expected) < 1e-6
        with pytest.raises(RuntimeError, match='is deployed and cannot train'):
            again.train()
        assert again.eval() is again


# --- other types ----------------------------------------------------------------------------------
@pytest.mark.parametrize('family', BACKBONES)
@pytest.mark.parametrize('task', ['pose', 'mesh'])
def test_bfloat16_is_close(task, family):
    torch.manual_seed(1)  # of seed 0, one random rotation is ill-conditioned
    model = estimator(task, family)
    images = torch.randn(2, 3, 256, 192)
    found = outputs(deploy(model, precision='bf16'), images)
    assert all(tensor.dtype == torch.float32 for tensor in found.values())
    assert 1e-4 < error(found, outputs(model, images)) < 0.2


@pytest.mark.parametrize('family', BACKBONES)
def test_a_bfloat16_backbone_takes_and_returns_float32(family):
    model = backbone(family)
    images = torch.randn(1, 3, 64, 48)
    deployed = deploy(model, precision='bf16')
    found = outputs(deployed, images)
    assert found[0].dtype == torch.float32
    assert 1e-4 < error(found, outputs(model, images)) < 0.2
    exact = {'A_logs', 'Ds', 'dt_projs_bias'}
    for name, param in deployed.named_parameters():
        expected = torch.float32 if name.rpartition('.')[2] in exact else torch.bfloat16
        assert param.dtype == expected, name


@needs_int8
@torch.no_grad()
@pytest.mark.parametrize('family', BACKBONES)
def test_int8_features_are_close_and_the_mesh_head_stays_float32(family):
    model, images = estimator('mesh', family), torch.randn(2, 3, 64, 48)
    deployed = deploy(model, precision='int8')
    features, expected = (each.extract_feat(images)[-1] for each in (deployed, model))
    assert 1e-3 < float((features - expected).std() / expected.std()) < 0.05
    rounded = [name for name, each in deployed.named_modules() if 'Int8' in type(each).__name__]
    assert {name.partition('.')[0] for name in rounded} == {'backbone', 'neck'}


@needs_int8
@torch.no_grad()
def test_int8_heatmaps_are_close():
    head = HeatmapHead(64, 17, (32, 32), (4, 4)).eval()
    head.final_layer.weight.normal_(0, 0.1)
    deployed, features = deploy(head, precision='int8'), (torch.randn(2, 64, 8, 6),)
    kinds = [type(each).__name__ for each in deployed.modules()]
    assert (kinds.count('Int8Deconv2d'), kinds.count('PackedConv2d')) == (2, 1)
    expected = head(features)
    assert 1e-3 < float((deployed(features) - expected).std() / expected.std()) < 0.05


@needs_int8
@torch.no_grad()
def test_crops_of_people_fix_the_scales_of_int8():
    model, crops = small_models.estimator('pose', 'vmamba'), torch.randn(3, 3, 256, 192)
    dynamic, fixed = (deploy(model, precision='int8', calibration=given) for given in (None, crops))
    layers = [each for each in fixed.modules() if hasattr(each, 'fixed')]
    assert layers and all(each.fixed for each in layers)
    images = crops.flip(-1)
    expected, found = (each.head(each.extract_feat(images)) for each in (dynamic, fixed))
    assert float((found - expected).square().mean().sqrt()) < 0.1 * float(expected.std())


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(calibration=torch.zeros(1, 3, 8, 8)), "calibration is for 'int8', not 'fp32'"),
        (dict(calibration=torch.zeros(0, 3, 8, 8), precision='int8'), 'give crops of people'),
    ],
)
def test_calibration_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        deploy(backbone('swin'), **options)


def test_int8_is_refused_where_there_are_no_such_products(monkeypatch):
    monkeypatch.setattr(int8, 'available', lambda: False)
    with pytest.raises(RuntimeError, match='has no 8-bit products for this CPU; take precision'):
        deploy(backbone('swin'), precision='int8')


# --- errors ---------------------------------------------------------------------------------------
def test_training_is_refused():
    deployed = trunchier.deploy(backbone('swin'))
    with pytest.raises(RuntimeError, match='this TruncatedSwin is deployed and cannot train'):
        deployed.train()
    assert deployed.eval() is deployed


def test_checkpoints_are_refused():
    model = backbone('swin')
    with pytest.raises(RuntimeError, match='load the checkpoint into a model that is not'):
        deploy(model).load_state_dict(model.state_dict())


def test_deploying_twice_is_refused():
    with pytest.raises(TypeError, match='the model, or a part of it, is deployed'):
        deploy(deploy(backbone('swin')))
    with pytest.raises(TypeError, match='a part of it, is deployed already'):
        deploy(nn.Sequential(deploy(backbone('swin'))))


@pytest.mark.parametrize('thing', [None, 'swin'])
def test_other_things_than_modules_are_refused(thing):
    with pytest.raises(TypeError, match=f'cannot deploy a {type(thing).__name__}; give an nn.Mod'):
        deploy(thing)


def test_unknown_types_are_refused():
    with pytest.raises(ValueError, match="cannot deploy in 'int4'; give one of fp32, fp16, bf16"):
        deploy(backbone('swin'), precision='int4')
