"""Errors of motion: MPJVE, acceleration error and jitter of 2D, 3D and body tracks.

MPJVE is that of VideoPose3D (Pavllo et al., CVPR 2019), acceleration error that of HMMR and VIBE
without their frame rate, jitter the third difference, as of TransPose and WHAM.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from mmengine.registry import METRICS

from ..conventions import EVAL_14_IN_44, PELVIS
from ..geometry import align_similarity

KINDS = '2d', '3d', 'body'


def step_errors(
    predicted: np.ndarray, truth: np.ndarray, order: int, visible: np.ndarray | None = None
) -> np.ndarray:
    """Distances between the differences of two tracks.

    Args:
        predicted, truth: (T, K, D). order: 0 for positions, 1 for velocity, 2 for acceleration.
        visible: (T, K); a difference counts if all its frames do.

    Returns:
        (N,), in the unit of the track a frame^order; N = (T - order) K if all are visible.
    """
    apart = np.asarray(predicted, np.float64) - np.asarray(truth, np.float64)
    lengths = np.linalg.norm(np.diff(apart, order, axis=0), axis=-1)
    return lengths[_all_visible(visible, lengths, order)]


def step_lengths(
    track: np.ndarray, order: int = 3, visible: np.ndarray | None = None
) -> np.ndarray:
    """Lengths (N,) of the differences of a track (T, K, D); of order 3, their mean is jitter."""
    lengths = np.linalg.norm(np.diff(np.asarray(track, np.float64), order, axis=0), axis=-1)
    return lengths[_all_visible(visible, lengths, order)]


def _all_visible(visible, lengths, order):
    if visible is None:
        return np.ones_like(lengths, dtype=bool)
    visible = np.asarray(visible, bool)
    frames = len(lengths)
    return np.logical_and.reduce([visible[i : i + frames] for i in range(order + 1)])


@METRICS.register_module()
class TrackErrors(BaseMetric):
    """A table of errors of position and motion, over the videos of a data set.

    A sample is a frame or a window; frames are joined to tracks by file names, whose last digits
    are the number of the frame, and by `track_id` where there is one. A gap in the numbers begins a
    new track.

    - '3d': predicted keypoints against `lifting_target`, for mmpose's PoseLifter: MPJPE, PA-MPJPE
    - '2d': keypoints against keypoints, for top-down models: EPE, in pixels
    - 'body': 14 of 44 joints around the pelvis, for mesh models: MPJPE, PA-MPJPE

    and MPJVE, ACC-ERR, jitter and the truth's jitter.

    Args:
        kind: of track. scale: from the unit of the data to that of the table: 1000 from m to mm,
            None for that, or for 1 in 2D.
        fps: with it, MPJVE is a second, ACC-ERR a second^2, jitter a second^3; else a frame.
        skip_list: names of videos to leave out, beginnings of file names.
        base: arguments of mmengine's BaseMetric.
    """

    def __init__(
        self,
        kind: str = '3d',
        scale: float | None = None,
        fps: float | None = None,
        skip_list: Sequence[str] = (),
        **base: Any,
    ):
        if kind not in KINDS:
            raise ValueError(f'kind={kind!r}; choose from {", ".join(KINDS)}')
        super().__init__(**{'prefix': f'track_{kind}', **base})
        self.kind, self.fps, self.skip_list = kind, fps or 1.0, tuple(skip_list)
        self.scale = (1.0 if kind == '2d' else 1000.0) if scale is None else scale

    def process(self, data_batch: object, data_samples: Sequence[dict]) -> None:
        """Add one result a sample."""
        for sample in data_samples:
            predicted, truth, visible = getattr(self, f'_of_{self.kind}')(sample)
            names = sample.get('target_img_path') if self.kind == '3d' else None
            names = [sample['img_path']] if names is None else np.atleast_1d(names).tolist()
            if len(names) != len(predicted):
                raise ValueError(
                    f'{len(names)} file names {names[:2]}... of {len(predicted)} predicted frames; '
                    'they must be one a frame'
                )
            tracks = [(*video_and_frame(name), sample.get('track_id')) for name in names]
            skipped = bool(self.skip_list) and Path(names[0]).name.startswith(self.skip_list)
            result = dict(predicted=predicted, truth=truth, visible=visible, tracks=tracks)
            self.results.append({} if skipped else result)

    def _of_3d(self, sample):
        predicted = _array(sample['pred_instances']['keypoints'])
        truth = _array(sample['gt_instances']['lifting_target'])
        truth = truth.reshape(-1, *truth.shape[-2:])
        visible = _array(sample['gt_instances']['lifting_target_visible']) > 0.5
        return predicted.reshape(truth.shape), truth, visible.reshape(truth.shape[:2])

    def _of_2d(self, sample):
        truth = _array(sample['gt_instances']['keypoints'])
        if len(truth) != 1:
            raise ValueError(f'{len(truth)} people in a sample; top-down models have one')
        visible = _array(sample['gt_instances']['keypoints_visible'])
        visible = visible.reshape(*truth.shape[:2], -1)[..., 0] > 0.5  # mmpose may add weights
        return _array(sample['pred_instances']['keypoints'])[:1], truth, visible

    def _of_body(self, sample):
        truth = _array(sample['gt_instances']['keypoints_3d'])
        joints = (
            points[:, list(EVAL_14_IN_44)] - points[:, PELVIS, None]
            for points in (_array(sample['pred_instances']['joints']), truth[..., :3])
        )
        return *joints, truth[:, list(EVAL_14_IN_44), 3] > 0

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """The table's numbers; NaN where no track is long enough."""
        tracks = list(joined(results))
        table = {'EPE' if self.kind == '2d' else 'MPJPE': self._mean(tracks, step_errors, 0)}
        if self.kind != '2d':
            aligned = [(_aligned(pred, true), true, seen) for pred, true, seen in tracks]
            table['PA-MPJPE'] = self._mean(aligned, step_errors, 0)
        table['MPJVE'] = self._mean(tracks, step_errors, 1)
        table['ACC-ERR'] = self._mean(tracks, step_errors, 2)
        for name, place in (('jitter', 0), ('jitter of truth', 1)):
            lengths = [step_lengths(each[place], 3, each[2]) for each in tracks]
            table[name] = self._average(lengths, 3)
        unit = 'pixels' if self.kind == '2d' else 'mm'
        per = ', a frame' if self.fps == 1 else ', a second'
        lines = [f'{name:>16} {value:12.4f}' for name, value in table.items()]
        frames = sum(len(pred) for pred, _, _ in tracks)
        head = f'{self.kind} tracks, {unit}{per}: {len(tracks)} tracks, {frames} frames'
        print_log('\n'.join([head, *lines]), logger='current')
        return table

    def _mean(self, tracks, measure, order):
        return self._average(
            [measure(pred, true, order, seen) for pred, true, seen in tracks], order
        )

    def _average(self, lengths, order):
        lengths = np.concatenate(lengths) if lengths else np.empty(0)
        return float(lengths.mean() * self.scale * self.fps**order) if len(lengths) else np.nan


