"""Shaded meshes over images, on one CPU core (numba), without OpenGL.

All people share one z-buffer, so they hide each other correctly. The light comes from the camera's
direction, slightly from above.
"""

import math

import numpy as np

from ..files.compiled import compiled
from .rasterizer import barycentric, interpolate, project, rasterize, vertex_normals

LIGHT = np.array([-0.25, -0.5, -0.83], np.float32)  # towards the light; y points down
AMBIENT = np.float32(0.35)
STYLES = {'solid': (True, False), 'wireframe': (False, True), 'both': (True, True)}


def draw_meshes(
    image: np.ndarray,
    people: np.ndarray,
    faces: np.ndarray,
    focal: tuple[float, float],
    center: tuple[float, float],
    colors: np.ndarray,
    alpha: float = 1.0,
    style: str = 'solid',
    samples: int = 2,
) -> None:
    """Draw meshes over an image, in place. Vertices within 10 cm of the camera are not drawn.

    Args:
        image: (H, W, 3) uint8, C-contiguous.
        people: (P, V, 3), meters, camera frame (x right, y down, z forward).
        faces: (F, 3), counter-clockwise from outside.
        focal: (fx, fy), pixels.
        center: (cx, cy), pixels, of the principal point.
        colors: (P, 3), 0..255, in the channel order of the image.
        alpha: opacity of surfaces; lines are opaque.
        style: 'solid', 'wireframe' (hidden lines removed) or 'both'.
        samples: each pixel is the mean of samples x samples points.

    Raises:
        ValueError: unknown style.
    """
    if style not in STYLES:
        raise ValueError(f'style must be one of {", ".join(STYLES)}, got {style!r}')
    if len(people) == 0:
        return
    solid, lines = STYLES[style]
    people = np.ascontiguousarray(people, np.float32)
    count, num_vertices = people.shape[:2]
    vertices = people.reshape(-1, 3)
    # Unequal focal lengths equal a single one with the points stretched along y.
    stretched = vertices * np.array([1, focal[1] / focal[0], 1], np.float32)
    points = np.empty_like(vertices)
    project(stretched, np.float32(focal[0]), np.float32(center[0]), np.float32(center[1]), points)

    window = _window(points, image.shape)
    if window is None:
        return
    left, top, right, bottom = window
    # To the supersampled grid; pixel centers are integers there too.
    points[:, :2] = (points[:, :2] - np.float32([left, top]) + 0.5) * samples - 0.5
    offsets = (np.arange(count, dtype=np.int32) * num_vertices)[:, None, None]
    all_faces = (np.asarray(faces, np.int32)[None] + offsets).reshape(-1, 3)
    nearest = np.zeros(((bottom - top) * samples, (right - left) * samples), np.float32)
    ids = np.full(nearest.shape, -1, np.int32)
    rasterize(points, all_faces, len(all_faces), nearest, ids)
    normals = np.empty_like(vertices)
    vertex_normals(vertices, all_faces, normals)
    _paint(
        image[top:bottom, left:right], samples, ids, nearest, points, normals, all_faces,
        len(faces), np.ascontiguousarray(colors, np.float32), np.float32(alpha), solid,
        np.float32(samples / 2 if lines else 0),
    )  # fmt: skip


def _window(points, shape):
    """Left, top, right, bottom of the part of the image that the points may cover, or None."""
    visible = points[points[:, 2] < 10]  # 1 / z
    if len(visible) == 0 or not np.isfinite(visible).all():
        return None
    low = np.maximum(np.floor(visible[:, :2].min(0)), 0)
    high = np.minimum(np.ceil(visible[:, :2].max(0)) + 1, [shape[1], shape[0]])
    return None if (high <= low).any() else (*low.astype(int), *high.astype(int))


@compiled(fastmath=True)
def _paint(
    image, samples, ids, nearest, points, normals, faces, faces_per_body, colors, alpha, solid,
    half_width,
):  # fmt: skip
    """Shade and blend the pixels of a window for which the z-buffer holds a face.

    Args:
        image: (h, w, 3) uint8, in and out.
        ids, nearest: (h * samples, w * samples), see `rasterize`.
        points: (V, 3), pixels of that grid and 1 / z; normals: (V, 3).
        half_width: of lines, pixels of that grid; 0: no lines.
    """
    for row in range(image.shape[0]):
        for col in range(image.shape[1]):
            red = green = blue = cover = np.float32(0.0)
            for fine_row in range(row * samples, (row + 1) * samples):
                for fine_col in range(col * samples, (col + 1) * samples):
                    f = ids[fine_row, fine_col]
                    if f < 0:
                        continue
                    bright, line = _light(
                        faces[f], fine_row, fine_col, nearest, points, normals, half_width
                    )
                    if not (line or solid):
                        continue
                    if line and solid:
                        bright *= np.float32(0.55)
                    opacity = np.float32(1.0) if line else alpha
                    color = colors[f // faces_per_body]
                    cover += opacity
                    red += opacity * bright * color[0]
                    green += opacity * bright * color[1]
                    blue += opacity * bright * color[2]
            if cover > 0:
                share = np.float32(1.0) / (samples * samples)
                rest = np.float32(1.0) - cover * share
                pixel = image[row, col]
                pixel[0] = int(min(red * share + rest * pixel[0], np.float32(255.0)))
                pixel[1] = int(min(green * share + rest * pixel[1], np.float32(255.0)))
                pixel[2] = int(min(blue * share + rest * pixel[2], np.float32(255.0)))


@compiled(fastmath=True, inline='always')
def _light(face, row, col, nearest, points, normals, half_width):
    """Brightness of a face at a pixel, and whether the pixel lies on one of its edges."""
    area, w0, w1, w2 = barycentric(points, face, col, row)
    line = False
    if half_width > 0:  # distance to an edge = weight of the opposite corner * its height
        size = abs(area)
        reach = min(half_width, np.float32(0.08) * math.sqrt(size))  # keep small faces visible
        a, b, c = face[0], face[1], face[2]
        line = (
            w0 * size < reach * _distance(points, b, c)
            or w1 * size < reach * _distance(points, c, a)
            or w2 * size < reach * _distance(points, a, b)
        )
    nx, ny, nz = interpolate(normals, points, face, (w0, w1, w2), nearest[row, col])
    norm = math.sqrt(nx * nx + ny * ny + nz * nz + np.float32(1e-12))
    facing = (nx * LIGHT[0] + ny * LIGHT[1] + nz * LIGHT[2]) / norm
    return AMBIENT + (np.float32(1.0) - AMBIENT) * max(facing, np.float32(0.0)), line


@compiled(fastmath=True, inline='always')
def _distance(points, a, b):
    return math.sqrt((points[a, 0] - points[b, 0]) ** 2 + (points[a, 1] - points[b, 1]) ** 2)
