"""Annotations of people: checks, the filters of 4D-Humans, and counts of bad records.

An annotation has the fields `conventions.ANNOTATED`, and perhaps a dict `extra_info`
(fitting_loss, detection_npz_idx). Filters follow shubham-goel/4D-Humans
(hmr2/datasets/image_dataset.py, smplh_prob_filter.py).
"""

import logging
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from mmengine.logging import print_log
from torch.utils.data import get_worker_info

from ..conventions import ANNOTATED, ON_DISK, person

# Shape and type of each field.
FORM = {
    name: (person()[name].shape, np.float64 if name in ('center', 'scale') else np.float32)
    for name in ANNOTATED
}
REQUIRED = ('keypoints_2d', 'center', 'scale')  # the others come from a fit, which may be absent
# Largest magnitudes: pixels, and radians, meters or standard deviations.
MAX_PIXEL, MAX_VALUE = 1e6, 1e3


class BadRecord(ValueError):
    """An unusable record.

    Args:
        kind: one of BAD_KINDS, by which it is counted.
    """

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


def check_annotation(data: dict) -> dict:
    """Check and copy one annotation; absent fields become zero.

    Args:
        data: fields under the names of 4D-Humans' files (see `conventions.ON_DISK`); a scalar
            `scale` is that of a square. Where the confidence is 0, coordinates may be NaN, infinite
            or too large; they become 0.

    Returns:
        arrays named as `conventions.ANNOTATED`, and `extra_info`.

    Raises:
        BadRecord: a missing field, a wrong shape or type, NaN, infinity or an absurd value, a box
            below one pixel.
    """
    if not isinstance(data, dict):
        raise BadRecord('malformed annotation', f'expected a dict, got {type(data)}')
    clean = {}
    for name, (shape, dtype) in FORM.items():
        key = ON_DISK.get(name, name)
        if key in data:
            clean[name] = _as_array(key, data[key], shape, dtype)
        elif name in REQUIRED:
            names = sorted(map(str, data))
            raise BadRecord('malformed annotation', f'{key} is missing; found {names}')
        else:
            clean[name] = np.zeros(shape, dtype)
    for name, value in clean.items():
        limit = MAX_PIXEL if name in REQUIRED else MAX_VALUE
        usable = np.abs(value) <= limit  # neither is NaN
        if name in ('keypoints_2d', 'keypoints_3d'):
            unseen = value[:, -1:] == 0
            value[unseen & ~usable] = 0
            usable |= unseen
        if not usable.all():
            name = ON_DISK.get(name, name)
            raise BadRecord(
                'malformed annotation', f'{name} holds NaN, infinity or more than {limit:g}'
            )
    if not clean['scale'].max() * 200 >= 1 or clean['scale'].min() < 0:
        box = (clean['scale'] * 200).tolist()
        raise BadRecord('zero-size box', f'expected a box of 1 pixel or more, got {box} pixels')
    clean['extra_info'] = data.get('extra_info', {})
    fitting_loss(clean)
    return clean


def _as_array(name, value, shape, dtype):
    try:
        with np.errstate(all='ignore'):
            value = np.array(value, dtype)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise BadRecord('malformed annotation', f'{name} is not an array: {error}') from error
    if name == 'scale' and value.size == 1:
        value = np.repeat(value.reshape(1), 2)
    if shape == () and value.size == 1:
        value = value.reshape(())
    if value.shape != shape:
        raise BadRecord('malformed annotation', f'{name} has shape {value.shape}, expected {shape}')
    return value


