"""Windows of frames of each track, for models that see more than one frame: lifters, smoothers.

A `WindowModel` is a pure function of windows. `over_windows` is the stage of a run that cuts the
tracks of a video into windows and puts the results together again, in order and with bounded delay.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import cv2
import numpy as np

from .pipeline import HELD_BYTES, Begin, End, FrameTask
from .tracking import UNTRACKED

PATIENCE = 0.5  # seconds that a track may be missing: shorter gaps are interpolated
LEAST_WEIGHT = 1e-6  # of a frame at the edge of a window, where others have it farther inside
KEPT_QUALITY = 95  # of JPEG, of images that wait and would be too large together

log = logging.getLogger('trunchier')


class WindowModel:
    """Base class: a function of windows of one person each.

    Attributes:
        inputs: names of the fields of people that it reads.
        length: frames of a window, T.
        overlap: frames that a window shares with the next, where results are blended.
        margin: frames at either side of a window that count only where there are no others.
        centered: results are of the center frame alone: windows begin at each frame.
        what: it does, for messages.
        replaces: whether results replace `inputs`, which are kept for resumed runs, then.
    """

    inputs: tuple[str, ...] = ()
    length: int = 1
    overlap: int = 0
    margin: int = 0
    centered: bool = False
    what: ClassVar[str] = 'lifted'
    replaces: ClassVar[bool] = False

    def at(self, fps: float) -> WindowModel:
        """The model for videos of a frame rate."""
        return self

    def __call__(
        self, fields: dict[str, np.ndarray], known: np.ndarray, result: Any
    ) -> dict[str, np.ndarray]:
        """Results of windows.

        Args:
            fields: `inputs`, (B, T, ...); frames without the person are interpolated, or repeat
                the first or last one with the person.
            known: (B, T) bool, whether the person was seen.
            result: of the newest frame, for its metainfo.

        Returns:
            (B, T, ...) each, or (B, 1, ...) if `centered`.
        """
        raise NotImplementedError

    def finish(self, result: Any, values: dict[str, np.ndarray]) -> None:
        """Put blended results (P, ...) into a frame's Result."""
        raise NotImplementedError


