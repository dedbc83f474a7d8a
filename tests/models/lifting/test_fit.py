"""Bodies of a lifter, fitted to keypoints."""

import pytest
import torch

from trunchier.geometry import align_similarity
from trunchier.models.lifting.body import load_lifter
from trunchier.models.lifting.fit import KeypointFit, fitted_camera
from trunchier.synthetic.keypoints import KeypointStream, size_of


@pytest.fixture(scope='module')
def fit():
    return KeypointFit()


@pytest.fixture(scope='module')
def people():
    """Synthetic people and what the lifter makes of their keypoints."""
    batch = KeypointStream(3, 40, clean=True).batch(40)
    return batch, load_lifter().lift(batch.keypoints, batch.scores)


def misses(fit, bodies, keypoints):
    """Distances of projected points from keypoints, in sizes of the person."""
    rotations = torch.cat((bodies['global_orient'], bodies['body_pose']), 1)
    _, places = fit.points(rotations, bodies['betas'])
    scale, shift = bodies['camera'][:, None].split((1, 2), 2)
    return (scale * (places[..., :2] + shift) - keypoints).norm(dim=2) / size_of(keypoints)[..., 0]


def test_fitted_bodies_lie_on_their_keypoints_and_are_posed_more_like_the_truth(fit, people):
    batch, lifted = people
    fitted = fit(lifted, batch.keypoints, batch.scores)
    before, after = (misses(fit, each, batch.keypoints).mean() for each in (lifted, fitted))
    assert after < before / 2
    true = fit.points(batch.rotations, batch.betas)[1]

    def error(bodies):
        rotations = torch.cat((bodies['global_orient'], bodies['body_pose']), 1)
        _, places = fit.points(rotations, bodies['betas'])
        return (align_similarity(places, true) - true).norm(dim=2).mean()

    assert error(fitted) < error(lifted)
    identity = fitted['body_pose'] @ fitted['body_pose'].transpose(2, 3)
    torch.testing.assert_close(identity, torch.eye(3).expand_as(identity), atol=1e-5, rtol=0)


def test_a_wild_keypoint_is_not_followed(fit, people):
    batch, lifted = people
    usual = fit(lifted, batch.keypoints, batch.scores)
    wild = batch.keypoints.clone()
    wild[:, 9] += 0.5 * size_of(wild)[:, 0]  # the left wrist
    moved = fit(lifted, wild, batch.scores)
    apart = misses(fit, moved, batch.keypoints) - misses(fit, usual, batch.keypoints)
    assert apart.mean() < 0.01
    scores = batch.scores.clone()
    scores[:, 9] = 0.1
    doubted, known = (
        misses(fit, fit(lifted, wild, scores), each)[:, 9].mean()
        for each in (wild, batch.keypoints)
    )
    assert doubted > known


@pytest.mark.parametrize('missing', ['score', 'nan'])
def test_people_without_keypoints_stay_as_they_are(fit, people, missing):
    batch, lifted = people
    keypoints, scores = batch.keypoints.clone(), batch.scores.clone()
    if missing == 'nan':
        keypoints[0] = torch.nan
    else:
        scores[0] = 0
    fitted = fit(lifted, keypoints, scores)
    for name, values in lifted.items():
        torch.testing.assert_close(fitted[name][0], values[0], atol=1e-5, rtol=1e-5)
        assert fitted[name].isfinite().all()


def test_frames_of_a_track_are_fitted_as_one_and_share_a_shape(fit, people):
    batch, lifted = people
    track = {name: each[:1].expand(9, *each.shape[1:]) for name, each in lifted.items()}
    generator = torch.Generator().manual_seed(0)
    keypoints = batch.keypoints[:1].expand(9, -1, -1)
    noise = 0.02 * size_of(keypoints) * torch.randn(keypoints.shape, generator=generator)
    scores = torch.ones(9, 17)
    scores[4] = 0  # a gap
    alone, together = (fit(track, keypoints + noise, scores, each) for each in (None, 4.0))
    jitter, smooth = (misses(fit, each, keypoints).std(0).mean() for each in (alone, together))
    assert smooth < 0.7 * jitter
    torch.testing.assert_close(together['betas'], together['betas'][:1].expand(9, -1))
    assert not torch.allclose(together['body_pose'][4], track['body_pose'][4], atol=1e-3)


def test_a_camera_is_fitted_to_keypoints_and_kept_where_they_do_not_tell():
    torch.manual_seed(0)
    points, camera = torch.randn(2, 17, 3), torch.tensor([[150.0, 0.5, 0.3], [90.0, 1.0, -2.0]])
    keypoints = camera[:, None, :1] * (points[..., :2] + camera[:, None, 1:])
    scores = torch.rand(2, 17)
    scores[:, 3] = 0
    keypoints[:, 3] += 1000  # not known
    guess = camera * torch.tensor([1.2, 1.0, 1.0])
    torch.testing.assert_close(fitted_camera(points, keypoints, scores, guess), camera)
    nowhere = torch.zeros_like(keypoints)
    assert torch.equal(fitted_camera(points, nowhere, scores, guess), guess)
