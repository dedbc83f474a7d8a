"""Poses are mmpose's own, for any top-down model."""

import numpy as np
import pytest
import torch
from mmpose.structures import PoseDataSample
from small_models import pose_config

from trunchier.conventions import COCO_17, COCO_17_FLIP, COCO_17_SKELETON
from trunchier.deploy.graph import coco_meta
from trunchier.inference.pose import PoseInferencer, kept_meta


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


def merged_config():
    """Of COCO and AI Challenger: 19 keypoints, of which mmpose gives COCO's 17."""
    cfg = pose_config()
    cfg.model.head.out_channels = 19
    cfg.model.test_cfg = dict(flip_test=False, output_keypoint_indices=[*range(17)])
    metainfo = dict(from_file='configs/_base_/datasets/coco_aic.py')
    cfg.train_dataloader.dataset = dict(type='CombinedDataset', metainfo=metainfo, datasets=[])
    return cfg


@pytest.fixture(scope='module')
def merged(tmp_path_factory):
    path = tmp_path_factory.mktemp('merged') / 'a.pth'
    write_weights_of(merged_config(), path)
    return PoseInferencer(merged_config(), path, device='cpu', draw_heatmap=True)


def test_keypoints_that_are_left_out_are_left_out_everywhere(merged, image, boxes):
    assert merged.predictor.keypoint_names == COCO_17
    meta = merged.predictor.dataset_meta
    assert meta['flip_indices'] == list(COCO_17_FLIP)
    assert meta['num_skeleton_links'] == len(meta['skeleton_links'])
    links = map(frozenset, meta['skeleton_links'])
    assert {*links} == {*map(frozenset, COCO_17_SKELETON)}
    for style in ('person', 'mmpose', 'openpose'):
        options = dict(bboxes=boxes, return_vis=True, kpt_thr=0, skeleton_style=style)
        (result,) = merged(image, **options)
        assert (result.visualization[: len(image)] != image).any()
    assert result.pred_instances.keypoints.shape == (3, 17, 2)
    assert result.pred_fields.heatmaps.shape == (17, *image.shape[:2])
    assert len(result.to_rows()) == 3


def test_frames_without_people_have_as_many_keypoints(merged, image, boxes, tmp_path):
    clip = np.stack([image, image])
    shapes = []
    for result in merged(clip, bboxes=[boxes, boxes[:0]], out_dir=tmp_path, save='npz'):
        shapes.append(result.pred_instances.keypoints.shape)
    assert shapes == [(3, 17, 2), (0, 17, 2)]
    (file,) = tmp_path.rglob('*.npz')
    assert np.load(file)['keypoints'].shape == (3, 17, 2)


def test_metainfo_follows_the_order_of_the_kept_keypoints():
    meta = kept_meta(coco_meta(), [6, 5, 9, 7])
    names = ['right_shoulder', 'left_shoulder', 'left_wrist', 'left_elbow']
    assert [meta['keypoint_id2name'][i] for i in range(4)] == names
    assert meta['flip_indices'] == [1, 0, 2, 3]
    assert {frozenset(link) for link in meta['skeleton_links']} == {
        frozenset(pair) for pair in ((0, 1), (1, 3), (3, 2))
    }
    sigmas = coco_meta()['sigmas']
    np.testing.assert_array_equal(meta['sigmas'], sigmas[[6, 5, 9, 7]])
    assert len(meta['skeleton_link_colors']) == len(meta['skeleton_links'])


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
