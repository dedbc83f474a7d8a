"""Kinematics of the embedded body's 24 joints in torch: splines, limbs, limits, rest poses."""

import functools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..conventions import SMPL_24, SMPL_PARENTS
from ..files import shipped
from ..geometry import axis_angle_to_matrix

# Largest rotation of each joint in degrees; the root is free.
_LARGEST = {
    'pelvis': 180, 'hip': 130, 'spine': 45, 'knee': 150, 'ankle': 60, 'foot': 30, 'neck': 50,
    'collar': 45, 'head': 60, 'shoulder': 150, 'elbow': 160, 'wrist': 90, 'hand': 80,
}  # fmt: skip
LARGEST = tuple(
    next(degrees for part, degrees in _LARGEST.items() if part in name) for name in SMPL_24
)


def spline(keys: Tensor, time: Tensor) -> Tensor:
    """Uniform cubic B-spline, twice differentiable, within the convex hull of its keys.

    Args:
        keys: (B, K, D). time: (B, T), 0 to K - 3, in units of the distance of keys.

    Returns:
        (B, T, D)
    """
    first = time.floor()
    f = time - first
    weights = torch.stack(
        ((1 - f) ** 3, 3 * f**3 - 6 * f**2 + 4, -3 * f**3 + 3 * f**2 + 3 * f + 1, f**3), -1
    )
    rows = first.long()[..., None] + torch.arange(4)
    all_weights = keys.new_zeros(*time.shape, keys.shape[1]).scatter_(2, rows, weights / 6)
    return all_weights @ keys


def kinematics(rotations: Tensor, rest: Tensor) -> Tensor:
    """Joints (B, T, 24, 3) of (B, T, 24, 3, 3), with the root at 0; rest pose (B, 24, 3)."""
    bones = (rest - rest[:, list(SMPL_PARENTS)])[:, None, :, :, None]
    world = [rotations[:, :, 0]]
    places = [torch.zeros_like(rotations[:, :, 0, 0])]
    for joint, parent in enumerate(SMPL_PARENTS[1:], 1):
        world.append(world[parent] @ rotations[:, :, joint])
        places.append(places[parent] + (world[parent] @ bones[:, :, joint])[..., 0])
    return torch.stack(places, 2)


