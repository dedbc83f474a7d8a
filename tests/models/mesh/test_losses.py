import math

import pytest
import torch
from golden_rule import golden_tensor, load_golden, max_error_in_std

from trunchier.models.mesh.losses import (
    AttentionGuide,
    MeshLoss,
    keypoint_2d_loss,
    keypoint_3d_loss,
    parameter_loss,
)

GOLDEN = load_golden('hmr2_losses')
INPUTS = {name: golden_tensor(record) for name, record in GOLDEN['inputs'].items()}
VALUES = GOLDEN['values']


def relative_error(ours, official):
    return abs(ours.item() - official) / abs(official)


def test_keypoint_losses_and_gradients_are_the_official_ones():
    for loss, kind in ((keypoint_2d_loss, '2d'), (keypoint_3d_loss, '3d')):
        pred = INPUTS[f'pred_keypoints_{kind}'].clone().requires_grad_()
        value = loss(pred, INPUTS[f'gt_keypoints_{kind}']).sum()
        value.backward()
        name = {'2d': 'Keypoint2DLoss_l1', '3d': 'Keypoint3DLoss_l1_pelvis39'}[kind]
        assert relative_error(value, VALUES[name]) < 1e-6
        official = GOLDEN['gradients'][f'Keypoint{kind.upper()}Loss_l1_wrt_pred']
        assert max_error_in_std(pred.grad, official) < 1e-5


@pytest.mark.parametrize('name', ['body_pose', 'betas'])
def test_parameter_losses_are_the_official_ones(name):
    value = parameter_loss(INPUTS[f'pred_{name}'], INPUTS[f'gt_{name}'], INPUTS['has_param']).sum()
    assert relative_error(value, VALUES[f'ParameterLoss_{name}']) < 1e-6


def batch():
    """Predictions and annotations of the official `compute_loss` run."""
    record = GOLDEN['compute_loss']
    pred = {
        'crop_keypoints': INPUTS['pred_keypoints_2d'],
        'joints': INPUTS['pred_keypoints_3d'],
        'global_orient': golden_tensor(record['pred_global_orient']),
        'body_pose': golden_tensor(record['pred_body_pose']),
        'betas': INPUTS['pred_betas'],
    }
    pose = [golden_tensor(record[f'gt_{n}_axis_angle']) for n in ('global_orient', 'body_pose')]
    target = {
        'crop_keypoints_2d': INPUTS['gt_keypoints_2d'],
        'keypoints_3d': INPUTS['gt_keypoints_3d'],
        'pose': torch.cat(pose, dim=1),
        'betas': INPUTS['gt_betas'],
        'has_pose': golden_tensor(record['has_global_orient_and_body_pose']),
        'has_betas': golden_tensor(record['has_betas']),
    }
    return pred, target


def test_all_losses_are_the_official_ones():
    pred, target = batch()
    loss, outputs = MeshLoss(), GOLDEN['compute_loss']['outputs']
    losses = loss(pred, target)
    assert relative_error(sum(losses.values()), outputs['loss']) < 1e-6
    for name, weight in loss.weights.items():
        assert relative_error(losses[f'loss_{name}'] / weight, outputs[f'loss_{name}']) < 1e-6


def test_weights_are_the_official_ones():
    official = {k.lower(): v for k, v in GOLDEN['compute_loss']['loss_weights'].items()}
    assert MeshLoss().weights == {k: v for k, v in official.items() if k != 'adversarial'}


def test_keypoint_loss_by_hand():
    pred = torch.tensor([[[0.0, 0.0], [3.0, 4.0]]])
    target = torch.tensor([[[1.0, -2.0, 0.5], [9.0, 9.0, 0.0]]])
    assert keypoint_2d_loss(pred, target).tolist() == [0.5 * (1 + 2)]


def test_3d_loss_does_not_depend_on_the_translation():
    target = torch.randn(2, 44, 4)
    pred = torch.randn(2, 44, 3)
    moved = pred + torch.tensor([5.0, -1.0, 30.0])
    expected = keypoint_3d_loss(pred, target)
    assert torch.allclose(keypoint_3d_loss(moved, target), expected, rtol=1e-4)


