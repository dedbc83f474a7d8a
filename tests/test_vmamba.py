"""Truncated VMamba: the authors' numbers through the authors' keys, and what a backbone must do."""

import math

import pytest
import torch
from golden_rule import assert_matches, golden_input, golden_state, load_golden, official_shapes
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, DefaultScope

from trunchier import checkpoints
from trunchier.checkpoints import from_vmamba
from trunchier.models import TruncatedVMamba
from trunchier.models.vmamba import ARCHS, SS2D

VARIANTS = ('tiny', 'small', 'base')
STAGES = (1, 2, 3, 4)
LITTLE = dict(channels=(16, 32, 48, 64), depths=(1, 2, 2, 1), ssm_ratio=2.0, drop_path_rate=0.3)


def official_state(variant):
    return golden_state(official_shapes(f'vmamba_{variant}_keys'))


def little(num_stages=4, **options):
    return TruncatedVMamba({**LITTLE, **options.pop('arch', {})}, num_stages=num_stages, **options)


# --- the authors' numbers ------------------------------------------------------------------------


@pytest.mark.parametrize('variant', VARIANTS)
def test_every_stage_has_the_official_values(variant):
    golden = load_golden(f'vmamba_{variant}')
    model = TruncatedVMamba(variant, out_indices=(0, 1, 2, 3), out_norm=False).eval()
    state = from_vmamba(official_state(variant))
    model.load_state_dict({k: v for k, v in state.items() if not k.startswith('norm')})
    with torch.no_grad():
        outputs = model(golden_input(**golden['input']))
    for stage, output in zip(STAGES, outputs, strict=True):
        assert_matches(output, golden[f'stage{stage}_raw'])


def test_last_output_has_the_official_norm():
    golden = load_golden('vmamba_tiny')
    model = TruncatedVMamba('tiny').eval()
    model.load_state_dict(from_vmamba(official_state('tiny')))
    with torch.no_grad():
        (output,) = model(golden_input(**golden['input']))
    assert_matches(output, golden['stage4_norm'])


@pytest.mark.parametrize('num_stages', STAGES)
def test_truncated_is_the_full_model_cut(num_stages):
    full = little(out_indices=(0, 1, 2, 3), out_norm=False).eval()
    cut = little(num_stages, out_norm=False).eval()
    kept = {k: v for k, v in full.state_dict().items() if k in cut.state_dict()}
    cut.load_state_dict(kept)
    x = torch.randn(1, 3, 64, 48)
    torch.testing.assert_close(cut(x)[0], full(x)[num_stages - 1])
    assert not any(f'stages.{num_stages}' in key for key in cut.state_dict())


# --- official checkpoints ------------------------------------------------------------------------


def test_both_official_classes_give_the_same_weights():
    state = {k: v for k, v in official_state('tiny').items() if '.blocks.1.' not in k}
    other = {}
    for key, value in state.items():
        # the single-file class: projections of the four directions stacked, 1x1 convolutions
        if key.endswith('x_proj_weight'):
            key, value = key.replace('x_proj_weight', 'x_proj.weight'), value.flatten(0, 1)
        elif key.endswith('dt_projs_weight'):
            key, value = key.replace('dt_projs_weight', 'dt_projs.weight'), value.flatten(0, 1)
        elif key.endswith(('in_proj.weight', 'out_proj.weight', 'fc1.weight', 'fc2.weight')):
            value = value[:, :, None, None]
        other[key] = value
    wanted, found = from_vmamba(state), from_vmamba(other)
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[key], found[key]) for key in wanted)


def test_detection_norms_become_output_norms():
    state = from_vmamba({f'outnorm{i}.weight': torch.ones(1) for i in range(4)})
    assert list(state) == [f'norm{i}.weight' for i in range(4)]


@pytest.mark.parametrize('wrapper', ['model', 'model_ema'])
@pytest.mark.parametrize('num_stages', [2, 4])
def test_init_cfg_loads_an_official_file(num_stages, wrapper, tmp_path):
    state = official_state('tiny')
    path = tmp_path / 'vssm1_tiny_0230s_ckpt_epoch_264.pth'
    torch.save({wrapper: state, 'epoch': 264}, path)
    init_cfg = dict(type='OfficialPretrained', checkpoint=str(path))
    model = TruncatedVMamba('tiny', num_stages=num_stages, init_cfg=init_cfg)
    model.init_weights()
    converted = from_vmamba(state)
    loaded = model.state_dict()
    fresh = {key for key in loaded if key.startswith('norm') and num_stages < 4}
    assert all(torch.equal(loaded[key], converted[key]) for key in loaded.keys() - fresh)


