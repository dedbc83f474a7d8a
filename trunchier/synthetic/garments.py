"""Garments: the material at each point of the body, and its distance from the skin.

Rest coordinates: the embedded body's mean shape in the T-pose, meters, pelvis near 0, y up, facing
z, left is +x.
"""

import numpy as np

from ..files.compiled import compiled

MATERIALS = (
    'skin', 'top', 'bottom', 'shoe', 'sock', 'hair', 'outer', 'trim', 'belt', 'print', 'lip',
    'eye', 'iris', 'brow', 'beard', 'glasses', 'sole', 'hat', 'skirt', 'glove', 'bag',
)  # fmt: skip
(
    SKIN, TOP, BOTTOM, SHOE, SOCK, HAIR, OUTER, TRIM, BELT, PRINT, LIP,
    EYE, IRIS, BROW, BEARD, GLASSES, SOLE, HAT, SKIRT, GLOVE, BAG,
) = range(len(MATERIALS))  # fmt: skip

# Parameters of an outfit; lengths are rest coordinates, meters.
DRESS = (
    'sleeve',        # |x| at which the sleeves of the top end; below 0.17: sleeveless
    'hem',           # y at which the top ends
    'neck',          # y of the neckline; lower by `neck_depth` in front, where |x| < `neck_width`
    'neck_depth',
    'neck_width',
    'outer_sleeve',  # as `sleeve`, of a jacket; 0: no jacket
    'outer_hem',
    'outer_open',    # half width of its open front
    'leg',           # y at which trousers end
    'waist',         # y of their upper edge
    'sock',          # y of the upper edge of socks
    'shoe',          # y of the upper edge of shoes
    'hair_front',    # y of the hairline over the forehead
    'hair_back',     # y of the lowest hair at the neck
    'hair_ears',     # 1: hair covers the ears
    'bald',          # radius of the bald crown
    'hat',           # y of its lower edge
    'hood',          # 1: cloth around the face
    'beard',         # y up to which a beard reaches on the cheek
    'glasses',       # 0 none, 1 clear, 2 dark
    'print_size',    # half height of a print on the chest, 0: none
    'print_back',    # 1: the print is on the back
    'stripe',        # half width of stripes along sleeves and trousers, 0: none
    'glove',         # |x| at which gloves begin
    'cuff',          # width of trim at hems and collars
    'belt',          # 1: worn
    'straps',        # 1: of a backpack
)  # fmt: skip
(
    D_SLEEVE, D_HEM, D_NECK, D_NECK_DEPTH, D_NECK_WIDTH, D_OUTER_SLEEVE, D_OUTER_HEM, D_OUTER_OPEN,
    D_LEG, D_WAIST, D_SOCK, D_SHOE, D_HAIR_FRONT, D_HAIR_BACK, D_HAIR_EARS, D_BALD, D_HAT, D_HOOD,
    D_BEARD, D_GLASSES, D_PRINT, D_PRINT_BACK, D_STRIPE, D_GLOVE, D_CUFF, D_BELT, D_STRAPS,
) = range(len(DRESS))  # fmt: skip

# Columns of a row of `paint`, one row per material: two colors, linear, that a texture mixes.
PAINT = ('red', 'green', 'blue', 'red2', 'green2', 'blue2', 'texture', 'scale', 'gloss', 'folds')


@compiled
def garment(x: float, y: float, z: float, d: np.ndarray) -> int:
    """Index into MATERIALS at rest coordinates (x, y, z) of a person with the DRESS values `d`."""
    a = abs(x)
    if y > 0.36 and a > 0.165:  # an arm
        if a > d[D_GLOVE]:
            return GLOVE
        if a < d[D_OUTER_SLEEVE]:
            return TRIM if a > d[D_OUTER_SLEEVE] - d[D_CUFF] else OUTER
        if a < d[D_SLEEVE]:
            striped = z * z < d[D_STRIPE] * d[D_STRIPE] and y > 0.46
            return TRIM if striped or a > d[D_SLEEVE] - d[D_CUFF] else TOP
        return SKIN
    if y > 0.57:
        material = _head(x, y, z, d)
        if material != SKIN or y > 0.62:
            return material
    if y > -0.12:  # the trunk
        neckline = d[D_NECK]
        if z > 0.0 and a < d[D_NECK_WIDTH]:
            neckline -= d[D_NECK_DEPTH] * (1.0 - a / d[D_NECK_WIDTH])
        if d[D_STRAPS] > 0 and 0.07 < a < 0.105 and y > 0.2:
            return BAG
        closed = z < 0.0 or a > d[D_OUTER_OPEN] * (1.0 + 0.6 * (y - d[D_OUTER_HEM]))
        if d[D_OUTER_SLEEVE] > 0 and closed and d[D_OUTER_HEM] < y < 0.57:
            return OUTER
        if y > d[D_HEM] and y < neckline:
            on_chest = a < 1.1 * d[D_PRINT] and abs(y - 0.33) < d[D_PRINT]
            if on_chest and (z < 0.0) == (d[D_PRINT_BACK] > 0):
                return PRINT
            return TRIM if y > neckline - d[D_CUFF] or y < d[D_HEM] + d[D_CUFF] else TOP
        if y < d[D_WAIST] and y > d[D_LEG]:
            if d[D_BELT] > 0 and y > d[D_WAIST] - 0.035:
                return BELT
            return TRIM if z * z < d[D_STRIPE] * d[D_STRIPE] and a > 0.12 else BOTTOM
        return SKIN
    # a leg
    if y > d[D_OUTER_HEM] and d[D_OUTER_SLEEVE] > 0:
        return OUTER
    if y > d[D_HEM]:
        return TOP
    if y < d[D_SHOE]:
        return SOLE if y < -0.968 else SHOE
    if y > d[D_LEG]:
        striped = z * z < d[D_STRIPE] * d[D_STRIPE] and a > 0.17 - 0.05 * y
        return TRIM if striped else BOTTOM
    return SOCK if y < d[D_SOCK] else SKIN


