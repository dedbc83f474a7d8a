"""How 4D-Humans cuts a person out of a picture, and what that does to the annotation.

Pure functions on numpy arrays, equal to shubham-goel/4D-Humans (hmr2/datasets/utils.py,
vitdet_dataset.py) within one grey level. What differs: `body_part_box` returns the box it was given
where no joint is left (there, cropping to the shoulders fails), nothing is written into the arrays
that come in, and `blur_sigma` blurs what is made smaller (there, what is made larger).

Points are (x, y) in pixels with pixel centres at whole numbers; boxes are (centre, side).
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np

from ..conventions import AXIS_ANGLE_FLIP_SIGNS, BODY_POSE_23_FLIP, IMAGE_SIZE, JOINTS_44_FLIP


# ---------------------------------------------------------------------------------------------
# Where the crop lies
# ---------------------------------------------------------------------------------------------
def expand_to_aspect(size, aspect):
    """Smallest box around a box of `size` that has the shape `aspect`.

    Args:
        size: (2,), (width, height) in pixels.
        aspect: (width, height) in any unit, or None to leave the box.

    Returns:
        (2,), (width, height) in pixels.
    """
    size = np.asarray(size, np.float64)
    if aspect is None:
        return size
    return np.asarray(aspect, np.float64) * (size / aspect).max()


def crop_matrix(centre, side, size=IMAGE_SIZE, rotation=0.0):
    """Affine map from the picture to a crop of a square box.

    Args:
        centre: (2,), of the box, pixels; maps to the crop's (size / 2, size / 2).
        side: of the box, pixels.
        size: side of the crop, pixels.
        rotation: degrees; the box is turned clockwise as seen in the picture.

    Returns:
        (2, 3), float64.
    """
    sine, cosine = math.sin(math.radians(rotation)), math.cos(math.radians(rotation))
    down, right = np.float32(side * 0.5 * np.array([[-sine, cosine], [cosine, sine]]))
    centre = np.asarray(centre, np.float64)
    source = np.stack([centre, centre + down, centre + right]).astype(np.float32)
    middle = size * 0.5
    target = np.array([[middle, middle], [middle, size], [size, middle]], np.float32)
    return cv2.getAffineTransform(source, target)


def transform_points(points, matrix):
    """(..., 2) points through a (2, 3) affine map."""
    return points @ matrix[:, :2].T + matrix[:, 2]


# ---------------------------------------------------------------------------------------------
# Pixels
# ---------------------------------------------------------------------------------------------
def warp(image, matrix, size=IMAGE_SIZE, mirror=False, border='constant', sigma=0.0, truncate=4.0):
    """One bilinear warp of the part of the picture that the crop needs.

    Args:
        image: (H, W) or (H, W, C), uint8 or float.
        matrix: (2, 3), from the picture (mirrored first, if `mirror`) to the crop.
        size: side of the crop, pixels.
        mirror: exchange left and right first: x becomes W - 1 - x.
        border: 'constant' (black) or 'replicate' outside of the picture.
        sigma: Gaussian blur before the warp, pixels of the picture; 0 for none.
        truncate: the blur's reach, in sigmas.

    Returns:
        (size, size[, C]) of the image's type; float32 if blurred (and then not rounded).
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


def blur_sigma(side, size=IMAGE_SIZE, official=False):
    """Blur against aliasing for a training crop, pixels of the picture; 0 for none.

    With `official`, as 4D-Humans has it: it blurs crops that are *enlarged*.
    """
    ratio = size / side if official else side / size
    return (ratio - 1) / 2 if ratio > 1.1 else 0.0


def demo_blur_sigma(side, size=IMAGE_SIZE):
    """Blur of the 4D-Humans demo (ViTDetDataset): half the reduction counts."""
    ratio = side / size / 2
    return (ratio - 1) / 2 if ratio > 1.1 else 0.0


def demo_crop(image, box, aspect=(192, 256), size=IMAGE_SIZE):
    """The crop of a detected person, as the demo of 4D-Humans makes it.

    Args:
        image: (H, W, 3), uint8.
        box: (4,), x1, y1, x2, y2 in pixels.
        aspect: (width, height) that the box is expanded to before it becomes a square.

    Returns:
        crop (size, size, 3): uint8, or float32 where the picture was blurred first;
        centre (2,) and side of the square box, pixels.

    Raises:
        ValueError: the box is empty or not finite.
    """
    box = np.asarray(box, np.float32)
    extent = box[2:] - box[:2]
    if not (np.isfinite(box).all() and extent.max() >= 1 and extent.min() >= 0):
        raise ValueError(
            f'a box wants x1, y1, x2, y2 that span a pixel or more, got {box.tolist()}'
        )
    centre = (box[2:] + box[:2]) / 2
    side = expand_to_aspect(extent, aspect).max()
    matrix = crop_matrix(centre, side, size)
    return warp(image, matrix, size, sigma=demo_blur_sigma(side, size)), centre, side


def scale_colours(image, factors):
    """Each channel times its factor, clipped to 0..255: float32."""
    return np.clip(image * np.asarray(factors, np.float32), 0, 255).astype(np.float32)


def scale_colours_uint8(image, factors):
    """`scale_colours` rounded to whole grey levels, by a table of 256 entries a channel."""
    levels = np.arange(256, dtype=np.float32)[:, None] * np.asarray(factors, np.float32)
    table = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
    return cv2.LUT(image, table[None])


# ---------------------------------------------------------------------------------------------
# Annotation
# ---------------------------------------------------------------------------------------------
def flip_keypoints(keypoints, width):
    """Mirror (44, 2+) pixels of a picture of `width`: x -> width - 1 - x, left <-> right."""
    flipped = keypoints[list(JOINTS_44_FLIP)]
    flipped[:, 0] = width - 1 - flipped[:, 0]
    return flipped


