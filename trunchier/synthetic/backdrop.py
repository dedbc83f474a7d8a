"""What stands behind the people: a procedural place, or a piece of one of the user's images.

Nothing here is meant to look real by itself. It is meant to hold what misleads a model in photos:
clutter, edges in every direction, skin colours that are not skin, upright and limb-like things.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from .kernels import blend
from .poses import pick
from .textures import textures
from .wardrobe import SKIN_TONES, random_colour

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp')
NOISES, NOISE_SIZE = 6, 512


@dataclass
class View:
    """Where the horizon and the foot of a wall lie: y = level + slope * x, pixels."""

    horizon: float
    slope: float
    feet: float  # y at which the person stands: walls meet the floor above it


def procedural(rng, size, view):
    """An (H, W, 3) uint8 RGB picture of a place that is made up.

    Args:
        rng: np.random.Generator.
        size: (W, H), pixels.
        view: View.
    """
    kind = rng.random()
    image = np.empty((size[1], size[0], 3), np.uint8)
    if kind < 0.38:
        _outdoors(rng, image, view)
    elif kind < 0.76:
        _indoors(rng, image, view)
    elif kind < 0.9:
        _clutter(rng, image)
    else:
        _plain(rng, image)
    if rng.random() < 0.8:  # no surface of a photo is even
        _roughen(rng, image, rng.uniform(0.1, 0.6))
    if rng.random() < 0.5:  # out of focus
        width = 1 + 2 * int(rng.uniform(0.5, 3) * size[1] / 256)
        image = cv2.blur(cv2.blur(image, (width, width)), (width, width))
    return image


class Folder:
    """Background images of the user's, drawn at random; unreadable files are skipped and counted.

    Args:
        path: folder, searched recursively.

    Attributes:
        unreadable: set of paths that did not decode so far.

    Raises:
        FileNotFoundError: no such folder, or no image in it.
        ValueError: none of its images can be read (when the first is drawn).
    """

    def __init__(self, path):
        path = Path(path)
        if not path.is_dir():
            raise FileNotFoundError(
                f'no folder {path} to take backgrounds from; give one that holds images, or none '
                'for procedural backgrounds'
            )
        self.path = path
        self.files = sorted(p for p in path.rglob('*') if p.suffix.lower() in SUFFIXES)
        if not self.files:
            raise FileNotFoundError(
                f'no image ({", ".join(SUFFIXES)}) in {path}; put photos without people there, or '
                'leave the folder out for procedural backgrounds'
            )
        self.unreadable = set()

    def __call__(self, rng, size):
        """A random piece of a random image: (H, W, 3) uint8 RGB."""
        first = int(rng.integers(len(self.files)))
        for step in range(len(self.files)):
            file = self.files[(first + step) % len(self.files)]
            image = None if file in self.unreadable else _read(file)
            if image is not None:
                return _piece(rng, image, size)
            self.unreadable.add(file)
        raise ValueError(
            f'none of the {len(self.files)} images in {self.path} can be decoded; check them, or '
            'leave the folder out for procedural backgrounds'
        )


def _read(file):
    try:
        data = np.fromfile(file, dtype=np.uint8)
    except OSError:
        return None
    image = cv2.imdecode(data, cv2.IMREAD_COLOR) if len(data) else None
    return None if image is None or min(image.shape[:2]) < 2 else image


def _piece(rng, image, size):
    """A crop of the wanted aspect, half to all of the image, maybe mirrored."""
    height, width = image.shape[:2]
    scale = min(width / size[0], height / size[1]) * rng.uniform(0.5, 1)
    w, h = max(int(size[0] * scale), 1), max(int(size[1] * scale), 1)
    x, y = rng.integers(width - w + 1), rng.integers(height - h + 1)
    way = cv2.INTER_AREA if scale > 1 else cv2.INTER_LINEAR
    piece = cv2.resize(image[y : y + h, x : x + w], size, interpolation=way)
    piece = cv2.cvtColor(piece, cv2.COLOR_BGR2RGB)
    return cv2.flip(piece, 1) if rng.random() < 0.5 else piece


# ---------------------------------------------------------------------------------------------
# Places
# ---------------------------------------------------------------------------------------------
def _outdoors(rng, image, view):
    height, width = image.shape[:2]
    level = view.horizon
    sky = np.array(((120, 160, 215), (190, 205, 225), (230, 225, 215), (90, 120, 180),
                    (235, 200, 170))[rng.integers(5)]) + rng.normal(0, 12, 3)  # fmt: skip
    _gradient(image, sky * rng.uniform(0.7, 1), sky * 1.1)
    if rng.random() < 0.5:
        _tint(rng, image, slice(0, height), (255, 255, 255), rng.uniform(0.15, 0.6))
    # Far away: roofs, hills or trees along the horizon
    far = rng.integers(4)
    if far < 3:
        haze = sky * rng.uniform(0.4, 0.8)
        x = -rng.uniform(0, 40)
        while x < width:
            step = rng.uniform(0.05, 0.22) * width
            top = level - rng.uniform(0.03, (0.7, 0.25, 0.35)[far]) * height
            colour = np.clip(haze * rng.uniform(0.6, 1.1) + rng.normal(0, 14, 3), 0, 255)
            if far == 0:
                _building(rng, image, x, top, step, level + 4, colour)
            elif far == 1:
                _ellipse(
                    image, (x + step / 2, level), (step, level - top), colour * (0.7, 0.9, 0.7)
                )
            else:
                _foliage(rng, image, (x + step / 2, (top + level) / 2), step, _green(rng))
            x += step * rng.uniform(0.7, 1.3)
    ground = ((96, 120, 62), (124, 118, 108), (86, 86, 90), (196, 178, 140), (226, 228, 232),
              (70, 110, 130), (130, 96, 70))[rng.integers(7)]  # fmt: skip
    _floor(rng, image, view, level, np.array(ground) * rng.uniform(0.7, 1.15))
    for _ in range(rng.integers(0, 6)):
        x, base = rng.uniform(0, width), rng.uniform(level, max(view.feet, level + 2))
        tall = rng.uniform(0.15, 0.7) * height
        thing = rng.integers(5)
        if thing == 0:  # tree
            _box(image, x, base - tall, 0.04 * tall + 2, tall, (70, 52, 38))
            _foliage(rng, image, (x, base - tall), 0.8 * tall, _green(rng))
        elif thing == 1:  # post or lamp
            _box(image, x, base - tall, 0.03 * tall + 1.5, tall, _colour(rng) * 0.6)
        elif thing == 2:  # car
            colour = _colour(rng)
            wide = 0.8 * tall
            _box(image, x, base - 0.28 * wide, wide, 0.22 * wide, colour)
            _box(image, x + 0.18 * wide, base - 0.45 * wide, 0.6 * wide, 0.2 * wide, (50, 60, 70))
            for wheel in (0.2, 0.8):
                _ellipse(
                    image, (x + wheel * wide, base - 0.05 * wide), (0.09 * wide,) * 2, (20,) * 3
                )
        elif thing == 3:  # fence
            step = rng.uniform(4, 16)
            colour = _colour(rng) * 0.8
            for k in range(int(width / step)):
                _box(image, k * step, base - 0.2 * tall, max(step * 0.2, 1), 0.25 * tall, colour)
        else:  # hedge or bench
            _foliage(rng, image, (x, base), 0.5 * tall, _green(rng))


def _indoors(rng, image, view):
    height, width = image.shape[:2]
    wall = np.clip(_colour(rng) * 0.35 + rng.uniform(70, 170), 0, 255)
    _gradient(image, wall * rng.uniform(0.75, 1.05), wall * rng.uniform(0.75, 1.05))
    if rng.random() < 0.35:
        _paper(rng, image, slice(0, height), wall * rng.uniform(0.75, 1.2), rng.uniform(0.4, 1))
    level = view.horizon + (view.feet - view.horizon) * rng.uniform(0.3, 0.95)
    level = max(level, view.horizon + 2)
    for _ in range(rng.integers(2, 10)):
        x, y = rng.uniform(-0.1, 0.95) * width, level - rng.uniform(0.1, 1.1) * height
        w, h = rng.uniform(0.06, 0.35) * width, rng.uniform(0.08, 0.5) * height
        thing = rng.integers(6)
        if thing == 0:  # picture or screen
            _box(image, x, y, w, h, _colour(rng) * 0.4)
            _patch(rng, image, x + 3, y + 3, w - 6, h - 6)
        elif thing == 1:  # window
            _box(image, x, y, w, h, np.array((228, 236, 245)) * rng.uniform(0.6, 1))
            _box(image, x + w / 2, y, 2, h, wall * 0.5)
            _box(image, x, y + h / 2, w, 2, wall * 0.5)
        elif thing == 2:  # shelf with books
            _box(image, x, y, w, h, _colour(rng) * 0.4)
            rows = rng.integers(1, 4)
            for row in range(rows):
                step = rng.uniform(3, 9)
                for k in range(int(w / step)):
                    tall = h / rows * rng.uniform(0.5, 0.9)
                    bottom = y + (row + 1) * h / rows
                    _box(image, x + k * step, bottom - tall, step - 1, tall, _colour(rng))
        elif thing == 3:  # door or cupboard, down to the floor
            _box(
                image,
                x,
                level - h - 0.3 * height,
                0.6 * w + 8,
                h + 0.3 * height,
                _colour(rng) * 0.7,
            )
        elif thing == 4:  # curtain
            step = rng.uniform(4, 12)
            colour = _colour(rng)
            for k in range(int(w / step) + 1):
                _box(image, x + k * step, y, step, height, colour * rng.uniform(0.75, 1.05))
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


def _clutter(rng, image):
    height, width = image.shape[:2]
    _gradient(image, _colour(rng), _colour(rng))
    _paper(rng, image, slice(0, height), _colour(rng), rng.uniform(0.3, 1))
    for _ in range(rng.integers(8, 30)):
        centre = np.array((rng.uniform(0, width), rng.uniform(0, height)))
        reach = rng.uniform(0.03, 0.3) * height
        # Every fourth shape is of a skin colour, so that colour alone does not give a person away.
        skin = rng.random() < 0.25
        tone = SKIN_TONES[rng.integers(len(SKIN_TONES))] if skin else _colour(rng)
        colour = np.array(tone) * rng.uniform(0.5, 1.05)
        kind = rng.integers(5)
        if kind == 0:
            _ellipse(
                image, centre, (reach, reach * rng.uniform(0.2, 1)), colour, rng.uniform(0, 180)
            )
        elif kind == 1:
            corners = centre + rng.normal(0, reach, (rng.integers(3, 7), 2))
            cv2.fillPoly(image, [corners.astype(np.int32)], colour.tolist(), cv2.LINE_AA)
        elif kind == 2:
            end = centre + rng.normal(0, 2 * reach, 2)
            thick = int(rng.uniform(1, 0.3 * reach + 2))
            cv2.line(image, centre.astype(int).tolist(), end.astype(int).tolist(), colour.tolist(),
                     thick, cv2.LINE_AA)  # fmt: skip
        elif kind == 3:
            _patch(rng, image, centre[0], centre[1], reach, reach * rng.uniform(0.5, 2))
        else:
            _foliage(rng, image, centre, reach, colour)


def _plain(rng, image):
    _gradient(image, _colour(rng), _colour(rng) if rng.random() < 0.5 else (235,) * 3)
    if rng.random() < 0.7:
        _tint(rng, image, slice(0, image.shape[0]), _colour(rng), rng.uniform(0.05, 0.5))


# ---------------------------------------------------------------------------------------------
# Things
# ---------------------------------------------------------------------------------------------
@functools.lru_cache(maxsize=1)
def noises():
    """(6, 512, 512) uint8 with all sizes of blotches, the same on every run."""
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
    """A random window of a noise, enlarged where it is too small: (height, width) uint8."""
    noise = noises()[rng.integers(NOISES)]
    zoom = max(height / NOISE_SIZE, width / NOISE_SIZE, rng.uniform(0.3, 1))
    h, w = max(int(height / zoom), 1), max(int(width / zoom), 1)
    y, x = rng.integers(NOISE_SIZE - h + 1), rng.integers(NOISE_SIZE - w + 1)
    return cv2.resize(noise[y : y + h, x : x + w], (width, height))


def _roughen(rng, image, strength):
    """Lighten and darken everything by a noise, by up to `strength` of its brightness."""
    noise = _noise(rng, *image.shape[:2])
    table = (np.linspace(-strength, strength, 256) * 127 + 127).astype(np.uint8)
    factor = cv2.merge([cv2.LUT(noise, table)] * 3)
    cv2.multiply(image, factor, dst=image, scale=1 / 127)


def _gradient(image, top, bottom):
    ends = np.clip((top, bottom), 0, 255).astype(np.float32)[:, None]  # (2, 1, 3)
    column = cv2.resize(ends, (1, image.shape[0]), interpolation=cv2.INTER_LINEAR)
    way = cv2.INTER_NEAREST  # each column is the same
    image[:] = cv2.resize(column.astype(np.uint8), image.shape[1::-1], interpolation=way)


def _colour(rng):
    """Places are less colourful than clothes."""
    return random_colour(rng, rng.beta(1.1, 2.6))


def _fill(image, colour):
    _box(image, 0, 0, image.shape[1], image.shape[0], colour)


def _tint(rng, image, rows, colour, strength):
    """Blend a colour in where a noise is bright."""
    part = image[rows]
    if part.size == 0:
        return
    table = (np.clip((np.arange(256) - 90) / 120, 0, 1) * strength * 255).astype(np.uint8)
    blend(part, cv2.LUT(_noise(rng, *part.shape[:2]), table), np.asarray(colour, np.float32))


def _paper(rng, image, rows, colour, strength):
    """Blend a repeated texture in."""
    part = image[rows]
    tiles, names = textures()
    kind = ('stripes', 'checks', 'dots', 'flowers', 'mottle', 'weave', 'camouflage')[
        rng.integers(7)
    ]
    tile = tiles[pick(rng, names[kind])]
    side = int(rng.uniform(16, 120))
    tile = cv2.resize(tile, (side, side))
    repeats = (part.shape[0] // side + 1, part.shape[1] // side + 1)
    weight = np.tile((tile * strength * 255).astype(np.uint8), repeats)
    blend(part, weight[: part.shape[0], : part.shape[1]], np.asarray(colour, np.float32))


def _floor(rng, image, view, level, colour):
    """Ground below `level`: a gradient, blotches and stripes that shrink towards the horizon."""
    height, width = image.shape[:2]
    left, right = level - view.slope * width / 2, level + view.slope * width / 2
    top = int(np.clip(min(left, right), 0, height))
    if top >= height - 1:
        return
    floor = np.empty((height - top, width, 3), np.uint8)
    _gradient(floor, colour * rng.uniform(0.8, 1.1), colour * rng.uniform(0.7, 1.1))
    # A square piece of texture, seen at a slant: its far edge is squeezed.
    texture = np.empty((128, 128, 3), np.uint8)
    _fill(texture, colour)
    _tint(rng, texture, slice(0, 128), colour * rng.uniform(0.5, 1.4), rng.uniform(0.3, 1))
    if rng.random() < 0.4:
        _paper(rng, texture, slice(0, 128), colour * rng.uniform(0.6, 1.3), rng.uniform(0.3, 0.8))
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


def _box(image, x, y, w, h, colour):
    if w >= 1 and h >= 1:
        corner = (int(x + w) - 1, int(y + h) - 1)
        cv2.rectangle(image, (int(x), int(y)), corner, [float(c) for c in colour], -1)


def _patch(rng, image, x, y, w, h):
    """A box with a pattern."""
    height, width = image.shape[:2]
    x0, x1 = int(np.clip(x, 0, width)), int(np.clip(x + w, 0, width))
    y0, y1 = int(np.clip(y, 0, height)), int(np.clip(y + h, 0, height))
    if x1 - x0 < 2 or y1 - y0 < 2:
        return
    part = image[y0:y1, x0:x1]
    _fill(part, _colour(rng))
    if rng.random() < 0.5:
        _paper(rng, part, slice(None), _colour(rng), rng.uniform(0.3, 1))
    else:
        _tint(rng, part, slice(None), _colour(rng), rng.uniform(0.3, 1))


def _ellipse(image, centre, axes, colour, angle=0.0):
    centre = tuple(int(round(c)) for c in centre)
    axes = tuple(max(int(round(a)), 1) for a in axes)
    colour = [float(c) for c in colour]
    cv2.ellipse(image, centre, axes, angle, 0, 360, colour, -1, cv2.LINE_AA)


def _green(rng):
    return np.array((rng.uniform(30, 110), rng.uniform(60, 140), rng.uniform(20, 70)))


def _foliage(rng, image, centre, reach, colour):
    """Leaves: many small discs of nearly one colour."""
    count = 24
    places = np.array(centre) + rng.normal(0, 0.33 * reach + 1, (count, 2))
    shades = colour * rng.uniform(0.5, 1.3, (count, 1))
    sizes = np.maximum(reach * rng.uniform(0.06, 0.24, count), 1).astype(int)
    for place, shade, size in zip(
        places.astype(int).tolist(), shades.tolist(), sizes.tolist(), strict=True
    ):
        cv2.circle(image, place, size, shade, -1)


def _building(rng, image, x, y, w, bottom, colour):
    _box(image, x, y, w, bottom - y, colour)
    step = rng.uniform(5, 12)
    light = colour * rng.uniform(0.5, 1.5)
    for row in range(min(int((bottom - y) / step), 14)):
        for column in range(min(int(w / step), 8)):
            _box(
                image,
                x + step * (column + 0.3),
                y + step * (row + 0.3),
                step * 0.45,
                step * 0.5,
                light,
            )
