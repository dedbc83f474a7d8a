"""Interleaved timing and peak memory."""

import argparse
import contextlib
import ctypes
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch


def interleaved(
    tasks: Mapping[Any, Callable],
    rounds: int = 7,
    at_least: float = 0.1,
    device: str | torch.device = 'cpu',
) -> dict:
    """Time tasks in turn, so that other load on the machine affects all of them alike.

    Each task is warmed up, then measured once per round; the order rotates from round to round.

    Args:
        tasks: {name: function without arguments}.
        at_least: minimum seconds of one measurement; short tasks are repeated.
        device: where the tasks run; CUDA is synchronized.

    Returns:
        {name: Times of one call}, in the order of `tasks`.
    """
    wait = torch.cuda.synchronize if torch.device(device).type == 'cuda' else lambda: None
    calls = {}
    for name, task in tasks.items():
        task()
        calls[name] = _calls_in(at_least, task, wait)
    times = {name: [] for name in tasks}
    names = list(tasks)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            times[name].append(_time(tasks[name], calls[name], wait))
    return {name: Times(seconds) for name, seconds in times.items()}


def measure(tasks: Mapping[Any, Callable], args: argparse.Namespace) -> dict[Any, dict]:
    """{name: dict(ms, spread in percent, megabytes)} of one call of each task, timed in turn.

    Args:
        args: device, rounds and seconds: the options of every command.
    """
    rows = {}
    for name, task in tasks.items():
        task()
        with peak_memory(args.device) as peak:
            task()
        rows[name] = dict(megabytes=peak() / 1e6)
    for name, times in interleaved(tasks, args.rounds, args.seconds, args.device).items():
        rows[name] |= dict(ms=1e3 * times.median, spread=100 * times.spread)
    return rows


def _calls_in(seconds, task, wait):
    """Number of calls of `task` that take `seconds`, at least 1; found by calling it."""
    calls = 1
    while True:
        spent = _time(task, calls, wait) * calls
        if spent >= seconds / 4 or calls > 10_000:
            return max(1, round(calls * seconds / max(spent, 1e-9)))
        calls *= 4


def _time(task, calls, wait):
    wait()
    start = time.perf_counter()
    for _ in range(calls):
        task()
    wait()
    return (time.perf_counter() - start) / calls


class Times:
    """Measured seconds, their median, and `spread`: half the interquartile range / median."""

    def __init__(self, seconds: list[float]):
        self.seconds = seconds
        self.median = statistics.median(seconds)
        self.spread = 0.0
        if len(seconds) > 1:
            low, _, high = statistics.quantiles(seconds, n=4, method='inclusive')
            self.spread = (high - low) / 2 / self.median


def seconds_each(
    function: Callable[[int], Any], num: int, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Median seconds of function(0) to function(num - 1), after a warm-up."""
    function(0)
    times = []
    for index in range(num):
        start = clock()
        function(index)
        times.append(clock() - start)
    return statistics.median(times)


@contextlib.contextmanager
def peak_memory(device: str | torch.device = 'cpu') -> Iterator[Callable]:
    """`with peak_memory() as peak`: afterwards `peak()` is the additional memory used, in bytes.

    On CUDA: memory allocated by torch. On the CPU: resident memory (Linux; elsewhere NaN).
    """
    result = []
    if torch.device(device).type == 'cuda':
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield lambda: result[0]
        torch.cuda.synchronize()
        result.append(torch.cuda.max_memory_allocated() - before)
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL('libc.so.6').malloc_trim(0)
        Path('/proc/self/clear_refs').write_text('5')  # resets the peak
    before = _status('VmRSS')
    yield lambda: result[0]
    result.append(_status('VmHWM') - before)


def _status(field):
    with contextlib.suppress(OSError):
        for line in Path('/proc/self/status').read_text().splitlines():
            if line.startswith(field + ':'):
                return 1024 * int(line.split()[1])
    return float('nan')