# --- Filters -------------------------------------------------------------------------------------
@dataclass
class AnnotationFilter:
    """Filters of HMR2.0's training, in this order:

    1. Keypoints below `min_confidence` get confidence 0.
    2. Betas are removed if any |beta| is above `max_beta`.
    3. Improbable poses are removed (requires `pose_histogram`).
    4. Pose and betas are kept together or removed together.
    5. People with `min_keypoints` visible keypoints or fewer are dropped,
    6. and people whose fitting loss, if there is one, is `max_fitting_loss` or more.
    7. Missing betas are regularized towards 0 (`regularize_betas`; BETAS_REG in 4D-Humans).

    Args:
        pose_histogram: `amass_poses_hist100_SMPL+H_G.npy` of the 4D-Humans training data; None
            skips step 3.
    """

    min_confidence: float = 0.3
    max_beta: float = 3.0
    pose_histogram: str | Path | None = None
    min_keypoints: int = 4
    max_fitting_loss: float = 31000.0
    regularize_betas: bool = True
    _probable: np.ndarray | None = field(default=None, init=False, repr=False)

    def load(self) -> None:
        """Read the histogram once, before worker processes are started."""
        if self.pose_histogram is not None and self._probable is None:
            self._probable = load_probable_poses(self.pose_histogram)

    def __call__(self, annotation: dict) -> str | None:
        """Filter a checked annotation in place; returns the reason to drop it, or None."""
        self.load()
        confidence = annotation['keypoints_2d'][:, 2]
        confidence[confidence < self.min_confidence] = 0
        if np.abs(annotation['betas']).max() > self.max_beta:
            annotation['has_betas'][...] = 0
        if (
            self._probable is not None
            and annotation['has_pose'] > 0
            and not is_probable(annotation['pose'][3:], self._probable)
        ):
            annotation['has_pose'][...] = 0
        both = annotation['has_betas'] > 0 and annotation['has_pose'] > 0
        annotation['has_betas'][...] = annotation['has_pose'][...] = both

        if (confidence > 0).sum() <= self.min_keypoints:
            return 'few keypoints'
        loss = fitting_loss(annotation)
        if loss is not None and not loss < self.max_fitting_loss:
            return 'fitting loss'
        if self.regularize_betas and not both:
            annotation['betas'][...] = 0
            annotation['has_betas'][...] = 1
        return None


def fitting_loss(annotation: dict) -> float | None:
    """Reprojection loss of the released fit, or None if there is none.

    Raises:
        BadRecord: `extra_info` is not a dict, or not such a loss in it.
    """
    try:
        losses = annotation['extra_info'].get('fitting_loss', {})
        if isinstance(losses, np.ndarray):
            losses = losses.item()
        loss = losses.get('reprojection_loss')
        return None if loss is None else float(loss)
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise BadRecord('malformed annotation', f'extra_info: {error}') from error


# --- Improbable poses ----------------------------------------------------------------------------
# Minimum densities of AMASS poses for each joint, chosen by hand in 4D-Humans.
POSE_THRESHOLDS = (
    5e-5, 5e-5, 2e-3,      # hips, spine1
    5e-6, 5e-6, 1e-2,      # knees, spine2
    5e-6, 5e-6, 2.5e-2,    # ankles, spine3
    0, 0, 2e-4,            # feet, neck
    4.5e-4, 4.5e-4, 5e-4,  # collars, head
    2e-4, 2e-4,            # shoulders
    4e-5, 4e-5,            # elbows
    1e-3, 1e-3,            # wrists; hands are not tested
)  # fmt: skip


def load_probable_poses(path: str | Path) -> np.ndarray:
    """Mask of the probable bins of axis-angle space, for each of 21 body joints.

    As in 4D-Humans, whose thresholds depend on it, densities are normalized over all joints and
    smoothed by a Gaussian of 2 bins along all four axes, the joint axis included.

    Args:
        path: npy of (21, bins, bins, bins) counts over [-pi, pi]^3.

    Returns:
        bool, same shape.

    Raises:
        FileNotFoundError, ValueError: no such file, or an array of another shape.
    """
    from scipy.ndimage import gaussian_filter

    if not Path(path).is_file():
        raise FileNotFoundError(
            f'no pose histogram {path}; it comes with the 4D-Humans training data '
            '(hmr2_training_data/), or set pose_histogram=None to keep improbable poses'
        )
    counts = np.load(path, allow_pickle=False)
    if not isinstance(counts, np.ndarray):
        raise ValueError(f'{path} holds several arrays, expected one')
    if counts.ndim != 4 or counts.shape[0] != 21 or len(set(counts.shape[1:])) != 1:
        raise ValueError(f'{path}: expected shape (21, n, n, n), got {counts.shape}')
    bin_volume = (2 * math.pi / counts.shape[1]) ** 3
    density = gaussian_filter(counts / (counts.sum() * bin_volume), sigma=2, mode='constant')
    return density > np.array(POSE_THRESHOLDS)[:, None, None, None]


