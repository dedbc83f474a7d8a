"""Square crops of people as in 4D-Humans, the same transform of annotations, augmentation.

Pure functions on numpy arrays, equal to shubham-goel/4D-Humans (hmr2/datasets/utils.py,
vitdet_dataset.py) within one gray level. Differences: `body_part_box` returns the given box if no
joint is visible (there, cropping to the shoulders fails), input arrays are not modified, and
`blur_sigma` blurs crops that are reduced (there, crops that are enlarged).

Points are (x, y) in pixels with pixel centers at integers; boxes are (center, side).
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike

from ..conventions import AXIS_ANGLE_FLIP_SIGNS, BODY_POSE_23_FLIP, IMAGE_SIZE, JOINTS_44_FLIP


# --- Geometry of the crop ------------------------------------------------------------------------
def expand_to_aspect(size: ArrayLike, aspect: ArrayLike | None) -> np.ndarray:
    """Smallest box with the aspect ratio `aspect` that contains a box of `size`.

    Args:
        size: (2,), (width, height) in pixels.
        aspect: (width, height) in any unit; None returns `size`.

    Returns:
        (2,), (width, height) in pixels.
    """
    size = np.asarray(size, np.float64)
    if aspect is None:
        return size
    return np.asarray(aspect, np.float64) * (size / aspect).max()


def crop_matrix(
    center: ArrayLike, side: float, size: int = IMAGE_SIZE, rotation: float = 0.0
) -> np.ndarray:
    """Affine map from the image to the crop of a square box.

    Args:
        center: (2,), of the box, pixels; maps to the crop's (size / 2, size / 2).
        side: of the box, pixels.
        size: side of the crop, pixels.
        rotation: degrees; the box is rotated clockwise as seen in the image.

    Returns:
        (2, 3), float64.
    """
    sine, cosine = math.sin(math.radians(rotation)), math.cos(math.radians(rotation))
    down, right = np.float32(side * 0.5 * np.array([[-sine, cosine], [cosine, sine]]))
    center = np.asarray(center, np.float64)
    source = np.stack([center, center + down, center + right]).astype(np.float32)
    middle = size * 0.5
    target = np.array([[middle, middle], [middle, size], [size, middle]], np.float32)
    return cv2.getAffineTransform(source, target)


def transform_points(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Apply a (2, 3) affine map to (..., 2) points."""
    return points @ matrix[:, :2].T + matrix[:, 2]


# --- Pixels --------------------------------------------------------------------------------------
def warp(
    image: np.ndarray,
    matrix: np.ndarray,
    size: int = IMAGE_SIZE,
    mirror: bool = False,
    border: str = 'constant',
    sigma: float = 0.0,
    truncate: float = 4.0,
) -> np.ndarray:
    """Warp an image bilinearly; only the part that the crop covers is read.

    Args:
        image: (H, W) or (H, W, C), uint8 or float.
        matrix: (2, 3), from the image (flipped first, if `mirror`) to the crop.
        size: side of the crop, pixels.
        mirror: flip the image first: x becomes W - 1 - x.
        border: 'constant' (black) or 'replicate' outside the image.
        sigma: Gaussian blur before the warp, pixels of the image; 0 for none.
        truncate: radius of the blur, in sigmas.

    Returns:
        (size, size[, C]) of the image's type; float32 if blurred (not rounded then).
    """
    height, width = image.shape[:2]
    corners = np.array([[0, 0], [size, 0], [0, size], [size, size]], np.float64)
    source = transform_points(corners, cv2.invertAffineTransform(matrix))
    reach = int(truncate * sigma + 0.5)
    limit = np.array([width, height])
    low = np.clip(np.floor(source.min(0)) - 2 - reach, 0, limit - 1).astype(int)
    high = np.clip(np.ceil(source.max(0)) + 3 + reach, low + 1, limit).astype(int)

    (left, top), (right, bottom) = low, high
    if mirror:
        image = cv2.flip(image[top:bottom, width - right : width - left], 1)
    else:
        image = image[top:bottom, left:right]
    if sigma > 0:
        kernel = (2 * reach + 1, 2 * reach + 1)
        image = cv2.GaussianBlur(
            image.astype(np.float32), kernel, sigma, borderType=cv2.BORDER_REPLICATE
        )
    matrix = matrix.copy()
    matrix[:, 2] += matrix[:, :2] @ low
    mode = {'constant': cv2.BORDER_CONSTANT, 'replicate': cv2.BORDER_REPLICATE}[border]
    return cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=mode)


