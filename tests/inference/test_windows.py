"""Tracks are cut into windows and put together again, whatever people and frames do."""

from types import SimpleNamespace

import numpy as np
import pytest
from mmengine.structures import InstanceData

from trunchier.inference.pipeline import Begin, End, FrameTask
from trunchier.inference.sources import Frame, Source
from trunchier.inference.tracking import UNTRACKED
from trunchier.inference.windows import WindowModel, between, over_windows, without_unknown


class Mean(WindowModel):
    """Of each window, the frames' own values and the mean; keeps what it was given."""

    inputs = ('x',)

    def __init__(self, length, overlap=0, centered=False):
        self.length, self.overlap, self.centered, self.given = length, overlap, centered, []

    def __call__(self, fields, known, result):
        self.given.append((fields['x'].copy(), known.copy()))
        values = fields['x'][:, self.length // 2][:, None] if self.centered else fields['x']
        return dict(same=values, known=known.astype(float)[:, : values.shape[1]])

    def finish(self, result, values):
        result.done = values.get('same', np.empty((0, 1)))


def clip(tracks, kind='video', fps=30.0, image=None):
    """Items of a source. `tracks`: {frame: {track: value}}."""
    source = Source('clip', kind)
    yield Begin(source, fps)
    for index, people in tracks.items():
        frame = Frame(image, source, index, index / fps)
        instances = InstanceData(
            x=np.float32([[value] for value in people.values()]).reshape(-1, 1),
            track_ids=np.array(list(people), int),
        )
        yield FrameTask(frame, (9, 9), result=SimpleNamespace(pred_instances=instances))
    yield End(source)


def walk(frames, track=0):
    return {frame: {track: float(frame)} for frame in frames}


@pytest.mark.parametrize('model', [Mean(5), Mean(5, 2), Mean(7, 3), Mean(5, centered=True)])
@pytest.mark.parametrize('count', [1, 4, 5, 23])
def test_frames_come_in_order_each_with_the_values_of_its_own_place(model, count):
    items = list(over_windows(clip(walk(range(count))), model))
    assert [type(item) for item in items] == [Begin, *[FrameTask] * count, End]
    assert [task.frame.index for task in items[1:-1]] == [*range(count)]
    np.testing.assert_allclose([task.result.done[0, 0] for task in items[1:-1]], range(count))


@pytest.mark.parametrize('causal', [False, True])
def test_no_frame_waits_longer_than_a_window(causal):
    seen, model = [], Mean(6, 2)

    def watched():
        for item in clip(walk(range(40))):
            seen.append(item)
            yield item

    longest = 0
    for item in over_windows(watched(), model, causal=causal):
        if isinstance(item, FrameTask):
            longest = (
                max(longest, seen[-1].frame.index - item.frame.index if seen else 0)
                if isinstance(seen[-1], FrameTask)
                else longest
            )
    assert longest == (0 if causal else 5)


def test_causal_windows_hold_past_frames_and_cameras_are_causal():
    model = Mean(4)
    list(over_windows(clip(walk(range(6)), kind='camera'), model))
    expected = [[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 2], [0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5]]
    np.testing.assert_array_equal(np.vstack([x[..., 0] for x, _ in model.given]), expected)
    assert model.given[1][1].tolist() == [[False, False, True, True]]
    with pytest.raises(ValueError, match='center frame needs frames after it'):
        list(over_windows(clip(walk(range(2))), Mean(4, centered=True), causal=True))


def test_short_gaps_are_interpolated_and_long_ones_begin_somebody_new():
    model = Mean(12)
    frames = [0, 1, 3, 4, 9, 10]  # at 8 frames a second, 4 missing frames are half a second
    list(over_windows(clip(walk(frames), fps=8), model))
    assert len(model.given[0][0]) == 1  # one run
    np.testing.assert_array_equal(model.given[0][0][0, :, 0], [*range(11), 10])
    assert model.given[0][1][0].nonzero()[0].tolist() == frames
    model = Mean(12)
    items = list(over_windows(clip(walk(frames), fps=6), model))
    before, after = model.given[0][0][..., 0]
    np.testing.assert_array_equal(before, [0, 1, 2, 3] + [4] * 8)
    np.testing.assert_array_equal(after, [9] * 10 + [10] * 2)
    assert [task.result.done[0, 0] for task in items[1:-1]] == frames


def test_people_come_leave_and_come_back_and_nobody_is_mixed_up():
    rng = np.random.default_rng(0)
    tracks = {
        frame: {track: 100.0 * track + frame for track in range(4) if rng.random() < 0.6}
        for frame in range(60)
        if frame not in (7, 8, 30)
    }
    tracks[5] = {2: 205.0, UNTRACKED: -5.0, 0: 5.0}
    for model in (Mean(9, 3), Mean(9), Mean(9, centered=True)):
        for causal in (False, not model.centered):
            items = list(over_windows(clip(tracks, fps=4), model, causal=causal))[1:-1]
            for task in items:
                expected = np.reshape([*tracks[task.frame.index].values()], (-1, 1))
                np.testing.assert_allclose(task.result.done, expected, atol=1e-4)


def test_a_resumed_run_gives_what_an_uninterrupted_one_gives():
    tracks = walk(range(40))
    jumps = {frame: {0: float(frame % 7)} for frame in tracks}
    record = lambda frame: dict(  # noqa: E731
        bboxes=np.zeros((1, 4)), track_ids=np.array([0]), x=np.float32([[frame % 7]])
    )
    for model, causal in ((Wobble(9, 3), False), (Wobble(9), True)):
        whole = list(over_windows(clip(jumps), model, causal=causal))[1:-1]
        for done in (1, 8, 20):
            rest = {frame: people for frame, people in jumps.items() if frame >= done}
            stored = lambda source, done=done: ((f, record(f)) for f in range(done))  # noqa: E731
            found = list(over_windows(clip(rest), model, stored, causal))[1:-1]
            for one, two in zip(whole[done:], found, strict=True):
                np.testing.assert_allclose(one.result.done, two.result.done, rtol=1e-6)


@pytest.mark.parametrize('causal', [False, True])
def test_a_video_whose_frames_are_all_done_needs_no_window(causal):
    record = dict(bboxes=np.zeros((1, 4)), track_ids=np.array([0]), x=np.float32([[1]]))
    model = Mean(9, 3)
    items = list(over_windows(clip({}), model, lambda source: enumerate([record] * 20), causal))
    assert [type(item) for item in items] == [Begin, End] and not model.given


class Wobble(Mean):
    """Depends on the whole window and the place in it."""

    def __call__(self, fields, known, result):
        places = np.arange(self.length)[None, :, None]
        return dict(same=fields['x'] * places + fields['x'].mean(1, keepdims=True))


def test_large_images_wait_as_jpeg(monkeypatch):
    image = np.full((32, 32, 3), 100, np.uint8)
    monkeypatch.setattr('trunchier.inference.windows.HELD_BYTES', 100)
    items = list(over_windows(clip(walk(range(9)), image=image), Mean(5)))
    for task in items[1:-1]:
        assert np.abs(task.frame.image.astype(int) - image).max() <= 2


def test_values_between_are_on_a_line_and_edges_repeat():
    values = np.float32([[1], [3], [7]])
    np.testing.assert_allclose(between(values, np.array([1, 3, 4]), 7)[:, 0], [1, 1, 2, 3, 7, 7, 7])
    np.testing.assert_array_equal(between(values[:1], np.array([2]), 3)[:, 0], [1, 1, 1])


def test_keypoints_that_are_not_known_are_interpolated():
    keypoints = np.random.default_rng(0).uniform(0, 100, (2, 5, 3, 2)).astype(np.float32)
    scores = np.full((2, 5, 3), 0.5, np.float32)
    scores[0, 1, 0], scores[0, 2, 1], scores[0, :, 2] = np.nan, 0, -1
    keypoints[1, 3, 0, 1], scores[1, 0, 1] = np.inf, 7
    filled, found = without_unknown(keypoints, scores)
    assert np.isfinite(filled).all() and found[1, 0, 1] == 1
    unknown = found == 0
    assert unknown.sum() == 1 + 1 + 5 + 1
    np.testing.assert_array_equal(filled[~unknown], keypoints[~unknown])
    np.testing.assert_allclose(filled[0, 1, 0], (keypoints[0, 0, 0] + keypoints[0, 2, 0]) / 2)
    np.testing.assert_allclose(filled[0, 0, 2], keypoints[0, 0, :2].mean(0), rtol=1e-6)
    filled, found = without_unknown(keypoints * np.nan, scores)
    assert not filled.any() and not found.any()