def is_probable(axis_angle: np.ndarray, probable: np.ndarray) -> bool:
    """Whether each of the first 21 joints is in a probable bin.

    Args:
        axis_angle: (69,), of the 23 body joints.
        probable: from `load_probable_poses`.
    """
    pose = wrap_axis_angle(axis_angle.reshape(-1, 3)[:21].astype(np.float64))
    bins = probable.shape[1]
    index = ((pose + math.pi) / (2 * math.pi) * (bins - 1e-6)).astype(int).clip(0, bins - 1)
    inside = ((pose >= -math.pi) & (pose < math.pi)).all()
    return bool(inside and probable[np.arange(21), index[:, 0], index[:, 1], index[:, 2]].all())


def wrap_axis_angle(axis_angle: np.ndarray) -> np.ndarray:
    """Wrap the angles of (N, 3) rotations into [0, pi] (up to 1e-6)."""
    angle = np.linalg.norm(axis_angle, axis=1, keepdims=True)
    turns = np.ceil(np.maximum(angle - math.pi - 1e-6, 0) / (2 * math.pi))
    return axis_angle * (angle - 2 * math.pi * turns) / np.maximum(angle, 1e-8)


# --- Counting ------------------------------------------------------------------------------------
class BadCount:
    """Count bad records over all worker processes; raise an error above a maximum share.

    Each kind is logged at its 1st, 2nd, 4th, 8th ... occurrence, with the record's name.

    Args:
        name: of the data set, for the messages.
        max_share: maximum share of bad records.
        patience: records to read before the share is checked.
    """

    MAX_WORKERS = 64

    def __init__(self, name: str, max_share: float, patience: float = 200):
        self.name = name
        self.max_share = max_share
        self.patience = patience
        # Shared memory, one row per worker (row 0: main process), so that no two write to one row.
        rows = self.MAX_WORKERS + 1
        self._counts = torch.zeros(rows, len(BAD_KINDS) + 1, dtype=torch.int64).share_memory_()

    @property
    def good(self) -> int:
        return int(self._counts[:, 0].sum())

    @property
    def bad(self) -> Counter:
        """Counts by kind over all workers, without zeros."""
        return +Counter(dict(zip(BAD_KINDS, self._counts[:, 1:].sum(0).tolist(), strict=True)))

    def add_good(self) -> None:
        self._row()[0] += 1

    def add_bad(self, kind: str, name: str, reason: object) -> None:
        """Count one bad record.

        Raises:
            RuntimeError: the share of bad records is above `max_share`.
        """
        self._row()[1 + BAD_KINDS.index(kind)] += 1
        good, bad = self.good, self.bad
        number = good + bad.total()
        if bad[kind] & (bad[kind] - 1) == 0:
            log_warning(
                f'{self.name}: skipped {name}: {kind} ({reason}); {describe(bad)} of {number} '
                'records so far'
            )
        if number >= self.patience:
            self.check()

    def check(self) -> None:
        """Raise RuntimeError if the share of bad records is above `max_share`."""
        check_bad_share(self.name, self.good, self.bad, self.max_share)

    def _row(self):
        worker = get_worker_info()
        row = 0 if worker is None else 1 + worker.id % self.MAX_WORKERS
        return self._counts[row].numpy()


BAD_KINDS = (
    'malformed annotation',
    'zero-size box',
    'unreadable annotation',
    'incomplete member',
    'damaged shard',
    'undecodable image',
    'unreadable mask',
    'missing image',
)


def check_bad_share(name: str, good: int, bad: Mapping[str, int], max_share: float) -> None:
    """Raise RuntimeError if the share of bad records (counts by kind) is above `max_share`."""
    number = sum(bad.values())
    if number > max_share * (number + good):
        raise RuntimeError(
            f'{name}: {number} of {number + good} records are bad ({describe(bad)}), more than '
            f'max_bad_share={max_share}; tools/check_data.py shows details'
        )


def describe(counts: Mapping[str, int]) -> str:
    """'2 zero-size box, 1 damaged shard' or 'none'."""
    return ', '.join(f'{number} {kind}' for kind, number in counts.items() if number) or 'none'


def log_warning(message: str) -> None:
    print_log(message, logger='current', level=logging.WARNING)
