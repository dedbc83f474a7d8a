"""The renderer's inner loops: skinning, normals, z-buffer, clothes, shading. Numba, one core.

Camera frame: x right, y down, z forward, metres. Pixels: integer coordinates are pixel centres.
Rest coordinates are those of the embedded body's mean shape in the T-pose (pelvis near 0, y up,
facing z, left is +x): they say where on the body a pixel lies, and so what is worn there.
Colours are linear in [0, 1] until `shade` writes them as sRGB bytes.
"""

import math

import numpy as np

try:
    from numba import njit
except ImportError as error:
    raise ImportError(
        'synthetic people and mesh overlays are drawn with numba: pip install numba'
    ) from error

# ---------------------------------------------------------------------------------------------
# What a person is made of. `dress` holds one number for each of the words below.
# ---------------------------------------------------------------------------------------------
MATERIALS = (
    'skin', 'top', 'bottom', 'shoe', 'sock', 'hair', 'outer', 'trim', 'belt', 'print', 'lip',
    'eye', 'iris', 'brow', 'beard', 'glasses', 'sole', 'hat', 'skirt', 'glove', 'bag',
)  # fmt: skip
(
    SKIN, TOP, BOTTOM, SHOE, SOCK, HAIR, OUTER, TRIM, BELT, PRINT, LIP,
    EYE, IRIS, BROW, BEARD, GLASSES, SOLE, HAT, SKIRT, GLOVE, BAG,
) = range(len(MATERIALS))  # fmt: skip

