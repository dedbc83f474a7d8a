"""The annotation of one person: its form, what 4D-Humans filters out, what is counted as bad.

An annotation is the dict of a released shard's `.data.pyd`:

    keypoints_2d  (44, 3)  pixels of the picture, confidence
    keypoints_3d  (44, 4)  metres, camera frame, confidence
    center        (2,)     of the box, pixels
    scale         (2,)     width and height of the box, pixels / 200 (one number: a square)
    body_pose     (72,)    axis-angle, global_orient first;  has_body_pose 0 or 1
    betas         (10,)                                      has_betas     0 or 1
    extra_info    dict     optional: fitting_loss, detection_npz_idx

Filters follow shubham-goel/4D-Humans (hmr2/datasets/image_dataset.py, smplh_prob_filter.py).
"""

import logging
import math
from pathlib import Path

import numpy as np
import torch
from mmengine.logging import print_log
from torch.utils.data import get_worker_info

FORM = {
    'keypoints_2d':  ((44, 3), np.float32),
    'keypoints_3d':  ((44, 4), np.float32),
    'center':        ((2,),    np.float64),
    'scale':         ((2,),    np.float64),
    'body_pose':     ((72,),   np.float32),
    'betas':         ((10,),   np.float32),
    'has_body_pose': ((),      np.float32),
    'has_betas':     ((),      np.float32),
}  # fmt: skip
# Those of a person who was seen but never fitted may be left out.
OPTIONAL = ('keypoints_3d', 'body_pose', 'has_body_pose', 'betas', 'has_betas')


class BadRecord(ValueError):
    """A record that cannot be used; `kind` is what it is counted as."""

    def __init__(self, kind, message):
        super().__init__(message)
        self.kind = kind


def check_annotation(data):
    """A clean copy of an annotation: arrays in the form above, nothing left out.

    Joints without confidence may hold anything finite, and what is not finite there becomes 0.

    Raises:
        BadRecord: a missing key, a wrong shape, NaN or infinity, a box below one pixel.
    """
    if not isinstance(data, dict):
        raise BadRecord('malformed annotation', f'an annotation is a dict, got {type(data)}')
    clean = {}
    for name, (shape, dtype) in FORM.items():
        if name in data:
            clean[name] = _as_array(name, data[name], shape, dtype)
        elif name in OPTIONAL:
            clean[name] = np.zeros(shape, dtype)
        else:
            raise BadRecord('malformed annotation', f'{name} is missing; found {sorted(data)}')
    for name in ('keypoints_2d', 'keypoints_3d'):
        unseen = clean[name][:, -1] == 0
        clean[name][unseen] = np.nan_to_num(clean[name][unseen], nan=0, posinf=0, neginf=0)
    for name, value in clean.items():
        if not np.isfinite(value).all():
            raise BadRecord('malformed annotation', f'{name} holds NaN or infinity')
    if not clean['scale'].max() * 200 >= 1 or clean['scale'].min() < 0:
        box = (clean['scale'] * 200).tolist()
        raise BadRecord('zero-size box', f'the box is {box} pixels; a pixel or more is wanted')
    clean['extra_info'] = data.get('extra_info', {})
    return clean


def _as_array(name, value, shape, dtype):
    try:
        value = np.array(value, dtype)
    except (TypeError, ValueError) as error:
        raise BadRecord('malformed annotation', f'{name} is not an array: {error}') from error
    if name == 'scale' and value.size == 1:
        value = np.repeat(value.reshape(1), 2)
    if shape == () and value.size == 1:
        value = value.reshape(())
    if value.shape != shape:
        raise BadRecord('malformed annotation', f'{name} has shape {value.shape}, wanted {shape}')
    return value


