"""Shading of synthetic people: garments, textures, sun, sky, shadows. Compiled, one core.

Camera frame and pixels are those of `render.rasterizer`. Colors are linear in [0, 1] until `shade`
writes them as sRGB bytes.
"""

import math
from typing import NamedTuple

import numpy as np

from ..files.compiled import compiled
from ..render.rasterizer import barycentric, interpolate
from .garments import MATERIALS, PAINT, garment

TEXTURE, SCALE, GLOSS, FOLDS = range(6, len(PAINT))
BODY = -1  # material of the body's faces: given by `garment`, pixel by pixel
BACKGROUND, PROP = -1, -2  # owners of pixels that show no person


class Mesh(NamedTuple):
    """All surfaces of a scene as one mesh. Bodies and props come first: they are one-sided."""

    vertices: np.ndarray  # (V, 3) float32, camera frame
    normals: np.ndarray  # (V, 3)
    rest: np.ndarray  # (V, 3), rest coordinates; of props: their own frame
    faces: np.ndarray  # (F, 3) int32
    one_sided: int  # back faces of so many faces are culled
    axis: np.ndarray  # (F,), the rest axis (0, 1, 2) nearest to the normal, for texture coordinates
    owner: np.ndarray  # (F,), index of the person or PROP
    material: np.ndarray  # (F,), row of `paint` or BODY
    dresses: np.ndarray  # (people, len(DRESS))
    paint: np.ndarray  # (people * len(MATERIALS) + props, len(PAINT))


class Shadow(NamedTuple):
    """Shadow map: what the light meets first."""

    axes: np.ndarray  # (3, 3), rows: x and y of the map, direction to the light; camera frame
    low: np.ndarray  # (2,), meters, first pixel of the map
    step: np.float32  # meters per pixel
    heights: np.ndarray  # (N, N) float32, meters towards the light; -1e9: nothing there


@compiled(fastmath=True)
def shade(
    image: np.ndarray,
    owners: np.ndarray,
    nearest: np.ndarray,
    ids: np.ndarray,
    points: np.ndarray,
    mesh: Mesh,
    textures: np.ndarray,
    camera: np.ndarray,
    light: np.ndarray,
    shadow: Shadow,
) -> None:
    """Color every pixel for which the z-buffer holds a face.

    Args:
        image: (H, W, 3) uint8 RGB, in and out.
        owners: (H, W) int8, out: index of the person, PROP or BACKGROUND.
        nearest, ids: (H, W), from `rasterize`.
        points: (V, 3), from `project`.
        textures: (T, N, N) float32 in [0, 1], N a power of two.
        camera: (3,), focal, cx, cy.
        light: (5, 3): colors of sun, sky and ground; up; direction to the sun.
    """
    height, width = ids.shape
    size = np.float32(textures.shape[1])
    last = textures.shape[1] - 1
    focal, px, py = camera[0], camera[1], camera[2]
    for row in range(height):
        for col in range(width):
            f = ids[row, col]
            if f < 0:
                owners[row, col] = BACKGROUND
                continue
            face = mesh.faces[f]
            area, w0, w1, w2 = barycentric(points, face, col, row)
            weights, inverse_z = (w0, w1, w2), nearest[row, col]
            z = np.float32(1.0) / inverse_z
            nx, ny, nz = interpolate(mesh.normals, points, face, weights, inverse_z)
            inverse = np.float32(1.0) / math.sqrt(nx * nx + ny * ny + nz * nz + np.float32(1e-12))
            if area > 0.0:  # seen from behind
                inverse = -inverse
            nx, ny, nz = nx * inverse, ny * inverse, nz * inverse
            rx, ry, rz = interpolate(mesh.rest, points, face, weights, inverse_z)

            owner = mesh.owner[f]
            owners[row, col] = owner
            material = mesh.material[f]
            if material == BODY:
                material = garment(rx, ry, rz, mesh.dresses[owner]) + owner * len(MATERIALS)
            p = mesh.paint[material]

            u = rz if mesh.axis[f] == 0 else rx
            v = rz if mesh.axis[f] == 1 else ry
            scale = p[SCALE] * size
            i = int((v + np.float32(8.0)) * scale) & last
            j = int((u + np.float32(8.0)) * scale) & last
            mix = textures[int(p[TEXTURE]), i, j]
            crease = np.float32(1.0)
            if p[FOLDS] != 0.0:  # texture 0 holds the folds of cloth
                i = int((v + np.float32(8.0)) * np.float32(1.9) * size) & last
                j = int((u + np.float32(8.0)) * np.float32(3.1) * size) & last
                crease += p[FOLDS] * (textures[0, i, j] - np.float32(0.5))

            x = (col - px) * z / focal
            y = (row - py) * z / focal
            facing = nx * light[4, 0] + ny * light[4, 1] + nz * light[4, 2]
            sun = np.float32(0.0)
            gloss = np.float32(0.0)
            if facing > -0.2:
                lit = _lit(x, y, z, shadow, np.float32(0.035))
                sun = max((facing + np.float32(0.2)) / np.float32(1.2), np.float32(0.0)) * lit
                if p[GLOSS] > 0.0 and lit > 0.0:
                    # Blinn-Phong highlight: eighth power of the cosine to the half vector
                    distance = math.sqrt(x * x + y * y + z * z)
                    hx = light[4, 0] - x / distance
                    hy = light[4, 1] - y / distance
                    hz = light[4, 2] - z / distance
                    s = (nx * hx + ny * hy + nz * hz) / math.sqrt(hx * hx + hy * hy + hz * hz)
                    s = max(s, np.float32(0.0))
                    s = s * s
                    s = s * s
                    s = s * s
                    gloss = p[GLOSS] * s * s * lit
            rise = nx * light[3, 0] + ny * light[3, 1] + nz * light[3, 2]
            above = np.float32(0.5) + np.float32(0.5) * rise
            below = np.float32(1.0) - above
            for k in range(3):
                albedo = p[k] + (p[3 + k] - p[k]) * mix
                arriving = sun * light[0, k] + above * light[1, k] + below * light[2, k]
                value = albedo * arriving * crease + gloss * light[0, k]
                value = math.sqrt(max(value, np.float32(0.0))) * np.float32(255.0)
                image[row, col, k] = int(min(value, 255.0))


