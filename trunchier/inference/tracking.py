"""Track ids (ByteTrack) and temporal smoothing (One-Euro filter).

Zhang et al., "ByteTrack", ECCV 2022, from the package `trackers`; Casiez et al., "1 Euro Filter",
CHI 2012, which has little lag in motion and little jitter at rest.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..files import need
from .pipeline import Begin, FrameTask
from .samples import InstancesOfFrame

if TYPE_CHECKING:
    from .predictor import Predictor

UNTRACKED = -1
START_SCORE = 0.5  # minimum of the first detection of a track
SAME_PERSON = 0.3  # minimum overlap (IoU) of two boxes of a person, some frames apart

log = logging.getLogger('trunchier')


def track(
    items: Iterable, track: bool | None, needed: bool, stored: Callable[[object], Iterable]
) -> Iterator:
    """Add `track_ids` to the people of videos; UNTRACKED for weak new detections.

    Args:
        items: Begin, FrameTask and End of each source.
        track: None: track if the package `trackers` is installed.
        needed: whether a later stage needs tracks.
        stored: function of a source to (index, arrays) of its frames that an earlier run has done.

    Raises:
        ValueError: tracks are needed, but `track` is False.
        ImportError: tracks are needed or `track` is True, without the package.
    """
    tracker = None
    for item in items:
        if isinstance(item, Begin):
            tracker = _tracker(item, track, needed)
            for _, record in stored(item.source) if tracker is not None else ():
                tracker(np.hstack([record['bboxes'], record['bbox_scores'][:, None]]))
        elif isinstance(item, FrameTask) and tracker is not None:
            people = item.result.pred_instances
            boxes = np.hstack([people.bboxes, people.bbox_scores[:, None]])
            people.track_ids = tracker(boxes)
        yield item


def check_tracked(track: bool | None, needed: bool) -> None:
    """ValueError if tracks are needed for smoothing, but `track` is False."""
    if track is False and needed:
        raise ValueError(
            'videos are smoothed along tracks, but track=False asks for none: leave out track '
            '(--no-track) or smooth (--smooth)'
        )


def _tracker(begin, track, needed):
    if not begin.source.moves:
        return None
    check_tracked(track, needed)
    if track is False:
        return None
    try:
        return Tracker(begin.fps)
    except ImportError as error:
        if track or needed:
            raise
        log.warning('people get no track ids: %s', error)
        return None


def smooth(
    items: Iterable, predictor: Predictor, smooth: dict, stored: Callable[[object], Iterable]
) -> Iterator:
    """Smooth people of videos along their tracks, by a One-Euro filter.

    Args:
        items: as of `track`, after it.
        predictor: says which fields are smoothed, and what follows from them.
        smooth: options of TrackSmoother.
        stored: as of `track`; its arrays before smoothing have the prefix 'raw_'.
    """
    follow = None
    for item in items:
        if isinstance(item, Begin):
            follow, step = Follower(item.fps, predictor.smoothed, smooth), item.frames.step
            for index, record in stored(item.source):
                if 'track_ids' in record:
                    follow.replay(index // step, record)
        elif isinstance(item, FrameTask) and 'track_ids' in item.result.pred_instances:
            people = item.result.pred_instances
            item.raw = follow(item.frame.index // step, people)
            if len(people):
                for name, array in predictor.derived(people).items():
                    people.set_field(array, name)
        yield item


class Follower:
    """Smoothing along one source."""

    def __init__(self, fps: float, smoothed: tuple[str, ...], smooth: dict):
        self.smoothed, self.smoother = smoothed, TrackSmoother(fps, **smooth)

    def __call__(self, index: int, people: InstancesOfFrame) -> dict[str, np.ndarray]:
        """Smooth the fields of a frame's people, in place.

        Returns:
            The fields before smoothing, for `replay`.
        """
        fields = [name for name in self.smoothed if name in people]
        raw = {name: np.array(people[name]) for name in fields}
        for person, track in enumerate(people.track_ids.tolist()):
            diagonal = np.hypot(*(people.bboxes[person, 2:] - people.bboxes[person, :2]))
            for name in fields:
                unit = diagonal if name == 'keypoints' else 1.0
                people[name][person] = self._smooth(track, name, index, raw[name][person], unit)
        return raw

    def replay(self, index: int, record: dict[str, np.ndarray]) -> None:
        """Follow the people of a frame that an earlier run has stored."""
        raw = {n.removeprefix('raw_'): a for n, a in record.items() if n.startswith('raw_')}
        self(index, InstancesOfFrame(bboxes=record['bboxes'], track_ids=record['track_ids'], **raw))

    def _smooth(self, track, name, index, value, unit):
        """One person's field, smoothed; rotation matrices as 6D, then orthogonalized."""
        if value.shape[-2:] != (3, 3):
            return self.smoother(track, name, index, value, unit)
        import torch  # of meshes, whose models need it anyway

        from ..geometry import matrix_to_rotation_6d, rotation_6d_to_matrix

        columns = matrix_to_rotation_6d(torch.from_numpy(value)).numpy()
        columns = self.smoother(track, name, index, columns, unit)
        return rotation_6d_to_matrix(torch.from_numpy(columns)).numpy()


