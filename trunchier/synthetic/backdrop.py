"""Backgrounds: procedural, or crops of images in a folder.

Procedural ones are not meant to look real, but to contain what misleads a model in photos: clutter,
edges in every direction, skin colors that are not skin, upright and limb-like shapes.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ..datasets.annotations import BadRecord
from ..datasets.shard_index import decode_image
from .poses import pick
from .shading import blend
from .textures import textures
from .wardrobe import SKIN_TONES, random_color

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp')
NOISES, NOISE_SIZE = 6, 512


@dataclass
class View:
    """The ground plane in the image, pixels."""

    horizon: float  # y of the horizon in the middle of the image
    slope: float  # dy / dx of the horizon
    feet: float  # y at which the first person stands


def procedural(rng: np.random.Generator, size: tuple[int, int], view: View) -> np.ndarray:
    """Random background (H, W, 3) uint8 RGB; size: (W, H), pixels."""
    image = np.empty((size[1], size[0], 3), np.uint8)
    pick(rng, (_outdoors, _indoors, _clutter, _plain), (38, 38, 14, 10))(rng, image, view)
    if rng.random() < 0.8:  # surfaces in photos are uneven
        _roughen(rng, image, rng.uniform(0.1, 0.6))
    if rng.random() < 0.5:  # out of focus
        width = 1 + 2 * int(rng.uniform(0.5, 3) * size[1] / 256)
        image = cv2.blur(cv2.blur(image, (width, width)), (width, width))
    return image


class Folder:
    """Random crops of the images in a folder; unreadable files are skipped.

    Args:
        path: folder, searched recursively.

    Attributes:
        unreadable: files that could not be decoded so far.

    Raises:
        FileNotFoundError: no such folder, or no image in it.
        ValueError: no image can be decoded (raised by the first call).
    """

    def __init__(self, path: str | Path):
        path = Path(path)
        if not path.is_dir():
            raise FileNotFoundError(
                f'no folder {path} for backgrounds; give one that holds images, or none for '
                'procedural backgrounds'
            )
        self.path = path
        self.files = sorted(p for p in path.rglob('*') if p.suffix.lower() in SUFFIXES)
        if not self.files:
            raise FileNotFoundError(
                f'no image ({", ".join(SUFFIXES)}) in {path}; put images without people there, or '
                'leave the folder out for procedural backgrounds'
            )
        self.unreadable: set[Path] = set()

    def __call__(self, rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
        """Random crop (H, W, 3) uint8 RGB of a random image; size: (W, H), pixels."""
        first = int(rng.integers(len(self.files)))
        for step in range(len(self.files)):
            file = self.files[(first + step) % len(self.files)]
            if file not in self.unreadable:
                try:
                    return _crop(rng, decode_image(file.read_bytes()), size)
                except (OSError, BadRecord):
                    self.unreadable.add(file)
        raise ValueError(
            f'none of the {len(self.files)} images in {self.path} can be decoded; check them, or '
            'leave the folder out for procedural backgrounds'
        )


def _crop(rng, image, size):
    """A crop with the aspect ratio of `size`, half to all of the image, mirrored at random."""
    height, width = image.shape[:2]
    scale = min(width / size[0], height / size[1]) * rng.uniform(0.5, 1)
    w, h = max(int(size[0] * scale), 1), max(int(size[1] * scale), 1)
    x, y = rng.integers(width - w + 1), rng.integers(height - h + 1)
    method = cv2.INTER_AREA if scale > 1 else cv2.INTER_LINEAR
    crop = cv2.resize(image[y : y + h, x : x + w], size, interpolation=method)
    crop = cv2.cvtColor(crop, cv2.COLOR_BGR2RGB)
    return cv2.flip(crop, 1) if rng.random() < 0.5 else crop


# --- Kinds of backgrounds -------------------------------------------------------------------------
def _outdoors(rng, image, view):
    height, width = image.shape[:2]
    level = view.horizon
    sky = np.array(((120, 160, 215), (190, 205, 225), (230, 225, 215), (90, 120, 180),
                    (235, 200, 170))[rng.integers(5)]) + rng.normal(0, 12, 3)  # fmt: skip
    _gradient(image, sky * rng.uniform(0.7, 1), sky * 1.1)
    if rng.random() < 0.5:
        _tint(rng, image, (255, 255, 255), rng.uniform(0.15, 0.6))
    # Buildings, hills or trees along the horizon
    far = rng.integers(4)
    if far < 3:
        haze = sky * rng.uniform(0.4, 0.8)
        x = -rng.uniform(0, 40)
        while x < width:
            step = rng.uniform(0.05, 0.22) * width
            top = level - rng.uniform(0.03, (0.7, 0.25, 0.35)[far]) * height
            color = np.clip(haze * rng.uniform(0.6, 1.1) + rng.normal(0, 14, 3), 0, 255)
            if far == 0:
                _building(rng, image, x, top, step, level + 4, color)
            elif far == 1:
                hill = color * (0.7, 0.9, 0.7)
                _ellipse(image, (x + step / 2, level), (step, level - top), hill)
            else:
                _foliage(rng, image, (x + step / 2, (top + level) / 2), step, _green(rng))
            x += step * rng.uniform(0.7, 1.3)
    ground = ((96, 120, 62), (124, 118, 108), (86, 86, 90), (196, 178, 140), (226, 228, 232),
              (70, 110, 130), (130, 96, 70))[rng.integers(7)]  # fmt: skip
    _floor(rng, image, view, level, np.array(ground) * rng.uniform(0.7, 1.15))
    for _ in range(rng.integers(0, 6)):
        x, base = rng.uniform(0, width), rng.uniform(level, max(view.feet, level + 2))
        tall = rng.uniform(0.15, 0.7) * height
        kind = rng.integers(5)
        if kind == 0:  # tree
            _box(image, x, base - tall, 0.04 * tall + 2, tall, (70, 52, 38))
            _foliage(rng, image, (x, base - tall), 0.8 * tall, _green(rng))
        elif kind == 1:  # post or lamp
            _box(image, x, base - tall, 0.03 * tall + 1.5, tall, _color(rng) * 0.6)
        elif kind == 2:  # car
            color = _color(rng)
            wide = 0.8 * tall
            _box(image, x, base - 0.28 * wide, wide, 0.22 * wide, color)
            _box(image, x + 0.18 * wide, base - 0.45 * wide, 0.6 * wide, 0.2 * wide, (50, 60, 70))
            for wheel in (0.2, 0.8):
                center = (x + wheel * wide, base - 0.05 * wide)
                _ellipse(image, center, (0.09 * wide,) * 2, (20,) * 3)
        elif kind == 3:  # fence
            step = rng.uniform(4, 16)
            color = _color(rng) * 0.8
            for k in range(int(width / step)):
                _box(image, k * step, base - 0.2 * tall, max(step * 0.2, 1), 0.25 * tall, color)
        else:  # hedge or bench
            _foliage(rng, image, (x, base), 0.5 * tall, _green(rng))


def _indoors(rng, image, view):
    height, width = image.shape[:2]
    wall = np.clip(_color(rng) * 0.35 + rng.uniform(70, 170), 0, 255)
    _gradient(image, wall * rng.uniform(0.75, 1.05), wall * rng.uniform(0.75, 1.05))
    if rng.random() < 0.35:
        _pattern(rng, image, wall * rng.uniform(0.75, 1.2), rng.uniform(0.4, 1))
    level = view.horizon + (view.feet - view.horizon) * rng.uniform(0.3, 0.95)
    level = max(level, view.horizon + 2)
    for _ in range(rng.integers(2, 10)):
        x, y = rng.uniform(-0.1, 0.95) * width, level - rng.uniform(0.1, 1.1) * height
        w, h = rng.uniform(0.06, 0.35) * width, rng.uniform(0.08, 0.5) * height
        kind = rng.integers(6)
        if kind == 0:  # painting or screen
            _box(image, x, y, w, h, _color(rng) * 0.4)
            _patch(rng, image, x + 3, y + 3, w - 6, h - 6)
        elif kind == 1:  # window
            _box(image, x, y, w, h, np.array((228, 236, 245)) * rng.uniform(0.6, 1))
            _box(image, x + w / 2, y, 2, h, wall * 0.5)
            _box(image, x, y + h / 2, w, 2, wall * 0.5)
        elif kind == 2:  # shelf with books
            _box(image, x, y, w, h, _color(rng) * 0.4)
            rows = rng.integers(1, 4)
            for row in range(rows):
                step = rng.uniform(3, 9)
                for k in range(int(w / step)):
                    tall = h / rows * rng.uniform(0.5, 0.9)
                    bottom = y + (row + 1) * h / rows
                    _box(image, x + k * step, bottom - tall, step - 1, tall, _color(rng))
        elif kind == 3:  # door or cupboard, down to the floor
            tall = h + 0.3 * height
            _box(image, x, level - tall, 0.6 * w + 8, tall, _color(rng) * 0.7)
        elif kind == 4:  # curtain
            step = rng.uniform(4, 12)
            color = _color(rng)
            for k in range(int(w / step) + 1):
                _box(image, x + k * step, y, step, height, color * rng.uniform(0.75, 1.05))
        else:  # plant
            _foliage(rng, image, (x, y + h), 0.5 * w, _green(rng))
    floor = np.array(
        ((128, 92, 62), (160, 150, 138), (96, 96, 100), (182, 160, 130))[rng.integers(4)]
    )
    _floor(rng, image, view, level, floor * rng.uniform(0.6, 1.2))
    for _ in range(rng.integers(0, 3)):  # sofa, table or chest against the wall
        x, w = rng.uniform(-0.2, 0.9) * width, rng.uniform(0.2, 0.5) * width
        h = rng.uniform(0.1, 0.3) * height
        _patch(rng, image, x, level - 0.8 * h, w, h)


def _clutter(rng, image, view):
    height, width = image.shape[:2]
    _gradient(image, _color(rng), _color(rng))
    _pattern(rng, image, _color(rng), rng.uniform(0.3, 1))
    for _ in range(rng.integers(8, 30)):
        center = np.array((rng.uniform(0, width), rng.uniform(0, height)))
        reach = rng.uniform(0.03, 0.3) * height
        # A quarter of the shapes have skin colors: color alone must not identify people.
        skin = rng.random() < 0.25
        tone = SKIN_TONES[rng.integers(len(SKIN_TONES))] if skin else _color(rng)
        color = np.array(tone) * rng.uniform(0.5, 1.05)
        kind = rng.integers(5)
        if kind == 0:
            axes = (reach, reach * rng.uniform(0.2, 1))
            _ellipse(image, center, axes, color, rng.uniform(0, 180))
        elif kind == 1:
            corners = center + rng.normal(0, reach, (rng.integers(3, 7), 2))
            cv2.fillPoly(image, [corners.astype(np.int32)], color.tolist(), cv2.LINE_AA)
        elif kind == 2:
            end = center + rng.normal(0, 2 * reach, 2)
            thick = int(rng.uniform(1, 0.3 * reach + 2))
            cv2.line(image, center.astype(int).tolist(), end.astype(int).tolist(), color.tolist(),
                     thick, cv2.LINE_AA)  # fmt: skip
        elif kind == 3:
            _patch(rng, image, center[0], center[1], reach, reach * rng.uniform(0.5, 2))
        else:
            _foliage(rng, image, center, reach, color)


def _plain(rng, image, view):
    _gradient(image, _color(rng), _color(rng) if rng.random() < 0.5 else (235,) * 3)
    if rng.random() < 0.7:
        _tint(rng, image, _color(rng), rng.uniform(0.05, 0.5))


# --- Objects and surfaces -------------------------------------------------------------------------
@functools.lru_cache(maxsize=1)
def noises() -> np.ndarray:
    """(6, 512, 512) uint8 multi-scale noise, the same on every run."""
    rng = np.random.default_rng(1970)
    out = []
    for k in range(NOISES):
        image = np.zeros((NOISE_SIZE, NOISE_SIZE), np.float32)
        for octave in range(1, 9):
            grid = rng.standard_normal((2**octave, 2**octave), dtype=np.float32)
            big = cv2.resize(grid, (NOISE_SIZE, NOISE_SIZE), interpolation=cv2.INTER_CUBIC)
            image += big * (0.55 + 0.07 * k) ** octave
        image = (image - image.mean()) / image.std()
        out.append(np.clip(128 + 50 * image, 0, 255).astype(np.uint8))
    return np.stack(out)


def _noise(rng, height, width):
    """Random crop of a noise, resized: (height, width) uint8."""
    noise = noises()[rng.integers(NOISES)]
    zoom = max(height / NOISE_SIZE, width / NOISE_SIZE, rng.uniform(0.3, 1))
    h, w = max(int(height / zoom), 1), max(int(width / zoom), 1)
    y, x = rng.integers(NOISE_SIZE - h + 1), rng.integers(NOISE_SIZE - w + 1)
    return cv2.resize(noise[y : y + h, x : x + w], (width, height))


def _roughen(rng, image, strength):
    """Multiply brightness by a noise in 1 +- strength, in place."""
    noise = _noise(rng, *image.shape[:2])
    table = (np.linspace(-strength, strength, 256) * 127 + 127).astype(np.uint8)
    factor = cv2.merge([cv2.LUT(noise, table)] * 3)
    cv2.multiply(image, factor, dst=image, scale=1 / 127)


def _gradient(image, top, bottom):
    ends = np.clip((top, bottom), 0, 255).astype(np.float32)[:, None]  # (2, 1, 3)
    column = cv2.resize(ends, (1, image.shape[0]), interpolation=cv2.INTER_LINEAR)
    method = cv2.INTER_NEAREST  # each column is the same
    image[:] = cv2.resize(column.astype(np.uint8), image.shape[1::-1], interpolation=method)


def _color(rng):
    """Backgrounds are less saturated than clothes."""
    return random_color(rng, rng.beta(1.1, 2.6))


def _fill(image, color):
    _box(image, 0, 0, image.shape[1], image.shape[0], color)


def _tint(rng, image, color, strength):
    """Blend in a color where a noise is bright."""
    table = (np.clip((np.arange(256) - 90) / 120, 0, 1) * strength * 255).astype(np.uint8)
    blend(image, cv2.LUT(_noise(rng, *image.shape[:2]), table), np.asarray(color, np.float32))


def _pattern(rng, image, color, strength):
    """Blend in a color where a repeated texture is bright."""
    tiles, names = textures()
    kinds = ('stripes', 'checks', 'dots', 'flowers', 'mottle', 'weave', 'camouflage')
    tile = tiles[pick(rng, names[kinds[rng.integers(7)]])]
    side = int(rng.uniform(16, 120))
    tile = cv2.resize(tile, (side, side))
    height, width = image.shape[:2]
    repeats = (height // side + 1, width // side + 1)
    weight = np.tile((tile * strength * 255).astype(np.uint8), repeats)
    blend(image, weight[:height, :width], np.asarray(color, np.float32))


def _floor(rng, image, view, level, color):
    """Ground below `level`: a gradient under a texture in perspective."""
    height, width = image.shape[:2]
    left, right = level - view.slope * width / 2, level + view.slope * width / 2
    top = int(np.clip(min(left, right), 0, height))
    if top >= height - 1:
        return
    floor = np.empty((height - top, width, 3), np.uint8)
    _gradient(floor, color * rng.uniform(0.8, 1.1), color * rng.uniform(0.7, 1.1))
    texture = np.empty((128, 128, 3), np.uint8)
    _fill(texture, color)
    _tint(rng, texture, color * rng.uniform(0.5, 1.4), rng.uniform(0.3, 1))
    if rng.random() < 0.4:
        _pattern(rng, texture, color * rng.uniform(0.6, 1.3), rng.uniform(0.3, 0.8))
    wide = rng.uniform(1.5, 4) * width
    corners = np.float32([(0, 0), (128, 0), (128, 128), (0, 128)])
    seen = np.float32([(0, 0), (width, 0), (width + wide, len(floor)), (-wide, len(floor))])
    cv2.warpPerspective(
        texture, cv2.getPerspectiveTransform(corners, seen), (width, len(floor)), dst=floor,
        flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_REFLECT,
    )  # fmt: skip
    mask = np.zeros(floor.shape[:2], np.uint8)
    edge = np.array([(0, left - top), (width, right - top), (width, height), (0, height)])
    cv2.fillPoly(mask, [edge.astype(np.int32)], 255)
    cv2.copyTo(floor, mask, image[top:])


def _box(image, x, y, w, h, color):
    if w >= 1 and h >= 1:
        corner = (int(x + w) - 1, int(y + h) - 1)
        cv2.rectangle(image, (int(x), int(y)), corner, [float(c) for c in color], -1)


def _patch(rng, image, x, y, w, h):
    """A box with a pattern."""
    height, width = image.shape[:2]
    x0, x1 = int(np.clip(x, 0, width)), int(np.clip(x + w, 0, width))
    y0, y1 = int(np.clip(y, 0, height)), int(np.clip(y + h, 0, height))
    if x1 - x0 < 2 or y1 - y0 < 2:
        return
    part = image[y0:y1, x0:x1]
    _fill(part, _color(rng))
    if rng.random() < 0.5:
        _pattern(rng, part, _color(rng), rng.uniform(0.3, 1))
    else:
        _tint(rng, part, _color(rng), rng.uniform(0.3, 1))


def _ellipse(image, center, axes, color, angle=0.0):
    center = tuple(int(round(c)) for c in center)
    axes = tuple(max(int(round(a)), 1) for a in axes)
    color = [float(c) for c in color]
    cv2.ellipse(image, center, axes, angle, 0, 360, color, -1, cv2.LINE_AA)


def _green(rng):
    return np.array((rng.uniform(30, 110), rng.uniform(60, 140), rng.uniform(20, 70)))


def _foliage(rng, image, center, reach, color):
    """Leaves: many small discs of similar color."""
    count = 24
    centers = np.array(center) + rng.normal(0, 0.33 * reach + 1, (count, 2))
    shades = color * rng.uniform(0.5, 1.3, (count, 1))
    sizes = np.maximum(reach * rng.uniform(0.06, 0.24, count), 1).astype(int)
    for leaf in zip(centers.astype(int).tolist(), sizes.tolist(), shades.tolist(), strict=True):
        cv2.circle(image, *leaf, -1)


def _building(rng, image, x, y, w, bottom, color):
    _box(image, x, y, w, bottom - y, color)
    step = rng.uniform(5, 12)
    light = color * rng.uniform(0.5, 1.5)
    for row in range(min(int((bottom - y) / step), 14)):
        for column in range(min(int(w / step), 8)):
            corner = x + step * (column + 0.3), y + step * (row + 0.3)
            _box(image, *corner, step * 0.45, step * 0.5, light)
