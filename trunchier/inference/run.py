"""A run over images, videos and cameras: threads, tracking and files around a predictor.

Reading, finding people, cropping, the network, decoding, tracking, drawing and saving overlap.
People are batched across frames, results come in order, and memory is bounded whatever the length.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..files.images import MAX_PIXELS
from . import detection, sources, tracking, windows
from .pipeline import HELD_BYTES, Batch, Begin, End, FrameTask, Stage, Stopwatch, batches
from .pipeline import run as run_stages
from .results import Saver
from .samples import HeatmapsOfFrame, InstancesOfFrame
from .screen import printable
from .smoothing import Smoother

if TYPE_CHECKING:
    from .predictor import Predictor

log = logging.getLogger('trunchier')


class Run:
    """The stages of a prediction.

    Args:
        predictor: crops, runs and decodes.
        detector: function of a Frame to boxes (P, 5), see `detection`.
        batch_size: people per batch.
        track: see `tracking.track`.
        smooth: options of `tracking.TrackSmoother`, or a name of `smoothing.METHODS`.
        painter: function of an image and its PoseDataSample; None: nothing is drawn.
        saver: of results; None: nothing is saved.
        keep_images: keep the image in each FrameTask.
        live: cameras are among the sources; read only one frame ahead. Their frames that arrive
            while the pipeline is busy are dropped in any case.
        max_pixels: of the largest image that is read.
        frames: indices of those of videos and cameras to predict.
        detector_every: find people in the first of so many frames of a video; between these, their
            boxes are interpolated, and a camera's people stay where they were found.

    Attributes:
        stages: list of `pipeline.Stage`, which may be changed before the run starts. A stage after
            'decode' gets Begin, FrameTask with `result`, and End; it may hold frames back.
        report: Report, complete when the run is.
    """

    def __init__(
        self,
        predictor: Predictor,
        detector: Callable = detection.whole_image,
        batch_size: int = 8,
        track: bool | None = None,
        smooth: dict | str | None = None,
        painter: Callable | None = None,
        saver: Saver | None = None,
        keep_images: bool = False,
        live: bool = False,
        max_pixels: int = MAX_PIXELS,
        frames: range = sources.EVERY_FRAME,
        detector_every: int = 1,
    ):
        self.report = report = Report()
        self.saver = saver
        keep_images = keep_images or painter is not None
        stored = saver.stored if saver is not None else lambda source: ()
        model = getattr(predictor, 'windows', None)  # not of exported files
        needed = smooth is not None
        limits = dict(max_pixels=max_pixels, frames=frames)
        finding = dict(detector=detector, every=detector_every, stored=stored)
        self.stages = [
            Stage(
                'read',
                partial(_read, report=report, saver=saver, **limits),
                depth=1 if live else 4,
                may_drop=_is_live,
            ),
            Stage('find people', partial(_find, report=report, **finding)),
            Stage('crop', partial(_crop, predictor=predictor, keep_images=keep_images)),
            Stage('batch', partial(batches, batch_size=batch_size), depth=1),
            Stage('network', partial(_forward, predictor=predictor), depth=1),
            Stage('decode', partial(_decode, predictor=predictor, report=report)),
            Stage('track', partial(tracking.track, track=track, needed=needed, stored=stored)),
        ]
        if model is not None:
            options = dict(model=model, stored=stored, causal=predictor.causal)
            self.stages.append(Stage('windows', partial(windows.over_windows, **options)))
        if isinstance(smooth, str):
            options = dict(model=Smoother(smooth, predictor), stored=stored, causal=False)
            self.stages.append(Stage('smooth', partial(windows.over_windows, **options)))
        elif smooth is not None:
            options = dict(predictor=predictor, smooth=smooth, stored=stored)
            self.stages.append(Stage('smooth', partial(tracking.smooth, **options)))
        if painter is not None:
            self.stages.append(Stage('draw', partial(_draw, painter=painter)))
        if saver is not None:
            self.stages.append(Stage('save', partial(_save, saver=saver, report=report)))

    def __call__(self, found: Iterable[sources.Source]) -> Iterator[FrameTask]:
        """Frames with their results, in order."""
        clock = Stopwatch()
        self.report.seconds = clock.seconds
        locked = nullcontext() if self.saver is None else self.saver.locked()
        with locked, closing(run_stages(self.stages, found, clock)) as items:
            for item in items:
                self.report.elapsed = clock.elapsed
                if isinstance(item, FrameTask):
                    self.report.frames += 1
                    self.report.images += not item.frame.source.moves
                    self.report.people += len(item.result.pred_instances)
                    yield item


@dataclass
class Report:
    """Summary of a run.

    Attributes:
        frames, images: predicted; `images` are those frames that are not of videos and cameras.
        people: in them.
        done_before: frames that an earlier run has predicted.
        files: written, without those of single frames and people.
        skipped: (where, why) of what could not be predicted.
        seconds: that each stage worked. They overlap.
        elapsed: seconds in all.
    """

    frames: int = 0
    images: int = 0
    people: int = 0
    done_before: int = 0
    files: list[Path] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    seconds: Counter = field(default_factory=Counter)
    elapsed: float = 0.0

    def skip(self, where: object, why: object) -> None:
        why = str(why).removeprefix(f'{where}: ')
        self.skipped.append((str(where), why))
        log.warning('skipped %s: %s', printable(where), printable(why))

    def __str__(self) -> str:
        frames = ('image', 'images') if self.images == self.frames else ('frame', 'frames')
        text = f'{_count(self.people, "person", "people")} in {_count(self.frames, *frames)}'
        text += f', {self.elapsed:.1f} s'
        if self.frames > 1 and self.elapsed:
            text += f' ({self.frames / self.elapsed:.1f} {frames[1]} per second)'
        if self.done_before:
            text += f'; {self.done_before} done before'
        if self.skipped:
            text += f'; {len(self.skipped)} skipped'
        return text

    def stages(self) -> str:
        """Busy time of the stages, one line."""
        shares = (
            f'{name} {seconds:.1f} s ({100 * seconds / max(self.elapsed, 1e-9):.0f} %)'
            for name, seconds in self.seconds.most_common()
        )
        return 'busy time of the stages, which overlap: ' + ', '.join(shares)


def _count(number, one, many):
    return f'{number} {one if number == 1 else many}'


# --- Stages, in order -----------------------------------------------------------------------------
def _read(found, report, saver, max_pixels, frames):
    """Sources -> Begin, Frames and End of each that is not done yet."""
    for source in found:
        if saver is not None and saver.is_done(source):
            report.done_before += 1
            continue
        try:
            begin = Begin(source, frames=frames)
            if source.moves:
                begin.fps = sources.video_info(source)[0] / frames.step
                begin.frames = saver.frames_left(source) if saver is not None else frames
                report.done_before += len(range(frames.start, begin.frames.start, frames.step))
            yield begin
            for frame in sources.read(source, begin.frames, max_pixels):
                if isinstance(frame, sources.Unreadable):
                    report.skip(source.name, frame)
                else:
                    yield frame
        except sources.Unreadable as error:
            report.skip(source.path or source.name, error)
        yield End(source)


def _is_live(item):
    return isinstance(item, sources.Frame) and item.source.kind == 'camera'


def _find(items, report, detector, every, stored):
    """Frames -> FrameTasks with boxes."""
    for item in _detect(items, detector, every, stored):
        if isinstance(item, FrameTask):
            usable = detection.usable(item.boxes, item.shape)
            for box in item.boxes[~usable]:
                report.skip(
                    f'{item.frame.source.name}, frame {item.frame.index}',
                    f'the box {box[:4].tolist()} is empty, not finite, too far or outside of the '
                    'image',
                )
            item.boxes = item.boxes[usable]
        yield item


def _detect(items, detector, every, stored):
    """Frames -> FrameTasks. Frames of a video wait for the next that people are found in."""
    live, waiting, last = 0, [], (None, None)  # what cannot be opened ends without beginning
    for item in items:
        if isinstance(item, Begin):
            live, last = 0, (None, None)
            step, done = item.frames.step, deque(stored(item.source) if every > 1 else (), every)
        elif isinstance(item, End):
            yield from _interpolated(waiting, last, detector)
            waiting = []
        if not isinstance(item, sources.Frame):
            yield item
            continue
        if item.source.kind == 'camera':  # number the frames that were not dropped
            item, live = replace(item, index=live), live + 1
        task = FrameTask(item, item.image.shape[:2])
        # Frames that wait are held in memory.
        span = step * min(every, max(1, HELD_BYTES // max(item.image.nbytes, 1)))
        if done:  # by an earlier run, which may have ended within a span
            block = done[-1][0] // span
            last = next((n, _boxes(record)) for n, record in done if n // span == block)
            done.clear()
        if not item.source.moves or last[0] is None or item.index // span != last[0] // span:
            task.boxes = detector(item)
            yield from _interpolated(waiting, last, None, item.index, task.boxes)
            last, waiting = (item.index, task.boxes), []
            yield task
        elif item.source.kind == 'camera':
            task.boxes = last[1].copy()
            yield task
        else:
            waiting.append(task)


def _interpolated(tasks, before, detector, index=None, boxes=None):
    """Tasks with boxes between those of two frames: (index, boxes) `before`, and `index, boxes`.

    Without these, people are found in the last of the tasks.
    """
    if tasks and index is None:
        index, boxes = tasks[-1].frame.index, detector(tasks[-1].frame)
    for task in tasks:
        share = (task.frame.index - before[0]) / (index - before[0])
        task.boxes = tracking.between(before[1], boxes, share)
        yield task


def _boxes(record):
    return np.float32(np.hstack([record['bboxes'], record['bbox_scores'][:, None]]))


def _crop(items, predictor, keep_images):
    for item in items:
        if isinstance(item, FrameTask):
            frame = item.frame
            item.crops = [predictor.crop(frame.image, box, frame.focal) for box in item.boxes]
            item.people = [None] * len(item.crops)
            if not keep_images:
                item.frame = replace(item.frame, image=None)
        yield item


def _forward(items: Iterator[Batch], predictor):
    """The network; its output may still be on its way from the GPU."""
    for batch in items:
        if batch.crops:
            batch.output = predictor.forward([task.crops[index] for task, index in batch.crops])
        yield batch


def _decode(items: Iterator[Batch], predictor, report):
    """Batches -> their items, with results."""
    for batch in items:
        if batch.crops:
            crops = [task.crops[index] for task, index in batch.crops]
            people = predictor.decode(batch.output, crops)
            for (task, index), person in zip(batch.crops, people, strict=True):
                task.crops[index] = None
                if predictor.finds_people:
                    task.boxes = np.float32([each['box'] for each in person]).reshape(-1, 5)
                    task.people = person
                else:
                    task.people[index] = person
        for item in batch.items:
            if isinstance(item, FrameTask):
                item.result = _result(item, predictor, report)
            yield item


def _result(task, predictor, report):
    """The frame's Result; people whose prediction is not finite are left out."""
    from .result import Result, paint_of

    frame, fields = task.frame, predictor.fields
    finite = [
        index
        for index, person in enumerate(task.people)
        if all(np.isfinite(person[name]).all() for name in fields)
    ]
    if lost := len(task.people) - len(finite):
        report.skip(
            f'{frame.source.name}, frame {frame.index}',
            f'{lost} of {len(task.people)} people: the network returned values that are not finite'
            + (f' in {predictor.precision}; try fp32' if predictor.precision != 'fp32' else ''),
        )
    people = [task.people[index] for index in finite]
    none = {name: np.empty((0, *shape), np.float32) for name, shape in fields.items()}
    some = {name: np.stack([person[name] for person in people]) for name in fields if people}
    result = Result(paint=paint_of(predictor))
    result.pred_instances = InstancesOfFrame(
        **(some or none), bboxes=task.boxes[finite, :4], bbox_scores=task.boxes[finite, 4]
    )
    if people and 'heatmaps' in people[0]:
        heatmaps = np.max([person['heatmaps'] for person in people], axis=0)
        result.pred_fields = HeatmapsOfFrame(heatmaps=heatmaps)
    of_frame = dict(img_path=frame.source.path, source=frame.source.name)
    of_frame |= dict(frame_id=frame.index, time=frame.time, moves=frame.source.moves)
    shape = dict(ori_shape=task.shape, img_shape=task.shape)
    names = dict(keypoint_names=predictor.keypoint_names)
    camera = predictor.metainfo(task.shape, frame.focal)
    result.set_metainfo(of_frame | shape | names | camera)
    return result


def _draw(items, painter):
    for item in items:
        if isinstance(item, FrameTask):
            item.drawing = painter(item.frame.image, item.result)
        yield item


def _save(items, saver, report):
    try:
        for item in items:
            if isinstance(item, Begin) and item.source.moves:
                saver.start(item.source, item.fps)
            elif isinstance(item, End):
                saver.finish()
            elif isinstance(item, FrameTask):
                saver.add(item.frame, item.result, item.drawing, item.raw)
            if isinstance(item, End):
                report.files += filter(Path.exists, saver.files(item.source))
            yield item
    finally:
        saver.interrupt()  # nothing is left to do after the last End
