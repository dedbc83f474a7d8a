"""The rasterizer agrees with slow loops."""

import numpy as np
import pytest

pytest.importorskip('numba', reason='rendering requires numba')

from trunchier.render.rasterizer import (  # noqa: E402
    bounding_box,
    projected_bounding_box,
    rasterize,
    vertex_normals,
)


def test_the_z_buffer_equals_a_slow_loop():
    rng = np.random.default_rng(0)
    points = np.column_stack((rng.uniform(-4, 28, (30, 2)), rng.uniform(0.2, 1, 30)))
    points = points.astype(np.float32)
    faces = rng.integers(0, 30, (12, 3)).astype(np.int32)
    nearest, ids = np.zeros((24, 24), np.float32), np.full((24, 24), -1, np.int32)
    rasterize(points, faces, 0, nearest, ids)

    differ = 0
    for y in range(24):
        for x in range(24):
            depths = {}
            for f, face in enumerate(faces):
                corners = points[face].astype(np.float64)
                matrix = np.vstack((corners[:, :2].T, np.ones(3)))
                if abs(np.linalg.det(matrix)) < 1e-6:
                    continue
                weights = np.linalg.solve(matrix, (x, y, 1))
                if weights.min() >= 0:
                    depths[f] = weights @ corners[:, 2]
            expected = max(depths, key=depths.get) if depths else -1
            differ += expected != ids[y, x]
            if expected == ids[y, x] and depths:
                assert nearest[y, x] == pytest.approx(depths[expected], rel=1e-3)
    assert differ <= 2  # pixels on an edge, to rounding


def test_normals_of_a_sphere_point_outwards():
    latitude = np.linspace(-np.pi / 2, np.pi / 2, 16)[:, None]
    longitude = np.linspace(0, 2 * np.pi, 24, endpoint=False)[None]
    ring, y = np.cos(latitude), np.sin(latitude) + 0 * longitude
    vertices = np.stack((ring * np.cos(longitude), y, ring * np.sin(longitude)), axis=-1)
    vertices = vertices.reshape(-1, 3).astype(np.float32)
    index = np.arange(len(vertices), dtype=np.int32).reshape(16, 24)
    right = np.roll(index, -1, axis=1)
    faces = np.stack((index[:-1], index[1:], right[1:]), axis=-1).reshape(-1, 3)
    normals = np.empty_like(vertices)
    vertex_normals(vertices, faces, normals)
    middle = np.abs(vertices[:, 1]) < 0.5
    cosine = (normals * vertices).sum(1)[middle]
    assert (cosine > 0.95).all()


def test_bounding_boxes_are_lowest_and_highest_coordinates():
    points = np.random.default_rng(0).uniform(1, 2, (50, 3)).astype(np.float32)
    axes = np.float32([[0, 1, 0], [0.6, 0, 0.8], [0.8, 0, -0.6]])
    low, high = bounding_box(points, axes)
    np.testing.assert_allclose([low, high], [f(points @ axes.T, 0) for f in (np.min, np.max)], 1e-6)
    low, high = projected_bounding_box(points)
    pixels = points[:, :2] / points[:, 2:]
    np.testing.assert_allclose([low, high], [pixels.min(0), pixels.max(0)], 1e-6)
