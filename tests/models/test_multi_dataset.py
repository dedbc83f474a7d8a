"""Heads by data set, with the authors' masked loss."""

import numpy as np
import pytest
import torch
from golden_rule import golden_input, golden_state
from mmengine.registry import MODELS
from mmengine.structures import InstanceData, PixelData

import trunchier.models  # noqa: F401  registers them

pytest.importorskip('mmpretrain')
from mmpose.structures import PoseDataSample

KEYPOINTS = dict(coco=17, aic=14, mpii=16, ap10k=17, apt36k=17, wholebody=133)
CODEC = dict(type='UDPHeatmap', input_size=(48, 64), heatmap_size=(12, 16), sigma=2)


def head(keypoints, channels, deconvolutions=(256, 256)):
    return dict(
        type='mmpose.HeatmapHead',
        in_channels=channels,
        out_channels=keypoints,
        deconv_out_channels=deconvolutions,
        deconv_kernel_sizes=(4, 4),
        loss=dict(type='mmpose.KeypointMSELoss', use_target_weight=True),
        decoder=CODEC,
    )


def sample(name, heatmaps, weights):
    pairs = list(range(len(heatmaps)))
    meta = dict(dataset_name=name, flip_indices=pairs, input_size=(48, 64))
    meta |= dict(input_center=np.float32([24, 32]), input_scale=np.float32([48, 64]))
    made = PoseDataSample(metainfo=meta)
    made.gt_fields = PixelData(heatmaps=torch.from_numpy(heatmaps))
    made.gt_instance_labels = InstanceData(keypoint_weights=torch.from_numpy(weights))
    made.gt_instances = InstanceData(bboxes=np.zeros((1, 4)), bbox_scores=np.ones(1))
    return made


def samples(names, keypoints, seed=5522):
    rng = np.random.Generator(np.random.PCG64(seed))
    targets = rng.random((len(names), 133, 16, 12)).astype(np.float32)
    weights = (rng.random((len(names), 133, 1)) > 0.3).astype(np.float32)[..., 0]
    return [
        sample(name, targets[i, : keypoints[name]], weights[i : i + 1, : keypoints[name]])
        for i, name in enumerate(names)
    ]


# Of the authors' TopDownMoE with targets cut to each head, in float64.
LOSSES = dict(coco=0.1276818192498213, mpii=0.07497034585692114, wholebody=0.057501611424035357)
GRADIENTS = dict(coco=0.1622692650936834, mpii=0.08959529119651746, wholebody=0.027898295953085205)


def test_losses_and_gradients_are_the_authors():
    heads = {name: head(n, 384) for name, n in KEYPOINTS.items()}
    model = MODELS.build(dict(type='MultiDatasetHead', heads=heads)).eval()
    for number, each in enumerate(model.heads.values()):
        prefix = f'associate_keypoint_heads.{number - 1}.' if number else 'keypoint_head.'
        shapes = {key: tuple(value.shape) for key, value in each.state_dict().items()}
        each.load_state_dict(golden_state(shapes, prefix))
    given = samples(['coco', 'mpii', 'coco', 'wholebody'], KEYPOINTS)
    losses = model.loss((golden_input(5521, (4, 384, 4, 3)),), given)
    sum(value for key, value in losses.items() if 'loss' in key).backward()
    for name, each in model.heads.items():
        assert float(losses[f'loss_{name}']) == pytest.approx(LOSSES.get(name, 0), rel=1e-5)
        gradient = float(each.final_layer.weight.grad.norm())
        assert gradient == pytest.approx(GRADIENTS.get(name, 0), rel=1e-4)
    assert {key for key in losses if 'acc' in key} == {f'acc_pose_{name}' for name in LOSSES}


LITTLE = dict(coco=3, aic=2)


def little(kind='MultiDatasetEstimator'):
    arch = dict(embed_dims=24, num_layers=2, num_heads=2, feedforward_channels=48)
    backbone = dict(type='PlainViT', arch=arch, img_size=(64, 48), experts=dict(num=2, width=8))
    heads = {name: head(n, 24, (8, 8)) for name, n in LITTLE.items()}
    return MODELS.build(
        dict(
            type=kind,
            backbone=backbone,
            head=dict(type='MultiDatasetHead', heads=heads),
            test_cfg=dict(flip_test=True, flip_mode='heatmap'),
        )
    )


def test_a_mixed_batch_is_predicted_as_its_samples_one_by_one():
    torch.manual_seed(0)
    model, images = little().eval(), torch.randn(3, 3, 64, 48)
    for each in model.head.heads.values():
        each.final_layer.weight.data.normal_()
    names = ['aic', 'coco', 'aic']
    with torch.no_grad():
        mixed = model.predict(images, samples(names, LITTLE))
        for image, alone, found in zip(images, samples(names, LITTLE), mixed, strict=True):
            (expected,) = model.predict(image[None], [alone])
            ours = found.pred_instances.keypoints
            assert ours.shape[1] == LITTLE[found.metainfo['dataset_name']]
            np.testing.assert_allclose(ours, expected.pred_instances.keypoints, atol=1e-4)


def test_heatmaps_without_samples_do_not_depend_on_earlier_calls():
    torch.manual_seed(0)
    model, images = little().eval(), torch.randn(2, 3, 64, 48)
    given = samples(['aic', 'aic'], LITTLE)
    with torch.no_grad():
        expected = model(images, None, mode='tensor')
        for mode in ('loss', 'predict'):
            model(images, given, mode=mode)
            assert torch.equal(model(images, None, mode='tensor'), expected)


def test_losses_reach_the_experts_and_the_head_of_the_batch_alone():
    model = little().train()
    losses = model.loss(torch.randn(2, 3, 64, 48), samples(['aic', 'aic'], LITTLE))
    sum(value for key, value in losses.items() if 'loss' in key).backward()
    moved = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert not any('heads.coco' in name or 'experts.0' in name for name in moved)
    assert any('heads.aic' in name for name in moved) and any('experts.1' in name for name in moved)


def test_samples_without_a_head_are_refused_with_the_remedy():
    model = little()
    with pytest.raises(ValueError, match="no head for the data set 'mpii'; there are coco, aic"):
        model.loss(torch.randn(1, 3, 64, 48), samples(['mpii'], KEYPOINTS))
    with pytest.raises(ValueError, match='targets of aic have 14 keypoints, its head 2'):
        model.loss(torch.randn(1, 3, 64, 48), samples(['aic'], KEYPOINTS))
    with pytest.raises(ValueError, match='at least one data set'):
        MODELS.build(dict(type='MultiDatasetHead', heads={}))
