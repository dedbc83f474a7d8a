"""Stages overlap without losing order, errors or threads; batches hold back no frame for long."""

import threading
import time

import numpy as np
import pytest

from trunchier.inference import pipeline
from trunchier.inference.pipeline import Begin, End, Job
from trunchier.inference.sources import Frame, Source


def test_items_come_in_order():
    assert list(pipeline.ahead(range(100), 3)) == list(range(100))


def test_stages_work_at_the_same_time():
    def slow(items):
        for item in items:
            time.sleep(0.02)
            yield item

    begin = time.perf_counter()
    assert list(slow(pipeline.ahead(slow(pipeline.ahead(slow(range(20)), 2)), 2))) == list(
        range(20)
    )
    assert time.perf_counter() - begin < 0.8 * 3 * 20 * 0.02


def test_no_stage_runs_far_ahead():
    made = []

    def items():
        for item in range(100):
            made.append(item)
            yield item

    stage = pipeline.ahead(items(), 3)
    next(stage)
    time.sleep(0.3)
    assert len(made) <= 1 + 3 + 1  # fetched, waiting, and in hand
    stage.close()


def test_an_error_comes_out_after_what_was_made_before_it():
    def items():
        yield 1
        raise OSError('disk full')

    stage = pipeline.ahead(pipeline.ahead(items(), 2), 2)
    assert next(stage) == 1
    with pytest.raises(OSError, match='disk full'):
        next(stage)


def test_closing_ends_every_thread_and_closes_what_it_reads():
    closed = []

    def items():
        try:
            while True:
                yield 1
        finally:
            closed.append(True)

    before = threading.active_count()
    stage = pipeline.ahead(pipeline.ahead(items(), 2), 2)
    next(stage)
    stage.close()
    assert closed == [True] and threading.active_count() == before


def test_live_pictures_are_dropped_not_queued_but_nothing_else_is():
    class Picture(int):
        pass

    def items():
        yield 'begin'
        for i in range(50):
            yield Picture(i)
        time.sleep(0.3)
        yield 'end'

    stage = pipeline.ahead(items(), 1, may_drop=Picture)
    time.sleep(0.2)
    found = list(stage)
    assert found[0] == 'begin' and found[-1] == 'end' and len(found) < 10


def test_the_stopwatch_counts_work_and_not_waiting():
    clock = pipeline.Stopwatch()

    def items():
        time.sleep(0.05)
        yield 1

    for _ in clock.items(items(), 'read'):
        time.sleep(0.2)
    with clock('draw'):
        time.sleep(0.05)
    assert 0.05 <= clock.seconds['read'] < 0.15 and 0.05 <= clock.seconds['draw'] < 0.15


# --- batches -----------------------------------------------------------------------------------


def job(people, shape=(4, 4), kind='image', index=0):
    image = np.zeros((*shape, 3), np.uint8)
    return Job(Frame(image, Source('a', kind), index), crops=list(range(people)))


def loads(items, size):
    return [(len(load.crops), len(load.items)) for load in pipeline.batches(iter(items), size)]


def test_people_are_batched_across_frames_and_crowds_over_batches():
    assert loads([job(1), job(2), job(1), job(5), job(1)], 4) == [(4, 3), (4, 0), (2, 2)]


def test_every_item_passes_once_in_order_with_its_last_crop():
    items = [Begin(Source('a', 'image')), job(3), job(0), job(9), End(Source('a', 'image')), job(2)]
    passed, crops = [], []
    for load in pipeline.batches(iter(items), 4):
        crops += load.crops
        passed += load.items
        for item in load.items:
            if isinstance(item, Job):
                assert {place for each, place in crops if each is item} == set(item.crops)
    assert passed == items


def test_frames_without_people_do_not_pile_up():
    assert max(items for _, items in loads([job(0)] * 100, 2)) <= 8


def test_large_pictures_and_live_ones_do_not_wait_for_a_full_batch(monkeypatch):
    monkeypatch.setattr(pipeline, 'HELD_BYTES', 1000)
    assert loads([job(1, (20, 10))] * 4, 64) == [(2, 2), (2, 2)]
    assert loads([job(1, kind='camera')] * 3, 64) == [(1, 1)] * 3
