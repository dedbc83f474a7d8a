"""Rasterization of triangle meshes on one CPU core (numba), without OpenGL.

Camera frame: x right, y down, z forward, meters. Pixels: integer coordinates are pixel centers.
"""

import math

import numpy as np

from ..files.compiled import compiled


@compiled(fastmath=True)
def vertex_normals(vertices: np.ndarray, faces: np.ndarray, out: np.ndarray) -> None:
    """Unit normals (V, 3): means over the adjacent faces, weighted by area."""
    out[:] = 0
    for f in range(faces.shape[0]):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        ax, ay, az = vertices[a, 0], vertices[a, 1], vertices[a, 2]
        ux, uy, uz = vertices[b, 0] - ax, vertices[b, 1] - ay, vertices[b, 2] - az
        vx, vy, vz = vertices[c, 0] - ax, vertices[c, 1] - ay, vertices[c, 2] - az
        x, y, z = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
        for i in (a, b, c):
            out[i, 0] += x
            out[i, 1] += y
            out[i, 2] += z
    for v in range(out.shape[0]):
        x, y, z = out[v, 0], out[v, 1], out[v, 2]
        inverse = np.float32(1.0) / math.sqrt(x * x + y * y + z * z + np.float32(1e-20))
        out[v, 0], out[v, 1], out[v, 2] = x * inverse, y * inverse, z * inverse


@compiled(fastmath=True)
def project(vertices: np.ndarray, focal: float, cx: float, cy: float, out: np.ndarray) -> None:
    """Pinhole projection: out (V, 3) is x and y in pixels, and 1 / z, which is linear in them."""
    for v in range(vertices.shape[0]):
        inverse = np.float32(1.0) / max(vertices[v, 2], np.float32(1e-3))
        out[v, 0] = focal * vertices[v, 0] * inverse + cx
        out[v, 1] = focal * vertices[v, 1] * inverse + cy
        out[v, 2] = inverse


@compiled(fastmath=True)
def rasterize(
    points: np.ndarray, faces: np.ndarray, one_sided: int, nearest: np.ndarray, ids: np.ndarray
) -> None:
    """Draw triangles into a z-buffer.

    Args:
        points: (V, 3), see `project`.
        faces: (F, 3); back faces of the first `one_sided` are culled.
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
        # Front faces are counter-clockwise, which is clockwise where y points down.
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


@compiled(fastmath=True, inline='always')
def barycentric(
    points: np.ndarray, face: np.ndarray, col: int, row: int
) -> tuple[float, float, float, float]:
    """Signed double area of a face in the image, and the weights of its corners at a pixel."""
    a, b, c = face[0], face[1], face[2]
    ax, ay, bx, by, cx, cy = (
        points[a, 0], points[a, 1], points[b, 0], points[b, 1], points[c, 0], points[c, 1]
    )  # fmt: skip
    area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
    inverse = np.float32(1.0) / area
    w0 = ((bx - col) * (cy - row) - (by - row) * (cx - col)) * inverse
    w1 = ((cx - col) * (ay - row) - (cy - row) * (ax - col)) * inverse
    return area, w0, w1, np.float32(1.0) - w0 - w1


@compiled(fastmath=True, inline='always')
def interpolate(
    values: np.ndarray, points: np.ndarray, face: np.ndarray, weights: tuple, inverse_z: float
) -> tuple[float, float, float]:
    """Perspective-correct mean of `values` (V, 3) at a pixel of a face.

    Args:
        points: (V, 3), see `project`.
        weights: of the corners, see `barycentric`.
        inverse_z: 1 / z of the pixel.
    """
    a, b, c = face[0], face[1], face[2]
    z = np.float32(1.0) / inverse_z
    w0, w1, w2 = weights
    w0, w1, w2 = w0 * points[a, 2] * z, w1 * points[b, 2] * z, w2 * points[c, 2] * z
    return (
        w0 * values[a, 0] + w1 * values[b, 0] + w2 * values[c, 0],
        w0 * values[a, 1] + w1 * values[b, 1] + w2 * values[c, 1],
        w0 * values[a, 2] + w1 * values[b, 2] + w2 * values[c, 2],
    )


@compiled(fastmath=True)
def bounding_box(points: np.ndarray, axes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest coordinates along the rows of `axes` (3, 3): (N, 3) -> (3,), (3,)."""
    low, high = np.full(3, np.float32(1e9)), np.full(3, np.float32(-1e9))
    for v in range(points.shape[0]):
        x, y, z = points[v, 0], points[v, 1], points[v, 2]
        for c in range(3):
            value = axes[c, 0] * x + axes[c, 1] * y + axes[c, 2] * z
            low[c] = min(low[c], value)
            high[c] = max(high[c], value)
    return low, high


@compiled(fastmath=True)
def projected_bounding_box(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest x / z and y / z: (N, 3) -> (2,), (2,)."""
    low, high = np.full(2, 1e9), np.full(2, -1e9)
    for v in range(points.shape[0]):
        for c in range(2):
            value = points[v, c] / points[v, 2]
            low[c] = min(low[c], value)
            high[c] = max(high[c], value)
    return low, high
