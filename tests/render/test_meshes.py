"""Nearer meshes hide farther ones, and points land where the camera projects them."""

import cv2
import numpy as np
import pytest
from small_models import body

from trunchier.render import meshes

BODY, FACES = body()
FOCAL, CENTER = (300.0, 300.0), (64.0, 64.0)
RED, BLUE = (0, 0, 250), (250, 0, 0)


def drawn(people, colors=(RED, BLUE), size=(128, 128), **options):
    image = np.zeros((*size, 3), np.uint8)
    options = dict(focal=FOCAL, center=CENTER) | options
    meshes.draw_meshes(
        image, np.float32(people), options.pop('faces', FACES), options.pop('focal'),
        options.pop('center'), np.array(colors[: len(people)]), **options,
    )  # fmt: skip
    return image


def square(x, y, z, side, tilt=0.0):
    """A square that faces the camera; its right side is `tilt` farther away."""
    corners = np.float32([[0, 0, 0], [1, 0, tilt], [1, 1, tilt], [0, 1, 0]])
    return corners * [side, side, 1] + [x, y, z], np.array([[0, 1, 2], [0, 2, 3]])


def test_a_point_of_the_body_lands_where_the_camera_projects_it():
    image = drawn([BODY + [0.2, 0.1, 6]])
    rows, cols = np.nonzero(image.any(-1))
    points = BODY + [0.2, 0.1, 6]
    pixels = points[:, :2] / points[:, 2:] * 300 + 64
    np.testing.assert_allclose([cols.min(), rows.min()], pixels.min(0), atol=1)
    np.testing.assert_allclose([cols.max(), rows.max()], pixels.max(0), atol=1)


def test_pixel_centers_are_integers():
    """A square from x = 9.5 to 19.5 covers the pixels 10 to 19, wholly."""
    corners, faces = square(9.5, 9.5, 1, 10)
    flat = drawn([corners], faces=faces[:, ::-1], focal=(1, 1), center=(0, 0))
    lit = flat[..., 2] > 0
    assert lit[10:20, 10:20].all() and lit.sum() == 100


def test_back_faces_are_not_drawn():
    corners, faces = square(10, 10, 1, 20)
    assert drawn([corners], faces=faces[:, ::-1], focal=(1, 1), center=(0, 0)).any()
    assert not drawn([corners], faces=faces, focal=(1, 1), center=(0, 0)).any()


@pytest.mark.parametrize('near', [0, 1])
def test_the_nearer_person_hides_the_farther_one_in_either_order(near):
    people = [BODY + [0, 0, 6.0], BODY + [0.1, 0, 6.0]]
    people[near] = people[near] - [0, 0, 1.0]
    image = drawn(people)
    alone = drawn([people[near]], [(RED, BLUE)[near]])
    covered = cv2.erode(np.uint8(alone.any(-1)), np.ones((3, 3)))  # at the edge, colors blend
    assert covered.sum() > 500
    np.testing.assert_array_equal(image[covered > 0], alone[covered > 0])


def test_surfaces_that_cross_hide_each_other_pixel_by_pixel():
    flat, faces = square(-1, -1, 4, 2)
    tilted, _ = square(-1, -1, 3, 2, tilt=2.0)
    image = drawn([flat, tilted], faces=faces[:, ::-1], samples=1)
    left, right = image[64, 20], image[64, 100]
    assert left.argmax() == 0 and right.argmax() == 2  # the tilted one is in front on the left


def test_people_behind_the_camera_or_outside_the_image_are_not_drawn():
    for position in ([0, 0, -5], [50, 0, 5], [0, -50, 5]):
        assert not drawn([BODY + position]).any()
    assert not drawn(np.empty((0, 6890, 3))).any()
    assert not drawn([np.full_like(BODY, np.nan)]).any()


def test_parts_beyond_the_edge_are_cut_off():
    whole = drawn([BODY + [0, 0, 2]], size=(512, 512), center=(256, 256))
    part = drawn([BODY + [0, 0, 2]])
    assert np.abs(whole[192:320, 192:320].astype(int) - part).max() <= 1


def test_unequal_focal_lengths_stretch_the_image():
    low = drawn([BODY + [0, 0, 8]], focal=(300, 150))
    rows = [np.nonzero(i.any((1, 2)))[0] for i in (low, drawn([BODY + [0, 0, 8]]))]
    assert np.ptp(rows[0]) == pytest.approx(np.ptp(rows[1]) / 2, abs=1)


def test_alpha_blends_with_the_image():
    corners, faces = square(10, 10, 1, 20)
    options = dict(faces=faces[:, ::-1], focal=(1, 1), center=(0, 0))
    solid = drawn([corners], **options)[20, 20, 2]
    half = drawn([corners], alpha=0.5, **options)[20, 20, 2]
    assert half == pytest.approx(solid / 2, abs=1)


def test_styles_draw_surfaces_lines_or_both():
    person = [BODY + [0, 0, 4]]
    options = dict(size=(256, 256), center=(128, 128), focal=(500, 500))
    paint = {s: drawn(person, style=s, **options)[..., 2].mean() for s in meshes.STYLES}
    assert 0.2 * paint['solid'] < paint['wireframe'] < 0.8 * paint['solid']
    assert 0.6 * paint['solid'] < paint['both'] < 0.95 * paint['solid']  # lines are darker
    with pytest.raises(ValueError, match="solid, wireframe, both, got 'points'"):
        drawn(person, style='points')


def test_hidden_lines_are_removed():
    """The back of a body is a mirror image of lines that must not show through the front."""
    front = drawn([BODY + [0, 0, 4]], style='wireframe')
    shield, faces = square(-2, -2, 3.5, 4)
    both = np.zeros((128, 128, 3), np.uint8)
    padded = np.vstack([shield, np.repeat(shield[:1], len(BODY) - 4, 0)])
    faces = np.vstack([faces[:, ::-1], np.zeros((len(FACES) - 2, 3), int)])
    people = np.float32([padded, BODY + [0, 0, 4]])
    colors = np.array([(0, 0, 0), RED])
    meshes.draw_meshes(both, people, faces, FOCAL, CENTER, colors)
    assert front.any() and not both.any()
