"""The camera of a whole image: its lens, and where people stand in front of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..geometry import full_image_focal

LONG_LENS = '4D-Humans'  # value of `focal`
FIELD_OF_VIEW = 60.0  # degrees along the longer side, of a photo whose lens is unknown
NEAREST = 0.1  # meters from the camera to a root joint

# Of `translations`; chosen on synthetic people. Parts are of the diagonal of a person's box.
STEPS = 12
POINT_ERROR = 0.04  # of a keypoint with score 1; of others by 1 / score
SIDE_ERROR = 0.07  # of a side of a box
FAR = 0.05  # off, where a point or side counts half
BOX_METERS = 1.14  # square root of the area that a person's box has at their distance
BOX_SPREAD, CUT_SPREAD = 0.14, 0.6  # of its logarithm; of people at the border of the image


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
    boxes: np.ndarray | None = None,
    outlines: np.ndarray | None = None,
    shape: np.ndarray | None = None,
) -> np.ndarray:
    """Where bodies stand, so that their joints are seen at points, and they fill their boxes.

    A joint X at X + t is seen at f (x + tx) / (z + tz) + c; times the depth, this is linear in t,
    as is a side of the box for the point of the outline that is there. Points and sides that are
    far off count less and less (Cauchy). A box alone tells the distance of an unknown pose,
    too, though less well: it counts where scores are low.

    Args:
        joints: (P, J, 3), meters, camera axes. points: (P, J, 2), pixels. scores: (P, J), 0 to 1.
        focal, center: (2,) or (P, 2), pixels.
        boxes: (P, 4), xyxy, pixels. outlines: (P, V, 3), points of the surfaces, as `joints`.
        shape: (2,) or (P, 2), height and width of the image, at whose border people are cut off.

    Returns:
        (P, 3), meters; NEAREST away or farther.
    """
    if not len(joints):
        return np.zeros((0, 3), np.float32)
    focal, center = (np.broadcast_to(each, (len(joints), 2)) for each in (focal, center))
    known = np.isfinite(points).all(2) & np.isfinite(scores)
    points, scores = np.where(known[..., None], points, 0), np.where(known, scores, 0)
    joints, rays = joints.astype(np.float64), (points - center[:, None]) / focal[:, None]
    scores = np.clip(scores, 1e-3, 1)
    corners = _corners(points, scores) if boxes is None else boxes.astype(np.float64)
    seen = _seen_sides(corners, shape) if boxes is not None else np.zeros((len(joints), 4), bool)
    sides = (corners - np.tile(center, 2)) / np.tile(focal, 2)  # (P, 4)
    extents = np.maximum(sides[:, 2:] - sides[:, :2], 1e-6)
    size, filled = np.linalg.norm(extents, axis=1), BOX_METERS / np.sqrt(extents.prod(1))
    middle = joints[..., 2].mean(1)
    found = np.column_stack([(sides[:, :2] + sides[:, 2:]) / 2 * filled[:, None], filled])
    found -= joints.mean(1)
    spread = np.where(seen.all(1), BOX_SPREAD, np.where(seen.any(1), CUT_SPREAD, np.inf))
    for _ in range(STEPS):
        unit = size * np.maximum(found[:, 2] + middle, NEAREST)  # meters
        far = np.linalg.norm(_tangents(joints, found) - rays, axis=2) / (FAR * size)[:, None]
        weights = scores / np.sqrt(1 + far**2) / (POINT_ERROR * unit[:, None])
        rows, goals = [], []
        for axis in (0, 1):
            rows.append(_rows(axis, rays[..., axis]) * weights[..., None])
            goals.append((rays[..., axis] * joints[..., 2] - joints[..., axis]) * weights)
        if outlines is not None:
            for side, edge in enumerate(_edges(outlines, found)):
                axis, ray = side % 2, sides[:, side]
                far = (_tangents(edge[:, None], found)[:, 0, axis] - ray) / (FAR * size)
                weight = seen[:, side] / np.sqrt(1 + far**2) / (SIDE_ERROR * unit)
                rows.append((_rows(axis, ray) * weight[:, None])[:, None])
                goals.append(((ray * edge[:, 2] - edge[:, axis]) * weight)[:, None])
        rows.append(np.eye(3)[2] / (spread * filled)[:, None, None])
        goals.append(((filled - middle) / (spread * filled))[:, None])
        left, right = np.concatenate(rows, 1), np.concatenate(goals, 1)[..., None]
        normal = left.transpose(0, 2, 1) @ left + 1e-9 * np.eye(3)
        found = np.linalg.solve(normal, left.transpose(0, 2, 1) @ right)[..., 0]
        found[:, 2] = np.maximum(found[:, 2], NEAREST - np.minimum(middle, 0))
    return found.astype(np.float32)


def crop_camera(
    places: np.ndarray,
    middles: np.ndarray,
    sides: np.ndarray,
    focal: np.ndarray,
    center: np.ndarray,
) -> np.ndarray:
    """Cameras of square crops, (P, 3) as (s, tx, ty): the inverse of `mesh.full_camera`.

    Args:
        places: (P, 3), translations. middles, sides: (P, 2), (P,), of the crops, pixels.
        focal, center: (P, 2), pixels.
    """
    depth = places[:, 2:]
    shifts = places[:, :2] - (middles - center) * depth / focal
    return np.hstack([2 * focal[:, :1] / (sides[:, None] * depth), shifts]).astype(np.float32)


def _rows(axis, rays):
    """Coefficients (..., 3) of t in the equation of a ray along an axis."""
    rows = np.zeros((*rays.shape, 3))
    rows[..., axis], rows[..., 2] = 1, -rays
    return rows


def _tangents(points, places):
    """Where points (P, N, 3) at places (P, 3) are seen, as tangents of angles."""
    moved = points + places[:, None]
    return moved[..., :2] / np.maximum(moved[..., 2:], NEAREST)


def _edges(outlines, places):
    """The points of outlines at the sides of their boxes: four (P, 3), left, top, right, bottom."""
    seen, people = _tangents(outlines, places), np.arange(len(outlines))
    picks = [seen[..., 0].argmin(1), seen[..., 1].argmin(1)]
    picks += [seen[..., 0].argmax(1), seen[..., 1].argmax(1)]
    return [outlines[people, pick] for pick in picks]


def _seen_sides(boxes, shape):
    """(P, 4), sides that are not at the border of the image."""
    if shape is None:
        return np.ones(boxes.shape, bool)
    far = np.broadcast_to(shape, (len(boxes), 2))[:, ::-1] - 1
    return np.hstack([boxes[:, :2] > 1, boxes[:, 2:] < far])


def _corners(points, scores):
    """Boxes (P, 4) around the points that are seen."""
    known = (scores > 1e-3)[..., None] | (scores <= 1e-3).all(1)[:, None, None]
    low = np.where(known, points, np.inf).min(1)
    return np.hstack([low, np.where(known, points, -np.inf).max(1)])


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
