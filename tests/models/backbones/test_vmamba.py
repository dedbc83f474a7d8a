"""Truncated VMamba: its official classes, initial weights, backends, and a detector."""

import math

import pytest
import torch
from golden_rule import golden_state, official_shapes
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, DefaultScope

from trunchier.models import TruncatedVMamba
from trunchier.models.backbones.vmamba import SS2D
from trunchier.weights.families import from_vmamba

LITTLE = dict(channels=(16, 32, 48, 64), depths=(1, 2, 2, 1), ssm_ratio=2.0, drop_path_rate=0.3)


def little(num_stages=4, **options):
    return TruncatedVMamba({**LITTLE, **options.pop('arch', {})}, num_stages=num_stages, **options)


# --- official checkpoints ------------------------------------------------------------------------


def test_both_official_classes_give_the_same_weights():
    state = golden_state(official_shapes('vmamba_tiny_keys'))
    state = {k: v for k, v in state.items() if '.blocks.1.' not in k}
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
    expected, found = from_vmamba(state), from_vmamba(other)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_detection_norms_become_output_norms():
    state = from_vmamba({f'outnorm{i}.weight': torch.ones(1) for i in range(4)})
    assert list(state) == [f'norm{i}.weight' for i in range(4)]


# --- learning ------------------------------------------------------------------------------------


def test_every_parameter_learns_with_several_states():
    model = little(arch=dict(d_state=3, drop_path_rate=0.0))
    (output,) = model(torch.randn(2, 3, 64, 48))
    (output * torch.randn_like(output)).sum().backward()
    unmoved = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().max()]
    assert unmoved == []


def test_initial_scan_is_the_official_one():
    arch = TruncatedVMamba.ARCHS['tiny']
    scan = SS2D(arch['channels'][1], arch['channels'][1], states=3)
    delta = torch.nn.functional.softplus(scan.dt_projs_bias)
    assert 1e-3 * 0.999 <= delta.min() < 2e-3
    assert 5e-2 < delta.max() <= 1e-1 * 1.001
    torch.testing.assert_close(scan.A_logs.exp(), torch.tensor([[1.0, 2.0, 3.0]]).expand(768, 3))
    assert scan.dt_projs_weight.abs().max() <= 12**-0.5
    assert scan.x_proj.weight.std().item() == pytest.approx(192**-0.5 / math.sqrt(3), rel=0.05)
    assert scan.in_proj.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_decays_and_skips_are_not_weight_decayed():
    undecayed = {n for n, p in little(1).named_parameters() if getattr(p, '_no_weight_decay', 0)}
    scan = 'stages.0.blocks.0.ss2d.'
    assert undecayed == {scan + 'A_logs', scan + 'Ds', scan + 'dt_projs_bias'}


# --- precision and backends ----------------------------------------------------------------------


def test_double_precision_works():
    model = little().double().eval()
    x = torch.randn(1, 3, 40, 24, dtype=torch.float64)
    expected = model(x)[0]
    slow = little(scan_backend='reference').double().eval()
    slow.load_state_dict(model.state_dict())
    torch.testing.assert_close(slow(x)[0], expected)


def test_backend_is_chosen_by_name():
    x = torch.randn(1, 3, 32, 24)
    torch.manual_seed(0)
    expected = little(2).eval()(x)[0]
    torch.manual_seed(0)
    found = little(2, scan_backend='reference').eval()(x)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    with pytest.raises(RuntimeError, match="'triton'.*use backend='torch'"):
        little(1, scan_backend='triton')(x)


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
