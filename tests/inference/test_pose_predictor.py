"""Poses are mmpose's own, for any top-down model."""

import numpy as np
import pytest
import torch
from mmpose.structures import PoseDataSample
from small_models import pose_config

from trunchier.inference.pose import PoseInferencer


@pytest.mark.parametrize('flip_test', [True, False])
def test_poses_equal_those_of_mmpose(undeployed, weights, image, flip_test, boxes):
    from mmpose.apis import inference_topdown, init_model

    cfg = pose_config()
    cfg.model.test_cfg.flip_test = flip_test
    expected = inference_topdown(init_model(cfg, str(weights['pose']), 'cpu'), image, boxes)
    infer = PoseInferencer(pose_config(), weights['pose'], flip_test=flip_test, device='cpu')
    (result,) = infer(image, bboxes=boxes)
    assert isinstance(result, PoseDataSample)
    found = result.pred_instances
    for i, each in enumerate(expected):
        each = each.pred_instances
        np.testing.assert_allclose(found.keypoints[i], each.keypoints[0], atol=1e-3)
        np.testing.assert_allclose(found.keypoint_scores[i], each.keypoint_scores[0], atol=1e-5)
    np.testing.assert_array_equal(found.bboxes, boxes)


@pytest.mark.parametrize('flip_test', [True, False])
def test_other_topdown_models_of_mmpose_equal_mmpose(tmp_path, image, boxes, flip_test):
    """Another backbone, head, codec, input size and padding, by config alone."""
    from mmpose.apis import inference_topdown, init_model

    cfg = pose_config()
    codec = dict(
        type='SimCCLabel', input_size=(96, 128), sigma=6.0, simcc_split_ratio=2.0,
    )  # fmt: skip
    cfg.model.backbone = dict(type='ResNet', depth=18, base_channels=8, stem_channels=8)
    cfg.model.pop('neck')
    cfg.model.test_cfg = dict(flip_test=flip_test)
    cfg.model.head = dict(
        type='SimCCHead', in_channels=64, out_channels=17, input_size=(96, 128),
        in_featuremap_size=(3, 4), simcc_split_ratio=2.0, deconv_out_channels=None,
        loss=dict(type='KLDiscretLoss'), decoder=codec,
    )  # fmt: skip
    cfg.test_dataloader.dataset.pipeline = [
        dict(type='LoadImage'),
        dict(type='GetBBoxCenterScale', padding=1.1),
        dict(type='TopdownAffine', input_size=(96, 128)),
        dict(type='PackPoseInputs'),
    ]
    write_weights_of(cfg, tmp_path / 'a.pth')
    expected = inference_topdown(init_model(cfg, str(tmp_path / 'a.pth'), 'cpu'), image, boxes)
    options = dict(flip_test=None, draw_heatmap=True)  # None: as in the config
    infer = PoseInferencer(cfg, tmp_path / 'a.pth', device='cpu', **options)
    (result,) = infer(image, bboxes=boxes)
    assert result.pred_fields.heatmaps.shape == (17, *image.shape[:2])
    for i, each in enumerate(expected):
        each = each.pred_instances
        np.testing.assert_allclose(result.pred_instances.keypoints[i], each.keypoints[0], atol=1e-3)


def write_weights_of(cfg, path):
    from mmpose.apis import init_model

    torch.save(dict(state_dict=init_model(cfg, None, 'cpu').state_dict()), path)


@pytest.mark.parametrize('flip_test', [True, False])
def test_deployed_poses_have_equal_heatmaps(weights, image, request, flip_test, boxes):
    options = dict(flip_test=flip_test, draw_heatmap=True, device='cpu')
    deployed = PoseInferencer(pose_config(), weights['pose'], **options)
    request.getfixturevalue('undeployed')
    plain = PoseInferencer(pose_config(), weights['pose'], **options)
    (found,), (expected,) = (infer(image, bboxes=boxes) for infer in (deployed, plain))
    found, expected = (result.pred_fields.heatmaps for result in (found, expected))
    assert np.abs(found - expected).max() < 1e-5 * np.std(expected)


def test_heatmaps_are_returned_and_drawn_on_request(weights, image, boxes):
    infer = PoseInferencer(pose_config(), weights['pose'], draw_heatmap=True, device='cpu')
    (result,) = infer(image, bboxes=boxes, return_vis=True)
    assert result.pred_fields.heatmaps.shape == (17, *image.shape[:2])
    assert result.visualization.shape == image.shape
