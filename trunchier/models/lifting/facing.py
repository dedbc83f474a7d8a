"""Keypoints as a camera sees them that looks at the person.

A person beside the middle of an image is seen from another side than one in the middle in the same
pose, and keypoints alone do not tell where they were in the image. Lifters therefore get them as a
camera in the same place would see them that was turned towards the person, as in Yu et al.,
"PCLs: Geometry-aware Neural Reconstruction of 3D Pose with Perspective Crop Layers", CVPR 2021;
their bodies are turned back.
"""

import numpy as np
import torch
from torch import Tensor

LEAST_DEPTH = 0.05  # of a focal length, in front of the camera that is turned


def facing(
    keypoints: Tensor, scores: Tensor, focal: Tensor | np.ndarray, center: Tensor | np.ndarray
) -> tuple[Tensor, Tensor]:
    """Turn the camera towards the mean of keypoints, weighted by their scores.

    Args:
        keypoints: (B, K, 2), pixels; those with score 0 and those that are not finite do not count.
        scores: (B, K), 0 to 1.
        focal, center: (2,) or (B, 2), pixels, x before y.

    Returns:
        keypoints (B, K, 2) from the middle of that camera's image, pixels of the same focal length
        (its mean over x and y), and rotations (B, 3, 3) from that camera into the image's; see
        `turned`. People without keypoints: no rotation.
    """
    focal, center = (
        torch.as_tensor(each, dtype=keypoints.dtype).expand(len(keypoints), 2)[:, None]
        for each in (focal, center)
    )
    rays = (keypoints - center) / focal
    known = (scores > 0) & rays.isfinite().all(2)
    weights = torch.where(known, scores, 0)[..., None]
    middle = (torch.where(known[..., None], rays, 0) * weights).sum(1) / (weights.sum(1) + 1e-6)
    turns = towards(middle)
    return seen_turned(rays, turns) * focal.mean(2, keepdim=True), turns


def facing_track(
    keypoints: Tensor, scores: Tensor, focal: Tensor | np.ndarray, center: Tensor | np.ndarray
) -> tuple[Tensor, Tensor]:
    """As `facing`, by one rotation (1, 3, 3) for all frames of a person: (T, K, 2), (T, K)."""
    seen, turns = facing(keypoints.flatten(0, 1)[None], scores.flatten()[None], focal, center)
    return seen.view_as(keypoints), turns


def seen_turned(rays: Tensor, turns: Tensor) -> Tensor:
    """Points (B, K, 2), in focal lengths, as a camera sees them that is turned by (B, 3, 3)."""
    rays = torch.cat((rays, torch.ones_like(rays[..., :1])), 2) @ turns
    return rays[..., :2] / rays[..., 2:].clamp_min(LEAST_DEPTH)


def towards(points: Tensor) -> Tensor:
    """Least rotations of the optical axis to the rays through points (B, 2), in focal lengths."""
    x, y = points.unbind(1)
    length = (1 + x.square() + y.square()).sqrt()
    axis = torch.stack((x, y, torch.ones_like(x)), 1) / length[:, None]
    x, y, z = axis.unbind(1)
    first = torch.stack((1 - x * x / (1 + z), -x * y / (1 + z), -x), 1)
    second = torch.stack((-x * y / (1 + z), 1 - y * y / (1 + z), -y), 1)
    return torch.stack((first, second, axis), 2)


def turned(bodies: dict[str, Tensor], turns: Tensor) -> dict[str, Tensor]:
    """Bodies of a lifter (B, ...), turned by (B, 3, 3) or (1, 3, 3): into the image's camera."""
    return dict(bodies, global_orient=turns[:, None] @ bodies['global_orient'])
