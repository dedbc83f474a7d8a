"""Endless synthetic keypoints to train lifters from: bodies, views, errors of a 2D model.

    stream = KeypointStream(seed=0, poses=100_000, errors='errors.npz')
    batch = stream.batch(256)

Poses are those of the synthetic people. Errors are transplanted from a 2D model's predictions on
rendered people whose truth is known, or drawn: noise, outliers, limbs taken for
each other, missing joints.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..conventions import COCO_17, COCO_17_FLIP, COCO_17_SIGMAS, SMPL_24_FLIP, person
from ..files import read_npz
from ..geometry import axis_angle_to_matrix, coco_points
from .poses import sample_pose

LEGS = (1, 2, 4, 5, 7, 8, 10, 11)
DISTANCES = 1.6, 12.0  # meters from the camera
BETA_LIMIT = 2.5
RECOMBINED = 0.3  # share of bodies with the legs of another pose
POSE_NOISE = 4.0  # degrees, of each joint
SWAPPED = ((5, 7, 9), (7, 9), (9,), (11, 13, 15), (13, 15), (15,))  # taken for the other side's
SWAP_SHARE = 0.012  # of people, for each of SWAPPED
ERRORS = {  # arrays of a file of errors
    'errors': (len(COCO_17), 2),  # found less true position, by `size_of` the true ones
    'scores': (len(COCO_17),),
    'pose': person()['pose'].shape,
    'betas': person()['betas'].shape,
    'truth': (len(COCO_17), 2),  # of the same people, focal lengths from the principal point
}

MAX_OFFSET = 30.0  # focal lengths, of a keypoint in a file of errors


@dataclass
class Batch:
    """People seen by a camera; the unit of length in the image is the focal length."""

    rotations: Tensor  # (B, 24, 3, 3), the root's is into the camera frame
    betas: Tensor  # (B, 10)
    truth: Tensor  # (B, 17, 2), exact keypoints
    keypoints: Tensor  # (B, 17, 2), as a 2D model finds them
    scores: Tensor  # (B, 17), 0 for those that are missing


class KeypointStream:
    """Random batches; the n-th of a stream depends on its options alone.

    Args:
        seed: of everything.
        poses: number of different poses, from which bodies are recombined and perturbed.
        errors: one or more npz of `ERRORS` with a leading N; None: errors are drawn.
        clean: no errors, no perturbation of poses, all keypoints known.
        found_share: of a batch, people of the files with their own bodies.
        tilt: degrees by which the camera of these is turned around its axis (standard deviation).

    Raises:
        ValueError: a share beyond 0..1, no file, or a file of something else.
    """

    def __init__(
        self,
        seed: int,
        poses: int,
        errors: str | Path | Sequence[str | Path] | None = None,
        clean: bool = False,
        found_share: float = 1 / 8,
        tilt: float = 0.0,
    ):
        if not 0 <= found_share <= 1:
            raise ValueError(f'found_share is {found_share}; expected a share from 0 to 1')
        rng = np.random.default_rng(seed)
        rotations = [sample_pose(rng).rotations for _ in range(poses)]
        self.rotations = torch.from_numpy(np.array(rotations, np.float32))
        self.points, self.clean = coco_points(), clean
        self.random = torch.Generator().manual_seed(seed)
        self.found = None
        if errors is not None and not clean:
            files = [errors] if isinstance(errors, str | Path) else errors
            self.found = read_errors(*files)
        self.found_share, self.tilt = found_share, tilt

    def batch(self, size: int) -> Batch:
        """The next `size` people."""
        known = 0 if self.found is None else int(size * self.found_share)
        rotations, betas = self._bodies(size - known)
        truth = self._project(rotations, betas)
        if self.clean:
            return Batch(rotations, betas, truth, truth, torch.ones(truth.shape[:2]))
        keypoints, scores = self._drawn_errors(truth)
        if self.found is None:
            return Batch(rotations, betas, truth, keypoints, scores)
        taken = self._chance(len(truth)) < 0.5
        other, other_scores = self._found_errors(truth)
        keypoints[taken], scores[taken] = other[taken], other_scores[taken]
        parts = (rotations, betas, truth, keypoints, scores), self._found_people(known)
        return Batch(*(torch.cat(each) for each in zip(*parts, strict=True)))

    def _chance(self, *shape):
        return torch.rand(*shape, generator=self.random)

    def _normal(self, *shape):
        return torch.randn(*shape, generator=self.random)

    def _pick(self, values, count):
        return values[torch.randint(len(values), (count,), generator=self.random)]

    def _bodies(self, count):
        rotations = self._pick(self.rotations, count)
        if not self.clean:
            others = self._pick(self.rotations, count)
            mixed = self._chance(count, 1, 1, 1) < RECOMBINED
            legs = list(LEGS)
            rotations[:, legs] = torch.where(mixed, others[:, legs], rotations[:, legs])
            noise = self._normal(count, 24, 3) * math.radians(POSE_NOISE)
            noise[:, 0] = 0
            rotations = rotations @ axis_angle_to_matrix(noise)
        rotations[:, 0] = random_views(count, self.random) @ rotations[:, 0]
        return rotations, self._normal(count, 10).clamp(-BETA_LIMIT, BETA_LIMIT)

    def _project(self, rotations, betas):
        joints, points = self.points(rotations, betas)
        near, far = map(math.log, DISTANCES)
        depth = torch.exp(near + (far - near) * self._chance(len(joints), 1))
        sideways = 0.18 * self._normal(len(joints), 2) * depth
        places = points[:, :17] - joints[:, :1] + torch.cat((sideways, depth), 1)[:, None]
        return places[..., :2] / places[..., 2:].clamp_min(0.3)

    def _drawn_errors(self, truth):
        """Errors without a model: keypoints and scores."""
        count, size = len(truth), size_of(truth)
        sigmas = torch.tensor(COCO_17_SIGMAS)
        level = 0.002 * 25 ** self._chance(count, 1, 1)  # of the person's size
        errors = self._normal(count, 17, 2) * level * (sigmas / sigmas.mean()).sqrt()[:, None]
        wild = self._chance(count, 17, 1) < 0.3 * self._chance(count, 1, 1) ** 2
        keypoints = truth + (errors + wild * 0.2 * self._normal(count, 17, 2)) * size
        for limb in SWAPPED:
            swapped = torch.nonzero(self._chance(count) < SWAP_SHARE)
            joints = torch.tensor(limb)
            others = torch.tensor([COCO_17_FLIP[joint] for joint in limb])
            both = torch.cat((joints, others)), torch.cat((others, joints))
            keypoints[swapped, both[0]] = keypoints[swapped, both[1]]
        distance = (keypoints - truth).norm(dim=-1) / size[..., 0]
        scores = torch.exp(-((distance / 0.08) ** 2) / 2) * (0.55 + 0.45 * self._chance(count, 17))
        scores = (scores + 0.12 * self._normal(count, 17)).clamp(0.02, 1)
        return keypoints, scores * self._known(count)

    def _found_errors(self, truth):
        """Errors of people in the file, carried over; of half of them mirrored."""
        rows = torch.randint(len(self.found['errors']), (len(truth),), generator=self.random)
        errors, scores = self.found['errors'][rows].clone(), self.found['scores'][rows].clone()
        mirrored = self._chance(len(truth)) < 0.5
        flip = list(COCO_17_FLIP)
        errors[mirrored] = errors[mirrored][:, flip] * torch.tensor([-1.0, 1.0])
        scores[mirrored] = scores[mirrored][:, flip]
        return truth + errors * size_of(truth), scores * self._known(len(truth))

    def _found_people(self, count):
        """People of the file with their own bodies, tilted, half of them mirrored."""
        rows = torch.randint(len(self.found['errors']), (count,), generator=self.random)
        errors, scores, pose, betas, truth = (self.found[name][rows] for name in ERRORS)
        rotations = axis_angle_to_matrix(pose.unflatten(1, (24, 3)))
        keypoints = truth + errors * size_of(truth)
        if self.tilt:
            turn = torch.zeros(count, 3)
            turn[:, 2] = math.radians(self.tilt) * self._normal(count)
            turn = axis_angle_to_matrix(turn)
            keypoints, truth = (each @ turn[:, :2, :2].mT for each in (keypoints, truth))
            rotations[:, 0] = turn @ rotations[:, 0]
        mirrored = self._chance(count) < 0.5
        flip, left = list(COCO_17_FLIP), torch.tensor([-1.0, 1.0])
        signs = torch.tensor([[1.0, -1, -1], [-1, 1, 1], [-1, 1, 1]])
        rotations[mirrored] = rotations[mirrored][:, list(SMPL_24_FLIP)] * signs
        for points in (keypoints, truth):
            points[mirrored] = points[mirrored][:, flip] * left
        scores[mirrored] = scores[mirrored][:, flip]
        return rotations, betas, truth, keypoints, scores

    def _known(self, count):
        """Keypoints that are there: of most people all, of some without face or legs."""
        known = self._chance(count, 17) > 0.5 * self._chance(count, 1) ** 3
        kind = self._chance(count)
        known[kind < 0.15, 1:5] = False
        known[(kind > 0.15) & (kind < 0.22), 13:] = False
        known[(kind > 0.22) & (kind < 0.27), 11:] = False
        known[known.sum(1) < 5, 5:13] = True
        return known


def random_views(count: int, random: torch.Generator) -> Tensor:
    """Rotations from the level world (y up, people face z) to the camera (y down): (B, 3, 3)."""

    def chance(*shape):
        return torch.rand(*shape, generator=random)

    def normal(*shape):
        return torch.randn(*shape, generator=random)

    kind = chance(count)
    pitch = torch.where(kind < 0.6, 5 + 8 * normal(count), 5 + 40 * chance(count))
    pitch = torch.where(kind < 0.88, pitch, -25 * chance(count))
    level = chance(count) > 0.08
    roll = torch.where(level, 6 * normal(count), 120 * chance(count) - 60)
    yaw, zero = 360 * chance(count), torch.zeros(count)
    turns = torch.stack([
        torch.stack((zero, zero, roll), 1), torch.stack((pitch, zero, zero), 1),
        torch.stack((zero, yaw, zero), 1),
    ])  # fmt: skip
    roll, pitch, yaw = axis_angle_to_matrix(torch.deg2rad(turns))
    return roll @ pitch @ torch.diag(torch.tensor([1.0, -1.0, -1.0])) @ yaw


def size_of(keypoints: Tensor) -> Tensor:
    """Diagonal of the box around keypoints (B, 17, 2): (B, 1, 1)."""
    return (keypoints.amax(1) - keypoints.amin(1)).norm(dim=-1)[:, None, None]


def read_errors(*paths: str | Path) -> dict[str, Tensor]:
    """Arrays `ERRORS` of one or more files; ValueError if one is missing or has another shape."""
    if not paths:
        raise ValueError('no file of errors; tools/train_lifter.py errors writes them')
    parts = [_read_errors(path) for path in paths]
    return {name: torch.cat([part[name] for part in parts]) for name in ERRORS}


def _read_errors(path):
    arrays = read_npz(path, ERRORS, 2**28)
    count = len(arrays.get('errors', ()))
    for name, shape in ERRORS.items():
        found = arrays[name].shape if name in arrays else 'nothing'
        if not count or found != (count, *shape):
            raise ValueError(
                f'{name} of {path}: expected ({count or "N"}, {", ".join(map(str, shape))}), found '
                f'{found}; tools/train_lifter.py errors writes such files'
            )
    if np.abs(arrays['truth']).max() > MAX_OFFSET:
        raise ValueError(
            f'truth of {path} is up to {np.abs(arrays["truth"]).max():.0f} focal lengths from the '
            f'middle; files of pixels, as before, are to be written anew by tools/train_lifter.py'
        )
    return {name: torch.from_numpy(arrays[name]).float() for name in ERRORS}
