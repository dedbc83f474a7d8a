"""Bodies of a track: every frame of a window has one, whatever is missing."""

import pytest
import torch

from trunchier.models.lifting.body import load_lifter
from trunchier.models.lifting.track import BodyTrackLifter, load_track_lifter
from trunchier.synthetic.keypoints import KeypointStream
from trunchier.synthetic.sequences import KeypointSequences
from trunchier.weights.load import CheckpointError, save_weights


@pytest.fixture(scope='module')
def lifter():
    """Layers between frames that do something."""
    torch.manual_seed(0)
    lifter = BodyTrackLifter(load_lifter(), window=9).eval()
    torch.nn.init.normal_(lifter.leave.weight, std=0.05)
    return lifter


@pytest.fixture(scope='module')
def track():
    batch = KeypointStream(3, 20).batch(9)
    return batch.keypoints * 500 + 200, batch.scores


def test_an_untrained_lifter_of_tracks_gives_the_bodies_of_its_frames(track):
    frames = load_lifter()
    expected = frames.lift(*track)
    found = BodyTrackLifter(frames, window=9).eval().lift(*track)
    for name in ('global_orient', 'body_pose', 'camera'):
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-5)
    shape = expected['betas'].mean(0, keepdim=True).expand(9, -1)
    torch.testing.assert_close(found['betas'], shape, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('frames', [1, 2, 9])
def test_windows_of_any_length_up_to_the_largest_are_lifted(lifter, track, frames):
    found = lifter.lift(track[0][:frames], track[1][:frames])
    assert found['body_pose'].shape == (frames, 23, 3, 3)
    assert all(each.isfinite().all() and len(each) == frames for each in found.values())


def test_longer_windows_and_other_keypoints_are_refused(lifter, track):
    with pytest.raises(ValueError, match='1 to 9 frames, found 10'):
        lifter.lift(*(each[[0, *range(9)]] for each in track))
    with pytest.raises(ValueError, match=r'found \(9, 14, 2\) and \(9, 14\)'):
        lifter.lift(track[0][:, :14], track[1][:, :14])


def test_frames_without_keypoints_get_a_body_between_their_neighbors(lifter, track):
    """They change no other frame; NaN counts as missing."""
    keypoints, scores = track[0].clone(), track[1].clone()
    keypoints[4], scores[7] = torch.nan, 0
    found = lifter.lift(keypoints, scores)
    assert all(each.isfinite().all() for each in found.values())
    keypoints[7] = 1e4
    again = lifter.lift(keypoints, scores)
    assert all(torch.equal(found[name], again[name]) for name in found)
    empty = lifter.lift(torch.zeros(3, 17, 2), torch.zeros(3, 17))
    assert all(each.isfinite().all() for each in empty.values())


def test_every_frame_depends_on_the_others(lifter, track):
    before = lifter.lift(*track)['body_pose']
    moved = track[0].clone()
    moved[0, 9:11] += 100
    change = (lifter.lift(moved, track[1])['body_pose'] - before).abs().amax((1, 2, 3))
    assert (change > 0).all()


def test_the_shipped_lifter_of_tracks_is_better_than_that_of_frames():
    """Of tracks with a detector's errors: joints are nearer, and accelerate more as they should."""
    stream = KeypointSequences(5, 250)
    shot, keypoints, scores = stream.batch(24, 27)
    errors = {}
    for name, lifter in dict(frames=load_lifter(), tracks=load_track_lifter()).items():
        lifted = [lifter.lift(*each) for each in zip(keypoints, scores, strict=True)]
        rotations = [torch.cat((each['global_orient'], each['body_pose']), 1) for each in lifted]
        bodies = zip(rotations, lifted, strict=True)
        joints = torch.stack([stream.points(turns, each['betas'])[1] for turns, each in bodies])
        apart = (joints - joints[:, :, 11:13].mean(2, keepdim=True)) - (
            shot.points - shot.points[:, :, 11:13].mean(2, keepdim=True)
        )
        errors[name] = [apart.diff(n=order, dim=1).norm(dim=-1).mean() for order in (0, 2)]
    assert errors['tracks'][0] < 0.95 * errors['frames'][0]
    assert errors['tracks'][1] < 0.6 * errors['frames'][1]


def test_weights_of_a_lifter_of_frames_are_refused(tmp_path):
    save_weights(load_lifter().state_dict(), tmp_path / 'frames.safetensors')
    with pytest.raises(CheckpointError, match='holds no BodyTrackLifter'):
        load_track_lifter(tmp_path / 'frames.safetensors')
