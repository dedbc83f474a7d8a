"""Views of bodies in the gallery's pictures."""

import gallery
import numpy as np
import pytest

from trunchier.synthetic.regime import USUAL


def test_from_above_heads_are_nearer_than_feet_and_the_camera_is_below():
    joints = np.array([(0.0, -1.0, 3.0), (0.0, 1.0, 3.0), (0.0, 0.0, 2.0)])  # head, foot, before
    head, foot, before = (joints - (0, 0, 3)) @ gallery.TURNS['above'].T
    assert head[2] < foot[2]
    assert before[1] > head[1]


def test_true_bodies_are_of_those_who_are_annotated_in_their_order():
    (scene,) = gallery.draw(range(1), 2, 3, USUAL)
    people = gallery.annotate(scene)
    bodies = gallery.bodies(scene)
    assert len(bodies) == len(people) >= 2
    for skin, person in zip(bodies, people, strict=True):
        pelvis = person['keypoints_3d'][8, :3]
        assert np.linalg.norm(skin.mean(0) - pelvis) < 0.4


def test_views_show_people_as_large_as_fits():
    (scene,) = gallery.draw(range(1), 1, 1, USUAL)
    for turn in gallery.TURNS:
        drawn = gallery.view(gallery.bodies(scene), turn, gallery.GRAY, side=64)
        rows, columns = np.nonzero((drawn < 240).any(2))
        assert 50 < max(np.ptp(rows), np.ptp(columns)) < 64


def test_an_unknown_picture_is_named(capsys):
    with pytest.raises(SystemExit):
        gallery.main(['portrait'])
    assert 'no picture portrait; there are models, crowds' in capsys.readouterr().err
