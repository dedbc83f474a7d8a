"""Where bodies stand before the camera, by their keypoints and boxes."""

import numpy as np
import pytest

from trunchier.inference.camera import NEAREST, crop_camera, translations
from trunchier.inference.mesh import full_camera

FOCAL, CENTER, SHAPE = np.array([500.0, 520.0]), np.array([320.0, 200.0]), (400, 640)


@pytest.fixture
def scene():
    """Bodies that are seen as a whole; (joints, points, scores, boxes, places)."""
    rng = np.random.default_rng(0)
    joints = rng.uniform((-0.4, -0.9, -0.2), (0.4, 0.9, 0.2), (3, 40, 3))
    places = np.array([[0.5, 0.2, 5.0], [-1, 0, 6], [2, -0.3, 9]])
    points = seen(joints + places[:, None])
    boxes = np.hstack([points.min(1), points.max(1)])
    return joints, points, np.ones((3, 40)), boxes, places


def seen(points):
    return points[..., :2] / points[..., 2:] * FOCAL + CENTER


def test_people_stand_where_their_joints_are_seen(scene):
    joints, points, scores, boxes, places = scene
    points[:, 4], scores[:, 4] = 0, 0  # not known
    found = translations(joints, points, scores, FOCAL, CENTER)
    np.testing.assert_allclose(found, places, atol=0.01)
    found = translations(joints, points, scores, FOCAL, CENTER, boxes, joints, SHAPE)
    np.testing.assert_allclose(found, places, atol=0.02)
    assert translations(joints[:0], points[:0], scores[:0], FOCAL, CENTER).shape == (0, 3)


def test_wild_points_are_not_followed(scene):
    joints, points, scores, boxes, places = scene
    points[:, :5] += 300
    found = translations(joints, points, scores, FOCAL, CENTER, boxes, joints, SHAPE)
    np.testing.assert_allclose(found, places, atol=0.1)


def test_where_scores_are_low_the_box_tells_the_distance(scene):
    joints, points, scores, boxes, places = scene
    middles = points.mean(1, keepdims=True)
    wrong = middles + 2 * (points - middles)  # of people who are half as far away
    by_points = translations(joints, wrong, scores, FOCAL, CENTER, boxes, joints, SHAPE)
    by_boxes = translations(joints, wrong, 0.1 * scores, FOCAL, CENTER, boxes, joints, SHAPE)
    np.testing.assert_allclose(by_boxes[:, 2], places[:, 2], rtol=0.1)
    assert (by_points[:, 2] < 0.8 * places[:, 2]).all()


def test_sides_at_the_border_of_the_image_tell_nothing(scene):
    joints, points, scores, boxes, places = scene
    boxes[:, 3] = points[:, :, 1].mean(1)  # legs are below the image
    shape = np.column_stack([boxes[:, 3] + 1, np.full(3, 640)])
    cut = np.where((points[..., 1] > boxes[:, 3:])[..., None], 0, points)
    known = 0.5 * (cut[..., 0] > 0)
    found = translations(joints, cut, known, FOCAL, CENTER, boxes, joints, shape)
    np.testing.assert_allclose(found[:, 2], places[:, 2], rtol=0.1)
    whole = translations(joints, cut, known, FOCAL, CENTER, boxes, joints, (4000, 640))
    assert (np.abs(whole - places)[:, 2] > np.abs(found - places)[:, 2]).all()


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_points_that_are_not_finite_are_not_known(scene, value):
    joints, points, scores, boxes, places = scene
    points[:, :3] = value
    scores[:, 7] = value
    found = translations(joints, points, scores, FOCAL, CENTER, boxes, joints, SHAPE)
    np.testing.assert_allclose(found, places, atol=0.02)


def test_people_without_any_point_stand_in_their_boxes(scene):
    joints, points, scores, boxes, places = scene
    found = translations(joints, 0 * points, 0 * scores, FOCAL, CENTER, boxes, joints, SHAPE)
    np.testing.assert_allclose(found[:, 2], places[:, 2], rtol=0.1)
    alone = translations(joints, 0 * points, 0 * scores, FOCAL, CENTER)
    assert np.isfinite(alone).all() and (alone[:, 2] >= NEAREST).all()


def test_the_camera_of_a_crop_is_that_of_the_image(scene):
    places, middles, sides = (
        scene[-1],
        np.array([[100.0, 50], [320, 200], [600, 90]]),
        np.full(3, 99),
    )
    lens = np.tile(FOCAL, (3, 1)), np.tile(CENTER, (3, 1))
    camera = crop_camera(places, middles, sides, *lens)
    boxes = np.column_stack([middles, sides])
    np.testing.assert_allclose(full_camera(camera, boxes, FOCAL, CENTER), places, rtol=1e-5)
