"""Random outfits: skin, hair, clothes, objects in the hands.

`sample_outfit` samples the extent of each garment on the body (`dress`), the color, texture,
thickness and looseness of each material, and separate meshes: skirts, long hair, brims, bags and
objects that are held.
"""

from collections.abc import Sequence
from colorsys import hsv_to_rgb
from dataclasses import dataclass, field

import numpy as np

from .garments import DRESS, MATERIALS, PAINT
from .poses import pick
from .textures import textures

# sRGB: skin from light to dark, hair from black to gray.
SKIN_TONES = (
    (250, 224, 208), (244, 208, 184), (236, 190, 162), (224, 172, 138), (206, 150, 114),
    (182, 126,  92), (152, 100,  70), (122,  78,  54), ( 94,  60,  42), ( 66,  42,  32),
)  # fmt: skip
HAIR_COLORS = (
    ( 18,  15,  14), ( 34,  24,  20), ( 58,  40,  28), ( 88,  60,  38), (124,  88,  52),
    (186, 150,  98), (222, 194, 140), (140,  66,  34), (150, 148, 146), (214, 210, 206),
)  # fmt: skip
HAIR_FREQUENCIES = (20, 22, 18, 12, 8, 7, 5, 3, 3, 2)

# Most clothes are dark, gray, white or blue; the others have a random color.
COMMON_CLOTH_COLORS = (
    ( 24,  24,  28), ( 44,  46,  52), ( 88,  90,  94), (150, 152, 156), (232, 232, 230),
    (250, 248, 242), ( 28,  36,  66), ( 52,  72, 118), ( 96, 120, 160), (178, 160, 128),
    ( 96,  78,  60), ( 74,  82,  58), (122,  30,  36),
)  # fmt: skip
BELOW_ALL, ABOVE_ALL = -9.0, 9.0  # beyond every y of the body
FOLDS = 12  # patterns of folds
HELD = 0.45  # fraction of hands with an object, of those whose position allows one


@dataclass
class Grid:
    """A worn, two-sided sheet."""

    points: np.ndarray  # (rows, columns, 3), rest coordinates, meters
    joints: np.ndarray  # (rows, columns, K), indices
    weights: np.ndarray  # (rows, columns, K), of the joints
    material: int
    closed: bool = True  # the last column is connected to the first


@dataclass
class Outfit:
    """Everything worn or held by a person."""

    dress: np.ndarray  # (len(DRESS),)
    paint: np.ndarray  # (materials, len(PAINT)), linear colors
    thickness: np.ndarray  # (materials,), meters
    loose: np.ndarray  # (materials,), meters
    folds: np.ndarray  # (FOLDS,), weights of figure.body().folds
    grids: list[Grid] = field(default_factory=list)
    skirt: tuple | None = None  # y of the hem, flare, meters of slack


def linear(rgb: Sequence[float]) -> tuple[float, float, float]:
    """sRGB in [0, 255] to linear in [0, 1], with gamma 2 as in `shading`."""
    red, green, blue = rgb
    return (red / 255) ** 2, (green / 255) ** 2, (blue / 255) ** 2


def sample_outfit(rng: np.random.Generator, holds: tuple[str, str], share: float = HELD) -> Outfit:
    """A random outfit.

    Args:
        holds: what the left and the right hand may hold, see poses.HOLDS.
        share: of these hands, those that hold it.
    """
    outfit = Outfit(
        dress=np.zeros(len(DRESS), np.float32),
        paint=np.zeros((len(MATERIALS), len(PAINT)), np.float32),
        thickness=np.zeros(len(MATERIALS), np.float32),
        loose=np.zeros(len(MATERIALS), np.float32),
        folds=rng.standard_normal(FOLDS, dtype=np.float32),
    )
    _paint_skin(rng, outfit)
    _clothes(rng, outfit)
    _hair(rng, outfit)
    _face(rng, outfit)
    for side, held in enumerate(holds):
        if held and rng.random() < share:
            _hold(rng, outfit, held, side)
    return outfit


