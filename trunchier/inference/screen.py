"""Window and progress bar of a run."""

import os
import sys
from collections.abc import Callable, Iterable

import cv2
import numpy as np

from .pipeline import Stopwatch
from .sources import Source, Unreadable, video_info


def check_display() -> None:
    """Raise RuntimeError if no window can be opened."""
    if sys.platform.startswith('linux') and not (
        os.environ.get('DISPLAY') or os.environ.get('WAYLAND_DISPLAY')
    ):
        raise RuntimeError(
            'show=True requires a display, and none was found; write images with vis_out_dir, or '
            'look at them in a browser with --viewer'
        )


def show(image: np.ndarray, source: Source) -> None:
    """Show (H, W, 3) BGR in the window of its source; an image waits for a key."""
    cv2.imshow(source.name, image)
    cv2.waitKey(1 if source.moves else 0)


class Bar:
    """Progress bar on stderr: frames, rate, remaining time.

    As a context manager it gives the function to call after each frame.
    """

    def __init__(self, sources: Iterable[Source]):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeRemainingColumn as TimeLeft

        self.progress = Progress(
            TextColumn('frames'), BarColumn(), MofNCompleteColumn(),
            TextColumn('{task.fields[rate]}'), TimeLeft(), console=Console(stderr=True),
        )  # fmt: skip
        self.task = self.progress.add_task('frames', total=_count(sources), rate='')
        self.clock, self.frames = Stopwatch(), 0

    def __enter__(self) -> Callable[[], None]:
        self.progress.start()
        return self._advance

    def _advance(self):
        self.frames += 1
        rate = f'{self.frames / self.clock.elapsed:.1f} per second'
        self.progress.update(self.task, advance=1, rate=rate)

    def __exit__(self, *_):
        self.progress.stop()


def _count(sources):
    """Frames of all sources, or None if unknown."""
    if not isinstance(sources, list):
        return None
    total = 0
    for source in sources:
        try:
            number = video_info(source).num_frames if source.moves else 1
        except Unreadable:
            number = 0
        if number is None:
            return None
        total += number
    return total