def test_another_variants_file_is_refused(tmp_path):
    path = tmp_path / 'small.pth'
    torch.save({'model': official_state('small')}, path)
    model = TruncatedVMamba('tiny', init_cfg=dict(type='OfficialPretrained', checkpoint=str(path)))
    with pytest.raises(checkpoints.CheckpointError, match='misshapen'):
        model.init_weights()


# --- learning ------------------------------------------------------------------------------------


@pytest.mark.parametrize('num_stages', STAGES)
@pytest.mark.parametrize('states', [1, 2])
def test_every_parameter_learns(num_stages, states):
    model = little(num_stages, arch=dict(d_state=states, drop_path_rate=0.0))
    (output,) = model(torch.randn(2, 3, 64, 48))
    (output * torch.randn_like(output)).sum().backward()
    unmoved = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().max()]
    assert unmoved == []


def test_initial_scan_is_the_official_one():
    arch = ARCHS['tiny']
    scan = SS2D(arch['channels'][1], arch['channels'][1], states=3)
    delta = torch.nn.functional.softplus(scan.dt_projs_bias)
    assert 1e-3 * 0.999 <= delta.min() < 2e-3
    assert 5e-2 < delta.max() <= 1e-1 * 1.001
    torch.testing.assert_close(scan.A_logs.exp(), torch.tensor([[1.0, 2.0, 3.0]]).expand(768, 3))
    assert scan.dt_projs_weight.abs().max() <= 12**-0.5
    assert scan.x_proj.weight.std().item() == pytest.approx(192**-0.5 / math.sqrt(3), rel=0.05)
    assert scan.in_proj.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_checkpointing_gives_the_same_gradients():
    plain, saving = little(), little(with_cp=True)
    saving.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 48, 32)
    for model in (plain, saving):
        torch.manual_seed(1)  # the same paths dropped
        model(x)[0].square().sum().backward()
    for (name, p), q in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, msg=name)


@pytest.mark.parametrize('frozen', [-1, 0, 2])
def test_frozen_stages_do_not_learn(frozen):
    model = little(out_indices=(0, 3), frozen_stages=frozen)
    assert model.train() is model
    assert model.eval() is model
    model.train()
    still = {name.split('.')[0] for name, p in model.named_parameters() if not p.requires_grad}
    assert still == {-1: set(), 0: {'stem'}, 2: {'stem', 'stages', 'norm0'}}[frozen]
    assert model.stages[0].training == (frozen < 1)
    assert model.stages[2].training
    sum(y.sum() for y in model(torch.randn(1, 3, 32, 32))).backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())


def test_depth_grows_from_stem_to_norm():
    model = little(3, out_indices=(1, 2))
    depths = [model.get_layer_depth(f'backbone.{name}', 'backbone.') for name in model.state_dict()]
    layers = [layer for layer, _ in depths]
    assert {total for _, total in depths} == {1 + 2 + 2 + 2}
    assert layers == sorted(layers)
    assert set(layers) == set(range(7))
    assert model.get_layer_depth('backbone.stages.1.downsample.conv.weight', 'backbone.') == (2, 7)
    assert model.get_layer_depth('head.weight', 'backbone.') == (6, 7)


def test_decays_and_skips_are_not_weight_decayed():
    undecayed = {n for n, p in little(1).named_parameters() if getattr(p, '_no_weight_decay', 0)}
    scan = 'stages.0.blocks.0.ss2d.'
    assert undecayed == {scan + 'A_logs', scan + 'Ds', scan + 'dt_projs_bias'}


# --- inputs and precision ------------------------------------------------------------------------


@pytest.mark.parametrize('size', [(1, 1), (17, 50), (64, 48), (100, 31)])
def test_any_size_works(size):
    model = little(out_indices=(0, 1, 2, 3)).eval()
    outputs = model(torch.randn(2, 3, *size))
    for output, channels, stride in zip(outputs, model.channels, model.strides, strict=True):
        assert output.shape == (2, channels, *(math.ceil(n / stride) for n in size))


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_outputs_are_dense(memory_format):
    x = torch.randn(2, 3, 64, 48).to(memory_format=memory_format)
    for output in little(out_indices=(0, 3))(x):
        assert output.is_contiguous() or output.is_contiguous(memory_format=torch.channels_last)


def test_autocast_trains():
    model = little(arch=dict(drop_path_rate=0.0))
    x = torch.randn(2, 3, 64, 48)
    wanted = model(x)[0]
    with torch.autocast('cpu', torch.bfloat16):
        output = model(x)[0]
    assert (output.float() - wanted).std() < 0.03 * wanted.std()
    output.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


