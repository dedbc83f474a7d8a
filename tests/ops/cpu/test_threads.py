"""Kernels on several threads: each part of the work is done once, and callers do not interfere."""

import sys
import threading

import numpy as np
import pytest

pytest.importorskip('numba')

from trunchier.ops.cpu import threads as module  # noqa: E402
from trunchier.ops.cpu.compile import compiled  # noqa: E402
from trunchier.ops.cpu.threads import (  # noqa: E402
    MIN_PARALLEL_CYCLES,
    in_parallel,
    openmp_addresses,
    thread_pool,
    thread_range,
)


@compiled
def count_calls_and_items(thread, num_threads, counts, noted):
    counts[thread] += 1
    noted[thread] = num_threads
    first, end = thread_range(thread, num_threads, len(counts))
    for i in range(first, end):
        counts[i] += 10


@compiled
def start(pool, *arguments):
    in_parallel(count_calls_and_items, pool, arguments)


@pytest.mark.parametrize('threads', [1, 2, 5], indirect=True)
def test_every_part_of_the_work_is_done_once(threads):
    counts, noted = np.zeros((2, 5), np.int64)
    pool = thread_pool(MIN_PARALLEL_CYCLES + 1)
    start(pool, counts, noted)
    assert pool.threads == (threads if openmp_addresses() else 1)
    assert noted[: pool.threads].tolist() == [pool.threads] * pool.threads
    assert counts.tolist() == [11] * pool.threads + [10] * (5 - pool.threads)


@pytest.mark.parametrize('threads', [2], indirect=True)
@pytest.mark.skipif(sys.platform != 'linux', reason='torch has GNU OpenMP on Linux')
def test_torchs_own_threads_take_part(threads):
    assert thread_pool(MIN_PARALLEL_CYCLES + 1).threads == 2


@pytest.mark.skipif(sys.platform != 'linux', reason='torch has GNU OpenMP on Linux')
def test_threads_are_found_where_torch_hides_them_from_the_process(monkeypatch):
    """As its wheels for aarch64 do."""
    expected, found_in = openmp_addresses(), module.addresses_in

    def hidden(library):
        if library is None:
            raise AttributeError('undefined symbol: GOMP_parallel')
        return found_in(library)

    monkeypatch.setattr(module, 'addresses_in', hidden)
    openmp_addresses.cache_clear()
    try:
        assert openmp_addresses() == expected is not None
    finally:
        openmp_addresses.cache_clear()


@pytest.mark.parametrize('threads', [2], indirect=True)
def test_little_work_is_not_divided(threads):
    assert thread_pool(MIN_PARALLEL_CYCLES).threads == 1


@pytest.mark.parametrize('threads', [2], indirect=True)
def test_without_openmp_one_thread_does_all_the_work(threads, monkeypatch):
    monkeypatch.setattr(module, 'openmp_addresses', lambda: None)
    counts, noted = np.zeros((2, 3), np.int64)
    start(thread_pool(10**9), counts, noted)
    assert counts.tolist() == [11, 10, 10] and noted[0] == 1


@pytest.mark.parametrize('threads', [2], indirect=True)
def test_callers_in_several_threads_do_not_disturb_each_other(threads):
    all_counts = [np.zeros(2, np.int64) for _ in range(4)]

    def call(counts):
        for _ in range(200):
            start(thread_pool(10**9), counts, np.zeros(2, np.int64))

    callers = [threading.Thread(target=call, args=(counts,)) for counts in all_counts]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    used = thread_pool(10**9).threads
    expected = [2200] * used + [2000] * (2 - used)
    assert [counts.tolist() for counts in all_counts] == [expected] * 4
