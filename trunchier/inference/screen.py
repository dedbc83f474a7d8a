"""Window, progress bar and messages of a run."""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress

import cv2
import numpy as np

from .sources import Source, Unreadable, video_info


def printable(text: object) -> str:
    """One line for a terminal: control characters, as of escape sequences, are written as \\x1b."""
    shown = (c if c.isprintable() else ascii(c)[1:-1] for c in ' '.join(str(text).splitlines()))
    return ''.join(shown)


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


def bar(sources: Iterable[Source], tasks: Iterable) -> Iterator:
    """Yield `tasks` with a progress bar on stderr: frames, rate, remaining time."""

    from rich import console, progress, text

    class Rate(progress.ProgressColumn):
        def render(self, task):
            return text.Text(f'{task.speed or 0:.1f} per second')

    columns = [progress.TextColumn('frames'), progress.BarColumn(), progress.MofNCompleteColumn()]
    columns += [Rate(), progress.TimeRemainingColumn()]
    with progress.Progress(*columns, console=console.Console(stderr=True)) as bar:
        yield from bar.track(tasks, total=_count(sources))


def _count(sources):
    """Frames of all sources, or None if unknown."""
    if not isinstance(sources, list):
        return None
    total = 0
    for source in sources:
        with suppress(Unreadable):
            number = video_info(source)[1] if source.moves else 1
            if number is None:
                return None
            total += number
    return total