def _set(outfit, **edges):
    for name, value in edges.items():
        outfit.dress[DRESS.index(name)] = value


def _material(outfit, name, first, second=None, texture=0, scale=1.0, gloss=0.0, folds=0.0):
    second = first if second is None else second
    outfit.paint[MATERIALS.index(name)] = (*linear(first), *linear(second), texture, scale, gloss,
                                           folds)  # fmt: skip


def _thick(outfit, **millimeters):
    """Set thickness, or (thickness, looseness), of materials."""
    for name, value in millimeters.items():
        thickness, loose = value if isinstance(value, tuple) else (value, 0)
        outfit.thickness[MATERIALS.index(name)] = thickness / 1000
        outfit.loose[MATERIALS.index(name)] = loose / 1000


def _texture(rng, *kinds):
    _, names = textures()
    return pick(rng, names[pick(rng, kinds)])


def random_color(rng: np.random.Generator, saturation: float | None = None) -> np.ndarray:
    """sRGB (3,) in [0, 255]; saturation: None: random, typical of clothes."""
    hue, value = rng.random(), rng.uniform(0.15, 1) ** 0.8
    saturation = rng.beta(1.5, 1.9) if saturation is None else saturation
    return 255 * np.array(hsv_to_rgb(hue, saturation, value))


def cloth_color(rng: np.random.Generator, common: float = 0.55) -> np.ndarray:
    """sRGB (3,) in [0, 255], with probability `common` near one of COMMON_CLOTH_COLORS."""
    if rng.random() < common:
        color = pick(rng, COMMON_CLOTH_COLORS)
        return np.maximum(np.array(color) * rng.uniform(0.85, 1.05) + rng.normal(0, 4, 3), 8)
    return random_color(rng)


def _cloth(rng, outfit, name, color=None, pattern=0.45, folds=None):
    """Paint a garment: plain with a weave, or patterned in two colors."""
    color = cloth_color(rng) if color is None else color
    folds = rng.uniform(0.15, 0.75) if folds is None else folds
    if rng.random() < pattern:
        texture = _texture(rng, 'stripes', 'checks', 'dots', 'camouflage', 'flowers', 'mottle')
        _material(outfit, name, color, cloth_color(rng, 0.4), texture, rng.uniform(1.2, 6),
                  0.0, folds)  # fmt: skip
    else:
        shade = np.array(color) * rng.uniform(0.7, 0.95)
        _material(outfit, name, color, shade, _texture(rng, 'weave', 'mottle'),
                  rng.uniform(2, 8), pick(rng, (0.0, 0.0, 0.05)), folds)  # fmt: skip
    return color


def _paint_skin(rng, outfit):
    darkness = rng.beta(1.1, 1.4) * (len(SKIN_TONES) - 1)
    i = int(darkness)
    light, dark = np.array(SKIN_TONES[i]), SKIN_TONES[min(i + 1, len(SKIN_TONES) - 1)]
    tone = light + (darkness - i) * np.subtract(dark, light)
    tone = np.clip(tone * rng.uniform(0.94, 1.04) + rng.normal(0, 4, 3), 20, 255)
    ruddy = np.clip(tone * (1.0, 0.9, 0.88), 0, 255)
    _material(outfit, 'skin', tone, ruddy, _texture(rng, 'mottle'), rng.uniform(1.5, 5),
              rng.uniform(0, 0.10))  # fmt: skip
    lips = np.clip(tone * (0.92, 0.68, 0.66), 0, 255)
    if rng.random() < 0.15:
        lips = np.array((170, 30, 50)) * rng.uniform(0.7, 1.1)
    _material(outfit, 'lip', lips, gloss=0.05)
    _material(outfit, 'eye', tone * 0.25 + np.array((232, 230, 226)) * 0.72)
    irises = ((30, 22, 18), (70, 48, 30), (70, 90, 110))
    _material(outfit, 'iris', pick(rng, irises, (0.6, 0.25, 0.15)))
    _thick(outfit, eye=-1, iris=-1)


