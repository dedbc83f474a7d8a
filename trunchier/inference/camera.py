"""The camera of a whole image: its lens, and where people stand in front of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..geometry import full_image_focal

LONG_LENS = '4D-Humans'  # value of `focal`
FIELD_OF_VIEW = 60.0  # degrees along the longer side, of a photo whose lens is unknown
NEAREST = 0.1  # meters from the camera to a root joint


class Lens:
    """Focal length and principal point of images.

    Args:
        focal: pixels: a number or (fx, fy); or '4D-Humans': 5000 / 256 of the longer side, as
            there. None: that of the photo's EXIF data, else by `fov`.
        fov: field of view along the longer side, degrees. None: as `focal` says, else 60.
        intrinsics: (3, 3) camera matrix, instead of `focal`.

    Attributes:
        settings: the arguments, as plain data.
    """

    def __init__(
        self,
        focal: float | tuple[float, float] | str | None = None,
        fov: float | None = None,
        intrinsics: np.ndarray | None = None,
    ):
        self.focal, self.principal_point = _intrinsics(focal, fov, intrinsics)
        self.fov = fov
        self.settings: dict[str, Any] = dict(
            focal=None if focal is None else np.ravel(focal).tolist(),
            fov=fov,
            intrinsics=None if intrinsics is None else np.asarray(intrinsics).tolist(),
        )

    def of(self, shape: tuple[int, int], exif: float | None = None) -> dict[str, np.ndarray]:
        """`focal_length` and `principal_point` of an image, (2,) pixels, x before y.

        Args:
            shape: (H, W). exif: focal length by EXIF, pixels.
        """
        height, width = shape
        center = self.principal_point
        if center is None:
            center = np.array([width / 2, height / 2])
        if isinstance(self.focal, str):
            focal = float(full_image_focal(torch.tensor([[width, height]])))
        elif self.focal is not None:
            focal = self.focal
        elif self.fov is not None or not exif:
            focal = max(shape) / 2 / np.tan(np.deg2rad(self.fov or FIELD_OF_VIEW) / 2)
        else:
            focal = exif
        focal = np.broadcast_to(np.asarray(focal, np.float64), 2).copy()
        return dict(focal_length=focal, principal_point=center)


def translations(
    joints: np.ndarray,
    points: np.ndarray,
    scores: np.ndarray,
    focal: np.ndarray,
    center: np.ndarray,
) -> np.ndarray:
    """Where joints of known size stand, so that they are seen at points: least squares.

    A joint X at X + t is seen at f (x + tx) / (z + tz) + c; times the depth, this is linear in t.

    Args:
        joints: (P, J, 3), meters, camera axes. points: (P, J, 2), pixels. scores: (P, J), weights.
        focal, center: (2,), pixels.

    Returns:
        (P, 3), meters; NEAREST away or farther. Where the points do not tell, far away.
    """
    rays = (points - center) / focal  # (P, J, 2)
    weights = np.maximum(scores, 1e-3)[..., None]
    found = np.empty((len(joints), 3))
    for person, (ray, bones, weight) in enumerate(zip(rays, joints, weights, strict=True)):
        rows = np.zeros((*ray.shape, 3))
        rows[:, 0, 0] = rows[:, 1, 1] = 1
        rows[..., 2] = -ray
        goals = ray * bones[:, 2:] - bones[:, :2]
        left, right = (rows * weight[..., None]).reshape(-1, 3), (goals * weight).ravel()
        found[person] = np.linalg.lstsq(left, right, rcond=None)[0]
    found[:, 2] = np.maximum(found[:, 2], NEAREST)
    return found.astype(np.float32)


def _intrinsics(focal, fov, intrinsics):
    """Focal lengths as `focal` of Lens, and (2,) principal point; None: of the image."""
    options = dict(focal=focal, fov=fov, intrinsics=intrinsics)
    given = [name for name, value in options.items() if value is not None]
    if len(given) > 1:
        raise ValueError(f'give one of focal, fov and intrinsics, not both {" and ".join(given)}')
    if fov is not None and not 1 <= fov <= 170:
        raise ValueError(f'fov must be between 1 and 170 degrees, got {fov}')
    if focal is None and intrinsics is None:
        return None, None
    text = np.ravel(focal).tolist()[0] if focal is not None else None  # of the command, [text]
    if isinstance(text, str):
        if text.lower() != LONG_LENS.lower():
            raise ValueError(f'focal must be a number, (fx, fy) or {LONG_LENS!r}, got {text!r}')
        return LONG_LENS, None
    center = None
    if intrinsics is not None:
        matrix = np.asarray(intrinsics, np.float64)
        if matrix.shape != (3, 3):
            raise ValueError(f'intrinsics must have shape (3, 3), got {matrix.shape}')
        focal, center = matrix[[0, 1], [0, 1]], matrix[:2, 2]
    focal = np.asarray(focal, np.float64).reshape(-1)
    if focal.size not in (1, 2) or not (np.isfinite(focal).all() and (focal > 0).all()):
        raise ValueError(f'focal must be one or two positive numbers, in pixels; got {focal}')
    return focal, center
