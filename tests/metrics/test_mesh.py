import logging

import numpy as np
import pytest
import torch
import torch.multiprocessing
from golden_rule import golden_tensor, load_golden
from launch import leave_process_group
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger

from trunchier.conventions import EVAL_14_IN_44
from trunchier.geometry import (
    align_similarity,
    axis_angle_to_matrix,
    mean_rotation,
    rotation_6d_to_matrix,
)
from trunchier.metrics.mesh import (
    MeshAngleSpread,
    MeshJointError,
    MeshPCK,
    joint_errors,
    mean_pck,
    phi_scores,
)

GOLDEN = load_golden('hmr2_evaluators')
INPUTS = {name: golden_tensor(record) for name, record in GOLDEN['inputs'].items()}


def golden_samples(dataset='3dpw-test'):
    """The official run's inputs as data samples; its 2D unit is the side of the crop."""
    samples = []
    for i in range(6):
        side = INPUTS['box_size'][i]
        truth = INPUTS['gt_keypoints_2d'][i : i + 1]
        samples.append(
            {
                'dataset': dataset,
                'id': i,
                'box_scale': INPUTS['_scale'][i].numpy(),
                'pred_instances': {
                    'keypoints': side * INPUTS['pred_keypoints_2d'][i : i + 1],
                    'joints': INPUTS['pred_keypoints_3d'][i : i + 1],
                },
                'gt_instances': {
                    'keypoints': (side * truth[..., :2]).numpy(),
                    'keypoints_visible': truth[..., 2].numpy(),
                    'keypoints_3d': INPUTS['gt_keypoints_3d'][i : i + 1].numpy(),
                },
            }
        )
    return samples


def evaluate(metric, samples):
    metric.process(None, samples)
    return metric.evaluate(len(samples))


def random_samples(count, dataset='a', seed=0):
    rng = np.random.default_rng(seed)
    return [
        {
            'dataset': dataset,
            'id': i,
            'img_path': f'{i}.jpg',
            'box_scale': rng.uniform(0.5, 2, 2),
            'pred_instances': {
                'keypoints': rng.normal(100, 10, (1, 44, 2)),
                'joints': rng.normal(size=(1, 44, 3)),
            },
            'gt_instances': {
                'keypoints': rng.normal(100, 10, (1, 44, 2)),
                'keypoints_visible': rng.random((1, 44)),
                'keypoints_3d': np.concatenate(
                    (rng.normal(size=(1, 44, 3)), np.ones((1, 44, 1))), -1
                ),
            },
        }
        for i in range(count)
    ]


# against the official evaluators


def test_joint_errors_are_the_official_ones_of_each_sample():
    truth = INPUTS['gt_keypoints_3d'][..., :3]
    plain, aligned = joint_errors(INPUTS['pred_keypoints_3d'], truth)
    official = GOLDEN['per_sample']
    assert np.abs(1000 * plain.numpy() - official['mode_mpjpe']).max() < 0.01
    assert np.abs(1000 * aligned.numpy() - official['mode_re']).max() < 0.01
    assert np.abs(1000 * aligned.numpy() - official['mode_re_float64']).max() < 1e-4


def test_joint_errors_over_all_44_joints_are_the_official_ones():
    plain, aligned = joint_errors(
        INPUTS['pred_keypoints_3d'], INPUTS['gt_keypoints_3d'][..., :3], joints=range(44)
    )
    official = GOLDEN['per_sample_all_44_joints']
    assert np.abs(1000 * plain.numpy() - official['mode_mpjpe']).max() < 0.01
    assert np.abs(1000 * aligned.numpy() - official['mode_re']).max() < 0.01


def test_aligned_points_are_the_official_ones():
    joints = GOLDEN['settings']['keypoint_list']
    aligned = align_similarity(
        INPUTS['pred_keypoints_3d'][:, joints], INPUTS['gt_keypoints_3d'][:, joints, :3]
    )
    official = golden_tensor(GOLDEN['similarity_transform']['output'])
    assert (aligned - official).abs().max() < 1e-5


def test_evaluated_joints_are_the_official_ones():
    assert list(EVAL_14_IN_44) == GOLDEN['settings']['keypoint_list']


def test_mean_joint_errors_are_the_official_ones():
    result = evaluate(MeshJointError(), golden_samples())
    official = GOLDEN['metrics_dict']
    assert abs(result['3dpw-test/MPJPE'] - official['mode_mpjpe']) < 0.01
    assert abs(result['3dpw-test/PA-MPJPE'] - official['mode_re']) < 0.01