def leg_angles(
    rest: Tensor, side: int, pelvis: Tensor, place: Tensor, ball: Tensor, foot: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Rotations (B, T, 3, 3) of hip, knee and ankle, to their parents, that place a foot.

    Args:
        rest: (B, 24, 3), rest pose. side: 0 for the left leg, 1 for the right one.
        pelvis: (B, T, 3, 3), its rotation. place: (B, T, 3), its position.
        ball: (B, T, 3), joint of the ball of the foot. foot: (B, T, 3, 3), its rotation.
    """
    hip, knee, ankle, toe = (rest[:, joint + side] for joint in (1, 4, 7, 10))
    thigh, shin = F.normalize(knee - hip, dim=-1), F.normalize(ankle - knee, dim=-1)
    a, b = ((end - start).norm(dim=-1)[:, None] for start, end in ((hip, knee), (knee, ankle)))
    target = ball - (foot @ (toe - ankle)[:, None, :, None])[..., 0]
    to = target - place - (pelvis @ hip[:, None, :, None])[..., 0]
    distance = to.norm(dim=-1)
    to = to / distance[..., None]
    distance = torch.minimum(torch.maximum(distance, 0.3 * (a + b)), 0.999 * (a + b))
    pole = pelvis[..., 2] + foot[..., 2]
    pole = F.normalize(pole - (pole * to).sum(-1, keepdim=True) * to, dim=-1)
    hinge = torch.linalg.cross(pole, to)
    along = (a * a + distance**2 - b * b) / (2 * distance)
    aside = (a * a - along**2).clamp_min(0).sqrt()
    upper = (along[..., None] * to + aside[..., None] * pole) / a[..., None]
    lower = (distance[..., None] * to - a[..., None] * upper) / b[..., None]
    hip_world = _frame(hinge, upper) @ _rest_frame(thigh)
    knee_world = _frame(hinge, lower) @ _rest_frame(shin)
    return pelvis.mT @ hip_world, hip_world.mT @ knee_world, knee_world.mT @ foot


def leg_length(rest: Tensor, side: int = 0) -> Tensor:
    """Hip to knee to ankle, meters: (B, 24, 3) -> (B,)."""
    hip, knee, ankle = (rest[:, joint + side] for joint in (1, 4, 7))
    return (knee - hip).norm(dim=-1) + (ankle - knee).norm(dim=-1)


def toward(yaw: Tensor) -> Tensor:
    """Unit vector (..., 2) as x, z on the ground."""
    return torch.stack((yaw.sin(), yaw.cos()), -1)


def about(axis: int, angle: Tensor) -> Tensor:
    """Rotations about x (0) or y (1): (...,) -> (..., 3, 3)."""
    c, s, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    rows = (one, zero, zero, zero, c, -s, zero, s, c) if axis == 0 else (
        c, zero, s, zero, one, zero, -s, zero, c
    )  # fmt: skip
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def ease(x: Tensor) -> Tensor:
    """0 to 1 with zero velocity and acceleration at both ends."""
    return x**3 * (x * (6 * x - 15) + 10)


def smooth_minimum(a: Tensor, b: Tensor, width: float = 0.03) -> Tensor:
    """The smaller one; where they differ by less than some `width`, less than both."""
    return -width * torch.logaddexp(-a / width, -b / width)


def smoothed(track: Tensor, reach: int = 3) -> Tensor:
    """Average of each frame of (B, T, C) with `reach` ones before and after, weighted."""
    reach = min(reach, track.shape[1] - 1)
    before = 2 * track[:, :1] - track[:, 1 : reach + 1].flip(1)
    after = 2 * track[:, -1:] - track[:, track.shape[1] - 1 - reach : -1].flip(1)
    weights = torch.hann_window(2 * reach + 3, periodic=False)[1:-1]
    windows = torch.cat((before, track, after), 1).unfold(1, 2 * reach + 1, 1)
    return windows @ (weights / weights.sum())


def limited_matrices(vectors: Tensor) -> Tensor:
    """Rotation vectors (B, T, 24, 3), shortened to `LARGEST`, as matrices (B, T, 24, 3, 3)."""
    limits = torch.deg2rad(torch.tensor(LARGEST))[:, None]
    length = vectors.norm(dim=-1, keepdim=True)
    return axis_angle_to_matrix(vectors * (limits / length.clamp_min(1e-6)).clamp_max(1))


def rest_pose(betas: Tensor) -> Tensor:
    """Joints (B, 24, 3) of bodies in the rest pose, the root at 0."""
    joints, shapes = _skeleton()
    rest = joints + torch.einsum('jcs,bs->bjc', shapes, betas)
    return rest - rest[:, :1]


@functools.lru_cache(maxsize=1)
def _skeleton():
    with np.load(shipped.asset('body.npz')) as file:
        regressor = torch.from_numpy(file['J_regressor'].astype(np.float32))
        template, shapes = (
            torch.from_numpy(file[name].astype(np.float32)) for name in ('v_template', 'shapedirs')
        )
    return regressor @ template, torch.einsum('jv,vcs->jcs', regressor, shapes)


def _frame(hinge, bone):
    return torch.stack((hinge, bone, torch.linalg.cross(hinge, bone)), -1)


def _rest_frame(bone):
    """Transposed frame of a bone (B, 3) of the rest pose, its hinge along x: (B, 1, 3, 3)."""
    hinge = F.normalize(torch.tensor([1.0, 0, 0]) - bone[:, :1] * bone, dim=-1)
    return _frame(hinge, bone).mT[:, None]
