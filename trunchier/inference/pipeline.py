"""Stages of work that overlap: each in a thread of its own, a bounded step ahead of the next.

What flows from stage to stage is, for each source, `Begin`, a `Job` a frame, `End`.
"""

import logging
import queue
import threading
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from .sources import Frame, Source

PATIENCE = 0.1  # seconds between looks at whether a stage is still wanted
HELD_BYTES = 256 << 20  # pictures that wait for a batch to fill, at most

log = logging.getLogger('trunchier')


# ---------------------------------------------------------------------------------------------
# What flows
# ---------------------------------------------------------------------------------------------
@dataclass
class Begin:
    """A source follows. `start`: its first frame that is still to be done."""

    source: Source
    fps: float = 30.0
    start: int = 0


@dataclass
class End:
    """A source is complete."""

    source: Source


@dataclass
class Job:
    """A frame, and what becomes of it on its way."""

    frame: Frame  # loses its picture after the crops where nobody looks at it
    shape: tuple = None  # (H, W) of the picture
    boxes: np.ndarray = None  # (P, 5)
    crops: list = field(default_factory=list)  # of the config's pipeline, then None
    people: list = field(default_factory=list)  # PoseDataSample each
    result: object = None  # PoseDataSample of the frame
    raw: dict = None
    picture: np.ndarray = None  # drawn


@dataclass
class Load:
    """A batch for the network: (job, place) of each crop, and the items complete with it."""

    crops: list = field(default_factory=list)
    items: list = field(default_factory=list)


def batches(items, batch_size):
    """Group the crops of consecutive frames into batches.

    A frame waits at most until a batch is full, until HELD_BYTES of pictures wait, or, live, not at
    all.
    """
    load, held = Load(), 0
    for item in items:
        if isinstance(item, Job):
            for place in range(len(item.crops)):
                load.crops.append((item, place))
                if len(load.crops) == batch_size and place + 1 < len(item.crops):
                    yield load
                    load, held = Load(), 0
            held += item.frame.image.nbytes if item.frame.image is not None else 0
        load.items.append(item)
        live = isinstance(item, Job) and item.frame.source.kind == 'camera'
        full = len(load.crops) == batch_size or len(load.items) >= 4 * batch_size
        if full or held >= HELD_BYTES or live:
            yield load
            load, held = Load(), 0
    if load.items:
        yield load


# ---------------------------------------------------------------------------------------------
# Threads and time
# ---------------------------------------------------------------------------------------------
class Stopwatch:
    """Seconds that each stage works, without its waiting."""

    def __init__(self):
        self.seconds = Counter()
        self.started = time.perf_counter()

    @contextmanager
    def __call__(self, name):
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - begin

    def items(self, items, name):
        """Pass `items` on; what making each takes counts under `name`."""
        iterator = iter(items)
        try:
            while True:
                with self(name):
                    try:
                        item = next(iterator)
                    except StopIteration:
                        return
                yield item
        finally:
            _close(iterator)

    @property
    def elapsed(self):
        return time.perf_counter() - self.started


def ahead(items, depth, may_drop=None):
    """Pass `items` on in order, made by another thread that is at most `depth` items ahead.

    An exception there is raised here, in its place. When this generator is closed, the thread
    stops, and `items` is closed.

    Args:
        may_drop: class of items that are left out, not waited for, while nobody fetches them: live
            pictures.
    """
    made, unwanted = queue.Queue(depth), threading.Event()
    thread = threading.Thread(target=_make, args=(items, made, unwanted, may_drop), daemon=True)
    thread.start()
    try:
        while True:
            kind, value = made.get()
            if kind == 'end':
                return
            if kind == 'error':
                raise value
            yield value
    finally:
        unwanted.set()
        thread.join()


def _make(items, made, unwanted, may_drop):
    iterator = iter(items)
    last = ('end', None)
    try:
        for item in iterator:
            if may_drop is not None and isinstance(item, may_drop) and made.full():
                continue
            _put(made, ('item', item), unwanted)
            if unwanted.is_set():
                break
    except BaseException as error:  # whatever it is, it belongs to whoever waits
        last = ('error', error)
    finally:
        _close(iterator)
        _put(made, last, unwanted)


def _put(made, entry, unwanted):
    while not unwanted.is_set():
        try:
            made.put(entry, timeout=PATIENCE)
            return
        except queue.Full:
            continue


def _close(iterator):
    close = getattr(iterator, 'close', None)
    if close is not None:
        close()


@dataclass
class Report:
    """What a run did. `skipped`: (where, why) of what could not be predicted."""

    frames: int = 0
    people: int = 0
    done_before: int = 0
    skipped: list = field(default_factory=list)
    seconds: Counter = field(default_factory=Counter)
    elapsed: float = 0.0

    def skip(self, where, why):
        self.skipped.append((str(where), str(why)))
        log.warning('skipped %s: %s', where, why)

    def __str__(self):
        rate = self.frames / self.elapsed if self.elapsed else 0.0
        lines = [
            f'{self.frames} frames, {self.people} people in {self.elapsed:.1f} s: '
            f'{rate:.1f} frames a second'
        ]
        if self.seconds:
            shares = (
                f'{name} {seconds:.1f} s ({100 * seconds / max(self.elapsed, 1e-9):.0f} %)'
                for name, seconds in self.seconds.most_common()
            )
            lines.append('busy, side by side: ' + ', '.join(shares))
        if self.done_before:
            lines.append(f'{self.done_before} frames or pictures were done before')
        if self.skipped:
            lines.append(f'{len(self.skipped)} skipped:')
            lines += [f'  {where}: {why}' for where, why in self.skipped[:20]]
            if len(self.skipped) > 20:
                lines.append(f'  ... and {len(self.skipped) - 20} more')
        return '\n'.join(lines)