# ---------------------------------------------------------------------------------------------
# Filters
# ---------------------------------------------------------------------------------------------
class AnnotationFilter:
    """The filters of HMR2.0's training, in their order.

    1. Keypoints below `min_confidence` get confidence 0.
    2. Any |beta| above `max_beta`: no betas.
    3. An improbable pose: no pose (needs `pose_histogram`).
    4. Pose and betas: both or neither.
    5. The person stays with *more* than `min_keypoints` keypoints,
    6. and a fitting loss below `max_fitting_loss` (or none stated).
    7. Who has no betas is drawn to betas of 0 (`regularise_betas`; BETAS_REG there).

    Args:
        pose_histogram: `amass_poses_hist100_SMPL+H_G.npy` of the 4D-Humans training data; None
            leaves step 3 out.
    """

    def __init__(
        self,
        min_confidence=0.3,
        max_beta=3.0,
        pose_histogram=None,
        min_keypoints=4,
        max_fitting_loss=31000.0,
        regularise_betas=True,
    ):
        self.min_confidence = min_confidence
        self.max_beta = max_beta
        self.pose_histogram = pose_histogram
        self.min_keypoints = min_keypoints
        self.max_fitting_loss = max_fitting_loss
        self.regularise_betas = regularise_betas
        self._probable = None

    @property
    def settings(self):
        """Text that is the same for equal filters."""
        return repr(sorted((k, str(v)) for k, v in vars(self).items() if not k.startswith('_')))

    def load(self):
        """Read the histogram, once, before worker processes share it."""
        if self.pose_histogram is not None and self._probable is None:
            self._probable = load_probable_poses(self.pose_histogram)

    def __call__(self, annotation):
        """Filter a checked annotation in place; returns why it is dropped, or None if it stays."""
        self.load()
        confidence = annotation['keypoints_2d'][:, 2]
        confidence[confidence < self.min_confidence] = 0
        if np.abs(annotation['betas']).max() > self.max_beta:
            annotation['has_betas'][...] = 0
        if (
            self._probable is not None
            and annotation['has_body_pose'] > 0
            and not is_probable(annotation['body_pose'][3:], self._probable)
        ):
            annotation['has_body_pose'][...] = 0
        both = annotation['has_betas'] > 0 and annotation['has_body_pose'] > 0
        annotation['has_betas'][...] = annotation['has_body_pose'][...] = both

        if (confidence > 0).sum() <= self.min_keypoints:
            return 'few keypoints'
        loss = fitting_loss(annotation)
        if loss is not None and not loss < self.max_fitting_loss:
            return 'fitting loss'
        if self.regularise_betas and not both:
            annotation['betas'][...] = 0
            annotation['has_betas'][...] = 1
        return None


def fitting_loss(annotation):
    """Reprojection loss that the released fits state, or None."""
    losses = annotation['extra_info'].get('fitting_loss', {})
    if isinstance(losses, np.ndarray):
        losses = losses.item()
    loss = losses.get('reprojection_loss')
    return None if loss is None else float(loss)


# ---------------------------------------------------------------------------------------------
# Improbable poses: densities of AMASS poses, chosen by hand per joint in 4D-Humans
# ---------------------------------------------------------------------------------------------
POSE_THRESHOLDS = (
    5e-5, 5e-5, 2e-3,      # hips, spine1
    5e-6, 5e-6, 1e-2,      # knees, spine2
    5e-6, 5e-6, 2.5e-2,    # ankles, spine3
    0, 0, 2e-4,            # feet, neck
    4.5e-4, 4.5e-4, 5e-4,  # collars, head
    2e-4, 2e-4,            # shoulders
    4e-5, 4e-5,            # elbows
    1e-3, 1e-3,            # wrists; the hands are free
)  # fmt: skip


def load_probable_poses(path):
    """Which bins of axis-angle space are probable, for each of 21 body joints.

    The densities are smoothed as in 4D-Humans, which its thresholds were chosen for: by a Gaussian
    of 2 bins along all four axes, the one over joints included, after one common normalisation.

    Args:
        path: npy of (21, bins, bins, bins) counts over [-pi, pi]^3.

    Returns:
        bool, same shape.

    Raises:
        FileNotFoundError, ValueError: no such file, or another array.
    """
    from scipy.ndimage import gaussian_filter

    if not Path(path).is_file():
        raise FileNotFoundError(
            f'no pose histogram {path}; it comes with the 4D-Humans training data '
            '(hmr2_training_data/), or set pose_histogram=None to keep improbable poses'
        )
    counts = np.load(path, allow_pickle=False)
    if counts.ndim != 4 or counts.shape[0] != 21 or len(set(counts.shape[1:])) != 1:
        raise ValueError(f'{path} wants shape (21, n, n, n), got {counts.shape}')
    bin_volume = (2 * math.pi / counts.shape[1]) ** 3
    density = gaussian_filter(counts / (counts.sum() * bin_volume), sigma=2, mode='constant')
    return density > np.array(POSE_THRESHOLDS)[:, None, None, None]