def video_and_frame(name: str) -> tuple[str, int]:
    """'walk/S1_Walk.54_000012.jpg' -> ('walk/S1_Walk.54_', 12).

    Raises:
        ValueError: no number at the end.
    """
    path = Path(name)
    found = re.fullmatch(r'(.*?)(\d+)', path.stem)
    if found is None:
        raise ValueError(
            f'{name} has no frame number at the end of its name: frames of a track '
            'are put in order by it'
        )
    return str(path.parent / found[1]), int(found[2])


def joined(results: list[dict]) -> Any:
    """(predicted, truth, visible) of each track, from results of samples in any order.

    A frame that several windows have is taken from the first of them.
    """
    videos: dict[tuple, dict[int, tuple]] = {}
    for result in results:
        if result:
            rows = zip(*(result[key] for key in ('predicted', 'truth', 'visible')), strict=True)
            for (video, number, person), row in zip(result['tracks'], rows, strict=True):
                videos.setdefault((video, person), {}).setdefault(number, row)
    for frames in videos.values():
        numbers = sorted(frames)
        gaps = np.diff(numbers)
        step = gaps.min() if len(gaps) else 1
        for part in np.split(numbers, np.flatnonzero(gaps != step) + 1):
            yield tuple(np.stack(values) for values in zip(*map(frames.get, part), strict=True))


def _aligned(predicted, truth):
    pair = (torch.from_numpy(np.asarray(each, np.float64)) for each in (predicted, truth))
    return align_similarity(*pair).numpy()


def _array(value):
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    return np.asarray(value, np.float64)