def _clothes(rng, outfit):
    bare = rng.random() < 0.04  # swimwear
    top = cloth_color(rng)
    _cloth(rng, outfit, 'top', top, folds=rng.uniform(0.2, 0.8))
    bottom = cloth_color(rng, 0.75)
    _cloth(rng, outfit, 'bottom', bottom, pattern=0.12)
    _material(outfit, 'trim', top if rng.random() < 0.5 else cloth_color(rng), folds=0.2)
    _material(outfit, 'belt', cloth_color(rng, 0.8), gloss=0.05)
    _material(outfit, 'print', top, random_color(rng), _texture(rng, 'print'), 1.0)
    _material(outfit, 'glove', cloth_color(rng))

    sleeve = pick(rng, (0.0, 0.16, 0.30, 0.45, 0.715), (0.05, 0.07, 0.42, 0.08, 0.38))
    sleeve += rng.uniform(-0.03, 0.03) if 0.2 < sleeve < 0.7 else 0.0
    tucked = rng.random() < 0.4
    hem = rng.uniform(0.04, 0.08) if tucked else rng.uniform(-0.14, 0.02)
    cuff = pick(rng, (0.0, 0.012, 0.03), (0.5, 0.3, 0.2))
    neck = pick(rng, ('crew', 'scoop', 'v', 'high'), (0.5, 0.17, 0.2, 0.13))
    depth = {'crew': 0.02, 'scoop': 0.06, 'v': rng.uniform(0.06, 0.14), 'high': 0.0}[neck]
    width = {'crew': 0.08, 'scoop': 0.13, 'v': 0.09, 'high': 0.1}[neck]
    _set(
        outfit, sleeve=sleeve, hem=hem, neck=0.60 if neck == 'high' else 0.553,
        neck_depth=depth, neck_width=width, cuff=cuff, glove=ABOVE_ALL, hat=ABOVE_ALL, leg=-0.93,
        waist=rng.uniform(0.05, 0.1), belt=float(tucked and rng.random() < 0.4),
        outer_hem=ABOVE_ALL, print_size=0.0,
    )  # fmt: skip
    slack = pick(rng, (2, 12, 26, 44), (0.2, 0.35, 0.3, 0.15))
    _thick(outfit, top=(3, slack), trim=(3.5, slack), print=(3, slack), belt=5, glove=3)
    if rng.random() < 0.28:
        _set(outfit, print_size=rng.uniform(0.05, 0.12), print_back=float(rng.random() < 0.25))
        # One tile of the texture covers the print.
        row = MATERIALS.index('print')
        outfit.paint[row, PAINT.index('scale')] = 0.5 / outfit.dress[DRESS.index('print_size')]
        outfit.paint[row, PAINT.index('folds')] = 0.3

    legs = pick(rng, ('long', 'shorts', 'knee', 'skirt', 'dress'), (0.6, 0.16, 0.05, 0.1, 0.09))
    trousers = pick(rng, (2, 10, 22, 36), (0.3, 0.35, 0.23, 0.12))
    _thick(outfit, bottom=(3, trousers))
    if legs in ('long', 'shorts', 'knee'):
        end = {'long': (-0.93, -0.84), 'shorts': (-0.34, -0.16), 'knee': (-0.5, -0.38)}[legs]
        _set(outfit, leg=rng.uniform(*end))
    else:
        length = pick(rng, (-0.28, -0.45, -0.62, -0.86), (0.3, 0.4, 0.2, 0.1))
        outfit.skirt = (length + rng.uniform(-0.05, 0.05), rng.uniform(0.0, 0.35), 0.018)
        _set(outfit, leg=pick(rng, (-0.12, -0.93), (0.7, 0.3)), belt=0.0)
        source = 'top' if legs == 'dress' else 'bottom'
        outfit.paint[MATERIALS.index('skirt')] = outfit.paint[MATERIALS.index(source)]
        if legs == 'dress':
            _set(outfit, hem=0.03)
        _thick(outfit, bottom=2)
    if rng.random() < 0.12:
        _set(outfit, stripe=rng.uniform(0.008, 0.02))

    if rng.random() < 0.24:  # a jacket or coat
        _cloth(rng, outfit, 'outer', pattern=0.15)
        slack = pick(rng, (8, 18, 32))
        _thick(outfit, outer=(9, slack))
        coat = rng.random() < 0.2
        _set(outfit, outer_sleeve=pick(rng, (0.16, 0.72), (0.12, 0.88)),
             outer_hem=rng.uniform(-0.45, -0.25) if coat else rng.uniform(-0.14, 0.04),
             outer_open=pick(rng, (-0.01, 0.02, 0.05, 0.09), (0.35, 0.2, 0.25, 0.2)),
        )  # fmt: skip
        if coat:
            outfit.skirt = outfit.skirt or (outfit.dress[DRESS.index('outer_hem')], 0.1, 0.03)
            outfit.paint[MATERIALS.index('skirt')] = outfit.paint[MATERIALS.index('outer')]

    shoe = pick(rng, (-0.89, -0.82, -0.6, BELOW_ALL), (0.62, 0.2, 0.08, 0.1))
    color = cloth_color(rng, 0.7)
    _material(outfit, 'shoe', color, cloth_color(rng), _texture(rng, 'plain', 'weave', 'stripes'),
              6.0, 0.08)  # fmt: skip
    _material(outfit, 'sole', (235, 235, 232) if rng.random() < 0.4 else (28, 26, 26))
    _thick(outfit, shoe=(7, 0), sole=9)
    socks = shoe > BELOW_ALL and rng.random() < 0.75
    _set(outfit, shoe=shoe, sock=rng.uniform(-0.86, -0.6) if socks else BELOW_ALL)
    _material(outfit, 'sock', cloth_color(rng, 0.9))
    _thick(outfit, sock=2)
    if rng.random() < 0.04:
        _set(outfit, glove=0.7)
    if bare:
        _set(outfit, sleeve=0.0, hem=ABOVE_ALL, outer_sleeve=0.0, outer_hem=ABOVE_ALL, stripe=0.0,
             shoe=BELOW_ALL, sock=BELOW_ALL, leg=rng.uniform(-0.3, -0.12))  # fmt: skip
        outfit.skirt = None
    elif rng.random() < 0.07:
        _backpack(rng, outfit)