def test_pck_is_the_official_one():
    result = evaluate(MeshPCK(), golden_samples('coco-val'))
    for threshold in GOLDEN['settings']['pck_thresholds']:
        official = GOLDEN['metrics_dict'][f'kpAvg_pck_{threshold}']
        assert abs(result[f'coco-val/PCK@{threshold}'] - 100 * official) < 1e-9


@pytest.mark.parametrize('threshold', [0.05, 0.1])
def test_pck_of_each_keypoint_is_the_official_one(threshold):
    factor = INPUTS['box_size'] / (200 * INPUTS['_scale'].amax(-1))
    difference = INPUTS['pred_keypoints_2d'] - INPUTS['gt_keypoints_2d'][..., :2]
    error = (difference.norm(dim=-1) * factor[:, None]).numpy()
    _, rates = mean_pck(error, (INPUTS['gt_keypoints_2d'][..., 2] > 0.5).numpy(), threshold)
    official = {
        int(key.split('_')[0][2:]): value
        for key, value in GOLDEN['metrics_dict'].items()
        if key.endswith(f'_pck_{threshold}') and not key.startswith('kpAvg')
    }
    assert {i: rate for i, rate in enumerate(rates) if not np.isnan(rate)} == official


# by hand


def test_pck_by_hand():
    # Keypoint 0: right, wrong. Keypoint 1: seen once, at exactly the threshold. 2: never seen.
    error = np.array([[0.01, 0.05, 0.0], [0.2, 9.9, 0.0]])
    visible = np.array([[True, True, False], [True, False, False]])
    mean, rates = mean_pck(error, visible, 0.05)
    assert mean == 0.25
    assert rates[:2].tolist() == [0.5, 0.0]
    assert np.isnan(rates[2])


def test_pck_counts_pixels_against_the_longer_side_of_the_box():
    (sample,) = random_samples(1)
    sample['box_scale'] = np.array([1.0, 0.25])  # 200 x 50 pixels
    sample['gt_instances']['keypoints_visible'] = np.ones((1, 44))
    offset = np.zeros((1, 44, 2))
    offset[0, :22, 0] = 9.9  # of the 10 pixels that 0.05 allows
    offset[0, 22:, 1] = 10.1
    sample['pred_instances']['keypoints'] = sample['gt_instances']['keypoints'] + offset
    result = evaluate(MeshPCK(), [sample])
    assert (result['a/PCK@0.05'], result['a/PCK@0.1']) == (50, 100)


def test_confidence_must_exceed_one_half():
    (sample,) = random_samples(1)
    sample['gt_instances']['keypoints_visible'] = np.full((1, 44), 0.5)
    sample['gt_instances']['keypoints_visible'][0, 3] = 0.51
    sample['pred_instances']['keypoints'] = np.full((1, 44, 2), 1e6)
    sample['pred_instances']['keypoints'][0, 3] = sample['gt_instances']['keypoints'][0, 3]
    assert evaluate(MeshPCK(), [sample])['a/PCK@0.05'] == 100


def test_errors_do_not_depend_on_the_translation():
    samples = random_samples(3)
    for sample in samples:
        truth = sample['gt_instances']['keypoints_3d'][..., :3]
        sample['pred_instances']['joints'] = truth + [3.0, -1.0, 20.0]
    assert evaluate(MeshJointError(), samples)['a/MPJPE'] < 1e-9


def test_aligned_errors_do_not_depend_on_rotation_and_scale():
    samples = random_samples(3)
    for sample in samples:
        truth = torch.from_numpy(sample['gt_instances']['keypoints_3d'][..., :3])
        rotation = rotation_6d_to_matrix(torch.randn(6, dtype=torch.float64))
        sample['pred_instances']['joints'] = 0.5 * truth @ rotation.mT + 4
    result = evaluate(MeshJointError(), samples)
    assert result['a/PA-MPJPE'] < 1e-9
    assert result['a/MPJPE'] > 100


def test_errors_are_in_millimeters():
    (sample,) = random_samples(1)
    pred = sample['gt_instances']['keypoints_3d'][..., :3].copy()
    pred[0, list(EVAL_14_IN_44), 0] += 0.02
    sample['pred_instances']['joints'] = pred
    assert abs(evaluate(MeshJointError(), [sample])['a/MPJPE'] - 20) < 1e-9


# degenerate input


