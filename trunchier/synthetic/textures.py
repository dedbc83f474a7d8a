"""Procedural textures of clothes and backgrounds: the same on every run."""

import functools
import itertools

import cv2
import numpy as np

SIZE = 64
NUM_PRINTS = 12  # for shirts


@functools.lru_cache(maxsize=1)
def textures() -> tuple[np.ndarray, dict[str, tuple[int, ...]]]:
    """(T, 64, 64) float32 in [0, 1], tileable, and the indices of each kind.

    Values mix two colors: 0 is the first, 1 the second. `shading.shade` expects 'folds' first.
    """
    rng = np.random.default_rng(1972)
    made = {'folds': [_folds(rng)], 'plain': [np.zeros((SIZE, SIZE), np.float32)]}
    made['weave'] = [_noise(rng, (32, 32), (64, 64)), _noise(rng, (8, 8), (32, 32), (64, 64))]
    made['mottle'] = [_noise(rng, (4, 4), (8, 8)), _noise(rng, (3, 3), (6, 6), (12, 12))]
    made['strands'] = [_noise(rng, (2, 32), (4, 64)), _noise(rng, (3, 16), (4, 64))]
    made['stripes'] = [_stripes(n, duty, across) for n, duty in ((2, 0.5), (4, 0.3), (8, 0.5))
                       for across in (0, 1)]  # fmt: skip
    made['checks'] = [np.maximum(_stripes(n, d, 0), _stripes(n, d, 1)) * 0.5
                      + 0.5 * _stripes(n, d, 0) * _stripes(n, d, 1)
                      for n, d in ((2, 0.4), (4, 0.5), (8, 0.2))]  # fmt: skip
    made['dots'] = [_dots(rng, n, radius) for n, radius in ((4, 3), (8, 2), (2, 8))]
    made['camouflage'] = [
        (_noise(rng, (4, 4), (8, 8)) > 0.5).astype(np.float32),
        np.round(_noise(rng, (5, 5), (10, 10)) * 3).astype(np.float32) / 3,
    ]
    made['flowers'] = [_flowers(rng), _flowers(rng)]
    made['print'] = [_print(rng) for _ in range(NUM_PRINTS)]
    stack, names = [], {}
    for name, images in made.items():
        names[name] = tuple(range(len(stack), len(stack) + len(images)))
        stack.extend(images)
    return np.ascontiguousarray(np.stack(stack), dtype=np.float32), names


def _noise(rng, *grids):
    """Sum of random grids, each enlarged to the whole tile; later grids weigh less."""
    out = np.zeros((SIZE, SIZE), np.float32)
    for k, (rows, columns) in enumerate(grids):
        grid = rng.random((rows, columns), dtype=np.float32)
        grid = np.tile(grid, (3, 3))  # tileable
        big = cv2.resize(grid, (3 * SIZE, 3 * SIZE), interpolation=cv2.INTER_CUBIC)
        out += big[SIZE : 2 * SIZE, SIZE : 2 * SIZE] * 0.6**k
    return (out - out.min()) / (out.max() - out.min())


def _folds(rng):
    """Soft creases, mostly horizontal, as in hanging cloth."""
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE * 2 * np.pi
    bent = np.sin(x + 1.5 * np.sin(y)) + 0.7 * np.sin(2 * x - y + np.sin(2 * y))
    return np.float32(0.5 + 0.2 * bent) * 0.7 + 0.3 * _noise(rng, (6, 6), (12, 12))


def _stripes(count, duty, across):
    line = np.float32(np.arange(SIZE) * count % SIZE < duty * SIZE)
    return np.broadcast_to(line[:, None] if across else line, (SIZE, SIZE))


def _dots(rng, count, radius):
    out = np.zeros((SIZE, SIZE), np.float32)
    step = SIZE // count
    for y, x in itertools.product(range(step // 2, SIZE, step), repeat=2):
        cv2.circle(out, (x, y), radius, float(0.7 + 0.3 * rng.random()), -1, cv2.LINE_AA)
    return out


def _flowers(rng):
    out = np.zeros((SIZE, SIZE), np.float32)
    for _ in range(14):
        x, y = rng.integers(6, SIZE - 6, 2)
        petals, size, turn = rng.integers(4, 7), rng.integers(2, 5), rng.random() * 6
        for k in range(petals):
            angle = turn + 2 * np.pi * k / petals
            center = (int(x + size * np.cos(angle)), int(y + size * np.sin(angle)))
            cv2.circle(out, center, max(size // 2 + 1, 1), float(rng.uniform(0.5, 1)), -1)
        cv2.circle(out, (int(x), int(y)), max(size // 2, 1), 0.3, -1)
    return out


def _print(rng):
    """A print of a shirt: letters, a badge or rays."""
    out = np.zeros((SIZE, SIZE), np.float32)
    kind = rng.integers(3)
    if kind == 0:
        for row in range(rng.integers(1, 4)):
            text = ''.join(chr(c) for c in rng.integers(65, 91, rng.integers(2, 6)))
            cv2.putText(out, text, (4, 20 + 19 * row), 0, 0.62, 1.0, 2, cv2.LINE_AA)
    elif kind == 1:
        cv2.circle(out, (32, 32), int(rng.integers(16, 28)), 1.0, int(rng.choice([-1, 3, 5])))
        cv2.putText(out, chr(rng.integers(65, 91)), (18, 46), 0, 1.4, 0.5, 4, cv2.LINE_AA)
    else:
        for angle in np.linspace(0, 2 * np.pi, rng.integers(5, 12), endpoint=False):
            tip = (int(32 + 28 * np.cos(angle)), int(32 + 28 * np.sin(angle)))
            cv2.line(out, (32, 32), tip, 1.0, int(rng.integers(2, 6)), cv2.LINE_AA)
    return out
