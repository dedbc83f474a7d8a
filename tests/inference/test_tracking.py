"""Track ids are stable; smoothing reduces jitter and follows motion."""

import numpy as np
import pytest

from trunchier.inference import tracking


def walkers(count, order=None):
    """Boxes of two people who walk past each other, frame by frame."""
    for i in range(count):
        boxes = np.float32(
            [[10 + 20 * i, 10, 90 + 20 * i, 250, 0.9], [300 - 19 * i, 30, 380 - 19 * i, 290, 0.8]]
        )
        yield boxes if order is None else boxes[order(i)]


def test_ids_do_not_depend_on_the_order_of_boxes_and_begin_in_the_first_frame():
    tracker = tracking.Tracker(fps=10)
    swap = lambda i: [1, 0] if i % 2 else [0, 1]  # noqa: E731
    ids = [tracker(boxes)[swap(i)] for i, boxes in enumerate(walkers(12, swap))]
    np.testing.assert_array_equal(ids, [[0, 1]] * 12)


def test_a_person_hidden_for_some_frames_keeps_the_id():
    tracker = tracking.Tracker(fps=10)
    frames = list(walkers(8))
    for i in (3, 4):
        frames[i] = frames[i][:1]
    assert [tracker(boxes).tolist() for boxes in frames][5:] == [[0, 1]] * 3


def test_new_people_get_a_new_id_unless_their_score_is_low():
    tracker = tracking.Tracker(fps=10)
    still = np.float32([[0, 0, 50, 100, 0.9]])
    weak = np.float32([[200, 0, 250, 100, 0.2]])
    new = np.float32([[400, 0, 450, 100, 0.9]])
    assert tracker(still).tolist() == [0]
    assert tracker(np.vstack([weak, still])).tolist() == [tracking.UNTRACKED, 0]
    tracker(np.vstack([new, still]))
    assert tracker(np.vstack([new, still])).tolist() == [1, 0]
    assert tracker(np.empty((0, 5), np.float32)).tolist() == []


def test_boxes_between_two_detections_are_on_a_line():
    before = np.float32([[0, 0, 10, 10, 0.5], [50, 0, 60, 10, 0.9], [90, 0, 99, 10, 0.9]])
    after = np.float32([[52, 2, 62, 12, 0.7], [4, 0, 14, 10, 0.9], [70, 0, 80, 10, 0.4]])
    early, late = (tracking.between(before, after, share) for share in (0.25, 0.75))
    pairs = [[1, 0, 11, 10, 0.6], [50.5, 0.5, 60.5, 10.5, 0.85]]
    np.testing.assert_allclose(early, [*pairs, before[2]], rtol=1e-6)
    np.testing.assert_allclose(late[:2], [[3, 0, 13, 10, 0.8], [51.5, 1.5, 61.5, 11.5, 0.75]])
    np.testing.assert_allclose(late[2], after[2])
    nobody = np.empty((0, 5), np.float32)
    assert len(tracking.between(before, nobody, 0.4)) == 3
    assert tracking.between(before, nobody, 0.6).shape == (0, 5)


def test_one_euro_is_the_filter_of_the_paper():
    """By hand: rate 10, both cutoffs 1 Hz, beta 0: a = 1 / (1 + 10 / 2 pi)."""
    share = 1 / (1 + 10 / (2 * np.pi))
    smooth = tracking.OneEuro(10, min_cutoff=1.0, beta=0.0)
    steps = [smooth(np.array([x]))[0] for x in (0.0, 1.0, 1.0)]
    np.testing.assert_allclose(steps, [0, share, share + (1 - share) * share])


def test_one_euro_reduces_noise_and_follows_motion():
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.01, 200)
    rest, move = np.zeros(200), np.linspace(0, 20, 200)
    smooth = lambda x: np.ravel([f(np.array([v])) for f in [tracking.OneEuro(30)] for v in x])  # noqa: E731
    assert np.std(smooth(rest + noise)[20:]) < 0.4 * np.std(noise)
    assert np.abs(smooth(move + noise) - move)[20:].max() < 0.25  # a tenth of a second behind


def test_each_track_has_its_own_filter_which_a_pause_resets():
    smoother = tracking.TrackSmoother(30, patience=5)
    one, two = np.array([1.0]), np.array([2.0])
    assert smoother(1, 'x', 0, one) == 1 and smoother(2, 'x', 0, two) == 2
    assert 1 < smoother(1, 'x', 1, two) < 2
    assert smoother(2, 'x', 1, two) == 2
    assert smoother(1, 'x', 10, two) == 2
    assert smoother(tracking.UNTRACKED, 'x', 2, one) == 1


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'trackers', None)
    with pytest.raises(
        ImportError, match=r"pip install 'trunchier\[video\]' \(with numpy 1: .* trackers"
    ):
        tracking.Tracker()


def test_smoothing_without_tracks_is_refused(inferencers, monkeypatch):
    infer, clip = inferencers['pose'], np.zeros((2, 60, 80, 3), np.uint8)
    monkeypatch.setattr(infer, 'track', False)
    for smooth in ({}, 'offline'):
        monkeypatch.setattr(infer, 'smooth', smooth)
        with pytest.raises(ValueError, match='smoothed along tracks'):
            list(infer(clip))
        assert len(list(infer(clip[0]))) == 1  # nothing of an image is smoothed
