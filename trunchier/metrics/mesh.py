"""PCK of reprojected keypoints, MPJPE and PA-MPJPE, the paper's scores; spread of joint angles.

Equal to EvaluatorPCK and Evaluator of shubham-goel/4D-Humans (hmr2/utils/pose_utils.py,
pck_accuracy.py). Results are grouped by the data set in each sample's metainfo and printed with
their protocol.

The metrics read data samples as dicts; `conventions.person` has shapes, here with a leading 1:

    pred_instances  keypoints, joints, body_pose
    gt_instances    keypoints, keypoints_visible (1, 44) confidence, keypoints_3d, pose, has_pose
    metainfo        dataset; box_scale (2,), `scale` of the annotated box; id, img_path for messages

Each sample adds exactly one result on its rank, scored or not: mmengine then orders the ranks'
results and removes the samples that padded the last batch.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from mmengine.registry import METRICS
from torch import Tensor

from ..conventions import EVAL_14_IN_44, PELVIS
from ..geometry import (
    align_similarity,
    axis_angle_to_matrix,
    matrix_to_axis_angle,
    mean_rotation,
)


class _PerDataset(BaseMetric):
    """Metric of each data set, and a score over the data sets.

    Args:
        datasets: names of those to score; None: all with annotations for this metric.
        prefix, base: see mmengine's BaseMetric.
    """

    def __init__(
        self, datasets: Sequence[str] | None = None, prefix: str | None = None, **base: Any
    ):
        # mmengine warns of a missing prefix; here names of data sets are the prefixes.
        super().__init__(prefix=prefix or 'mesh', **base)
        self.prefix = prefix
        self.datasets = datasets

    def process(self, data_batch: object, data_samples: Sequence[dict]) -> None:
        for sample in data_samples:
            dataset = sample.get('dataset') or (self.dataset_meta or {}).get('dataset_name', 'all')
            scored = self.datasets is None or dataset in self.datasets
            self.results.append({'dataset': dataset, **(self.measure(sample) if scored else {})})

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        groups = {}
        for result in results:
            if len(result) > 1:
                groups.setdefault(result.pop('dataset'), []).append(result)
        metrics, lines = {}, []
        for dataset, group in groups.items():
            values, count = self.summarize(group)
            metrics |= {f'{dataset}/{name}': value for name, value in values.items()}
            numbers = ', '.join(f'{name} {value:.2f} {self.unit}' for name, value in values.items())
            lines.append(f'  {dataset}: {numbers} ({count})')
        for dataset in self.datasets or (() if groups else ('any data set',)):
            if dataset not in groups:
                lines.append(f'  {dataset}: no annotated sample was evaluated')
        scores = phi_scores(metrics)
        lines += [f'  {name} {value:.2f} {self.unit}' for name, value in scores.items()]
        print_log('\n'.join([self.protocol(), *lines]), logger='current')
        return metrics | scores


@METRICS.register_module()
class MeshPCK(_PerDataset):
    """Percentage of correct keypoints: DATASET/PCK@0.05, ..., and PhiM2D; see `protocol`.

    Args:
        thresholds: fractions of the longer side.
        confidence: keypoints at or below it are ignored.
        others: `datasets` and arguments of mmengine's BaseMetric.
    """

    unit = '%'

    def __init__(
        self, thresholds: Sequence[float] = (0.05, 0.1), confidence: float = 0.5, **others: Any
    ):
        super().__init__(**others)
        self.thresholds = tuple(thresholds)
        self.confidence = confidence

    def protocol(self) -> str:
        return (
            'PCK of reprojected keypoints, in %: 44 keypoints (25 OpenPose + 19), those with '
            f'confidence > {self.confidence}; no alignment; correct if the error < threshold * '
            'the longer side of the annotated box; mean per keypoint, then over the keypoints that '
            'have data; PhiM2D: mean over data sets and thresholds'
        )

    def measure(self, sample: dict) -> dict:
        truth = sample['gt_instances']
        visible = _array(truth['keypoints_visible']).reshape(-1) > self.confidence
        if not visible.any() and self.datasets is None:
            return {}
        side = 200 * float(_array(sample['box_scale']).max())
        if not side > 0:
            raise ValueError(f'{_name(sample)}: expected a box of positive size, got {side} pixels')
        pred = _finite(sample, 'keypoints')
        error = np.linalg.norm(pred - _array(truth['keypoints'])[0], axis=-1) / side
        return {'error': error, 'visible': visible}

    def summarize(self, group: list[dict]) -> tuple[dict[str, float], str]:
        error = np.stack([result['error'] for result in group])
        visible = np.stack([result['visible'] for result in group])
        values = {
            f'PCK@{threshold}': 100 * mean_pck(error, visible, threshold)[0]
            for threshold in self.thresholds
        }
        kinds = visible.any(0)
        return values, (
            f'{len(group)} samples, {visible.sum()} keypoints, {kinds.sum()} of {len(kinds)} kinds'
        )


@METRICS.register_module()
class MeshJointError(_PerDataset):
    """Mean joint errors in mm: DATASET/MPJPE, DATASET/PA-MPJPE, and PhiM3D; see `protocol`.

    Degenerate sets stay finite: a prediction whose joints coincide is aligned to the mean of the
    ground truth. As official, confidences are ignored, except that samples without any annotated
    joint are skipped.
    """

    unit = 'mm'

    def protocol(self) -> str:
        return (
            'Joint errors in mm: 14 joints (25..37 and 43 of 44), prediction and truth centered on '
            'the pelvis (39); MPJPE: no further alignment; PA-MPJPE: aligned by a similarity '
            '(rotation, scale, translation; no reflection) for each sample; mean over joints, then '
            'over samples; PhiM3D: mean over data sets and both errors'
        )

    def measure(self, sample: dict) -> dict:
        truth = torch.from_numpy(_array(sample['gt_instances']['keypoints_3d']))
        annotated = truth[0, list(EVAL_14_IN_44), 3] > 0
        if not annotated.any():
            return {}
        pred = torch.from_numpy(_finite(sample, 'joints'))[None]
        plain, aligned = joint_errors(pred, truth[..., :3])
        return {
            'MPJPE': 1000 * plain.item(),
            'PA-MPJPE': 1000 * aligned.item(),
            'whole': bool(annotated.all()),
        }

    def summarize(self, group: list[dict]) -> tuple[dict[str, float], str]:
        names = 'MPJPE', 'PA-MPJPE'
        values = {name: float(np.mean([result[name] for result in group])) for name in names}
        count = f'{len(group)} samples'
        partly = sum(not result['whole'] for result in group)
        if partly:
            count += f', {partly} of which lack some of the 14 joints and are scored nevertheless'
        return values, count


@METRICS.register_module()
class MeshAngleSpread(_PerDataset):
    """How far joint angles spread around their mean, in degrees; see `protocol`.

    DATASET/spread is that of predictions, DATASET/true-spread that of the annotated poses, if all
    samples have one. A network that gives the mean body to everybody has a spread of 0, and may
    have the joint errors of a better one.
    """

    unit = 'degrees'

    def protocol(self) -> str:
        return (
            'Spread of joint angles in degrees: angle between the rotation of a joint and its mean '
            'over the samples (chordal); mean over the 23 joints and the samples'
        )

    def measure(self, sample: dict) -> dict:
        truth = sample['gt_instances']
        result = {'pred': torch.from_numpy(_array(sample['pred_instances']['body_pose']))[0]}
        if _array(truth.get('has_pose', 0)).all():
            pose = torch.from_numpy(_array(truth['pose'])).unflatten(-1, (-1, 3))
            result['true'] = axis_angle_to_matrix(pose)[0, 1:]
        return result

    def summarize(self, group: list[dict]) -> tuple[dict[str, float], str]:
        values = {'spread': angle_spread(torch.stack([result['pred'] for result in group]))}
        if all('true' in result for result in group):
            true = torch.stack([result['true'] for result in group])
            values['true-spread'] = angle_spread(true)
        return values, f'{len(group)} samples'


def angle_spread(rotations: Tensor) -> float:
    """Mean angle between rotations (N, J, 3, 3) and the mean over N of each of J, degrees."""
    turned = mean_rotation(rotations).mT @ rotations
    return float(matrix_to_axis_angle(turned).norm(dim=-1).rad2deg().mean())


def mean_pck(error: np.ndarray, visible: np.ndarray, threshold: float) -> tuple[float, np.ndarray]:
    """Percentage of correct keypoints, as a fraction.

    Args:
        error: (N, K), as a fraction of the box; that of a correct keypoint is below `threshold`.
        visible: (N, K) bool.

    Returns:
        mean over keypoints that are ever visible (0 if none is); rates (K,), NaN if never visible.
    """
    seen = visible.sum(0)
    correct = ((error < threshold) & visible).sum(0)
    rates = np.where(seen > 0, correct / np.maximum(seen, 1), np.nan)
    return (float(np.nanmean(rates)) if seen.any() else 0.0), rates


def joint_errors(
    pred: Tensor, truth: Tensor, joints: Sequence[int] = EVAL_14_IN_44
) -> tuple[Tensor, Tensor]:
    """Mean distances of joints, centered on the pelvis and aligned.

    Args:
        pred, truth: (B, 44, 3), meters.
        joints: indices of the scored joints.

    Returns:
        MPJPE (B,) and PA-MPJPE (B,), meters, float64.
    """
    pred, truth = (
        (points - points[:, PELVIS, None])[:, list(joints)]
        for points in (pred.double(), truth.double())
    )
    aligned = align_similarity(pred, truth)
    return tuple((each - truth).norm(dim=-1).mean(-1) for each in (pred, aligned))


# Metrics that each score averages over data sets, and the factor to the paper's unit.
PHI = {
    'PhiP2D': (('AP', 'AR'), 100),
    'PhiM2D': (('PCK@0.05', 'PCK@0.1'), 1),
    'PhiM3D': (('MPJPE', 'PA-MPJPE'), 1),
}


def phi_scores(metrics: dict[str, float]) -> dict[str, float]:
    """Scores of the paper (Equations 1 to 3): mean over data sets of the mean of two metrics.

    From {'coco/AP': 0.758, 'coco/AR': 0.811, '3dpw-test/MPJPE': 80.0, '3dpw-test/PA-MPJPE': 52.7}:
    PhiP2D (%) and PhiM3D (mm); PhiM2D (%) if there is a data set with PCK.
    """
    scores = {}
    for score, (names, factor) in PHI.items():
        sets = [key.rpartition('/')[0] for key in metrics if key.rpartition('/')[2] == names[0]]
        values = [
            metrics[f'{dataset}/{name}' if dataset else name] for dataset in sets for name in names
        ]
        if values:
            scores[score] = factor * float(np.mean(values))
    return scores


def _finite(sample, name):
    """A field of `pred_instances`: (44, D) float64."""
    value = _array(sample['pred_instances'][name])[0]
    if not np.isfinite(value).all():
        raise ValueError(
            f'predicted {name} of {_name(sample)} are not finite; '
            'training has diverged, or the weights are damaged'
        )
    return value


def _name(sample):
    return f'sample {sample.get("id")} of {sample.get("dataset")} ({sample.get("img_path")})'


def _array(value):
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    return np.asarray(value, np.float64)