def turn_joints(joints, rotation, mirror):
    """Mirror (x -> -x, left <-> right), then turn by -rotation in the image plane.

    Args:
        joints: (44, 4), metres and confidence.
        rotation: degrees, as in `crop_matrix`.

    Returns:
        (44, 4), float32.
    """
    joints = np.array(joints, np.float64)
    if mirror:
        joints = joints[list(JOINTS_44_FLIP)] * (-1, 1, 1, 1)
    joints[:, :3] = joints[:, :3] @ _in_plane(rotation).T
    return joints.astype(np.float32)


def turn_pose(pose, rotation, mirror):
    """The same for a body pose: mirrored joint by joint, and its first rotation turned.

    Args:
        pose: (72,), axis-angle: global_orient, then 23 joints.

    Returns:
        (72,), float32; the angle of global_orient lies in [0, pi].
    """
    pose = np.array(pose, np.float64).reshape(24, 3)
    if mirror:
        pose[1:] = pose[1:][list(BODY_POSE_23_FLIP)]
        pose *= AXIS_ANGLE_FLIP_SIGNS
    orient = _in_plane(rotation) @ cv2.Rodrigues(pose[0])[0]
    pose[0] = cv2.Rodrigues(orient)[0][:, 0]
    return pose.reshape(72).astype(np.float32)


def _in_plane(rotation):
    """(3, 3) matrix that turns by -rotation degrees about z."""
    sine, cosine = math.sin(math.radians(-rotation)), math.cos(math.radians(-rotation))
    return np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])


# ---------------------------------------------------------------------------------------------
# Augmentation
# ---------------------------------------------------------------------------------------------
@dataclass
class Augmentation:
    """What is done to one crop; the defaults do nothing."""

    scale: float = 1.0  # of the box
    rotation: float = 0.0  # degrees
    mirror: bool = False
    colour: tuple = (1.0, 1.0, 1.0)  # factors of R, G, B
    shift: tuple = (0.0, 0.0)  # x, y in box sides
    part: str | None = None  # a key of BODY_PARTS to crop to


def draw_augmentation(
    rng,
    scale=0.3,
    rotation=30.0,
    rotation_rate=0.6,
    shift=0.02,
    flip_rate=0.5,
    colour=0.2,
):
    """Random `Augmentation` of HMR2.0's training (its crop to a body part comes later).

    Args:
        rng: np.random.Generator
        scale: box sides of 1 + scale * N, N normal and clipped to +-1.
        rotation: degrees times N, clipped to +-2, with probability `rotation_rate`.
        shift: box sides times N, clipped to +-1; always.
        flip_rate: probability of a mirror image.
        colour: each channel times a uniform factor in 1 +- colour.
    """
    normal = rng.standard_normal(4)
    shift_x, shift_y, grow = np.clip(normal[:3], -1, 1)
    turn, flip = rng.random(2)
    return Augmentation(
        scale=1 + scale * grow,
        rotation=rotation * np.clip(normal[3], -2, 2) if turn < rotation_rate else 0.0,
        mirror=bool(flip < flip_rate),
        colour=tuple(rng.uniform(1 - colour, 1 + colour, 3)),
        shift=(shift * shift_x, shift * shift_y),
    )


# Crops to a part of the body: the box around the visible joints among these, times the factor.
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

# Which part is drawn with which probability, by level and by how much of the body is seen.
PART_RATES = {
    ('mild', 'full'):        dict(hips=.7, shoulders=.2, head=.1),
    ('mild', 'upper'):       dict(shoulders=.9, head=.1),
    ('aggressive', 'full'):  dict(hips=.2, shoulders=.1, head=.1, torso=.1, right_arm=.1,
                                  left_arm=.1, legs=.1, right_leg=.1, left_leg=.1),
    ('aggressive', 'upper'): dict(shoulders=.2, head=.2, torso=.2, right_arm=.2, left_arm=.2),
}  # fmt: skip

# The same ten joints in both halves of the 44: arms and legs without hips.
_LIMBS = ((2, 3, 4, 5, 6, 7, 10, 11, 13, 14), (33, 32, 31, 34, 35, 36, 26, 25, 29, 30))
_KNEES_AND_ANKLES = (10, 11, 13, 14, 25, 26, 29, 30)
_HEAD_AND_SHOULDERS = (0, 1, 15, 16, 17, 18, 33, 34, 37, 38, 42, 43)


def visible_extent(keypoints):
    """'full' (all limbs), 'upper' (no knee or ankle, but a head or shoulders), or None."""
    seen = keypoints[:, 2] > 0
    if (seen[list(_LIMBS[0])] | seen[list(_LIMBS[1])]).all():
        return 'full'
    if not seen[list(_KNEES_AND_ANKLES)].any() and seen[list(_HEAD_AND_SHOULDERS)].sum() >= 2:
        return 'upper'
    return None


def pick_body_part(keypoints, chance, level='aggressive'):
    """The part that a number in [0, 1) picks, a key of BODY_PARTS, or None.

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


def body_part_box(keypoints, part, centre, size):
    """Box around one part of the body.

    Args:
        keypoints: (44, 3), pixels and confidence.
        part: a key of BODY_PARTS.
        centre, size: (2,) each, the box to return if the part is not seen, pixels.

    Returns:
        centre (2,), size (2,) as (width, height), pixels.
    """
    factor, kept = BODY_PARTS[part]
    points = keypoints[list(kept)]
    if not points[:, 2].sum() > 1:
        return np.asarray(centre), np.asarray(size)
    points = points[points[:, 2] > 0, :2]
    low, high = points.min(0), points.max(0)
    return (low + high) * 0.5, (high - low) * 1.2 * factor
