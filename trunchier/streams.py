"""Stages of work that overlap: each in a thread of its own, a bounded step ahead of the next."""

import queue
import threading
import time
from collections import Counter
from contextlib import contextmanager

PATIENCE = 0.1  # seconds between looks at whether a stage is still wanted


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


def ahead(items, depth, newest=False):
    """Pass `items` on in order, made by another thread that is at most `depth` items ahead.

    An exception there is raised here, in its place. When this generator is closed, the thread
    stops, and `items` is closed.

    Args:
        newest: for live pictures: what is not fetched in time is dropped, not waited for.
    """
    made, unwanted = queue.Queue(depth), threading.Event()
    thread = threading.Thread(target=_make, args=(items, made, unwanted, newest), daemon=True)
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


def _make(items, made, unwanted, newest):
    iterator = iter(items)
    last = ('end', None)
    try:
        for item in iterator:
            if not _put(made, ('item', item), unwanted, newest):
                break
    except BaseException as error:  # also KeyboardInterrupt: it belongs to whoever waits
        last = ('error', error)
    finally:
        _close(iterator)
        _put(made, last, unwanted, False)


def _put(made, entry, unwanted, newest):
    """Whether the entry is in the queue: not if nobody wants it any more."""
    while not unwanted.is_set():
        try:
            made.put(entry, timeout=PATIENCE if not newest else 0)
            return True
        except queue.Full:
            if newest:
                _drop_oldest(made)
    return False


def _drop_oldest(made):
    try:
        made.get_nowait()
    except queue.Empty:
        return


def _close(iterator):
    close = getattr(iterator, 'close', None)
    if close is not None:
        close()