def _hair(rng, outfit):
    color = np.array(pick(rng, HAIR_COLORS, HAIR_FREQUENCIES)) * rng.uniform(0.8, 1.2)
    second = np.clip(color * rng.uniform(1.15, 1.7) + 6, 0, 255)
    _material(outfit, 'hair', color, second, _texture(rng, 'strands'), rng.uniform(3, 7), 0.06)
    _material(outfit, 'brow', np.clip(color * 0.9, 10, 150))
    _material(outfit, 'beard', color * 0.9 + 8, second, _texture(rng, 'weave'), 6.0)
    kind = pick(
        rng,
        ('bald', 'cropped', 'short', 'full', 'afro', 'bob', 'long', 'tail', 'bun', 'hood'),
        (0.06, 0.16, 0.25, 0.1, 0.04, 0.1, 0.14, 0.07, 0.05, 0.03),
    )
    front = rng.uniform(0.775, 0.795)
    _set(outfit, hair_front=front, hair_back=rng.uniform(0.63, 0.68), hair_ears=0.0, bald=0.0)
    if kind == 'bald' and rng.random() < 0.5:
        _set(outfit, hair_front=ABOVE_ALL, hair_back=ABOVE_ALL)
    elif kind == 'bald':
        _set(outfit, bald=rng.uniform(0.06, 0.085), hair_front=0.81)
    elif kind == 'hood':
        _set(outfit, hood=1.0)
        _cloth(rng, outfit, 'hat', pattern=0.2)
        _thick(outfit, hat=10)
    if kind != 'hood':
        thickness = dict(bald=4, cropped=4, short=13, full=24, afro=62, bob=18)
        _thick(outfit, hair=thickness.get(kind, 14))
    if kind in ('bob', 'long'):
        _set(outfit, hair_ears=1.0)
        length = rng.uniform(0.10, 0.16) if kind == 'bob' else rng.uniform(0.2, 0.42)
        outfit.grids.append(_long_hair(length, rng.uniform(1.0, 1.18), rng.uniform(1.0, 1.5)))
    elif kind == 'tail':
        outfit.grids.append(_pony_tail(rng.uniform(0.14, 0.34)))
    elif kind == 'bun':
        center = (0, rng.uniform(0.74, 0.85), rng.uniform(-0.085, -0.05))
        radius = rng.uniform(0.03, 0.045)
        outfit.grids.append(blob(center, (radius,) * 3, 15, MATERIALS.index('hair')))

    if kind not in ('hood', 'afro') and rng.random() < 0.2:
        _cloth(rng, outfit, 'hat', pattern=0.2, folds=0.1)
        style = pick(rng, ('cap', 'brim', 'beanie', 'helmet'), (0.45, 0.15, 0.22, 0.18))
        edge = rng.uniform(0.765, 0.785)
        _set(outfit, hat=edge)
        _thick(outfit, hat=dict(cap=14, brim=16, beanie=12, helmet=28)[style])
        if style == 'helmet':
            outfit.paint[MATERIALS.index('hat'), PAINT.index('gloss')] = 0.35
        if style == 'cap':
            direction = np.pi if rng.random() < 0.12 else 0.0
            outfit.grids.append(_brim(edge, direction, 1.0, rng.uniform(0.05, 0.075)))
        if style == 'brim':
            outfit.grids.append(_brim(edge, 0.0, np.pi, rng.uniform(0.05, 0.1)))