@pytest.mark.parametrize('shape', ['point', 'line', 'plane'])
@pytest.mark.parametrize('which', ['pred', 'gt'])
def test_degenerate_joints_have_a_finite_error_no_worse_than_their_mean(which, shape):
    (sample,) = random_samples(1)
    flat = sample['pred_instances']['joints'] * {'point': [0, 0, 0], 'line': [1, 0, 0]}.get(
        shape, [1, 1, 0]
    )
    if which == 'pred':
        sample['pred_instances']['joints'] = flat
    else:
        sample['gt_instances']['keypoints_3d'][..., :3] = flat
    result = evaluate(MeshJointError(), [sample])
    truth = sample['gt_instances']['keypoints_3d'][0, list(EVAL_14_IN_44), :3]
    spread = np.square(truth - truth.mean(0)).sum(-1).mean() ** 0.5
    assert result['a/PA-MPJPE'] <= 1000 * spread + 1e-6
    assert np.isfinite(result['a/MPJPE'])


@pytest.mark.parametrize(('metric', 'name'), [(MeshPCK, 'keypoints'), (MeshJointError, 'joints')])
def test_a_prediction_that_is_not_finite_is_an_error_that_names_the_sample(metric, name):
    samples = random_samples(3)
    samples[1]['pred_instances'][name][0, 5, 0] = np.nan
    with pytest.raises(ValueError, match=rf'predicted {name} of sample 1 of a \(1.jpg\)'):
        metric().process(None, samples)


def test_a_box_of_no_size_is_an_error_that_names_the_sample():
    samples = random_samples(2)
    samples[1]['box_scale'] = np.zeros(2)
    with pytest.raises(ValueError, match='sample 1 of a .* positive size, got 0.0 pixels'):
        MeshPCK().process(None, samples)


# several data sets, and the printed text