def blur_sigma(side: float, size: int = IMAGE_SIZE, official: bool = False) -> float:
    """Sigma of the anti-aliasing blur of a training crop, pixels of the image; 0 for none.

    With `official`, crops that are *enlarged* are blurred, as in 4D-Humans.
    """
    ratio = size / side if official else side / size
    return (ratio - 1) / 2 if ratio > 1.1 else 0.0


def scale_colors(image: np.ndarray, factors: ArrayLike) -> np.ndarray:
    """Multiply each channel by its factor and clip to 0..255: float32."""
    return np.clip(image * np.asarray(factors, np.float32), 0, 255).astype(np.float32)


def scale_colors_uint8(image: np.ndarray, factors: ArrayLike) -> np.ndarray:
    """`scale_colors` of uint8 images, rounded, by a lookup table of 256 entries per channel."""
    levels = np.arange(256, dtype=np.float32)[:, None] * np.asarray(factors, np.float32)
    table = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
    return cv2.LUT(image, table[None])


# --- Annotations ---------------------------------------------------------------------------------
def flip_keypoints(keypoints: np.ndarray, width: int) -> np.ndarray:
    """Mirror (44, 2+) pixels of an image of `width`: x -> width - 1 - x, left <-> right."""
    flipped = keypoints[list(JOINTS_44_FLIP)]
    flipped[:, 0] = width - 1 - flipped[:, 0]
    return flipped


def rotate_joints(joints: np.ndarray, rotation: float, mirror: bool) -> np.ndarray:
    """Mirror (x -> -x, left <-> right), then rotate by -rotation in the image plane.

    Args:
        joints: (44, 4), meters and confidence.
        rotation: degrees, as in `crop_matrix`.

    Returns:
        (44, 4), float32.
    """
    joints = np.array(joints, np.float64)
    if mirror:
        joints = joints[list(JOINTS_44_FLIP)] * (-1, 1, 1, 1)
    joints[:, :3] = joints[:, :3] @ _in_plane(rotation).T
    return joints.astype(np.float32)


def rotate_pose(pose: np.ndarray, rotation: float, mirror: bool) -> np.ndarray:
    """Mirror a pose joint by joint, then rotate its global_orient by -rotation in the image plane.

    Args:
        pose: (72,), axis-angle: global_orient, then 23 joints.
        rotation: degrees, as in `crop_matrix`.

    Returns:
        (72,), float32; the angle of global_orient is in [0, pi].
    """
    pose = np.array(pose, np.float64).reshape(-1, 3)
    if mirror:
        pose[1:] = pose[1:][list(BODY_POSE_23_FLIP)]
        pose *= AXIS_ANGLE_FLIP_SIGNS
    orient = _in_plane(rotation) @ cv2.Rodrigues(pose[0])[0]
    pose[0] = cv2.Rodrigues(orient)[0][:, 0]
    return pose.reshape(-1).astype(np.float32)


def _in_plane(rotation):
    """(3, 3) rotation by -rotation degrees about z."""
    sine, cosine = math.sin(math.radians(-rotation)), math.cos(math.radians(-rotation))
    return np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])


# --- Augmentation --------------------------------------------------------------------------------
@dataclass
class Augmentation:
    """Augmentation of one crop; the defaults are the identity."""

    scale: float = 1.0  # of the box
    rotation: float = 0.0  # degrees
    mirror: bool = False
    color: tuple[float, float, float] = (1.0, 1.0, 1.0)  # factors of R, G, B
    shift: tuple[float, float] = (0.0, 0.0)  # x, y in box sides
    part: str | None = None  # key of BODY_PARTS to crop to