@compiled(fastmath=True)
def shade_ground(
    image: np.ndarray,
    ids: np.ndarray,
    window: np.ndarray,
    camera: np.ndarray,
    up: np.ndarray,
    offset: float,
    strength: float,
    shadow: Shadow,
) -> None:
    """Darken the background where the shadow of the people falls on the ground.

    Args:
        image, ids, camera: see `shade`.
        window: x0, y0, x1, y1, pixels; the rest is left as it is.
        up: (3,), unit; the ground is where up . X = offset.
        strength: fraction of the light that the shadow takes.
    """
    focal, cx, cy = camera[0], camera[1], camera[2]
    for row in range(window[1], window[3]):
        for col in range(window[0], window[2]):
            if ids[row, col] >= 0:
                continue
            x, y = (col - cx) / focal, (row - cy) / focal
            rise = up[0] * x + up[1] * y + up[2]
            if rise * offset <= 0.0:  # the ray does not meet the ground
                continue
            z = offset / rise
            if z > 60.0:
                continue
            dark = np.float32(1.0) - _lit(x * z, y * z, z, shadow, np.float32(0.02))
            if dark > 0.0:
                keep = np.float32(1.0) - strength * dark
                for k in range(3):
                    image[row, col, k] = int(image[row, col, k] * keep)


@compiled(fastmath=True)
def cast_shadow(mesh: Mesh, shadow: Shadow) -> None:
    """Write the heights of the mesh into the shadow map."""
    axes, low, step, out = shadow
    vertices, faces, size = mesh.vertices, mesh.faces, out.shape[0]
    points = np.empty((vertices.shape[0], 3), np.float32)
    for v in range(vertices.shape[0]):
        x, y, z = vertices[v, 0], vertices[v, 1], vertices[v, 2]
        for c in range(3):
            points[v, c] = axes[c, 0] * x + axes[c, 1] * y + axes[c, 2] * z
        points[v, 0] = (points[v, 0] - low[0]) / step
        points[v, 1] = (points[v, 1] - low[1]) / step
    for f in range(faces.shape[0]):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        ax, ay, bx, by, cx, cy = (
            points[a, 0], points[a, 1], points[b, 0], points[b, 1], points[c, 0], points[c, 1]
        )  # fmt: skip
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if f < mesh.one_sided and area <= 0.0:
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


@compiled(fastmath=True, inline='always')
def _lit(x, y, z, shadow, bias):
    """Fraction of the light that reaches a point: bilinear over four pixels of the map."""
    axes, low, step, heights = shadow
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


@compiled(fastmath=True)
def blend(image: np.ndarray, weight: np.ndarray, color: np.ndarray) -> None:
    """Blend a color (3,) into an image (H, W, 3), in place; weight: (H, W), all uint8."""
    red, green, blue = int(color[0]), int(color[1]), int(color[2])
    red, green, blue = min(max(red, 0), 255), min(max(green, 0), 255), min(max(blue, 0), 255)
    for row in range(image.shape[0]):
        for col in range(image.shape[1]):
            new = np.int32(weight[row, col]) * 257
            old = 65535 - new
            image[row, col, 0] = (image[row, col, 0] * old + red * new) >> 16
            image[row, col, 1] = (image[row, col, 1] * old + green * new) >> 16
            image[row, col, 2] = (image[row, col, 2] * old + blue * new) >> 16
