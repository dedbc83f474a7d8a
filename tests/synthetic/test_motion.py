"""Synthetic motions stay within limits, move smoothly, and stand on their feet."""

import numpy as np
import pytest
import torch

from trunchier.geometry import coco_points, matrix_to_axis_angle, perspective_projection
from trunchier.synthetic.films import render_motion
from trunchier.synthetic.kinematics import LARGEST, spline
from trunchier.synthetic.motion import FEET, FPS, KINDS, SOLE, Motions
from trunchier.synthetic.noise import DetectorNoise, ar1, fit_noise, read_noise
from trunchier.synthetic.sequences import KeypointSequences, film


@pytest.fixture(scope='module')
def motions():
    return Motions(5, 250)


@pytest.fixture(scope='module')
def sequences(motions):
    """Sequences of every kind, two seconds each: {kind: (motion, joints (B, T, 24, 3))}."""
    drawn = {kind: motions.draw(24, 60, {kind: 1}) for kind in KINDS}
    return {kind: (motion, motion.joints) for kind, motion in drawn.items()}


@pytest.mark.parametrize('kind', KINDS)
def test_joints_stay_within_their_limits(sequences, kind):
    motion, joints = sequences[kind]
    angles = torch.rad2deg(matrix_to_axis_angle(motion.rotations).norm(dim=-1)).amax((0, 1))
    assert (angles < torch.tensor(LARGEST) + 0.1).all()
    assert joints[..., 1].min() > -0.15 and joints[..., 1].max() < 3
    assert motion.axis_angle.shape == (24, 60, 72) and motion.kinds == [kind] * 24


@pytest.mark.parametrize('kind', KINDS)
def test_motions_are_smooth(sequences, kind):
    """Acceleration of every joint is below 600 m/s^2, of 99 % below 150 (hands in flips)."""
    _, joints = sequences[kind]
    acceleration = joints.diff(n=2, dim=1).norm(dim=-1) * FPS**2
    assert acceleration.max() < 600 and torch.quantile(acceleration.flatten()[::5], 0.99) < 150


@pytest.mark.parametrize('kind', ['gait', 'planted'])
def test_feet_on_the_ground_do_not_slide(sequences, kind):
    motion, joints = sequences[kind]
    feet = joints[:, :, FEET]
    stays = motion.contact[:, 1:] & motion.contact[:, :-1]
    assert stays.float().mean() > 0.35
    assert feet.diff(dim=1).norm(dim=-1)[stays].max() < 1e-3
    assert (feet[..., 1][motion.contact] - SOLE).abs().max() < 1e-3


def test_walkers_get_ahead_and_every_kind_moves(sequences):
    for motion, joints in sequences.values():
        assert (joints.std(1).norm(dim=-1).amax(1) > 0.003).all()
        assert motion.translation[:, 0].isfinite().all()
    path = sequences['gait'][0].translation[..., ::2].diff(dim=1).norm(dim=-1).sum(1)
    assert path.median() > 0.8


def test_a_seed_decides_all_motions():
    first = Motions(5, 250)
    one, other, two = first.draw(6, 9), first.draw(6, 9), Motions(5, 250).draw(6, 9)
    assert torch.equal(one.rotations, two.rotations) and torch.equal(one.betas, two.betas)
    assert not torch.equal(one.rotations, other.rotations)


def test_other_kinds_are_refused(motions):
    with pytest.raises(ValueError, match=r"no motions \['swim'\]"):
        motions.draw(1, 9, {'swim': 1})


def test_splines_stay_between_their_keys():
    keys = torch.randn(2, 9, 3, generator=torch.Generator().manual_seed(0))
    path = spline(keys, torch.linspace(0, 5.99, 200).expand(2, -1))
    assert (path.amax(1) <= keys.amax(1)).all() and (path.amin(1) >= keys.amin(1)).all()
    assert path.diff(n=2, dim=1).abs().max() < 4 * keys.abs().max() * (5.99 / 199) ** 2