# Crops to a part of the body: the box around its visible joints (indices), times the factor.
BODY_PARTS = {
    'hips':      (1.1, (*range(10), 12, *range(15, 19), 27, 28, *range(31, 44))),
    'shoulders': (1.2, (0, 1, 2, 5, *range(15, 19), 33, 34, 37, 38, 42, 43)),
    'head':      (1.3, (0, 1, 2, 5, *range(15, 19), 37, 38, 42, 43)),
    'torso':     (1.1, (1, 2, 5, 8, 9, 12, 27, 28, 33, 34, 37, 39, 40, 41)),
    'right_arm': (1.1, (2, 3, 4, 31, 32, 33)),
    'left_arm':  (1.1, (5, 6, 7, 34, 35, 36)),
    'legs':      (1.1, (*range(8, 15), *range(19, 31), 39)),
    'right_leg': (1.1, (9, 10, 11, *range(22, 28))),
    'left_leg':  (1.1, (12, 13, 14, 19, 20, 21, 28, 29, 30)),
}  # fmt: skip

# Probability of each part, by level and by the visible extent of the body.
PART_RATES = {
    ('mild', 'full'):        dict(hips=.7, shoulders=.2, head=.1),
    ('mild', 'upper'):       dict(shoulders=.9, head=.1),
    ('aggressive', 'full'):  dict(hips=.2, shoulders=.1, head=.1, torso=.1, right_arm=.1,
                                  left_arm=.1, legs=.1, right_leg=.1, left_leg=.1),
    ('aggressive', 'upper'): dict(shoulders=.2, head=.2, torso=.2, right_arm=.2, left_arm=.2),
}  # fmt: skip

# Arms and legs without hips: the same ten joints in both halves of the 44.
_LIMBS = ((2, 3, 4, 5, 6, 7, 10, 11, 13, 14), (33, 32, 31, 34, 35, 36, 26, 25, 29, 30))
_KNEES_AND_ANKLES = (10, 11, 13, 14, 25, 26, 29, 30)
_HEAD_AND_SHOULDERS = (0, 1, 15, 16, 17, 18, 33, 34, 37, 38, 42, 43)


def visible_extent(keypoints: np.ndarray) -> str | None:
    """'full' (all limbs), 'upper' (no knee or ankle, but head or shoulders), or None."""
    seen = keypoints[:, 2] > 0
    if (seen[list(_LIMBS[0])] | seen[list(_LIMBS[1])]).all():
        return 'full'
    if not seen[list(_KNEES_AND_ANKLES)].any() and seen[list(_HEAD_AND_SHOULDERS)].sum() >= 2:
        return 'upper'
    return None


def pick_body_part(keypoints: np.ndarray, chance: float, level: str = 'aggressive') -> str | None:
    """Map a random number to a key of BODY_PARTS, by PART_RATES; None if no part is to be cropped.

    Args:
        keypoints: (44, 3), pixels and confidence.
        chance: uniform in [0, 1).
        level: 'mild' or 'aggressive'.
    """
    rates = PART_RATES.get((level, visible_extent(keypoints)))
    if rates is None:
        return None
    edges = np.round(np.cumsum(list(rates.values())), 6)
    return list(rates)[int(np.searchsorted(edges[:-1], chance, side='right'))]


def body_part_box(
    keypoints: np.ndarray, part: str, center: ArrayLike, size: ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
    """Box around one part of the body.

    Args:
        keypoints: (44, 3), pixels and confidence.
        part: key of BODY_PARTS.
        center, size: (2,) each, pixels; the box to return if the part is not visible.

    Returns:
        center (2,), size (2,) as (width, height), pixels.
    """
    factor, kept = BODY_PARTS[part]
    points = keypoints[list(kept)]
    if not points[:, 2].sum() > 1:
        return np.asarray(center), np.asarray(size)
    points = points[points[:, 2] > 0, :2]
    low, high = points.min(0), points.max(0)
    return (low + high) * 0.5, (high - low) * 1.2 * factor
