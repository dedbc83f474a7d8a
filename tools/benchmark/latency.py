"""Milliseconds from a frame to its results, one at a time, and frames/s with overlapped stages.

Both pass the stages of `trunchier predict`, without drawing and saving, in the same rounds as the
network alone at the same batch size, which is the number of people.
"""

import argparse
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmark.pipeline import write_clip
from benchmark.report import Table, progress
from benchmark.timing import interleaved
from trunchier.deploy.fuse import DEPLOYED
from trunchier.inference import sources
from trunchier.inference.detection import make_detector
from trunchier.inference.inferencer import Inferencer
from trunchier.inference.pipeline import Stage
from trunchier.inference.run import Run
from trunchier.models.create import create_model
from trunchier.weights.find import find_config

PERCENTS = (50, 95, 99)
SHAPE = (720, 1280)  # (H, W) of a frame


def add_arguments(add: Callable) -> None:
    add('--model', default='VMPose-T-S2', metavar='NAME', help='default: VMPose-T-S2')
    add('--frames', type=int, default=40, metavar='N', help='of 1280 x 720, a round (default: 40)')
    add('--people', nargs='+', type=int, default=[1, 4], metavar='N', help='default: 1 4')
    add('--detector', metavar='FILE', help='ONNX file of a detector, which runs in each frame')
    add('--precision', choices=DEPLOYED, default='fp32')


def run(args: argparse.Namespace) -> Table:
    found = find_config(args.model)
    detector = make_detector(args.detector or 'whole_image', args.device)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        weights, clip = Path(folder, 'random.pth'), Path(folder, 'clip.mp4')
        torch.save(dict(state_dict=create_model(args.model).state_dict()), weights)
        write_clip(clip, args.frames, SHAPE)
        inferencer = Inferencer(
            args.model, str(weights), device=args.device, precision=args.precision,
            detector='whole_image',
        )  # fmt: skip
        for people in args.people:
            rows.append(time_frames(inferencer.predictor, detector, str(clip), people, args))
            progress(f'{people} people')
    columns = dict(people='people', alone='network alone ms')
    columns |= {f'p{each}': f'p{each} ms' for each in PERCENTS}
    columns |= dict(
        rate='overlapped frames/s', share='share of the network alone', spread='+- %',
        stages='busy ms a frame, overlapped',
    )  # fmt: skip
    detects = f'{Path(args.detector).name} runs' if args.detector else 'no detector runs'
    notes = [
        'p: percentiles of the time from a decoded frame to its results, while no other frame is '
        f'in work ({args.frames * args.rounds} frames); {detects} in each frame, boxes are given. '
        'Overlapped: as fast as the video goes, decoding included; share: relative to the frames/s '
        'of the network alone'
    ]
    title = f'Latency, {found.name}, {args.precision}, video of {SHAPE[1]} x {SHAPE[0]}'
    return Table(title, columns, rows, notes)


def time_frames(
    predictor, detector: Callable, clip: str, people: int, args: argparse.Namespace
) -> dict:
    """The row of a number of people in each frame."""
    lefts = [100 + 700 * index / people for index in range(people)]
    boxes = np.array([[left, 60, left + 400, 700, 1] for left in lefts])
    image = np.zeros((*SHAPE, 3), np.uint8)
    pixels = [predictor.crop(image, box).pixels for box in boxes]
    images = predictor.normalize(torch.stack(pixels).to(args.device))
    waits, reports = [], []

    def find_people(frame):
        detector(frame)
        return boxes.copy()

    def frames(one_at_a_time):
        stages = Run(predictor, find_people, people, track=False)
        found = sources.find(clip)
        if one_at_a_time:
            waits.extend(latencies(stages, found))
        else:
            for _ in stages(found):
                pass
            reports.append(stages.report)

    @torch.no_grad()
    def alone():
        predictor.compute(images)

    tasks = dict(alone=alone, one=partial(frames, True), all=partial(frames, False))
    times = interleaved(tasks, args.rounds, args.seconds, args.device)
    alone, overlapped = times['alone'], times['all']
    seconds = reports[-1].seconds.most_common(4)
    row = dict(people=people, alone=1e3 * alone.median, rate=args.frames / overlapped.median)
    row |= dict(share=args.frames * alone.median / overlapped.median)
    row |= dict(spread=100 * max(alone.spread, overlapped.spread))
    row |= dict(stages=', '.join(f'{name} {1e3 * s / args.frames:.1f}' for name, s in seconds))
    measured = waits[-args.rounds * args.frames :]  # without the warm-up
    return row | {f'p{each}': 1e3 * float(np.percentile(measured, each)) for each in PERCENTS}


def latencies(run: Run, found: Iterable[sources.Source]) -> list[float]:
    """Seconds from each decoded frame to its results; a frame waits until the last one is done."""
    free, began, seconds = threading.Semaphore(), [], []

    def admit(items: Iterator) -> Iterator:
        for item in items:
            if isinstance(item, sources.Frame):
                free.acquire()
                began.append(time.perf_counter())
            yield item

    names = [stage.name for stage in run.stages]
    run.stages.insert(names.index('read') + 1, Stage('admit', admit))
    for _ in run(found):
        seconds.append(time.perf_counter() - began[-1])
        free.release()
    return seconds