DRESS = (
    'sleeve',        # |x| at which the top's sleeve ends; below 0.17: none
    'hem',           # y at which the top ends
    'neck',          # y of the neckline; `neck_depth` lower in front, within `neck_width` of |x|
    'neck_depth',
    'neck_width',
    'outer_sleeve',  # a jacket over the top; 0: none
    'outer_hem',
    'outer_open',    # half width of its open front
    'leg',           # y at which trousers end
    'waist',         # y at which they begin
    'sock',          # y of the upper edge
    'shoe',
    'hair_front',    # y of the hair line over the forehead
    'hair_back',     # y of the lowest hair at the neck
    'hair_ears',     # 1: hair covers the ears
    'bald',          # radius of the bald crown
    'hat',           # y of its lower edge
    'hood',          # 1: cloth around the face
    'beard',         # y up to which a beard reaches on the cheek
    'glasses',       # 0 none, 1 clear, 2 dark
    'print_size',    # half height of a picture on the chest, 0: none
    'print_back',    # 1: on the back
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

# Columns of a material row.
PAINT = ('red', 'green', 'blue', 'red2', 'green2', 'blue2', 'texture', 'scale', 'gloss', 'folds')
P_TEXTURE, P_SCALE, P_GLOSS, P_FOLDS = 6, 7, 8, 9

BODY = -1  # as a face's material: ask `garment`
NOBODY = -1  # as a pixel's owner
PROP = -2


@njit(cache=True)
def garment(x, y, z, d):
    """What covers the body at rest coordinates (x, y, z), dressed as `d` says: a material."""
    a = abs(x)
    if y > 0.36 and a > 0.165:  # an arm
        if a > d[D_GLOVE]:
            return GLOVE
        if a < d[D_OUTER_SLEEVE]:
            if a > d[D_OUTER_SLEEVE] - d[D_CUFF]:
                return TRIM
            return OUTER
        if a < d[D_SLEEVE]:
            if a > d[D_SLEEVE] - d[D_CUFF]:
                return TRIM
            if z * z < d[D_STRIPE] * d[D_STRIPE] and y > 0.46:
                return TRIM
            return TOP
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
            if y > neckline - d[D_CUFF] or y < d[D_HEM] + d[D_CUFF]:
                return TRIM
            return TOP
        if y < d[D_WAIST] and y > d[D_LEG]:
            if d[D_BELT] > 0 and y > d[D_WAIST] - 0.035:
                return BELT
            if z * z < d[D_STRIPE] * d[D_STRIPE] and a > 0.12:
                return TRIM
            return BOTTOM
        return SKIN
    # a leg
    if y > d[D_OUTER_HEM] and d[D_OUTER_SLEEVE] > 0:
        return OUTER
    if y > d[D_HEM]:
        return TOP
    if y < d[D_SHOE]:
        return SOLE if y < -0.968 else SHOE
    if y > d[D_LEG]:
        if z * z < d[D_STRIPE] * d[D_STRIPE] and a > 0.17 - 0.05 * y:
            return TRIM
        return BOTTOM
    if y < d[D_SOCK]:
        return SOCK
    return SKIN


@njit(cache=True)
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
        # The hair line falls from the forehead over the temple, behind the ear, to the neck.
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


# ---------------------------------------------------------------------------------------------
# Geometry
# ---------------------------------------------------------------------------------------------
@njit(cache=True, fastmath=True)
def shape_body(template, shapedirs, betas, out):
    """out (V, 3) = template + shapedirs (V, 3, 10) @ betas."""
    for v in range(template.shape[0]):
        for c in range(3):
            value = template[v, c]
            for k in range(betas.shape[0]):
                value += shapedirs[v, c, k] * betas[k]
            out[v, c] = value


@njit(cache=True, fastmath=True)
def inflate(shaped, rest, normals, dress, thickness, loose, folds, out):
    """Clothes and hair as an offset along the normals of the T-pose.

    Args:
        shaped, rest, normals: (V, 3): this person, and the mean body that `dress` speaks of.
        thickness: (materials,), metres.
        loose: (materials,), metres more where cloth hangs free.
        folds: (V,), of mean 0, how far cloth stands off here.
        out: (V, 3)
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


@njit(cache=True, fastmath=True)
def skin(rest, joints, weights, transforms, out):
    """Linear blend skinning with four weights a vertex.

    Args:
        rest: (V, 3).
        joints, weights: (V, 4).
        transforms: (24, 3, 4).
        out: (V, 3)
    """
    for v in range(rest.shape[0]):
        x, y, z = rest[v, 0], rest[v, 1], rest[v, 2]
        ox, oy, oz = np.float32(0), np.float32(0), np.float32(0)
        for k in range(weights.shape[1]):
            w = weights[v, k]
            if w == 0.0:
                continue
            t = transforms[joints[v, k]]
            ox += w * (t[0, 0] * x + t[0, 1] * y + t[0, 2] * z + t[0, 3])
            oy += w * (t[1, 0] * x + t[1, 1] * y + t[1, 2] * z + t[1, 3])
            oz += w * (t[2, 0] * x + t[2, 1] * y + t[2, 2] * z + t[2, 3])
        out[v, 0], out[v, 1], out[v, 2] = ox, oy, oz


@njit(cache=True, fastmath=True)
def vertex_normals(vertices, faces, out):
    """Unit normals (V, 3), the mean of the faces around, weighted by area."""
    out[:] = 0
    for f in range(faces.shape[0]):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        ux, uy, uz = (
            vertices[b, 0] - vertices[a, 0],
            vertices[b, 1] - vertices[a, 1],
            vertices[b, 2] - vertices[a, 2],
        )
        vx, vy, vz = (
            vertices[c, 0] - vertices[a, 0],
            vertices[c, 1] - vertices[a, 1],
            vertices[c, 2] - vertices[a, 2],
        )
        x, y, z = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
        for i in (a, b, c):
            out[i, 0] += x
            out[i, 1] += y
            out[i, 2] += z
    for v in range(out.shape[0]):
        x, y, z = out[v, 0], out[v, 1], out[v, 2]
        inverse = np.float32(1.0) / math.sqrt(x * x + y * y + z * z + np.float32(1e-20))
        out[v, 0], out[v, 1], out[v, 2] = x * inverse, y * inverse, z * inverse


@njit(cache=True, fastmath=True)
def weighted_points(vertices, starts, indices, weights, out):
    """Sparse regressor: out[k] = sum of weights * vertices of row k (compressed rows)."""
    for k in range(starts.shape[0] - 1):
        x = y = z = 0.0
        for i in range(starts[k], starts[k + 1]):
            v, w = indices[i], weights[i]
            x += w * vertices[v, 0]
            y += w * vertices[v, 1]
            z += w * vertices[v, 2]
        out[k, 0], out[k, 1], out[k, 2] = x, y, z


@njit(cache=True, fastmath=True)
def project(vertices, focal, cx, cy, out):
    """out (V, 3): x and y in pixels, and 1 / z, which is linear on the screen."""
    for v in range(vertices.shape[0]):
        inverse = np.float32(1.0) / max(vertices[v, 2], np.float32(1e-3))
        out[v, 0] = focal * vertices[v, 0] * inverse + cx
        out[v, 1] = focal * vertices[v, 1] * inverse + cy
        out[v, 2] = inverse


@njit(cache=True, fastmath=True)
def bounds(points):
    """Lowest and highest of each coordinate: (N, 3) -> (3,), (3,)."""
    low, high = points[0].copy(), points[0].copy()
    for v in range(points.shape[0]):
        for c in range(3):
            low[c] = min(low[c], points[v, c])
            high[c] = max(high[c], points[v, c])
    return low, high


@njit(cache=True, fastmath=True)
def flat_bounds(points):
    """Lowest and highest x / z and y / z: (N, 3) -> (2,), (2,)."""
    low, high = np.full(2, 1e9), np.full(2, -1e9)
    for v in range(points.shape[0]):
        for c in range(2):
            value = points[v, c] / points[v, 2]
            low[c] = min(low[c], value)
            high[c] = max(high[c], value)
    return low, high


@njit(cache=True, fastmath=True)
def bounds_along(points, axes):
    """`bounds` in a frame with the given (3, 3) rows."""
    low, high = np.full(3, np.float32(1e9)), np.full(3, np.float32(-1e9))
    for v in range(points.shape[0]):
        x, y, z = points[v, 0], points[v, 1], points[v, 2]
        for c in range(3):
            value = axes[c, 0] * x + axes[c, 1] * y + axes[c, 2] * z
            low[c] = min(low[c], value)
            high[c] = max(high[c], value)
    return low, high


@njit(cache=True, fastmath=True)
def rasterise(points, faces, one_sided, nearest, ids):
    """Z-buffer.

    Args:
        points: (V, 3), see `project`.
        faces: (F, 3); the first `one_sided` are drawn from their front only.
        nearest: (H, W) float32, 1 / z, in and out; 0 is infinitely far.
        ids: (H, W) int32, face of each pixel, in and out.
    """
    height, width = nearest.shape
    for f in range(faces.shape[0]):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        ax, ay, az = points[a, 0], points[a, 1], points[a, 2]
        bx, by, bz = points[b, 0], points[b, 1], points[b, 2]
        cx, cy, cz = points[c, 0], points[c, 1], points[c, 2]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        # Faces are counter-clockwise from outside, hence clockwise where y points down.
        if f < one_sided and area >= 0.0:
            continue
        if abs(area) < 1e-9 or az > 10.0 or bz > 10.0 or cz > 10.0:
            continue
        x0 = max(int(math.ceil(min(ax, bx, cx))), 0)
        x1 = min(int(math.floor(max(ax, bx, cx))), width - 1)
        y0 = max(int(math.ceil(min(ay, by, cy))), 0)
        y1 = min(int(math.floor(max(ay, by, cy))), height - 1)
        if x1 < x0 or y1 < y0:
            continue
        inverse = np.float32(1.0) / area
        step0, step1 = (by - cy) * inverse, (cy - ay) * inverse
        for y in range(y0, y1 + 1):
            w0 = ((bx - x0) * (cy - y) - (by - y) * (cx - x0)) * inverse
            w1 = ((cx - x0) * (ay - y) - (cy - y) * (ax - x0)) * inverse
            for x in range(x0, x1 + 1):
                w2 = np.float32(1.0) - w0 - w1
                if w0 >= -1e-5 and w1 >= -1e-5 and w2 >= -1e-5:
                    depth = w0 * az + w1 * bz + w2 * cz
                    if depth > nearest[y, x]:
                        nearest[y, x] = depth
                        ids[y, x] = f
                w0 += step0
                w1 += step1


@njit(cache=True, fastmath=True)
def shadow_map(vertices, faces, one_sided, axes, low, step, out):
    """Height towards the light of what it meets first.

    Args:
        vertices: (V, 3), camera frame.
        faces: (F, 3); of the first `one_sided`, only those that face the light count.
        axes: (3, 3), rows: the map's x and y, and the direction to the light.
        low: (2,), metres, of the map's first pixel; step: metres a pixel.
        out: (N, N) float32, metres along the third axis, -1e9 where nothing is.
    """
    size = out.shape[0]
    points = np.empty((vertices.shape[0], 3), np.float32)
    for v in range(vertices.shape[0]):
        for c in range(3):
            points[v, c] = (
                axes[c, 0] * vertices[v, 0]
                + axes[c, 1] * vertices[v, 1]
                + axes[c, 2] * vertices[v, 2]
            )
        points[v, 0] = (points[v, 0] - low[0]) / step
        points[v, 1] = (points[v, 1] - low[1]) / step
    for f in range(faces.shape[0]):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        ax, ay, bx, by, cx, cy = (
            points[a, 0], points[a, 1], points[b, 0], points[b, 1], points[c, 0], points[c, 1]
        )  # fmt: skip
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if f < one_sided and area <= 0.0:
            continue
        x0 = max(int(math.ceil(min(ax, bx, cx))), 0)
        x1 = min(int(math.floor(max(ax, bx, cx))), size - 1)
        y0 = max(int(math.ceil(min(ay, by, cy))), 0)
        y1 = min(int(math.floor(max(ay, by, cy))), size - 1)
        if x1 < x0 or y1 < y0 or abs(area) < 1e-9:
            continue
        inverse = np.float32(1.0) / area
        for y in range(y0, y1 + 1):
            for x in range(x0, x1 + 1):
                w0 = ((bx - x) * (cy - y) - (by - y) * (cx - x)) * inverse
                w1 = ((cx - x) * (ay - y) - (cy - y) * (ax - x)) * inverse
                w2 = np.float32(1.0) - w0 - w1
                if w0 >= 0 and w1 >= 0 and w2 >= 0:
                    height = w0 * points[a, 2] + w1 * points[b, 2] + w2 * points[c, 2]
                    if height > out[y, x]:
                        out[y, x] = height


@njit(cache=True, fastmath=True, inline='always')
def _lit(x, y, z, axes, low, step, heights, bias):
    """Share of the light in [0, 1] that reaches a point: four neighbours, blended."""
    u = (axes[0, 0] * x + axes[0, 1] * y + axes[0, 2] * z - low[0]) / step
    v = (axes[1, 0] * x + axes[1, 1] * y + axes[1, 2] * z - low[1]) / step
    size = heights.shape[0]
    if not (0.0 <= u < size - 1.001 and 0.0 <= v < size - 1.001):
        return np.float32(1.0)
    h = axes[2, 0] * x + axes[2, 1] * y + axes[2, 2] * z + bias
    i, j = int(v), int(u)
    s, t = u - np.float32(j), v - np.float32(i)
    top = s if heights[i, j + 1] <= h else np.float32(0.0)
    if heights[i, j] <= h:
        top += np.float32(1.0) - s
    bottom = s if heights[i + 1, j + 1] <= h else np.float32(0.0)
    if heights[i + 1, j] <= h:
        bottom += np.float32(1.0) - s
    return top + t * (bottom - top)


# ---------------------------------------------------------------------------------------------
# Light and colour
# ---------------------------------------------------------------------------------------------
@njit(cache=True, fastmath=True)
def shade(
    image, owners, nearest, ids, points, normals, rest, faces, axis, face_owner, face_material,
    dresses, paint, textures, camera, light, axes, low, step, heights,
):  # fmt: skip
    """Colour every pixel that the z-buffer found a face for.

    Args:
        image: (H, W, 3) uint8 RGB, in and out.
        owners: (H, W) int8, out: person, PROP or NOBODY.
        nearest, ids: from `rasterise`; points, faces: what it was given.
        normals: (V, 3), camera frame; rest: (V, 3), rest coordinates or, of props, their own.
        axis: (F,), 0, 1 or 2: the rest axis that a face looks along, for its texture.
        face_owner: (F,), person or PROP. face_material: (F,), row of `paint` or BODY.
        dresses: (people, len(DRESS)).
        paint: (people * len(MATERIALS) + props, len(PAINT)).
        textures: (T, N, N) float32 in [0, 1], N a power of two; mixes the two colours of a row.
        camera: (3,), focal, cx, cy.
        light: (5, 3): colours of sun, sky and ground; up; to the sun.
        axes, low, step, heights: see `shadow_map`.
    """
    height, width = ids.shape
    size = np.float32(textures.shape[1])
    last = textures.shape[1] - 1
    focal, px, py = camera[0], camera[1], camera[2]
    for row in range(height):
        for col in range(width):
            f = ids[row, col]
            if f < 0:
                owners[row, col] = NOBODY
                continue
            a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
            ax, ay, bx, by, cx, cy = (
                points[a, 0], points[a, 1], points[b, 0], points[b, 1], points[c, 0], points[c, 1]
            )  # fmt: skip
            area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
            inverse = np.float32(1.0) / area
            w0 = ((bx - col) * (cy - row) - (by - row) * (cx - col)) * inverse
            w1 = ((cx - col) * (ay - row) - (cy - row) * (ax - col)) * inverse
            w2 = np.float32(1.0) - w0 - w1
            z = np.float32(1.0) / nearest[row, col]
            w0, w1, w2 = w0 * points[a, 2] * z, w1 * points[b, 2] * z, w2 * points[c, 2] * z

            nx = w0 * normals[a, 0] + w1 * normals[b, 0] + w2 * normals[c, 0]
            ny = w0 * normals[a, 1] + w1 * normals[b, 1] + w2 * normals[c, 1]
            nz = w0 * normals[a, 2] + w1 * normals[b, 2] + w2 * normals[c, 2]
            inverse = np.float32(1.0) / math.sqrt(nx * nx + ny * ny + nz * nz + np.float32(1e-12))
            if area > 0.0:  # seen from behind
                inverse = -inverse
            nx, ny, nz = nx * inverse, ny * inverse, nz * inverse
            rx = w0 * rest[a, 0] + w1 * rest[b, 0] + w2 * rest[c, 0]
            ry = w0 * rest[a, 1] + w1 * rest[b, 1] + w2 * rest[c, 1]
            rz = w0 * rest[a, 2] + w1 * rest[b, 2] + w2 * rest[c, 2]

            owner = face_owner[f]
            owners[row, col] = owner
            material = face_material[f]
            if material == BODY:
                material = garment(rx, ry, rz, dresses[owner]) + owner * len(MATERIALS)
            p = paint[material]

            if axis[f] == 0:
                u, v = rz, ry
            elif axis[f] == 1:
                u, v = rx, rz
            else:
                u, v = rx, ry
            scale = p[P_SCALE] * size
            i = int((v + np.float32(8.0)) * scale) & last
            j = int((u + np.float32(8.0)) * scale) & last
            mix = textures[int(p[P_TEXTURE]), i, j]
            crease = np.float32(1.0)
            if p[P_FOLDS] != 0.0:  # the first texture is the folds of cloth
                i = int((v + np.float32(8.0)) * np.float32(1.9) * size) & last
                j = int((u + np.float32(8.0)) * np.float32(3.1) * size) & last
                crease += p[P_FOLDS] * (textures[0, i, j] - np.float32(0.5))

            x = (col - px) * z / focal
            y = (row - py) * z / focal
            facing = nx * light[4, 0] + ny * light[4, 1] + nz * light[4, 2]
            sun = np.float32(0.0)
            gloss = np.float32(0.0)
            if facing > -0.2:
                lit = _lit(x, y, z, axes, low, step, heights, np.float32(0.035))
                sun = max((facing + np.float32(0.2)) / np.float32(1.2), np.float32(0.0)) * lit
                if p[P_GLOSS] > 0.0 and lit > 0.0:
                    # Blinn's highlight, the eighth power of the cosine with the half vector
                    distance = math.sqrt(x * x + y * y + z * z)
                    hx = light[4, 0] - x / distance
                    hy = light[4, 1] - y / distance
                    hz = light[4, 2] - z / distance
                    s = (nx * hx + ny * hy + nz * hz) / math.sqrt(hx * hx + hy * hy + hz * hz)
                    s = max(s, np.float32(0.0))
                    s = s * s
                    s = s * s
                    s = s * s
                    gloss = p[P_GLOSS] * s * s * lit
            above = np.float32(0.5) + np.float32(0.5) * (
                nx * light[3, 0] + ny * light[3, 1] + nz * light[3, 2]
            )
            for k in range(3):
                albedo = p[k] + (p[3 + k] - p[k]) * mix
                arriving = (
                    sun * light[0, k]
                    + above * light[1, k]
                    + (np.float32(1.0) - above) * light[2, k]
                )
                value = albedo * arriving * crease + gloss * light[0, k]
                image[row, col, k] = int(
                    min(math.sqrt(max(value, np.float32(0.0))) * np.float32(255.0), 255.0)
                )


@njit(cache=True, fastmath=True)
def shade_ground(image, ids, window, camera, up, offset, strength, axes, low, step, heights):
    """Darken the background where the people's shadow falls on the ground.

    Args:
        image: (H, W, 3) uint8, in and out; ids: (H, W), from `rasterise`.
        window: x0, y0, x1, y1, pixels: the only part to look at.
        camera: (3,), focal, cx, cy. up: (3,), unit. offset: up . X of the ground's points X.
        strength: share of the light that the shadow takes.
        axes, low, step, heights: see `shadow_map`.
    """
    focal, cx, cy = camera[0], camera[1], camera[2]
    for row in range(window[1], window[3]):
        for col in range(window[0], window[2]):
            if ids[row, col] >= 0:
                continue
            x, y = (col - cx) / focal, (row - cy) / focal
            rise = up[0] * x + up[1] * y + up[2]
            if rise * offset <= 0.0:  # the ray never meets the ground
                continue
            z = offset / rise
            if z > 60.0:
                continue
            dark = np.float32(1.0) - _lit(
                x * z, y * z, z, axes, low, step, heights, np.float32(0.02)
            )
            if dark > 0.0:
                keep = np.float32(1.0) - strength * dark
                for k in range(3):
                    image[row, col, k] = int(image[row, col, k] * keep)


@njit(cache=True, fastmath=True)
def blend(image, weight, colour):
    """Mix a colour (3,) into image (H, W, 3) uint8, in place; weight (H, W) of 255 is all of it."""
    red, green, blue = int(colour[0]), int(colour[1]), int(colour[2])
    red, green, blue = min(max(red, 0), 255), min(max(green, 0), 255), min(max(blue, 0), 255)
    for row in range(image.shape[0]):
        for col in range(image.shape[1]):
            new = np.int32(weight[row, col]) * 257
            old = 65535 - new
            image[row, col, 0] = (image[row, col, 0] * old + red * new) >> 16
            image[row, col, 1] = (image[row, col, 1] * old + green * new) >> 16
            image[row, col, 2] = (image[row, col, 2] * old + blue * new) >> 16