def _face(rng, outfit):
    if rng.random() < 0.2:
        _set(outfit, beard=rng.uniform(0.63, 0.69))
        _thick(outfit, beard=pick(rng, (0, 3, 9)))
    if rng.random() < 0.22:
        dark = rng.random() < 0.4
        _set(outfit, glasses=2.0 if dark else 1.0)
        _material(outfit, 'glasses', (16, 16, 18) if rng.random() < 0.7 else cloth_color(rng),
                  gloss=0.3 if dark else 0.0)  # fmt: skip
        _thick(outfit, glasses=4)


def _backpack(rng, outfit):
    _set(outfit, straps=1.0)
    _cloth(rng, outfit, 'bag', pattern=0.2)
    _thick(outfit, bag=(8, float(outfit.loose[MATERIALS.index('top')] * 1000)))
    size = (rng.uniform(0.11, 0.16), rng.uniform(0.16, 0.24), rng.uniform(0.06, 0.1))
    center = (0, 0.32, -0.09 - size[2])
    outfit.grids.append(blob(center, size, 9, MATERIALS.index('bag'), square=0.45))


def _hold(rng, outfit, held, side):
    """Put an object into a hand of the T-pose, where palms face down."""
    x, hand = (1, 22) if side == 0 else (-1, 23)
    size, drop, square = {
        'phone': ((0.036, 0.008, 0.075), 0.012, 0.2),
        'cup': ((0.035, 0.035, 0.055), 0.03, 0.6),
        'ball': ((0.11, 0.11, 0.11), 0.115, 1.0),
        'box': ((0.10, 0.07, 0.13), 0.07, 0.2),
        'bag': ((0.16, 0.04, 0.14), 0.0, 0.4),
    }[held]
    size = np.array(size) * rng.uniform(0.8, 1.25)
    center = np.array((x * 0.84, 0.472 - drop, 0.02))
    if held == 'bag':  # hangs from the fingers, along the arm
        center = np.array((x * (0.90 + size[0]), 0.465, 0.0))
    if outfit.paint[MATERIALS.index('bag'), :6].sum() == 0:
        _cloth(rng, outfit, 'bag', pattern=0.3, folds=0.0)
    outfit.grids.append(blob(center, size, hand, MATERIALS.index('bag'), square))


