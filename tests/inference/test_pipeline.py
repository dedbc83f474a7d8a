"""Stages overlap and keep order, errors and threads; batches hold back no frame for long."""

import threading
import time

import numpy as np
import pytest
from interrupted import interrupted_at

from trunchier.inference import pipeline
from trunchier.inference.pipeline import Begin, End, FrameTask, Stage
from trunchier.inference.sources import Frame, Source

PATIENCE = 30  # seconds that a broken test waits


def test_items_come_in_order():
    assert list(pipeline.prefetch(range(100), 3)) == list(range(100))


def test_stages_work_at_the_same_time():
    """Each stage waits, with an item in hand, until all three have one."""
    meeting = threading.Barrier(3, timeout=PATIENCE)

    def source():
        yield from range(20)

    def first(items):
        yield 0  # so that the next stage has an item while this one waits
        meeting.wait()
        yield from items

    def second(items):
        yield next(items)
        meeting.wait()
        yield from items

    def third(items):
        next(items)
        meeting.wait()
        yield from items

    stages = [Stage(work.__name__, work) for work in (first, second, third)]
    assert list(pipeline.run(stages, source(), pipeline.Stopwatch())) == list(range(20))
    assert not meeting.broken


def test_no_stage_runs_far_ahead():
    made, full = [], threading.Event()

    def items():
        for item in range(100):
            made.append(item)
            if len(made) == 1 + 3 + 1:  # fetched, waiting, and in hand
                full.set()
            yield item

    stage = pipeline.prefetch(items(), 3)
    next(stage)
    assert full.wait(PATIENCE) and len(made) == 5
    assert next(stage) == 1 and next(stage) == 2
    stage.close()
    assert len(made) <= 3 + 3 + 1


def test_an_error_is_raised_after_the_items_before_it():
    def items():
        yield 1
        raise OSError('disk full')

    stage = pipeline.prefetch(pipeline.prefetch(items(), 2), 2)
    assert next(stage) == 1
    with pytest.raises(OSError, match='disk full'):
        next(stage)


def forward(items):
    yield from items


def test_closing_ends_every_thread_and_closes_the_input():
    closed = []

    def items():
        try:
            while True:
                yield 1
        finally:
            closed.append(True)

    before = threading.active_count()
    stages = [Stage('one', forward), Stage('two', forward), Stage('three', forward)]
    last = pipeline.run(stages, items(), pipeline.Stopwatch())
    next(last)
    assert threading.active_count() == before + 3
    last.close()
    assert closed == [True] and threading.active_count() == before


def test_closing_ends_stages_that_wait_for_one_that_hangs():
    """A camera that sends nothing more: the stages after it end, and what they hold is closed."""
    hangs, ended, release = threading.Event(), [], threading.Event()

    def camera():
        yield 1
        hangs.set()
        release.wait(PATIENCE)

    def saved(items):
        try:
            yield from items
        finally:
            ended.append(True)

    stages = [Stage('read', forward), Stage('draw', forward), Stage('save', saved)]
    last = pipeline.run(stages, camera(), pipeline.Stopwatch())
    assert next(last) == 1 and hangs.wait(PATIENCE)
    last.close()
    assert ended == [True] and not release.is_set()
    release.set()


def test_closing_ends_a_stage_that_takes_more_than_the_full_queue_before_it_holds():
    """Decoding a crowd: many batches that complete no frame."""
    ahead, closed = threading.Event(), threading.Event()

    def items():
        try:
            for item in range(10**9):
                if item == 3:  # one was taken, two wait, and this one will be in hand
                    ahead.set()
                yield item
        finally:
            closed.set()

    def crowd(items):
        yield next(items)
        assert closed.wait(PATIENCE)  # until the stages before have ended
        for _ in items:
            pass

    stages = [Stage('one', forward), Stage('crowd', crowd)]
    last = pipeline.run(stages, items(), pipeline.Stopwatch())
    assert next(last) == 0 and ahead.wait(PATIENCE)
    closing = threading.Thread(target=last.close, daemon=True)
    closing.start()
    closing.join(PATIENCE)
    assert closed.is_set() and not closing.is_alive()