@compiled
def _head(x, y, z, d):
    a = abs(x)
    if d[D_HOOD] > 0:
        dx, dy = x / 0.062, (y - 0.695) / 0.088
        if z < 0.055 or dx * dx + dy * dy > 1.0:
            return HAT
    if y > d[D_HAT] - 0.2 * (0.1 - z):  # lower at the back
        return HAT
    ear = a > 0.073 and -0.005 < z < 0.065 and y < 0.742
    if not ear or d[D_HAIR_EARS] > 0:
        # The hairline falls from the forehead over the temple, behind the ear, to the neck.
        if z > 0.075:
            line = d[D_HAIR_FRONT] - 0.25 * max(a - 0.045, 0.0)
        elif z > 0.045:
            t = (0.075 - z) / 0.03
            line = d[D_HAIR_FRONT] - 0.01 - t * (d[D_HAIR_FRONT] - 0.74)
        elif z > 0.0:
            line = 0.735 - 0.06 * d[D_HAIR_EARS]
        else:
            line = d[D_HAIR_BACK]
        if y > line:
            dz = z - 0.01
            if y > 0.78 and x * x + dz * dz < d[D_BALD] * d[D_BALD]:
                return SKIN
            return HAIR
    if z > 0.06:
        ex, ey = a - 0.032, y - 0.7225
        if d[D_GLASSES] > 0:
            gx, gy = ex / 0.027, (ey + 0.003) / 0.019
            r = gx * gx + gy * gy
            if r < 1.0 and (d[D_GLASSES] > 1 or r > 0.72):
                return GLASSES
            if abs(ey - 0.004) < 0.0025 and a < 0.012:
                return GLASSES
        if (ex / 0.0135) ** 2 + (ey / 0.0055) ** 2 < 1.0:
            return IRIS if ex * ex + ey * ey < 0.0058**2 else EYE
        if abs(ex - 0.001) < 0.018 and abs(y - 0.7405 + 8.0 * (ex - 0.004) ** 2) < 0.0035:
            return BROW
        mx, my = x / 0.025, (y - 0.653) / 0.0085
        if mx * mx + my * my < 1.0:
            return LIP
    elif d[D_GLASSES] > 0 and z > 0.03 and abs(y - 0.727) < 0.003:
        return GLASSES
    if z > 0.0 and y < d[D_BEARD] - 0.35 * max(z - 0.03, 0.0) * (a < 0.045) and y > 0.60:
        if z > 0.03 or a > 0.05:
            return BEARD
    elif d[D_BEARD] > 0.6 and z > 0.1 and 0.663 < y < 0.676 and a < 0.026:
        return BEARD
    return SKIN


@compiled(fastmath=True)
def inflate(
    shaped: np.ndarray,
    rest: np.ndarray,
    normals: np.ndarray,
    dress: np.ndarray,
    thickness: np.ndarray,
    loose: np.ndarray,
    folds: np.ndarray,
    out: np.ndarray,
) -> None:
    """Offset the skin of the T-pose along its normals by the thickness of clothes and hair.

    Args:
        shaped: (V, 3), meters, the person.
        rest, normals: (V, 3), rest coordinates and normals of the mean body.
        dress: (len(DRESS),).
        thickness: (len(MATERIALS),), meters.
        loose: (len(MATERIALS),), further meters where cloth hangs free.
        folds: (V,), relative offset of loose cloth, of mean 0.
        out: (V, 3).
    """
    for v in range(rest.shape[0]):
        x, y, z = rest[v, 0], rest[v, 1], rest[v, 2]
        material = garment(x, y, z, dress)
        offset = thickness[material]
        slack = loose[material]
        if slack > 0.0:
            a = abs(x)
            if y > 0.36 and a > 0.165:
                free = 0.4 + 1.2 * (a - 0.165)  # wider to the cuff
            elif y > -0.05:
                free = min(max((0.45 - y) / 0.3, 0.15), 1.0)
            else:
                free = 0.55 - 0.55 * (y + 0.05)
            offset += slack * free * (1.0 + 0.4 * folds[v])
        elif material == HAIR:
            crown = min(max((y - 0.72) / 0.1, 0.0), 1.0)
            offset *= 0.6 + 0.5 * crown + 0.1 * folds[v]
        for c in range(3):
            out[v, c] = shaped[v, c] + offset * normals[v, c]
