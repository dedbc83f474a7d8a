"""The full mmcv with compiled ops: nothing stands in for it, and detectors that call them train."""

import importlib
import math
import subprocess
import sys

import pytest
import torch
from mmengine.hub import get_config
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, DefaultScope

import trunchier  # noqa: F401, registers the backbones
from trunchier.compat import OUTCOMES

pytestmark = pytest.mark.skipif(
    OUTCOMES['mmcv_without_compiled_ops'].applied, reason='mmcv-lite has no compiled ops'
)


def test_the_ops_are_those_of_mmcv():
    from mmcv.ops import nms

    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [20, 20, 30, 30]])
    kept, indices = nms(boxes, torch.tensor([0.5, 0.9, 0.8]), iou_threshold=0.5)
    assert indices.tolist() == [1, 2] and kept.shape == (2, 5)


def test_the_loader_of_the_ops_is_not_replaced():
    script = (
        'import trunchier; from mmcv.utils import ext_loader as e; print(e.load_ext.__module__)'
    )
    run = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
    assert run.stdout == 'mmcv.utils.ext_loader\n', run.stderr


@pytest.mark.parametrize('backbone', ['TruncatedSwin', 'TruncatedGMF', 'TruncatedVMamba'])
def test_mask_rcnn_trains_and_predicts_on_three_stages(backbone):
    from mmdet.testing import demo_mm_inputs

    config = get_config('mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py').model
    config.backbone = dict(type=backbone, arch='tiny', num_stages=3, out_indices=(0, 1, 2))
    config.neck.in_channels = list(MODELS.build(config.backbone).channels)
    with DefaultScope.overwrite_default_scope('mmdet'):
        importlib.import_module('mmdet.models')  # registers the detector's parts
        model = MODELS.build(config)
        data = demo_mm_inputs(2, [[3, 128, 128]] * 2, num_items=[3, 3], with_mask=True)
        stem = next(model.backbone.parameters())
        before = stem.detach().clone()
        losses = model.train_step(data, OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.01)))
        (found, _) = model.eval().test_step(data)
    assert {'loss_rpn_cls', 'loss_cls', 'loss_bbox', 'loss_mask'} <= set(losses)
    assert math.isfinite(losses['loss'].item()) and not torch.equal(stem, before)
    assert found.pred_instances.masks.shape[1:] == (128, 128)
