"""Crops, codec, model and keypoints without mmpose are mmpose's own."""

import copy

import numpy as np
import pytest
import small_models
import torch
from small_models import pose_config

from trunchier.deploy.graph import coco_meta
from trunchier.inference import topdown
from trunchier.inference.pose import _codec, _pipeline
from trunchier.models.heatmaps import is_plain, plain_pose_model
from trunchier.weights.find import build_model, find_config

pytest.importorskip('mmpose')


@pytest.mark.parametrize(
    'box', [(10, 20, 60, 150), (-30, 5.5, 200.25, 90), (0, 0, 240, 180), (100, 100, 101, 101)]
)
@pytest.mark.parametrize('kind', [np.float32, np.float64])
def test_crops_are_those_of_mmposes_pipeline(box, kind):
    cfg, box = find_config('VMPose-T-S2').cfg, np.array(box, kind)
    image = np.random.default_rng(0).integers(0, 256, (180, 240, 3), np.uint8)
    data = dict(img=image, bbox=box[None], bbox_score=np.ones(1), **coco_meta())
    expected = _pipeline(cfg)(data)
    crop, center, size = topdown.Crops(cfg)(image, box)
    torch.testing.assert_close(expected['inputs'], torch.from_numpy(crop).permute(2, 0, 1))
    sample = expected['data_samples']
    np.testing.assert_allclose(center, sample.input_center, rtol=1e-6)
    np.testing.assert_allclose(size, sample.input_scale, rtol=1e-6)


def test_keypoints_are_those_of_mmposes_codec():
    codec = find_config('VMPose-T-S2').cfg.model.head.decoder
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[:64, :48]
    for _ in range(5):
        centers = generator.uniform([-1, -1], [48, 64], (17, 2))
        offsets = np.stack([columns, rows], -1) - centers[:, None, None]
        heatmaps = np.exp(-(offsets**2).sum(-1) / 8) + generator.uniform(0, 0.05, (17, 64, 48))
        heatmaps = heatmaps.astype(np.float32)
        heatmaps[::5] -= 2  # no maximum above 0
        expected, expected_scores = _codec(codec).decode(heatmaps.copy())
        keypoints, scores = topdown.Codec(codec).decode(heatmaps)
        np.testing.assert_allclose(keypoints, expected, rtol=0, atol=2e-4)
        assert (scores == expected_scores).all()


def test_the_metainfo_of_coco_is_mmposes():
    from mmpose.datasets.datasets.utils import parse_pose_metainfo

    expected = parse_pose_metainfo(dict(from_file='configs/_base_/datasets/coco.py'))
    for name, value in coco_meta().items():
        np.testing.assert_equal(value, expected[name])


@pytest.mark.parametrize('changes', [{}, dict(deconv_out_channels=(), deconv_kernel_sizes=())])
def test_the_model_is_mmposes(changes):
    cfg = pose_config()
    cfg.model.head.update(changes)
    cfg.model.head.in_channels = cfg.model.head.in_channels
    expected = small_models.lively(build_model(cfg))
    model = plain_pose_model(cfg.model)
    model.load_state_dict(expected.state_dict())
    images = torch.randn(2, 3, 64, 48)
    with torch.no_grad():
        heatmaps = expected.head(expected.extract_feat(images))
        torch.testing.assert_close(model.head(model.extract_feat(images)), heatmaps)


def test_an_unknown_kernel_is_refused():
    cfg = pose_config()
    cfg.model.head.deconv_kernel_sizes = (4, 5)
    with pytest.raises(ValueError, match='deconv_kernel_sizes has 5; give 4, 3 or 2'):
        plain_pose_model(cfg.model)


@pytest.mark.parametrize(
    'change',
    [
        dict(model=dict(head=dict(conv_out_channels=(8,), conv_kernel_sizes=(1,)))),
        dict(model=dict(head=dict(final_layer=None))),
        dict(model=dict(head=dict(decoder=dict(type='MSRAHeatmap')))),
        dict(model=dict(neck=dict(type='FeatureMapProcessor'))),
        dict(model=dict(test_cfg=dict(flip_test=True, shift_heatmap=True))),
        dict(model=dict(test_cfg=dict(output_keypoint_indices=[0]))),
    ],
    ids=str,
)
def test_other_configs_are_left_to_mmpose(change):
    cfg = find_config('VMPose-T-S2').cfg
    assert topdown.is_plain(cfg) and is_plain(cfg.model)
    changed = copy.deepcopy(cfg)
    changed.merge_from_dict(change)
    assert not topdown.is_plain(changed)
    cfg.test_dataloader.dataset.pipeline[2].use_udp = False
    assert not topdown.is_plain(cfg)