def over_windows(
    items: Iterable,
    model: WindowModel,
    stored: Callable[[object], Iterable] = lambda source: (),
    causal: bool | None = None,
) -> Iterator:
    """Apply a model to windows of the tracks of each source.

    Windows are as long as the model says, and begin every length - overlap frames; a frame is
    passed on at most length - 1 frames after it came. People who are missing for less than PATIENCE
    are interpolated in between; after longer gaps they are somebody new. People without a track,
    and those of images, are windows of a frame that is repeated.

    Args:
        items: Begin, FrameTask and End of each source.
        stored: function of a source to (index, arrays) of its frames that an earlier run has done.
        causal: windows end at each frame, which does not wait; None: of cameras.
    """
    buffer = None
    for item in items:
        if isinstance(item, Begin):
            live = item.source.kind == 'camera' if causal is None else causal
            here, step = model.at(item.fps), item.frames.step
            buffer = _Buffer(here, round(PATIENCE * item.fps), live)
            for index, record in stored(item.source):
                buffer.replay(index // step, record)
            if item.source.moves:
                _log_delay(here, buffer.ahead, item.fps)
        elif isinstance(item, FrameTask):
            yield from buffer.push(item.frame.index // step, item)
            continue
        elif isinstance(item, End) and buffer is not None:
            yield from buffer.flush()
            buffer = None
        yield item


def _log_delay(model, ahead, fps):
    late = f'{ahead} frames ({ahead / fps:.2f} s) after it' if ahead else 'without waiting for more'
    log.info('each frame is %s from windows of %d frames, %s', model.what, model.length, late)


@dataclass
class _Frame:
    """A frame that is held: `task` is None if an earlier run has done it."""

    number: int
    task: FrameTask | None
    fields: dict[str, np.ndarray]  # (P, ...)
    tracks: np.ndarray  # (P,)
    sums: dict[str, np.ndarray] = field(default_factory=dict)  # weighted, (P, ...)
    weights: np.ndarray | None = None  # (P,)

    def add(self, person, values, weight):
        if self.weights is None:
            self.weights = np.zeros(len(self.tracks))
        self.weights[person] += weight
        for name, value in values.items():
            shape = (len(self.tracks), *value.shape)
            sums = self.sums.setdefault(name, np.zeros(shape))
            sums[person] += weight * value


class _Buffer:
    """Frames of one source: those that wait, and those that later windows need.

    Attributes:
        ahead: frames that a frame waits for at most.
    """

    def __init__(self, model, patience, causal):
        self.model, self.patience = model, patience
        last = model.length - 1
        if causal and model.centered:
            raise ValueError('a lifter of the center frame needs frames after it; not --causal')
        # Windows of each frame begin so many frames before it; None: blocks that overlap.
        self.before = last if causal else last // 2 if model.centered else None
        self.ahead = last if self.before is None else last - self.before
        self.stride = model.length - model.overlap
        # Blocks: the first frame of the next window, and that after the newest one.
        self.start = self.covered = 0
        self.frames, self.result = deque(), None

    def replay(self, number, record):
        """A frame of an earlier run: later windows begin with it."""
        people = len(record['bboxes'])
        tracks = record.get('track_ids', np.full(people, UNTRACKED))
        fields = {name: record.get(f'raw_{name}', record.get(name)) for name in self.model.inputs}
        self.frames.append(_Frame(number, None, fields, tracks))
        self._forget(number)

    def push(self, number, task):
        """Hold a frame; yield those that are complete."""
        people, self.result = task.result.pred_instances, task.result
        tracks = people.get('track_ids', np.full(len(people), UNTRACKED))
        fields = {name: np.array(people[name]) for name in self.model.inputs}
        if self.model.replaces:
            task.raw = (task.raw or {}) | fields
        self._shrink(task)
        if self.before is not None:
            self.frames.append(_Frame(number, task, fields, tracks))
            yield from self._each(number - self.ahead)
            return
        if self.frames:
            yield from self._blocks(number - 1)
        self._forget(number)
        self.frames.append(_Frame(number, task, fields, tracks))
        yield from self._blocks(number)

    def flush(self):
        """Yield the frames that wait, after the last one of the source."""
        if self.frames and self.before is not None:
            yield from self._each(self.frames[-1].number)
            return
        while any(frame.task and frame.number >= self.covered for frame in self.frames):
            yield from self._block()
        for frame in self.frames:
            if frame.task:
                yield self._done(frame)

    def _forget(self, number):
        """Drop frames that no window needs any more when frame `number` has come."""
        if self.before is None:
            while number > self.start + self.model.length - 1:
                self.start += self.stride
        first = self.start if self.before is None else number - self.ahead - self.before
        while self.frames and self.frames[0].number < first and not self.frames[0].task:
            self.frames.popleft()

    def _each(self, last):
        """Frames up to number `last`, each from its own window."""
        for frame in list(self.frames):
            if frame.task and frame.number <= last:
                self._run(frame.number - self.before, frame)
                yield self._done(frame)
                self._forget(frame.number + self.ahead)

    def _blocks(self, newest):
        """Frames of the windows that are complete with frame number `newest`."""
        while newest >= self.start + self.model.length - 1 and self.frames:
            yield from self._block()

    def _block(self):
        """Run the window at `start`; yield the frames that no later one contains."""
        self._run(self.start)
        self.covered = self.start + self.model.length
        self.start += self.stride
        while self.frames and self.frames[0].number < self.start:
            frame = self.frames.popleft()
            if frame.task:
                yield self._done(frame)

    def _run(self, start, target=None):
        """The window from frame `start` on; its results are those of frame `target`, or of all."""
        length = self.model.length
        inside = [f for f in self.frames if start <= f.number < start + length]
        runs = []  # of one person: [(frame, place among its people)...]
        open_runs = {}  # track -> its newest run
        for frame in inside:
            for person, track in enumerate(frame.tracks.tolist()):
                run = open_runs.get(track)
                if (
                    track == UNTRACKED
                    or run is None
                    or frame.number - run[-1][0].number > self.patience + 1
                ):
                    open_runs[track] = run = []
                    runs.append(run)
                run.append((frame, person))
        if target is not None:
            runs = [run for run in runs if any(frame is target for frame, _ in run)]
        if not runs:
            return
        places = [np.array([frame.number - start for frame, _ in run]) for run in runs]
        fields = {
            name: np.stack(
                [
                    between(np.stack([f.fields[name][p] for f, p in run]), at, length)
                    for run, at in zip(runs, places, strict=True)
                ]
            )
            for name in self.model.inputs
        }
        known = np.zeros((len(runs), length), bool)
        for row, at in zip(known, places, strict=True):
            row[at] = True
        found = self.model(fields, known, self.result)
        weights = np.minimum(np.arange(1, length + 1), np.arange(length, 0, -1))
        weights = np.maximum(weights - float(self.model.margin), LEAST_WEIGHT)
        for index, run in enumerate(runs):
            for frame, person in run:
                if target is None or frame is target:
                    place = 0 if self.model.centered else frame.number - start
                    values = {name: array[index, place] for name, array in found.items()}
                    frame.add(person, values, weights[frame.number - start])

    def _done(self, frame):
        task, frame.task = frame.task, None
        if task.frame.image is not None and task.frame.image.ndim == 2:
            image = cv2.imdecode(task.frame.image, cv2.IMREAD_COLOR)
            task.frame = replace(task.frame, image=image)
        if len(frame.tracks):
            blended = {}
            for name, sums in frame.sums.items():
                weights = frame.weights.reshape(-1, *[1] * (sums.ndim - 1))
                blended[name] = (sums / weights).astype(np.float32)
            frame.sums = {}
            self.model.finish(task.result, blended)
        else:
            self.model.finish(task.result, {})
        return task

    def _shrink(self, task):
        """Hold large images as JPEG."""
        image = task.frame.image
        if image is not None and self.ahead * image.nbytes > HELD_BYTES:
            quality = [cv2.IMWRITE_JPEG_QUALITY, KEPT_QUALITY]
            task.frame = replace(task.frame, image=cv2.imencode('.jpg', image, quality)[1][None])


def between(values: np.ndarray, at: np.ndarray, length: int) -> np.ndarray:
    """Values at places 0 to length - 1 from those (n, ...) at some: linear between, else repeated.

    Args:
        at: (n,), ascending, n at least 1.
    """
    if len(at) == length:
        return values
    places = np.arange(length)
    after = np.searchsorted(at, places).clip(1, max(len(at) - 1, 1))
    before, after = after - 1, np.minimum(after, len(at) - 1)
    share = (places - at[before]) / np.maximum(at[after] - at[before], 1)
    share = share.clip(0, 1).reshape(-1, *[1] * (values.ndim - 1))
    mixed = (1 - share) * values[before] + share * values[after]
    return mixed.astype(np.result_type(values.dtype, np.float32))


def without_unknown(keypoints: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Replace keypoints that are not known: those with a score that is not above 0, or with NaN.

    They are interpolated over time from the frames in which they are known, else they are where the
    mean of the person's other keypoints is. Their scores are 0.

    Args:
        keypoints: (B, T, K, 2). scores: (B, T, K), clipped to 1.
    """
    with np.errstate(invalid='ignore'):
        known = np.isfinite(keypoints).all(-1) & np.isfinite(scores) & (scores > 0)
    scores = np.where(known, np.minimum(scores, 1), 0).astype(np.float32)
    if known.all():
        return keypoints, scores
    keypoints = np.where(known[..., None], keypoints, 0).astype(np.float32)
    counts = known.sum(2)[..., None]
    middles = keypoints.sum(2) / np.maximum(counts, 1)  # (B, T, 2)
    frames = np.arange(known.shape[1])
    for one in np.flatnonzero(~known.all((1, 2))):
        seen = np.flatnonzero(counts[one, :, 0])
        if len(seen):
            middles[one] = between(middles[one, seen], seen, len(frames))
        for joint in np.flatnonzero(~known[one].all(0)):
            here = np.flatnonzero(known[one, :, joint])
            lost = ~known[one, :, joint]
            if len(here):
                filled = between(keypoints[one, here, joint], here, len(frames))
            else:
                filled = middles[one]
            keypoints[one, lost, joint] = filled[lost]
    return keypoints, scores