# --- Worn meshes, in rest coordinates -------------------------------------------------------------
def blob(
    center: Sequence[float], size: Sequence[float], joint: int, material: int, square: float = 1.0
) -> Grid:
    """Superellipsoid that moves with one joint; square: 1 is an ellipsoid, near 0 a box."""
    latitude = np.linspace(-np.pi / 2, np.pi / 2, 8)[:, None]
    longitude = np.linspace(0, 2 * np.pi, 12, endpoint=False)[None]

    def power(value):
        return np.sign(value) * np.abs(value) ** square

    ring, y = power(np.cos(latitude)), power(np.sin(latitude)) * np.ones_like(longitude)
    points = np.stack((ring * power(np.cos(longitude)), y, ring * power(np.sin(longitude))), -1)
    return _rigid(points * size + np.array(center), joint, material)


def _rigid(points, joint, material, closed=True):
    shape = (*points.shape[:2], 1)
    return Grid(points, np.full(shape, joint), np.ones(shape), material, closed)


def _long_hair(length, width, spread, rows=9, columns=14):
    """A sheet from ear to ear around the back of the head, over neck and back."""
    angle = np.linspace(np.radians(68), np.radians(292), columns)[None]  # 0 is the front
    t = np.linspace(0, 1, rows)[:, None]
    y = 0.80 - t * (0.16 + length)
    skull = np.sqrt(np.clip(1 - ((np.maximum(y, 0.72) - 0.72) / 0.125) ** 2, 0, 1))
    below = np.clip((0.64 - y) / 0.2, 0, 1)
    x = np.sin(angle) * (0.094 * width * skull + 0.05 * spread * below * (y < 0.64))
    back = np.cos(angle) * (0.105 * skull) + 0.015 - 0.045 * below * (np.cos(angle) < 0)
    points = np.stack((x, y + 0 * angle, back), axis=-1)
    joints = np.tile(np.array((15, 9)), (rows, columns, 1))
    head = np.clip((y - 0.46) / 0.18, 0, 1) + 0 * angle
    weights = np.stack((head, 1 - head), axis=-1)
    return Grid(points, joints, weights, MATERIALS.index('hair'), closed=False)


def _pony_tail(length, rows=7, columns=8):
    t = np.linspace(0, 1, rows)[:, None]
    angle = np.linspace(0, 2 * np.pi, columns, endpoint=False)[None]
    radius = 0.024 * np.sin(np.clip(t * 0.9 + 0.12, 0, 1) * np.pi) + 0.002
    center_y = 0.79 - length * t**1.4
    center_z = -0.075 - 0.05 * np.sin(np.minimum(t * 2.2, 1.57))
    x, z = radius * np.cos(angle), center_z + radius * np.sin(angle)
    points = np.stack((x, center_y + 0 * angle, z), axis=-1)
    return _rigid(points, 15, MATERIALS.index('hair'))


def _brim(y, towards, half_angle, width, columns=14):
    """Ring, or part of a ring, at the edge of a hat."""
    angle = towards + np.linspace(-half_angle, half_angle, columns)[None]
    out = np.array((0.0, 1.0))[:, None]
    fade = 1.0 if half_angle > 3 else np.cos((angle - towards) / half_angle * 1.3)
    x = np.sin(angle) * (0.078 + out * width * fade)
    z = 0.025 + np.cos(angle) * (0.104 + out * width * fade)
    points = np.stack((x, y + 0.012 - 0.018 * out + 0 * angle, z), axis=-1)
    return _rigid(points, 15, MATERIALS.index('hat'), closed=False)