def test_double_precision_works():
    model = little().double().eval()
    x = torch.randn(1, 3, 40, 24, dtype=torch.float64)
    wanted = model(x)[0]
    torch.testing.assert_close(model.float()(x.float())[0].double(), wanted, rtol=0, atol=1e-4)


def test_states_hold_no_caches():
    model = little(2)
    before = set(model.state_dict())
    model(torch.randn(1, 3, 32, 32))
    assert set(model.state_dict()) == before == set(dict(model.named_parameters()))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(arch='huge'), "arch='huge'; give one of"),
        (dict(num_stages=0), 'num_stages=0'),
        (dict(num_stages=5), 'num_stages=5'),
        (dict(num_stages=2, out_indices=(2,)), 'out_indices=.*keep more stages'),
        (dict(arch=dict(channels=(16, 32))), 'arch has the keys'),
        (dict(arch=dict(channels=(16, 32), depths=(1,))), 'unequal length'),
    ],
)
def test_bad_arguments_say_what_was_wanted(options, message):
    with pytest.raises(ValueError, match=message):
        TruncatedVMamba(**options)


def test_bad_images_say_what_was_wanted():
    with pytest.raises(ValueError, match=r'give \(B, 3, H, W\)'):
        little(1)(torch.randn(1, 1, 32, 32))


def test_backend_is_chosen_by_name():
    x = torch.randn(1, 3, 32, 24)
    torch.manual_seed(0)
    wanted = little(2).eval()(x)[0]
    torch.manual_seed(0)
    found = little(2, scan_backend='reference').eval()(x)[0]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    with pytest.raises(RuntimeError, match="'triton'.*use backend='torch'"):
        little(1, scan_backend='triton')(x)


# --- graphs --------------------------------------------------------------------------------------


def test_compiled_without_breaks_it_is_the_same():
    model = little(2).eval()
    x = torch.randn(2, 3, 32, 24)
    compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
    torch.testing.assert_close(compiled(x)[0], model(x)[0], rtol=0, atol=1e-5)


def test_exported_with_a_free_batch_it_is_the_same():
    model = little(2).eval()
    batch = torch.export.Dim('batch', min=1, max=64)
    x = torch.randn(2, 3, 32, 24)
    program = torch.export.export(model, (x,), dynamic_shapes={'x': {0: batch}})
    other = torch.randn(3, 3, 32, 24)
    torch.testing.assert_close(program.module()(other)[0], model(other)[0], rtol=0, atol=1e-5)


# --- elsewhere in OpenMMLab ----------------------------------------------------------------------

DETECTOR = f"""
default_scope = 'mmdet'
custom_imports = dict(imports=['trunchier'], allow_failed_imports=False)
model = dict(
    type='RetinaNet',
    data_preprocessor=dict(type='DetDataPreprocessor', mean=[0] * 3, std=[255] * 3),
    backbone=dict(type='TruncatedVMamba', arch=dict({LITTLE}), out_indices=(0, 1, 2, 3)),
    neck=dict(type='FPN', in_channels=[16, 32, 48, 64], out_channels=16, num_outs=5),
    bbox_head=dict(
        type='RetinaHead',
        num_classes=2,
        in_channels=16,
        feat_channels=16,
        stacked_convs=1,
        anchor_generator=dict(
            type='AnchorGenerator', octave_base_scale=4, scales_per_octave=1, ratios=[1.0],
            strides=[4, 8, 16, 32, 64]),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
        loss_cls=dict(type='FocalLoss', use_sigmoid=True),
        loss_bbox=dict(type='L1Loss')),
    train_cfg=dict(
        assigner=dict(
            type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0),
        sampler=dict(type='PseudoSampler'), allowed_border=-1, pos_weight=-1),
)
"""


def test_detector_trains_by_config_alone():
    pytest.importorskip('mmdet', reason='mmdet is not installed')
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    config = Config.fromstring(DETECTOR, '.py')
    with DefaultScope.overwrite_default_scope('mmdet'):
        import mmdet.models  # noqa: F401, registers the detector's parts

        model = MODELS.build(config.model)
        boxes = InstanceData(bboxes=torch.tensor([[8.0, 8, 40, 40]]), labels=torch.tensor([1]))
        sample = DetDataSample(gt_instances=boxes)
        sample.set_metainfo(
            dict(img_shape=(64, 64), pad_shape=(64, 64), batch_input_shape=(64, 64))
        )
        data = dict(
            inputs=[torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)], data_samples=[sample]
        )
        before = model.backbone.stem.conv1.weight.clone()
        losses = model.train_step(data, OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1)))
    assert math.isfinite(losses['loss'].item())
    assert not torch.equal(model.backbone.stem.conv1.weight, before)
