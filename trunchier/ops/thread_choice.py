"""Number of threads of torch on a CPU that other processes use too: all, or one.

Threads wait for each other at the end of every operation. Where another process takes a core from
one of them, all wait, and one thread alone may be faster. Which one is, is measured.
"""

import os
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

WINDOW = 8  # steps between two decisions
TRIAL = 3  # steps with each number of threads, in turn
STARVED = 0.1  # share of the time that the thread waits for a core: other processes use them
SLOWER = 1.3  # times as long as usual
MARGIN = 0.95  # of the time with all threads, which one thread must beat
MAX_PATIENCE = 64  # windows


class ThreadChoice:
    """Chooses the number of threads of a task that repeats equal steps.

        with choice.step():
            ...

    The first steps and those that take longer than usual are examined: if the thread waits for a
    core at the same time, all threads and one alone are tried in turn, and the faster is kept.
    While no other process uses the cores, the number is never changed, nor where there is one
    thread or the user chose by OMP_NUM_THREADS.

    Attributes:
        alone: whether one thread does the work now.
    """

    def __init__(self):
        self.alone = False
        self._usual = None  # seconds of a step
        self._window, self._trial = [], None
        self._window_started = 0.0, None  # now, and `waited_for_core`
        self._patience, self._windows_alone = 1, 0  # windows alone before all are tried again
        self._most = self._started = None
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Before a step."""
        self._most = torch.get_num_threads()
        if self._most == 1 or 'OMP_NUM_THREADS' in os.environ:
            self._started = None
            return
        if self.alone:
            torch.set_num_threads(1)
        if not self._window:
            self._window_started = time.perf_counter(), waited_for_core()
        self._started = time.perf_counter()

    @contextmanager
    def step(self, size: int = 1) -> Iterator[None]:
        """Context of a step of `size` equal parts; of steps at the same time, one counts."""
        if not self._lock.acquire(blocking=False):
            yield
            return
        try:
            self.begin()
            yield
        finally:
            self.end(size)
            self._lock.release()

    @property
    def tries(self) -> bool:
        """Whether both are tried in turn now."""
        return self._trial is not None

    def end(self, size: int = 1) -> None:
        """After a step of `size` equal parts; torch has the threads of before again."""
        if self._started is None:
            return
        seconds = (time.perf_counter() - self._started) / max(size, 1)
        if self.alone:
            torch.set_num_threads(self._most)
        share = None
        if len(self._window) == WINDOW - 1:
            start, waited = self._window_started
            now = waited_for_core()
            if waited is not None and now is not None:
                share = (now - waited) / (time.perf_counter() - start)
        self.observe(seconds, share)

    def observe(self, seconds: float, share: float | None) -> None:
        """Take a step's duration into account.

        Args:
            share: of the time since the window's first step in which the thread waited for a core;
                None: unknown. Used at the end of a window.
        """
        if self._trial is not None:
            self._trial[self.alone].append(seconds)
            self.alone = not self.alone
            if len(self._trial[True]) == TRIAL:
                self._decide(*(statistics.median(self._trial[alone]) for alone in (False, True)))
            return
        self._window.append(seconds)
        if len(self._window) < WINDOW:
            return
        median, self._window = statistics.median(self._window), []
        first, falls = self._usual is None, self._usual and median > SLOWER * self._usual
        starved = falls if share is None else share > STARVED
        if starved and (first or falls):
            self._trial, self.alone = {False: [], True: []}, False
        elif self.alone and not starved:
            self._windows_alone += 1
            if self._windows_alone > self._patience:
                self.alone, self._usual = False, None
        else:
            self._usual = median if first else min(self._usual, median)
            if not starved:
                self._patience = 1

    def _decide(self, together, alone):
        """End of a trial: median seconds with all threads, and with one."""
        self.alone = alone < MARGIN * together
        self._usual, self._trial = alone if self.alone else together, None
        # Where cores are free only as long as one thread works, every return costs a trial.
        self._patience = min(2 * self._patience, MAX_PATIENCE) if self.alone else 1
        self._windows_alone = 0


def waited_for_core() -> float | None:
    """Seconds that this thread was ready to run while others had the cores; None: unknown."""
    try:
        return int(Path('/proc/thread-self/schedstat').read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return None


def share_of_waiting(seconds: float = 0.2) -> float | None:
    """Share of the time for which this thread, computing for some seconds, waits for a core."""
    start, waited = time.perf_counter(), waited_for_core()
    while (elapsed := time.perf_counter() - start) < seconds:
        pass
    now = waited_for_core()
    return None if waited is None or now is None else (now - waited) / elapsed
