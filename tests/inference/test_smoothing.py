"""Smoothers that look ahead have no lag, keep bones, and leave what is smooth."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData
from small_models import CONFIGS, write_clip

from trunchier.conventions import H36M_17_FLIP
from trunchier.inference.pipeline import Begin, End, FrameTask
from trunchier.inference.smoothing import Smoother, parabolas, smooth_option
from trunchier.inference.sources import Frame, Source
from trunchier.inference.windows import over_windows
from trunchier.metrics.tracks import step_lengths

JOINTS = SimpleNamespace(
    smoothed=('joints',), derived=lambda people: {}, windows=SimpleNamespace(flip=H36M_17_FLIP)
)


def test_a_parabola_passes_the_filter_at_any_gap_and_edge():
    known = np.ones(60, bool)
    known[[5, 20, 21, 22, 40]] = False
    times = np.arange(60.0)
    track = 0.1 * times**2 - 3 * times + 7
    smoothed = parabolas(known, 3.0, 8) @ np.where(known, track, 1e6)
    np.testing.assert_allclose(smoothed, track, atol=0.01)
    alone = np.zeros(9, bool)
    alone[4] = True
    np.testing.assert_allclose(parabolas(alone, 3.0, 8)[4], alone)


def test_the_filter_is_symmetric_so_that_nothing_lags():
    kernel = parabolas(np.ones(61, bool), 3.0, 8)[30]
    np.testing.assert_allclose(kernel, kernel[::-1], atol=1e-12)
    assert abs(kernel[30 - 8 : 30 + 9].sum() - 1) < 1e-12 and np.sqrt((kernel**2).sum()) < 0.5


def sequence(frames):
    """Items of a source of one person with the `joints` of each frame."""
    source = Source('clip', 'video')
    yield Begin(source, 30.0)
    for index, joints in enumerate(frames):
        people = InstanceData(joints=joints[None].astype(np.float32), track_ids=np.array([3]))
        yield FrameTask(Frame(None, source, index), result=SimpleNamespace(pred_instances=people))
    yield End(source)


@pytest.mark.parametrize('method', ['offline', 'guidance'])
def test_noise_is_reduced_and_motion_followed_over_many_windows(method):
    rng = np.random.default_rng(0)
    half = rng.normal(0, 0.2, (17, 3))
    rest = half + half[list(H36M_17_FLIP)] * [-1, 1, 1]  # of equal sides
    times = np.arange(90)[:, None, None] / 30
    truth = rest + 0.2 * np.sin(2 * np.pi * 0.7 * times)
    noisy = truth + rng.normal(0, 0.02, truth.shape)
    items = list(over_windows(sequence(noisy), Smoother(method, JOINTS)))[1:-1]
    found = np.concatenate([task.result.pred_instances.joints for task in items])
    error = lambda track: np.linalg.norm(track - truth, axis=-1).mean()  # noqa: E731
    assert len(found) == 90 and error(found) < 0.75 * error(noisy)
    assert step_lengths(found).mean() < 0.2 * step_lengths(noisy).mean()
    np.testing.assert_allclose(items[9].raw['joints'][0], noisy[9], rtol=1e-6)


def test_windows_of_the_filter_give_what_the_whole_track_gives():
    track = np.random.default_rng(0).normal(size=(150, 17, 3))
    smoother = Smoother('offline', JOINTS)
    items = list(over_windows(sequence(track), smoother))[1:-1]
    found = np.concatenate([task.result.pred_instances.joints for task in items])
    kernel = parabolas(np.ones(150, bool), smoother.sigma, smoother.margin)
    np.testing.assert_allclose(found, np.einsum('st,tkc->skc', kernel, track), atol=1e-4)


@pytest.mark.parametrize('method', ['offline', 'guidance'])
def test_every_task_is_smoothed_and_rotations_stay_orthogonal(
    weights, tmp_path, inferencer_types, method, monkeypatch
):
    monkeypatch.setattr('trunchier.inference.smoothing.SIGMA', 0.3)
    path = write_clip(tmp_path / 'clip.mp4', frames=6)
    for task, kind in inferencer_types.items():
        found = {}
        for smooth in (False, method):
            infer = kind(CONFIGS[task](), weights[task], smooth=smooth, device='cpu')
            found[smooth] = list(infer(path))
        jumps = {
            smooth: step_lengths([r.pred_instances.keypoints[0] for r in results], 2).mean()
            for smooth, results in found.items()
        }
        assert 0 < jumps[method] < 0.8 * jumps[False]
    last = found[method][-1].pred_instances
    product = last.body_pose @ last.body_pose.swapaxes(-1, -2)
    np.testing.assert_allclose(product, np.broadcast_to(np.eye(3), (1, 23, 3, 3)), atol=1e-5)
    pose = (torch.from_numpy(a) for a in (last.global_orient, last.body_pose, last.betas))
    np.testing.assert_allclose(last.vertices, infer.predictor.body(*pose)['vertices'], atol=1e-5)


def test_methods_are_named():
    assert smooth_option(True) == {} == smooth_option('one-euro') and smooth_option(False) is None
    assert smooth_option({}) == {} and smooth_option('offline') == 'offline'
    with pytest.raises(ValueError, match="one of one-euro, offline, guidance, got 'kalman'"):
        smooth_option('kalman')
