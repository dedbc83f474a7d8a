"""Endless synthetic tracks of keypoints to train temporal lifters from: motions, cameras, errors.

sequences = KeypointSequences(seed=0)
batch = sequences.batch(64, frames=27)
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..geometry import SkinnedPoints, axis_angle_to_matrix, coco_points
from .keypoints import random_views
from .motion import FPS, Motion, Motions
from .noise import DetectorNoise, read_noise

FIELDS_OF_VIEW = 20.0, 100.0  # degrees
SHARES = 0.25, 0.95  # of the image's height that a standing person takes
MOVING = 0.4  # share of cameras that move
NEAREST = 1.3  # meters


@dataclass
class Shot:
    """People seen by a camera; the unit of length in the image is its side."""

    rotations: Tensor  # (B, T, 24, 3, 3), the root's is into the camera frame
    translation: Tensor  # (B, T, 3), meters, of the root joint, camera frame
    betas: Tensor  # (B, 10)
    focal: Tensor  # (B,)
    joints: Tensor  # (B, T, 24, 3), meters, camera frame
    points: Tensor  # (B, T, 36, 3), of `coco_points`, camera frame
    truth: Tensor  # (B, T, 17, 2), exact keypoints, from the principal point


class KeypointSequences:
    """Random batches; the n-th depends on the options and sizes alone.

    Args:
        seed: of everything. poses: see `Motions`.
        noise: errors of a detector; None: those of VMPose-T-S2.
        clean: no errors, all keypoints known.
    """

    def __init__(
        self, seed: int, poses: int = 2000, noise: DetectorNoise | None = None, clean: bool = False
    ):
        self.motions = Motions(seed, poses)
        self.random = self.motions.random
        self.points = coco_points()
        self.clean = clean
        self.noise = noise if clean or noise is not None else read_noise()

    def batch(self, size: int, frames: int) -> tuple[Shot, Tensor, Tensor]:
        """The next `size` tracks, keypoints (B, T, 17, 2) as found, and their scores (B, T, 17)."""
        shot = film(self.motions.draw(size, frames), self.random, self.points)
        if self.clean or self.noise is None:
            return shot, shot.truth, torch.ones(shot.truth.shape[:3])
        level = 0.1 * 12 ** torch.rand(size, 1, 1, generator=self.random)
        keypoints, scores = self.noise.sample(shot.truth, self.random, level)
        return shot, keypoints, scores * self._cut_off(size)

    def _cut_off(self, size):
        """Faces or legs of some people are out of sight all the time: (B, 1, 17)."""
        known = torch.ones(size, 1, 17)
        kind = torch.rand(size, generator=self.random)
        known[kind < 0.12, :, 1:5] = 0
        known[(kind > 0.12) & (kind < 0.18), :, 13:] = 0
        known[(kind > 0.18) & (kind < 0.23), :, 11:] = 0
        return known


def film(motion: Motion, random: torch.Generator, points: SkinnedPoints) -> Shot:
    """Motions seen by a random camera each, standing or slowly moving."""
    count, frames = motion.translation.shape[:2]

    def uniform(low, high, *shape):
        return low + (high - low) * torch.rand(count, *shape, generator=random)

    focal = 0.5 / torch.tan(torch.deg2rad(uniform(*FIELDS_OF_VIEW)) / 2)
    path = motion.translation - motion.translation[:, frames // 2, None]
    reach = path.norm(dim=-1).amax(1)
    depth = torch.maximum(1.7 * focal / uniform(*SHARES), NEAREST + reach)
    aside = depth[:, None] / focal[:, None] * uniform(-0.3, 0.3, 2)
    center = torch.cat((aside, depth[:, None]), 1)[:, None]
    level = random_views(count, random)[:, None]  # (B, 1, 3, 3)
    moving = uniform(0, 1, 1, 1) < MOVING
    seconds = (torch.arange(frames) / FPS)[:, None]
    drift = 0.25 * torch.randn(count, 1, 3, generator=random) * seconds * moving
    # Hands shake in two sines; the camera turns slowly.
    rate = 2 * math.pi * uniform(0.2, 1.5, 2, 1, 3)
    shake = torch.sin(rate * seconds + uniform(0, 6.3, 2, 1, 3)).sum(1) * math.radians(0.7)
    turn = math.radians(6) * torch.randn(count, 1, 3, generator=random) * seconds
    camera = axis_angle_to_matrix((shake + turn) * moving)  # (B, T, 3, 3)
    place = (level @ path[..., None])[..., 0] + center + drift
    place = (camera @ place[..., None])[..., 0]
    rotations = motion.rotations.clone()
    rotations[:, :, 0] = camera @ level @ motion.rotations[:, :, 0]
    betas = motion.betas[:, None].expand(-1, frames, -1).flatten(0, 1)
    joints, found = points(rotations.flatten(0, 1), betas)
    shift = place.flatten(0, 1)[:, None] - joints[:, :1]
    joints, found = ((each + shift).unflatten(0, (count, frames)) for each in (joints, found))
    coco = found[:, :, :17]
    truth = coco[..., :2] / coco[..., 2:].clamp_min(0.3) * focal[:, None, None, None]
    return Shot(rotations, place, motion.betas, focal, joints, found, truth)