@pytest.fixture
def printed():
    """Messages of the current logger."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


def mixed_samples():
    samples = random_samples(3, 'lsp', 1) + random_samples(2, '3dpw', 2) + random_samples(4, 'b', 3)
    for sample in samples[:3]:
        sample['gt_instances']['keypoints_3d'][..., 3] = 0
    for sample in samples[3:5]:
        sample['gt_instances']['keypoints_visible'][:] = 0
    return samples


def test_data_sets_of_one_run_are_scored_separately(printed):
    evaluator = Evaluator([MeshPCK(), MeshJointError()])
    samples = mixed_samples()
    evaluator.process(samples)
    results = evaluator.evaluate(len(samples))

    alone = evaluate(MeshPCK(), random_samples(3, 'lsp', 1))
    assert results['lsp/PCK@0.05'] == alone['lsp/PCK@0.05']
    assert {key.split('/')[0] for key in results if 'PCK' in key} == {'lsp', 'b'}
    assert {key.split('/')[0] for key in results if 'MPJPE' in key} == {'3dpw', 'b'}
    errors = [results[f'{name}/{kind}'] for name in ('3dpw', 'b') for kind in ('MPJPE', 'PA-MPJPE')]
    assert results['PhiM3D'] == pytest.approx(sum(errors) / 4)


def test_only_the_named_data_sets_are_scored(printed):
    results = evaluate(MeshPCK(datasets=['b', 'absent']), mixed_samples())
    assert {key.split('/')[0] for key in results} == {'b', 'PhiM2D'}
    assert any('absent: no annotated sample was evaluated' in text for text in printed)


def test_results_are_printed_with_their_protocol(printed):
    samples = mixed_samples()
    pck, errors = evaluate(MeshPCK(), samples), evaluate(MeshJointError(), samples)
    about_pck, about_errors = printed[-2:]
    for words in ('in %', '> 0.5', 'longer side', 'no alignment', 'lsp: PCK@0.05', '3 samples'):
        assert words in about_pck
    for words in ('in mm', '14 joints', 'pelvis', 'similarity', '3dpw: MPJPE', '2 samples'):
        assert words in about_errors
    assert f'PhiM2D {pck["PhiM2D"]:.2f} %' in about_pck
    assert f'PhiM3D {errors["PhiM3D"]:.2f} mm' in about_errors


def test_partly_annotated_samples_are_mentioned(printed):
    samples = random_samples(2)
    samples[0]['gt_instances']['keypoints_3d'][0, 26, 3] = 0
    evaluate(MeshJointError(), samples)
    assert '2 samples, 1 of which lack some of the 14 joints' in printed[-1]


COLUMNS = [
    f'{dataset}/{name}'
    for datasets, names in (
        (('lsp', 'coco', 'posetrack'), ('PCK@0.05', 'PCK@0.1')),
        (('3dpw', 'h36m'), ('MPJPE', 'PA-MPJPE')),
    )
    for dataset in datasets
    for name in names
]


def test_scores_are_those_of_the_paper():
    """VMHMR2.0-B in Table 4, whose scores Tables 2b and 2c print with one digit."""
    stages_4 = 45.9, 77.7, 83.7, 95.2, 88.1, 96.8, 81.5, 54.3, 48.5, 34.0
    stages_2 = 32.8, 63.0, 75.5, 91.5, 81.1, 93.4, 83.3, 54.2, 57.0, 40.0
    whole, cut = (phi_scores(dict(zip(COLUMNS, row, strict=True))) for row in (stages_4, stages_2))
    for name, *printed in (('PhiM2D', 81.2, 72.9, -10.3), ('PhiM3D', 54.6, 58.6, 7.4)):
        change = 100 * (cut[name] / whole[name] - 1)
        assert [round(value, 1) for value in (whole[name], cut[name], change)] == printed


def test_pose_score_is_in_percent_whatever_the_prefix():
    assert phi_scores({'coco/AP': 0.758, 'coco/AR': 0.811}) == {'PhiP2D': pytest.approx(78.45)}
    assert phi_scores({'AP': 0.5, 'AR': 0.7, 'loss': 3}) == {'PhiP2D': pytest.approx(60)}


# ranks


def _evaluate_rank(rank, world, folder, count):
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{folder}/rendezvous', rank=rank, world_size=world
    )
    samples = random_samples(count)
    per_rank = -(-count // world)
    mine = [(rank + step * world) % count for step in range(per_rank)]
    evaluator = Evaluator(
        [metric(collect_dir=f'{folder}/{metric.__name__}') for metric in (MeshPCK, MeshJointError)]
    )
    evaluator.process([samples[i] for i in mine])
    torch.save(evaluator.evaluate(count), f'{folder}/{rank}.pt')
    leave_process_group()


def test_two_processes_agree_with_one_and_count_no_sample_twice(tmp_path):
    """Five samples on two ranks: the second is padded with sample 0."""
    other = torch.multiprocessing.get_context('spawn').Process(
        target=_evaluate_rank, args=(1, 2, str(tmp_path), 5)
    )
    other.start()
    _evaluate_rank(0, 2, str(tmp_path), 5)
    other.join()
    assert other.exitcode == 0
    results = [torch.load(tmp_path / f'{rank}.pt') for rank in range(2)]
    assert results[0] == results[1]
    samples = random_samples(5)
    alone = evaluate(MeshPCK(), samples) | evaluate(MeshJointError(), samples)
    assert results[0] == pytest.approx(alone, abs=1e-9)


# --- spread of joint angles ----------------------------------------------------------------------
def turned(angles, axis=(0.0, 0.6, 0.8)):
    """Samples whose joints are turned by such angles (degrees) from a rotation of each joint."""
    rest = axis_angle_to_matrix(torch.randn(23, 3, generator=torch.Generator().manual_seed(1)))
    samples = []
    for angle in angles:
        turn = axis_angle_to_matrix(torch.tensor(axis) * np.deg2rad(angle))
        pose = dict(body_pose=(rest @ turn)[None].numpy())
        truth = dict(pose=np.zeros((1, 72)), has_pose=np.ones(1))
        samples.append(dict(dataset='a', pred_instances=pose, gt_instances=truth))
    return samples


def test_the_spread_is_the_mean_angle_to_the_mean_rotation():
    values = evaluate(MeshAngleSpread(), turned([-20, -10, 10, 20]))
    assert values == {
        'a/spread': pytest.approx(15, abs=1e-3), 'a/true-spread': pytest.approx(0, abs=1e-3)
    }  # fmt: skip
    samples = turned([50, 50])
    samples[1]['gt_instances'] = dict(has_pose=np.zeros(1), pose=np.zeros((1, 72)))
    assert evaluate(MeshAngleSpread(), samples) == {'a/spread': pytest.approx(0, abs=1e-3)}


def test_the_mean_of_rotations_is_a_rotation_also_of_opposite_ones():
    matrices = axis_angle_to_matrix(torch.tensor([[0, 0, 0.0], [3, 0, 0], [0, 3, 0]]).double())
    mean = mean_rotation(matrices)
    assert torch.det(mean) == pytest.approx(1)
    assert torch.allclose(mean @ mean.mT, torch.eye(3).double())
