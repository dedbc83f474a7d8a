"""Backgrounds with the statistics of natural images, and objects that resemble limbs.

Sharp edges at all scales (dead leaves: discs and polygons that cover each other, their radii drawn
from a power law), a 1/f spectrum, and self-similar branches. After "Learning to See by Looking at
Noise" (Baradad et al., NeurIPS 2021), which trains encoders on such images alone.
"""

import math

import cv2
import numpy as np

from .backdrop import NOISE_SIZE, NOISES, noises
from .poses import pick
from .wardrobe import SKIN_TONES, cloth_color, random_color

LEAVES = (80, 320)  # shapes per image
SMALLEST, LARGEST = 0.012, 0.45  # radii of leaves, image heights


def natural(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Random background (H, W, 3) uint8 RGB; size: (W, H), pixels."""
    image = spectrum(rng, size)
    kind = rng.random()
    if kind < 0.5:
        _dead_leaves(rng, image)
    elif kind < 0.75:
        for _ in range(rng.integers(1, 4)):
            _branches(rng, image)
    if rng.random() < 0.4:
        width = 1 + 2 * int(rng.uniform(0.5, 2.5) * size[1] / 256)
        image = cv2.blur(image, (width, width))
    return image


def spectrum(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Noise (H, W, 3) uint8 RGB with a 1/f spectrum; brightness varies more than color."""
    center = np.array(random_color(rng, rng.beta(1.1, 2.6)), np.float32)
    gains = np.array((rng.uniform(0.3, 1.2), rng.uniform(0, 0.4), rng.uniform(0, 0.3)), np.float32)
    axes = np.array(((1, 1, 1), (1, 0, -1), (-0.5, 1, -0.5)), np.float32)
    fields = np.stack([_field(rng, size) for _ in axes], -1).astype(np.float32) - 128
    return np.clip(fields @ (gains[:, None] * axes) + center, 0, 255).astype(np.uint8)


def _field(rng, size):
    """Random crop of a noise, (H, W) uint8."""
    noise = noises()[rng.integers(NOISES)]
    share = rng.uniform(0.3, 0.9)
    h = w = int(NOISE_SIZE * share)
    if size[0] > size[1]:
        h = max(h * size[1] // size[0], 2)
    else:
        w = max(w * size[0] // size[1], 2)
    y, x = rng.integers(NOISE_SIZE - h), rng.integers(NOISE_SIZE - w)
    return cv2.resize(noise[y : y + h, x : x + w], size, interpolation=cv2.INTER_LINEAR)


def _dead_leaves(rng, image):
    """Cover the image with shapes; their colors are those of the image below, varied."""
    height, width = image.shape[:2]
    count = int(rng.integers(*LEAVES))
    low, high = (height * radius for radius in (SMALLEST, LARGEST))
    # Density of radii proportional to r^-3
    draws = rng.random(count)
    radii = (draws * (high**-2 - low**-2) + low**-2) ** -0.5
    centers = rng.random((count, 2)) * (width, height)
    spread = rng.uniform(10, 60)
    seen = image[centers[:, 1].astype(int), centers[:, 0].astype(int)].astype(np.float64)
    colors = seen + rng.normal(0, spread, (count, 1)) + rng.normal(0, 0.4 * spread, (count, 3))
    colors = np.clip(colors, 0, 255).tolist()
    polygons = rng.random() < 0.5
    for (x, y), radius, color in zip(centers.tolist(), radii.tolist(), colors, strict=True):
        if polygons and rng.random() < 0.6:
            angles = np.sort(rng.random(int(rng.integers(3, 7)))) * 2 * math.pi
            corners = np.stack((np.cos(angles), np.sin(angles)), 1) * radius + (x, y)
            cv2.fillPoly(image, [corners.astype(np.int32)], color, cv2.LINE_AA)
        else:
            axes = (int(radius) + 1, int(radius * rng.uniform(0.3, 1)) + 1)
            turn = rng.uniform(0, 180)
            cv2.ellipse(image, (int(x), int(y)), axes, turn, 0, 360, color, -1, cv2.LINE_AA)


def _branches(rng, image):
    """A self-similar tree."""
    height, width = image.shape[:2]
    color = np.array(random_color(rng, 0.3)) * rng.uniform(0.3, 1)
    shrink, fork = rng.uniform(0.6, 0.8), rng.uniform(0.3, 0.9)
    start = np.array((rng.uniform(0, width), rng.uniform(0.4, 1.1) * height))
    tips = [(start, rng.normal(-math.pi / 2, 0.5), rng.uniform(0.1, 0.3) * height)]
    thick = rng.uniform(0.02, 0.08) * height
    for _ in range(6):
        grown = []
        for point, direction, length in tips:
            end = point + length * np.array((math.cos(direction), math.sin(direction)))
            ends = [tuple(map(int, each)) for each in (point, end)]
            cv2.line(image, *ends, color.tolist(), max(int(thick), 1), cv2.LINE_AA)
            for side in (-1, 1):
                turn = side * fork * rng.uniform(0.5, 1.3)
                grown.append((end, direction + turn, length * shrink))
        tips, thick = grown, thick * 0.62


def draw_distractor(rng: np.random.Generator, image: np.ndarray) -> None:
    """Draw limbs, a trunk and perhaps a head that do not make a person, in place.

    Dolls, statues, coat racks and parts of people all have them; nothing of them is annotated.
    """
    height, width = image.shape[:2]
    reach = rng.uniform(0.08, 0.28) * height
    skin = np.array(SKIN_TONES[rng.integers(len(SKIN_TONES))]) * rng.uniform(0.4, 1.05)
    cloth = np.array(cloth_color(rng, 0.4), np.float64)
    ends = [np.array((rng.uniform(0, width), rng.uniform(0.1, 0.9) * height))]
    for _ in range(rng.integers(2, 8)):
        start = ends[int(rng.integers(len(ends)))]
        direction = rng.uniform(0, 2 * math.pi)
        along = np.array((math.cos(direction), math.sin(direction)))
        end = start + along * reach * rng.uniform(0.5, 1.3)
        across = np.array((-along[1], along[0])) * reach
        first, last = rng.uniform(0.08, 0.3), rng.uniform(0.05, 0.16)
        corners = (start + across * first, start - across * first,
                   end - across * last, end + across * last)  # fmt: skip
        color = (skin if rng.random() < 0.5 else cloth) * rng.uniform(0.75, 1.1)
        color = np.clip(color, 0, 255).tolist()
        cv2.fillPoly(image, [np.array(corners).astype(np.int32)], color, cv2.LINE_AA)
        cv2.circle(image, tuple(end.astype(int).tolist()), int(last * reach) + 1, color, -1)
        ends.append(end)
    if rng.random() < 0.5:
        center = tuple(ends[int(rng.integers(len(ends)))].astype(int).tolist())
        axes = (int(reach * rng.uniform(0.15, 0.3)) + 1, int(reach * rng.uniform(0.2, 0.35)) + 1)
        tone = pick(rng, (skin, cloth)).tolist()
        cv2.ellipse(image, center, axes, rng.uniform(0, 180), 0, 360, tone, -1, cv2.LINE_AA)