def test_closing_ends_a_source_whose_items_are_dropped():
    closed = []

    def camera():
        try:
            while not release.is_set():
                made.append(1)
                if len(made) == 9:
                    dropping.set()
                yield 1
        finally:
            closed.append(True)

    made, dropping, release = [], threading.Event(), threading.Event()
    stage = pipeline.prefetch(camera(), 1, may_drop=lambda item: True)
    assert next(stage) == 1 and dropping.wait(PATIENCE)
    stage.close()
    try:
        assert closed == [True]
    finally:
        release.set()


def test_every_thread_ends_wherever_a_signal_interrupts_the_loop():
    def interrupt_everywhere():
        while True:
            stage = pipeline.prefetch(range(20), 1)
            next(stage)
            if not interrupted_at(len(moments) + 1, stage):
                break
            moments.append(True)
        ended.set()

    moments, ended, before = [], threading.Event(), threading.active_count()
    threading.Thread(target=interrupt_everywhere, daemon=True).start()
    assert ended.wait(PATIENCE), f'it hangs, interrupted at line {len(moments) + 1}'
    assert len(moments) > 50 and threading.active_count() <= before + 1


def test_an_error_in_a_stage_ends_every_thread():
    def broken(items):
        next(items)
        raise ValueError('broken')

    before = threading.active_count()
    stages = [Stage('one', forward), Stage('broken', broken), Stage('three', forward)]
    with pytest.raises(ValueError, match='broken') as error:
        next(pipeline.run(stages, iter(int, 1), pipeline.Stopwatch()))
    assert threading.active_count() <= before, error  # one of another test may end meanwhile


def test_only_live_images_but_the_last_are_dropped_while_the_queue_is_full():
    class Image(int):
        pass

    made = threading.Event()

    def items():
        yield 'begin'
        for i in range(50):
            yield Image(i)
        made.set()
        yield 'end'

    stage = pipeline.prefetch(items(), 1, may_drop=lambda item: isinstance(item, Image))
    found = [next(stage)]
    assert made.wait(PATIENCE)
    found += list(stage)
    assert found[0] == 'begin' and found[-2:] == [49, 'end'] and len(found) <= 5


def test_the_stopwatch_counts_work_without_waiting(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, 'perf_counter', lambda: now[0])
    clock = pipeline.Stopwatch()

    def slow(items, seconds):
        for item in items:
            now[0] += seconds
            yield item

    read = clock.count(slow(range(3), 1.0), 'read')
    draw = clock.count(slow(clock.count(read, 'draw', sign=-1), 10.0), 'draw')
    assert list(draw) == [0, 1, 2]
    assert clock.seconds == {'read': 3.0, 'draw': 30.0} and clock.elapsed == 33.0


# --- batches --------------------------------------------------------------------------------------
def task(people, shape=(4, 4), kind='image', index=0):
    image = np.zeros((*shape, 3), np.uint8)
    return FrameTask(Frame(image, Source('a', kind), index), crops=list(range(people)))


def batches(items, size):
    return [(len(batch.crops), len(batch.items)) for batch in pipeline.batches(iter(items), size)]


def test_people_are_batched_across_frames_and_crowds_over_batches():
    assert batches([task(1), task(2), task(1), task(5), task(1)], 4) == [(4, 3), (4, 0), (2, 2)]


def test_every_item_passes_once_in_order_with_its_last_crop():
    items = [
        Begin(Source('a', 'image')),
        task(3),
        task(0),
        task(9),
        End(Source('a', 'image')),
        task(2),
    ]
    passed, crops = [], []
    for batch in pipeline.batches(iter(items), 4):
        crops += batch.crops
        passed += batch.items
        for item in batch.items:
            if isinstance(item, FrameTask):
                assert {index for each, index in crops if each is item} == set(item.crops)
    assert passed == items


def test_frames_without_people_do_not_accumulate():
    assert max(items for _, items in batches([task(0)] * 100, 2)) <= 8


def test_large_images_and_live_ones_do_not_wait_for_a_full_batch(monkeypatch):
    monkeypatch.setattr(pipeline, 'HELD_BYTES', 1000)
    assert batches([task(1, (20, 10))] * 4, 64) == [(2, 2), (2, 2)]
    assert batches([task(1, kind='camera')] * 3, 64) == [(1, 1)] * 3
