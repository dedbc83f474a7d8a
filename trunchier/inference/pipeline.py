"""Stages that overlap: each has a thread of its own, a bounded number of items ahead of the next.

Between stages flow, for each source in turn, a `Begin`, a `FrameTask` per frame and an `End`. A
stage may hold frames back, as temporal models do, but passes on every item in order.
"""

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from .sources import EVERY_FRAME, Frame, Source

STOP_SECONDS = 3.0  # that the first stage may take for its item after it is closed
END = ('end', None)  # of what a stage made
HELD_BYTES = 256 << 20  # limit of the images that wait for a batch to fill


@dataclass
class Begin:
    """Start of a source. `fps`: of `frames`, those that are still to be done."""

    source: Source
    fps: float = 30.0
    frames: range = EVERY_FRAME


@dataclass
class End:
    """End of a source."""

    source: Source


@dataclass
class FrameTask:
    """A frame and its intermediate and final results."""

    frame: Frame  # its image is None after cropping unless a later stage needs it
    shape: tuple[int, int] | None = None  # (H, W) of the image
    boxes: np.ndarray | None = None  # (P, 5) xyxy and score
    crops: list = field(default_factory=list)  # a Crop per box, None once it is decoded
    people: list = field(default_factory=list)  # dict of arrays per crop, see `Predictor.decode`
    result: Any = None  # PoseDataSample of the frame
    raw: dict[str, np.ndarray] | None = None  # fields of `result` before smoothing
    drawing: np.ndarray | None = None


@dataclass
class Batch:
    """Input of the network: (task, index) of each crop, and the items complete with it."""

    crops: list[tuple[FrameTask, int]] = field(default_factory=list)
    items: list = field(default_factory=list)
    output: Any = None


def batches(items: Iterable, batch_size: int) -> Iterator[Batch]:
    """Group the crops of consecutive frames into batches.

    A frame waits until a batch is full or HELD_BYTES of images wait; a live frame does not wait.
    """
    batch, held = Batch(), 0
    for item in items:
        if isinstance(item, FrameTask):
            for index in range(len(item.crops)):
                batch.crops.append((item, index))
                if len(batch.crops) == batch_size and index + 1 < len(item.crops):
                    yield batch
                    batch, held = Batch(), 0
            held += item.frame.image.nbytes if item.frame.image is not None else 0
        batch.items.append(item)
        live = isinstance(item, FrameTask) and item.frame.source.kind == 'camera'
        full = len(batch.crops) == batch_size or len(batch.items) >= 4 * batch_size
        if full or held >= HELD_BYTES or live:
            yield batch
            batch, held = Batch(), 0
    if batch.items:
        yield batch


class Stage(NamedTuple):
    """A step of the pipeline.

    `work` maps an iterator of items to an iterator of items. At most `depth` of its items wait for
    the next stage; items for which `may_drop` is true are discarded instead of waiting.
    """

    name: str
    work: Callable[[Iterator], Iterator]
    depth: int = 2
    may_drop: Callable[[Any], bool] | None = None


def run(stages: Iterable[Stage], items: Iterable, clock: 'Stopwatch') -> Iterator:
    """Items of the last of `stages`, the first of which gets `items`; a thread per stage."""
    stop = None
    for stage in stages:
        stop = _Stop(stage.depth, stop)
        items = prefetch(_timed(stage, items, clock), stage.depth, stage.may_drop, stop)
    return items


def _timed(stage, items, clock):
    with closing(clock.count(items, stage.name, sign=-1)) as fed:
        yield from clock.count(stage.work(fed), stage.name)


class Stopwatch:
    """Seconds that each stage works, without the time it waits for its input."""

    def __init__(self) -> None:
        self.seconds = Counter()
        self.started = time.perf_counter()

    def count(self, items: Iterable, name: str, sign: int = 1) -> Iterator:
        """Yield `items`; add the time that making them takes, times `sign`, to `seconds[name]`."""
        with _closing(items) as iterator:
            while True:
                begin = time.perf_counter()
                try:
                    item = next(iterator)
                except StopIteration:
                    return
                finally:
                    self.seconds[name] += sign * (time.perf_counter() - begin)
                yield item

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self.started


class _Stop(threading.Event):
    """Ends a stage and those before it, also a stage that waits for the one before it.

    What a stage has made and the next has not taken is dropped. The queues are those written in C:
    an exception of a signal handler, raised at any place, leaves none of their locks held.
    """

    def __init__(self, depth, before=None):
        super().__init__()
        self.made, self.room, self.before = queue.SimpleQueue(), queue.SimpleQueue(), before
        for _ in range(depth):
            self.room.put(None)

    def set(self):
        super().set()
        with suppress(queue.Empty):
            while True:
                self.made.get_nowait()
        self.made.put(END)
        self.room.put(None)  # the producer may wait for it
        if self.before is not None:
            self.before.set()


def prefetch(
    items: Iterable,
    depth: int,
    may_drop: Callable[[Any], bool] | None = None,
    stop: _Stop | None = None,
) -> Iterator:
    """Yield `items` in order, made by another thread that is at most `depth` items ahead.

    An exception of `items` is raised here, after the items before it. Closing this generator stops
    the thread and closes `items`.

    Args:
        may_drop: whether an item, such as a live frame, is discarded while `depth` items wait; the
            last of these before another item or the end is not.
        stop: with the queue of `depth` items; None: one of its own.
    """
    stop = stop or _Stop(depth)
    thread = threading.Thread(target=_make, args=(items, stop, may_drop), daemon=True)
    thread.start()
    try:
        while True:
            kind, value = stop.made.get()
            stop.room.put(None)
            if kind == 'end':
                return
            if kind == 'error':
                raise value
            yield value
    finally:
        stop.set()
        # Only what reads can hang: a camera. Other stages finish their item.
        thread.join(STOP_SECONDS if stop.before is None else None)


def _make(items, stop, may_drop):
    last, newest = [END], []
    try:
        with _closing(items) as iterator:
            for item in iterator:
                droppable = may_drop is not None and may_drop(item)
                if droppable and stop.room.empty():
                    newest = [('item', item)]
                else:
                    for entry in [('item', item)] if droppable else [*newest, ('item', item)]:
                        _put(entry, stop)
                    newest = []
                if stop.is_set():
                    break
    except BaseException as error:  # re-raised in the consumer
        last = [('error', error)]
    for entry in newest + last:
        _put(entry, stop)


def _put(entry, stop):
    if stop.is_set():
        return
    stop.room.get()
    if not stop.is_set():
        stop.made.put(entry)


def _closing(items):
    """`items` as an iterator, closed at the end if it can be."""
    iterator = iter(items)
    return closing(iterator) if hasattr(iterator, 'close') else nullcontext(iterator)