def test_3d_loss_is_relative_to_the_pelvis_whatever_its_confidence():
    target = torch.zeros(1, 44, 4)
    target[0, 0, 3] = 1
    target[0, 39, :3] = 2  # confidence stays 0
    assert keypoint_3d_loss(torch.zeros(1, 44, 3), target).tolist() == [6]


@pytest.mark.parametrize(
    ('flag', 'names'), [('has_betas', ['betas']), ('has_pose', ['global_orient', 'body_pose'])]
)
def test_missing_annotations_add_no_loss_and_no_gradient(flag, names):
    pred, target = batch()
    target[flag] = torch.zeros(4)
    pred = {name: value.clone().requires_grad_() for name, value in pred.items()}
    losses = MeshLoss()(pred, target)
    sum(losses.values()).backward()
    assert [name for name in MeshLoss().weights if losses[f'loss_{name}'] == 0] == names
    assert [name for name, value in pred.items() if not value.grad.any()] == names


def test_mean_is_the_sum_over_the_batch_size():
    pred, target = batch()
    total, mean = MeshLoss()(pred, target), MeshLoss(reduction='mean')(pred, target)
    for name, value in total.items():
        assert torch.allclose(mean[name], value / 4)


def test_halves_of_a_batch_add_up_to_the_whole():
    pred, target = batch()
    whole = MeshLoss()(pred, target)
    halves = [
        MeshLoss()(
            {name: value[half] for name, value in pred.items()},
            {name: value[half] for name, value in target.items()},
        )
        for half in (slice(0, 1), slice(1, 4))
    ]
    for name, value in whole.items():
        assert torch.allclose(halves[0][name] + halves[1][name], value)


def test_losses_per_sample_locate_a_bad_sample():
    pred, target = batch()
    pred['joints'] = pred['joints'].clone()
    pred['joints'][2] = float('nan')
    finite = {k: v.isfinite().tolist() for k, v in MeshLoss().per_sample(pred, target).items()}
    assert finite.pop('keypoints_3d') == [True, True, False, True]
    assert all(all(flags) for flags in finite.values())


def test_unknown_reduction_is_refused():
    with pytest.raises(ValueError, match="expected reduction in .'sum', 'mean'., got 'none'"):
        MeshLoss(reduction='none')


def guided(point, confidence=1.0, height=16, width=12, **options):
    """Loss of attention that is even but for the cell (row 3, column 5), by `keypoints` there."""
    attention = torch.full((1, 12, height, width), 0.1)
    attention[:, :, 3, 5] = 4.0
    attention = attention.flatten(2).log_softmax(-1).unflatten(2, (height, width))
    points = torch.zeros(1, 44, 3)
    points[..., :2], points[..., 2] = torch.tensor(point), confidence
    return AttentionGuide(**options)(attention, points).item()


def test_attention_is_guided_to_the_cell_of_a_keypoint():
    """The cells are those of the middle columns of the square crop."""
    side = torch.zeros(1, 1, 256, 256)
    side[..., 3 * 16 : 4 * 16, 32 + 5 * 16 : 32 + 6 * 16] = 1
    rows, columns = (each.float().mean() for each in side[0, 0].nonzero().T)
    there = ((columns + 0.5) / 256 - 0.5, (rows + 0.5) / 256 - 0.5)
    losses = {
        (dx, dy): guided((there[0] + dx / 16, there[1] + dy / 16), sigma=0.1)
        for dx in (-1, 0, 1)
        for dy in (-1, 0, 1)
    }
    assert min(losses, key=losses.get) == (0, 0)
    assert losses[0, 0] == pytest.approx(math.log(math.exp(3.9) + 191) - 3.9, rel=1e-4)


def test_keypoints_without_annotation_or_outside_do_not_guide():
    assert guided((0.0, 0.0), confidence=0.0) == 0
    assert guided((0.4, 0.0)) == 0  # beside the middle columns
    assert guided((0.0, -0.6)) == 0
    assert guided((0.36, 0.0)) > 0


def test_a_guide_names_keypoints():
    with pytest.raises(ValueError, match="no keypoints \\['tail'\\]; there are nose"):
        AttentionGuide(keypoints=('tail', 'nose'))