def is_probable(body_pose, probable):
    """Whether all of the first 21 joints lie in a probable bin.

    Args:
        body_pose: (69,), axis-angle of the 23 body joints.
        probable: of `load_probable_poses`.
    """
    pose = wrap_axis_angle(body_pose.reshape(23, 3)[:21].astype(np.float64))
    bins = probable.shape[1]
    index = ((pose + math.pi) / (2 * math.pi) * (bins - 1e-6)).astype(int).clip(0, bins - 1)
    inside = ((pose >= -math.pi) & (pose < math.pi)).all()
    return bool(inside and probable[np.arange(21), index[:, 0], index[:, 1], index[:, 2]].all())


def wrap_axis_angle(axis_angle):
    """(N, 3) rotations with angles brought into [0, pi] (up to 1e-6)."""
    angle = np.linalg.norm(axis_angle, axis=1, keepdims=True)
    turns = np.ceil(np.maximum(angle - math.pi - 1e-6, 0) / (2 * math.pi))
    return axis_angle * (angle - 2 * math.pi * turns) / np.maximum(angle, 1e-8)


# ---------------------------------------------------------------------------------------------
# Counting
# ---------------------------------------------------------------------------------------------
class BadCount:
    """Counts unusable records over all worker processes and stops when they are too many.

    Each kind is logged at its 1st, 2nd, 4th, 8th ... time, with the record's name.

    Args:
        name: of the data set, for the messages.
        max_share: of bad among all records; more is an error.
        patience: so many records are looked at before the share is judged.
    """

    MAX_WORKERS = 64

    def __init__(self, name, max_share, patience=200):
        self.name = name
        self.max_share = max_share
        self.patience = patience
        # Shared memory; one row a worker (the main process is row 0), so that nobody adds at once.
        rows = self.MAX_WORKERS + 1
        self._counts = torch.zeros(rows, len(BAD_KINDS) + 1, dtype=torch.int64).share_memory_()

    @property
    def good(self):
        return int(self._counts[:, 0].sum())

    @property
    def bad(self):
        """Dict from kind to count, over all workers, without the kinds never met."""
        total = self._counts[:, 1:].sum(0).tolist()
        return {kind: n for kind, n in zip(BAD_KINDS, total, strict=True) if n}

    def add_good(self):
        self._row()[0] += 1

    def add_bad(self, kind, name, why):
        """Count one; `name` says which record, `why` what was wrong.

        Raises:
            RuntimeError: the share of bad records is above `max_share`.
        """
        self._row()[1 + BAD_KINDS.index(kind)] += 1
        good, bad = self.good, self.bad
        if bad[kind] & (bad[kind] - 1) == 0:
            log_warning(
                f'{self.name}: skipped {name}: {kind} ({why}); {describe(bad)} of '
                f'{good + sum(bad.values())} records so far'
            )
        if good + sum(bad.values()) >= self.patience:
            judge(self.name, good, bad, self.max_share)

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
    'missing image',
)


def judge(name, good, bad, max_share):
    """RuntimeError if the share of bad records (dict from kind to count) is above `max_share`."""
    number = sum(bad.values())
    if number > max_share * (number + good):
        raise RuntimeError(
            f'{name}: {number} of {number + good} records are bad ({describe(bad)}), above the '
            f'share of {max_share} that max_bad_share allows; tools/check_data.py tells more'
        )


def describe(counts):
    """'2 zero-size box, 1 damaged shard' or 'none'."""
    return ', '.join(f'{number} {kind}' for kind, number in counts.items() if number) or 'none'


def log_warning(message):
    print_log(message, logger='current', level=logging.WARNING)