def test_keypoints_are_the_projection_of_points_before_the_camera():
    stream = KeypointSequences(5, 250, clean=True)
    shot, keypoints, scores = stream.batch(8, 12)
    points, focal = shot.points[..., :17, :].flatten(0, 1), shot.focal.repeat_interleave(12)
    still = torch.zeros(len(points), 3)
    expected = perspective_projection(points, still, focal[:, None].expand(-1, 2))
    torch.testing.assert_close(keypoints.flatten(0, 1), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(shot.joints[:, :, 0], shot.translation, atol=1e-5, rtol=0)
    views = torch.rad2deg(2 * torch.atan(0.5 / shot.focal))
    assert 20 <= views.min() < views.max() <= 100
    assert shot.points[..., 2].min() > 0.2 and (scores == 1).all()


def test_a_camera_keeps_the_shape_of_bodies(motions):
    motion = motions.draw(3, 8)
    shot = film(motion, torch.Generator().manual_seed(0), coco_points())
    here, there = (torch.cdist(each, each) for each in (motion.joints, shot.joints))
    torch.testing.assert_close(here, there, atol=2e-3, rtol=0)


@pytest.fixture(scope='module')
def track():
    """A still person of size 1 over many frames."""
    random = torch.Generator().manual_seed(0)
    truth = torch.rand(40, 1, 17, 2, generator=random)
    truth = truth / (truth.amax(2) - truth.amin(2)).norm(dim=-1)[..., None, None]
    return truth.expand(-1, 40, -1, -1)


def test_noise_has_the_statistics_that_it_was_fitted_to(track):
    noise = read_noise()
    keypoints, scores = noise.sample(track, torch.Generator().manual_seed(1), drops=0)
    again = fit_noise(keypoints - track, scores, track)
    middle = slice(4, 25)
    ratio = again.sizes[:, middle] / noise.sizes[:, middle]
    assert 0.6 < ratio.median() < 1.6
    assert (again.persistence - noise.persistence).abs().mean() < 0.1
    assert (again.direction - noise.direction).abs() < 0.1
    assert (again.swapped - noise.swapped).abs().max() < 0.12
    length = (keypoints - track).norm(dim=-1)
    near, far = scores[length < 0.02], scores[length > 0.2]
    assert near.mean() > far.mean() + 0.1


def test_better_detectors_and_missing_keypoints(track):
    noise, random = read_noise(), torch.Generator().manual_seed(1)
    good, scores = noise.sample(track, random, level=0.1, drops=0.3)
    bad, _ = noise.sample(track, random, drops=0.3)
    assert (good - track).norm(dim=-1).mean() < 0.2 * (bad - track).norm(dim=-1).mean()
    missing = scores == 0
    assert 0.25 < missing.float().mean() < 0.35
    runs = (missing[:, 1:] & missing[:, :-1]).sum() / missing[:, :-1].sum()
    assert runs > 0.75


def test_noise_repeats_with_its_seed(track):
    noise = read_noise()
    one, two = (noise.sample(track, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])


def test_an_ar1_process_has_unit_variance_and_its_coefficient():
    random = torch.Generator().manual_seed(0)
    x = ar1(torch.randn(4000, 12, 1, generator=random), torch.tensor([0.8]))
    assert (x.var(0) - 1).abs().max() < 0.1
    assert abs((x[:, 1:] * x[:, :-1]).mean() - 0.8) < 0.05


def test_files_of_noise_are_checked(tmp_path):
    noise = read_noise()
    noise.save(tmp_path / 'noise.npz')
    assert torch.equal(read_noise(tmp_path / 'noise.npz').sizes, noise.sizes)
    noise.persistence = torch.zeros(3)
    noise.save(tmp_path / 'other.npz')
    with pytest.raises(ValueError, match=r'persistence of .*other.npz: expected \(17,\), found'):
        read_noise(tmp_path / 'other.npz')
    assert isinstance(noise, DetectorNoise)


def test_frames_are_rendered_with_their_keypoints(motions):
    """The same clothes and camera in all frames; the person is within its box."""
    motion = motions.draw(1, 3, {'gait': 1})
    frames = list(render_motion(motion, 0, 3, (96, 96)))
    assert len(frames) == 3 and frames[0].image.shape == (96, 96, 3)
    for frame in frames:
        assert (frame.keypoints > frame.bbox[:2] - 1).all()
        assert (frame.keypoints < frame.bbox[2:] + 1).all()
    change = np.abs(frames[0].image.astype(int) - frames[1].image).mean()
    assert 0 < change < 20
    again = next(render_motion(motion, 0, 3, (96, 96)))
    assert np.array_equal(again.image, frames[0].image)