class Tracker:
    """Assigns an id to each person that stays the same from frame to frame.

    Args:
        fps: frame rate of the video.

    Raises:
        ImportError: the package `trackers` is not installed.
    """

    def __init__(self, fps: float = 30.0):
        purpose = 'tracking people'
        remedy = (
            "pip install 'trunchier[video]' (with numpy 1: pip install --no-deps trackers "
            'supervision pydeprecate defusedxml); or track=False'
        )
        self.detections = need('supervision', purpose, remedy).Detections
        self.tracker = need('trackers', purpose, remedy).ByteTrackTracker(
            frame_rate=fps,
            lost_track_buffer=30,  # one second, in frames of 1/30 s whatever fps
            track_activation_threshold=START_SCORE,
            high_conf_det_threshold=START_SCORE,
            minimum_consecutive_frames=1,
        )
        self.started = False

    def __call__(self, boxes: np.ndarray) -> np.ndarray:
        """Ids (P,) int of `boxes` (P, 5) xyxy and score; UNTRACKED for weak new detections."""
        found = self.detections(
            xyxy=boxes[:, :4].astype(np.float64),
            confidence=boxes[:, 4].astype(np.float64),
            class_id=np.zeros(len(boxes), int),
            data={'index': np.arange(len(boxes))},
        )
        if not self.started and len(boxes):
            # ByteTrack confirms a track in its second frame; repeat the first so ids begin there.
            self.tracker.update(found)
            self.started = True
        tracked = self.tracker.update(found)
        ids = np.full(len(boxes), UNTRACKED)
        if len(tracked):
            ids[tracked.data['index']] = tracked.tracker_id
        return ids


def between(before: np.ndarray, after: np.ndarray, share: float) -> np.ndarray:
    """Boxes at a time between two detections.

    Args:
        before, after: (P, 5) and (Q, 5), xyxy and score.
        share: of the time from `before` to `after` that has passed, in [0, 1].

    Returns:
        (R, 5): those of people who are in both, by overlap, on a straight line from one to the
        other; those of the others as in the nearer detection.
    """
    overlaps, pairs = box_overlaps(before, after), {}
    for index in np.argsort(-overlaps, axis=None, kind='stable'):
        here, there = divmod(int(index), overlaps.shape[1])
        if overlaps[here, there] < SAME_PERSON:
            break
        if here not in pairs and there not in pairs.values():
            pairs[here] = there
    ours = sorted(pairs)
    theirs = [pairs[here] for here in ours]
    both = (1 - share) * before[ours] + share * after[theirs]
    nearer, paired = (before, ours) if share < 0.5 else (after, theirs)
    return np.float32(np.vstack([both, np.delete(nearer, paired, axis=0)]))


def box_overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(P, Q) intersection over union of boxes (P, 4 or 5) and (Q, 4 or 5), xyxy."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:4], b[None, :, 2:4])
    shared = (high - low).clip(0).prod(2)
    areas = [(boxes[:, 2:4] - boxes[:, :2]).prod(1) for boxes in (a, b)]
    return shared / np.maximum(areas[0][:, None] + areas[1][None] - shared, 1e-9)


@dataclass
class OneEuro:
    """One-Euro filter of an array, element by element.

    x_i = a x + (1 - a) x_{i-1},   a = 1 / (1 + rate / (2 pi cutoff)),
    cutoff = min_cutoff + beta |dx/dt|, where the speed is smoothed with `speed_cutoff`
    """

    rate: float  # samples per second
    min_cutoff: float = 1.0  # Hz, at rest; lower: less jitter
    beta: float = 1.0  # Hz per (unit per second); higher: less lag
    speed_cutoff: float = 1.0  # Hz

    def __post_init__(self):
        self.last = self.speed = None

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """The next sample, smoothed; the first is returned unchanged."""
        if self.last is None:
            self.last, self.speed = x, np.zeros_like(x)
            return x
        self.speed = self._blend(self.speed_cutoff, (x - self.last) * self.rate, self.speed)
        cutoff = self.min_cutoff + self.beta * np.abs(self.speed)
        self.last = self._blend(cutoff, x, self.last)
        return self.last

    def _blend(self, cutoff, new, old):
        a = 1 / (1 + self.rate / (2 * math.pi * cutoff))
        return a * new + (1 - a) * old


class TrackSmoother:
    """A One-Euro filter per track and quantity.

    Args:
        rate: frames per second.
        patience: frames that a track may be missing before its filters are reset.
        beta: see `OneEuro`.
        options: of `OneEuro`.
    """

    def __init__(self, rate: float, patience: int = 15, beta: float = 4.0, **options: float):
        self.rate, self.patience, self.beta, self.options = rate, patience, beta, options
        self.filters = {}  # (track, quantity) -> filter, index of its last frame

    def __call__(
        self, track: int, quantity: str, frame: int, x: np.ndarray, unit: float = 1.0
    ) -> np.ndarray:
        """The array `x` smoothed along `track`; unchanged for UNTRACKED.

        `unit`: of speed in `beta`, such as the size of the person for pixels; the track's first
        one is used throughout.
        """
        if track == UNTRACKED:
            return x
        known, last = self.filters.get((track, quantity), (None, None))
        if known is None or frame - last > self.patience:
            known = OneEuro(self.rate, beta=self.beta / unit, **self.options)
        self.filters[track, quantity] = known, frame
        return known(x)
