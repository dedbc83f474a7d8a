"""Transforms of mmpose's pose pipelines: boxes like a detector's, corrupted and covered crops.

All draw from numpy's global generator, as mmpose's transforms do.

    [..., JitterBox(), GetBBoxCenterScale(), ..., TopdownAffine(...), CorruptImage(), CutOut(), ...]
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from mmengine.registry import TRANSFORMS


@TRANSFORMS.register_module()
@dataclass
class JitterBox:
    """Move each edge of a box on its own, as a detector's errors do.

    Args:
        deviation: of an edge, relative to the box's side.
        poor_rate: fraction of boxes with `poor` in place of `deviation`.
    """

    deviation: float = 0.05
    poor_rate: float = 0.15
    poor: float = 0.14

    def __call__(self, results: dict) -> dict:
        boxes = np.array(results['bbox'], np.float32)  # (N, 4), xyxy
        poor = np.random.random((len(boxes), 1)) < self.poor_rate
        deviation = np.where(poor, self.poor, self.deviation)
        moves = np.clip(np.random.normal(0, 1, boxes.shape), -2, 2) * deviation
        sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
        return {**results, 'bbox': (boxes + moves * sides).astype(np.float32)}


@TRANSFORMS.register_module()
@dataclass
class CorruptImage:
    """One of the color changes and one of the degradations below, each at its rate.

    The two groups follow BEDLAM's training (Black et al., CVPR 2023).
    """

    color_rate: float = 0.4
    degrade_rate: float = 0.3

    def __call__(self, results: dict) -> dict:
        image = results['img']
        for rate, changes in ((self.color_rate, COLORS), (self.degrade_rate, DEGRADATIONS)):
            if np.random.random() < rate:
                image = changes[np.random.randint(len(changes))](image)
        return {**results, 'img': image}


@TRANSFORMS.register_module()
@dataclass
class CutOut:
    """Cover one or two rectangles with a color or noise.

    Args:
        rate: fraction of images.
        sides: smallest and largest side of a rectangle, relative to the image's.
    """

    rate: float = 0.2
    sides: tuple[float, float] = (0.1, 0.35)

    def __call__(self, results: dict) -> dict:
        if np.random.random() >= self.rate:
            return results
        image = results['img'].copy()
        for _ in range(np.random.randint(1, 3)):
            h, w = (np.random.uniform(*self.sides, 2) * image.shape[:2]).astype(int) + 1
            y, x = (np.random.randint(0, side) for side in image.shape[:2])
            part = image[y : y + h, x : x + w]
            color = np.random.randint(0, 256, 3)
            grain = np.random.randint(-40, 41, part.shape) * (np.random.random() < 0.5)
            part[:] = np.clip(color + grain, 0, 255)
        return {**results, 'img': image}


# --- Color changes of (H, W, 3) uint8 -------------------------------------------------------------
def _gamma(image):
    ramp = (np.arange(256) / 255) ** math.exp(np.random.uniform(-0.6, 0.6))
    return cv2.LUT(image, (ramp * 255).astype(np.uint8))


def _contrast(image):
    gain, shift = np.random.uniform(0.7, 1.3), np.random.uniform(-25, 25)
    mean = float(image.mean())
    return cv2.convertScaleAbs(np.maximum(image * gain + mean * (1 - gain) + shift, 0))


def _hue(image):
    hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV).astype(np.int16)
    hsv[..., 0] = (hsv[..., 0] + np.random.randint(-14, 15)) % 180
    hsv[..., 1:] += np.random.randint(-45, 46, 2).astype(np.int16)
    return cv2.cvtColor(np.clip(hsv, 0, 255).astype(np.uint8), cv2.COLOR_HSV2BGR)


def _tint(image):
    gains = np.random.uniform(0.7, 1.3, 3)
    return np.clip(image * gains, 0, 255).astype(np.uint8)


def _gray(image):
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)


def _equalize(image):
    """Contrast-limited equalization of brightness (CLAHE)."""
    lab = cv2.cvtColor(image, cv2.COLOR_BGR2LAB)
    lab[..., 0] = cv2.createCLAHE(np.random.uniform(1, 4), (8, 8)).apply(lab[..., 0])
    return cv2.cvtColor(lab, cv2.COLOR_LAB2BGR)


# --- Degradations ---------------------------------------------------------------------------------
def _blur(image):
    return cv2.GaussianBlur(image, (0, 0), np.random.uniform(0.5, 2))


def _motion(image):
    length = 2 * np.random.randint(1, 5) + 1
    streak = np.zeros((length, length), np.float32)
    angle = np.random.uniform(0, math.pi)
    offset = length / 2 * np.array((math.cos(angle), math.sin(angle)))
    ends = [(length // 2 + sign * offset).astype(int).tolist() for sign in (-1, 1)]
    cv2.line(streak, *ends, 1.0)
    return cv2.filter2D(image, -1, streak / streak.sum())


def _coarse(image):
    share = np.random.uniform(0.3, 0.8)
    small = cv2.resize(image, None, fx=share, fy=share, interpolation=cv2.INTER_AREA)
    return cv2.resize(small, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)


def _compress(image):
    quality = [cv2.IMWRITE_JPEG_QUALITY, int(np.random.randint(12, 70))]
    return cv2.imdecode(cv2.imencode('.jpg', image, quality)[1], cv2.IMREAD_COLOR)


def _noise(image):
    grain = np.random.normal(0, np.random.uniform(3, 18), image.shape)
    return np.clip(image + grain, 0, 255).astype(np.uint8)


COLORS = (_gamma, _contrast, _hue, _tint, _gray, _equalize)
DEGRADATIONS = (_blur, _motion, _coarse, _compress, _noise)
