"""The camera that is turned towards people."""

import pytest
import torch

from trunchier.models.lifting.body import load_lifter
from trunchier.models.lifting.facing import facing, facing_track, towards, turned
from trunchier.synthetic.keypoints import KeypointStream

FOCAL, CENTER = torch.tensor([900.0, 1000.0]), torch.tensor([320.0, 240.0])


def seen(points, focal=FOCAL, center=CENTER):
    """Points (B, K, 3), meters, in pixels."""
    return points[..., :2] / points[..., 2:] * focal + center


@pytest.fixture
def points():
    offsets = torch.randn(5, 17, 3, generator=torch.Generator().manual_seed(0)) * 0.4
    places = torch.tensor([[0, 0, 4], [2, 0, 3], [-2, 1, 3], [0, -3, 5], [4, 3, 4.0]])
    return offsets + places[:, None]


def test_the_turned_camera_looks_at_the_keypoints_and_sees_the_same_points(points):
    keypoints, turns = facing(seen(points), torch.ones(5, 17), FOCAL, CENTER)
    torch.testing.assert_close(turns @ turns.mT, torch.eye(3).expand(5, 3, 3), atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.linalg.det(turns), torch.ones(5))
    torch.testing.assert_close(keypoints, seen(points @ turns, 950, 0), atol=1e-2, rtol=1e-5)
    middle = ((seen(points) - CENTER) / FOCAL).mean(1)
    torch.testing.assert_close(turns[:, :2, 2] / turns[:, 2:, 2], middle, atol=1e-5, rtol=1e-5)
    assert keypoints.mean(1).norm(dim=1).max() < 95 < 950 * middle[1:].norm(dim=1).min()


def test_the_camera_is_not_rolled():
    turns = towards(torch.tensor([[0.7, 0.0], [0.0, -0.5], [0.0, 0.0]]))
    up, right = torch.tensor([0, 1.0, 0]), torch.tensor([1.0, 0, 0])
    torch.testing.assert_close(turns[0] @ up, up)
    torch.testing.assert_close(turns[1] @ right, right)
    torch.testing.assert_close(turns[2], torch.eye(3))


def test_frames_of_a_person_are_seen_by_one_camera(points):
    scores = torch.ones(5, 17)
    keypoints, turns = facing_track(seen(points), scores, FOCAL, CENTER)
    assert keypoints.shape == (5, 17, 2) and turns.shape == (1, 3, 3)
    flat, other = facing(seen(points).flatten(0, 1)[None], scores.flatten()[None], FOCAL, CENTER)
    assert torch.equal(turns, other) and torch.equal(keypoints.flatten(0, 1), flat[0])


def test_unknown_keypoints_turn_nothing(points):
    scores, keypoints = torch.ones(5, 17), seen(points)
    scores[:, 3], keypoints[:, 3] = 0, 1e6
    keypoints[:, 4] = float('nan')
    known = [index for index in range(17) if index not in (3, 4)]
    _, turns = facing(keypoints, scores, FOCAL, CENTER)
    _, expected = facing(keypoints[:, known], scores[:, known], FOCAL, CENTER)
    torch.testing.assert_close(turns, expected)
    _, none = facing(keypoints, torch.zeros(5, 17), FOCAL, CENTER)
    torch.testing.assert_close(none, torch.eye(3).expand(5, 3, 3))


def test_people_beside_the_middle_are_lifted_as_in_it():
    """Turned as they are seen: by the camera's angle."""
    clean = KeypointStream(3, 20, clean=True).batch(20)
    rays = torch.cat((clean.truth, torch.ones(20, 17, 1)), 2)
    aside = towards(torch.full((20, 2), 0.4))
    moved = seen(rays @ aside.mT, 1, 0)
    bodies = []
    for keypoints in (clean.truth, moved):
        keypoints, turns = facing(keypoints, clean.scores, torch.ones(2), torch.zeros(2))
        bodies.append(turned(load_lifter().lift(keypoints, clean.scores), turns))
    one, two = bodies
    expected = aside[:, None] @ one['global_orient']
    angles = two['global_orient'].mT @ expected
    angles = (angles.diagonal(dim1=2, dim2=3).sum(2).sub(1) / 2).clamp(-1, 1).acos().rad2deg()
    assert angles.median() < 3  # the means of keypoints differ a little
    plain = load_lifter().lift(moved, clean.scores)['global_orient'].mT @ expected
    plain = (plain.diagonal(dim1=2, dim2=3).sum(2).sub(1) / 2).clamp(-1, 1).acos().rad2deg()
    assert plain.median() > 20
