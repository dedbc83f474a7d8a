"""Errors of motion: the recorded values, gaps, orders of frames, kinds of tracks."""

import numpy as np
import pytest
import torch
from golden_rule import load_golden
from mmengine.registry import METRICS

from trunchier.conventions import EVAL_14_IN_44
from trunchier.metrics import TrackErrors, step_errors, step_lengths

RECORD = load_golden('lifting')['metrics']
PREDICTED, TRUTH = (np.reshape(RECORD[name], (6, 17, 3)) for name in ('pred', 'gt'))


def sample(frames, predicted=PREDICTED, truth=TRUTH, name='S1_Walk.1_{:06}.jpg', **meta):
    visible = np.ones((len(frames), 17))
    return dict(
        pred_instances=dict(keypoints=torch.from_numpy(predicted[frames])),
        gt_instances=dict(lifting_target=truth[frames][None], lifting_target_visible=visible),
        target_img_path=[name.format(frame) for frame in frames],
        **meta,
    )


def table(samples, **options):
    metric = METRICS.build(dict(type='TrackErrors', **dict(dict(scale=1), **options)))
    metric.process(None, samples)
    return metric.evaluate(len(samples))


def test_a_video_has_the_recorded_errors():
    found = table([sample(range(6))])
    assert found['track_3d/MPJPE'] == pytest.approx(RECORD['mpjpe'], rel=1e-6)
    assert found['track_3d/PA-MPJPE'] == pytest.approx(RECORD['p_mpjpe'], rel=1e-6)
    assert found['track_3d/MPJVE'] == pytest.approx(RECORD['mpjve'], rel=1e-6)
    assert found['track_3d/ACC-ERR'] == pytest.approx(RECORD['acc_err'], rel=1e-6)


def test_jitter_is_the_third_difference():
    track = np.arange(8.0)[:, None, None] ** 3 * [[[1.0, 0, 0]]]
    assert np.allclose(step_lengths(track), 6) and len(step_lengths(track)) == 5
    found = table([sample(range(6))])['track_3d/jitter']
    steps = PREDICTED[3:] - 3 * PREDICTED[2:-1] + 3 * PREDICTED[1:-2] - PREDICTED[:-3]
    assert found == pytest.approx(np.sqrt((steps**2).sum(-1)).mean())


def test_samples_in_any_order_and_overlapping_windows_are_one_track():
    whole = table([sample(range(6))])
    frames = [sample([frame]) for frame in (3, 0, 5, 1, 4, 2)]
    assert table(frames) == pytest.approx(whole)
    assert table([sample([2, 3, 4, 5]), sample([0, 1, 2, 3])]) == pytest.approx(whole)


def test_a_gap_a_video_and_a_person_begin_a_track():
    parts = [sample([0, 1, 2]), sample([4, 5])]
    velocities = [step_errors(PREDICTED[part], TRUTH[part], 1) for part in ([0, 1, 2], [4, 5])]
    assert table(parts)['track_3d/MPJVE'] == pytest.approx(np.concatenate(velocities).mean())
    people = [sample([0, 1], track_id=1), sample([2, 3], track_id=2)]
    videos = [sample([0, 1]), sample([2, 3], name='S2_Walk.1_{:06}.jpg')]
    assert table(people) == pytest.approx(table(videos), nan_ok=True)
    assert np.isnan(table(people)['track_3d/ACC-ERR'])


def test_joints_that_are_not_visible_do_not_count():
    seen = np.ones((6, 17), bool)
    seen[2, 3] = False
    assert len(step_errors(PREDICTED, TRUTH, 0, seen)) == 101
    assert len(step_errors(PREDICTED, TRUTH, 1, seen)) == 83
    assert len(step_errors(PREDICTED, TRUTH, 2, seen)) == 65


def test_a_frame_rate_gives_errors_a_second():
    frames, seconds = table([sample(range(6))]), table([sample(range(6))], fps=50)
    for name, order in (('MPJPE', 0), ('MPJVE', 1), ('ACC-ERR', 2), ('jitter', 3)):
        assert seconds[f'track_3d/{name}'] == pytest.approx(50**order * frames[f'track_3d/{name}'])


def test_tracks_of_2d_keypoints_have_pixels():
    samples = [
        dict(
            pred_instances=dict(keypoints=PREDICTED[frame : frame + 1, :, :2] + [3, 4]),
            gt_instances=dict(
                keypoints=PREDICTED[frame : frame + 1, :, :2], keypoints_visible=np.ones((1, 17))
            ),
            img_path=f'clip/{frame}.png',
        )
        for frame in range(6)
    ]
    found = table(samples, kind='2d', scale=None)
    assert found['track_2d/EPE'] == pytest.approx(5) and found['track_2d/MPJVE'] < 1e-9
    assert found['track_2d/jitter'] == pytest.approx(found['track_2d/jitter of truth'])


def test_tracks_of_bodies_have_14_joints_around_the_pelvis():
    rng = np.random.default_rng(0)
    truth = rng.normal(0, 0.3, (6, 44, 4))
    truth[..., 3] = 1
    samples = [
        dict(
            pred_instances=dict(joints=truth[frame : frame + 1, :, :3] * 1.1 + 5),
            gt_instances=dict(keypoints_3d=truth[frame : frame + 1]),
            img_path=f'clip/{frame:03}.jpg',
        )
        for frame in range(6)
    ]
    found = table(samples, kind='body', scale=1000)
    centered = (truth[..., :3] - truth[:, 39:40, :3])[:, list(EVAL_14_IN_44)]
    assert found['track_body/MPJPE'] == pytest.approx(
        100 * np.linalg.norm(centered, axis=-1).mean()
    )
    assert found['track_body/PA-MPJPE'] == pytest.approx(0, abs=1e-6)


def test_skipped_videos_do_not_count():
    both = [sample([0, 1, 2]), sample([3, 4, 5], name='S9_Greet.1_{:06}.jpg')]
    assert table(both, skip_list=['S9_Greet']) == pytest.approx(table(both[:1]), nan_ok=True)


def test_names_without_numbers_and_unknown_kinds_are_refused():
    with pytest.raises(ValueError, match='walk.jpg has no frame number at the end of its name'):
        table([sample([0], name='walk.jpg')])
    with pytest.raises(ValueError, match='choose from 2d, 3d, body'):
        TrackErrors(kind='4d')
    with pytest.raises(ValueError, match=r'1 file names .* of 2 predicted frames'):
        table([dict(sample([0, 1]), target_img_path=['a_1.jpg'])])
