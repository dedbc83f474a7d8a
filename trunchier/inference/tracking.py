"""Who is who from frame to frame, and a smoother path for each.

Tracks: ByteTrack (Zhang et al., ECCV 2022) by the library `trackers`. Smoothing: the One-Euro
filter (Casiez et al., CHI 2012), which lags little where things move and trembles little where
they rest.
"""

import math

import numpy as np

UNTRACKED = -1


class Tracker:
    """Gives the people of each frame an id that stays with them.

    Args:
        fps: frames a second of the video.
        lost_seconds: how long a person may be unseen and keep the id.
        start_score: a detection weaker than this begins no track.

    Raises:
        ImportError: without the library `trackers`.
    """

    def __init__(self, fps=30.0, lost_seconds=1.0, start_score=0.5):
        supervision, tracker = _import_trackers()
        self.detections = supervision.Detections
        self.tracker = tracker(
            frame_rate=fps,
            lost_track_buffer=round(30 * lost_seconds),  # in frames of 1/30 s, whatever fps
            track_activation_threshold=start_score,
            high_conf_det_threshold=start_score,
            minimum_consecutive_frames=1,
        )
        self.started = False

    def __call__(self, boxes):
        """Ids (P,) int of `boxes` (P, 5): x1, y1, x2, y2, score; UNTRACKED for weak newcomers."""
        found = self.detections(
            xyxy=boxes[:, :4].astype(np.float64),
            confidence=boxes[:, 4].astype(np.float64),
            class_id=np.zeros(len(boxes), int),
            data={'place': np.arange(len(boxes))},
        )
        if not self.started and len(boxes):
            # ByteTrack names whom it sees a second time; nobody need wait in the first frame.
            self.tracker.update(found)
            self.started = True
        tracked = self.tracker.update(found)
        ids = np.full(len(boxes), UNTRACKED)
        if len(tracked):
            ids[tracked.data['place']] = tracked.tracker_id
        return ids


def _import_trackers():
    try:
        import supervision
        from trackers import ByteTrackTracker
    except ImportError as error:
        raise ImportError(
            'tracking people needs the package trackers: pip install trackers (with numpy 1: '
            'pip install --no-deps trackers supervision pydeprecate defusedxml); or track=False'
        ) from error
    return supervision, ByteTrackTracker


class OneEuro:
    """One-Euro filter of an array, element by element.

        x_i = a x + (1 - a) x_{i-1},   a = 1 / (1 + rate / (2 pi cutoff)),
        cutoff = min_cutoff + beta |dx/dt|, the speed itself smoothed with `speed_cutoff`

    Args:
        rate: samples a second.
        min_cutoff: Hz, of what rests: lower trembles less.
        beta: Hz for one unit a second: higher lags less.
        speed_cutoff: Hz.
    """

    def __init__(self, rate, min_cutoff=1.0, beta=1.0, speed_cutoff=1.0):
        self.rate = rate
        self.min_cutoff = min_cutoff
        self.beta = beta
        self.speed_cutoff = speed_cutoff
        self.last = self.speed = None

    def __call__(self, x):
        """The next sample, smoothed; the first one as it is."""
        if self.last is None:
            self.last, self.speed = x, np.zeros_like(x)
            return x
        self.speed = self._blend(self.speed_cutoff, (x - self.last) * self.rate, self.speed)
        cutoff = self.min_cutoff + self.beta * np.abs(self.speed)
        self.last = self._blend(cutoff, x, self.last)
        return self.last

    def _blend(self, cutoff, new, old):
        share = 1 / (1 + self.rate / (2 * math.pi * cutoff))
        return share * new + (1 - share) * old


class TrackSmoother:
    """One filter for each person and quantity; a track that pauses starts anew.

    Args:
        rate: frames a second.
        patience: frames that a track may be away before its filter forgets it.
        beta: of `OneEuro`, for one unit a second.
        options: of `OneEuro`.
    """

    def __init__(self, rate, patience=15, beta=4.0, **options):
        self.rate = rate
        self.patience = patience
        self.beta = beta
        self.options = options
        self.filters = {}  # (track, quantity) -> its filter and the frame it saw last

    def __call__(self, track, quantity, frame, x, unit=1.0):
        """`x`, an array, smoothed along `track`; people without a track pass unchanged.

        `unit`: what `beta` counts speed in, such as the size of the person for pixels; that of the
        track's first frame stays.
        """
        if track == UNTRACKED:
            return x
        known, last = self.filters.get((track, quantity), (None, None))
        if known is None or frame - last > self.patience:
            known = OneEuro(self.rate, beta=self.beta / unit, **self.options)
        self.filters[track, quantity] = known, frame
        return known(x)
