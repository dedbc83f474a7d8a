"""A run over images, videos and cameras: threads, tracking and files around a predictor.

Reading, finding people, cropping, the network, decoding, tracking, drawing and saving overlap.
People are batched across frames, results come in order, and memory is bounded whatever the length.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from mmengine.structures import InstanceData, PixelData

from ..files.images import MAX_PIXELS
from . import detection, sources, tracking
from .pipeline import Batch, Begin, End, FrameTask, Stage, Stopwatch, batches
from .pipeline import run as run_stages
from .predictor import Predictor
from .results import Saver
from .screen import printable

log = logging.getLogger('trunchier')


class Run:
    """The stages of a prediction.

    Args:
        predictor: crops, runs and decodes.
        detector: function of a Frame to boxes (P, 5), see `detection`.
        batch_size: people per batch.
        track, smooth: see `tracking.track`.
        painter: function of an image and its PoseDataSample; None: nothing is drawn.
        saver: of results; None: nothing is saved.
        keep_images: keep the image in each FrameTask.
        live: drop frames that arrive while the pipeline is busy.
        max_pixels: of the largest image that is read.

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
        smooth: dict | None = None,
        painter: Callable | None = None,
        saver: Saver | None = None,
        keep_images: bool = False,
        live: bool = False,
        max_pixels: int = MAX_PIXELS,
    ):
        self.report = report = Report()
        waiting = dict(depth=1, may_drop=sources.Frame) if live else dict(depth=4)
        keep_images = keep_images or painter is not None
        stored = saver.stored if saver is not None else lambda source: ()
        options = dict(predictor=predictor, track=track, smooth=smooth, stored=stored)
        self.stages = [
            Stage(
                'read',
                partial(_read, report=report, saver=saver, max_pixels=max_pixels),
                **waiting,
            ),
            Stage('find people', partial(_find, detector=detector, report=report)),
            Stage('crop', partial(_crop, predictor=predictor, keep_images=keep_images)),
            Stage('batch', partial(batches, batch_size=batch_size), depth=1),
            Stage('network', partial(_forward, predictor=predictor), depth=1),
            Stage('decode', partial(_decode, predictor=predictor, report=report)),
            Stage('track', partial(tracking.track, **options)),
        ]
        if painter is not None:
            self.stages.append(Stage('draw', partial(_draw, painter=painter)))
        if saver is not None:
            self.stages.append(Stage('save', partial(_save, saver=saver)))

    def __call__(self, found: Iterable[sources.Source]) -> Iterator[FrameTask]:
        """Frames with their results, in order."""
        clock = Stopwatch()
        self.report.seconds = clock.seconds
        with closing(run_stages(self.stages, found, clock)) as items:
            for item in items:
                self.report.elapsed = clock.elapsed
                if isinstance(item, FrameTask):
                    self.report.frames += 1
                    self.report.people += len(item.result.pred_instances)
                    yield item


@dataclass
class Report:
    """Summary of a run. `skipped`: (where, why) of what could not be predicted."""

    frames: int = 0
    people: int = 0
    done_before: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    seconds: Counter = field(default_factory=Counter)
    elapsed: float = 0.0

    def skip(self, where: object, why: object) -> None:
        why = str(why).removeprefix(f'{where}: ')
        self.skipped.append((str(where), why))
        log.warning('skipped %s: %s', printable(where), printable(why))

    def __str__(self) -> str:
        rate = self.frames / self.elapsed if self.elapsed else 0.0
        lines = [
            f'{_count(self.frames, "frame", "frames")}, '
            f'{_count(self.people, "person", "people")} in {self.elapsed:.1f} s: '
            f'{rate:.1f} frames per second'
        ]
        if self.seconds:
            shares = (
                f'{name} {seconds:.1f} s ({100 * seconds / max(self.elapsed, 1e-9):.0f} %)'
                for name, seconds in self.seconds.most_common()
            )
            lines.append('busy time of the stages, which overlap: ' + ', '.join(shares))
        if self.done_before:
            lines.append(f'{self.done_before} frames or images were done before')
        if self.skipped:
            lines.append(f'{len(self.skipped)} skipped:')
            lines += [f'  {printable(where)}: {printable(why)}' for where, why in self.skipped[:20]]
            if len(self.skipped) > 20:
                lines.append(f'  ... and {len(self.skipped) - 20} more')
        return '\n'.join(lines)


def _count(number, one, many):
    return f'{number} {one if number == 1 else many}'


# --- Stages, in order -----------------------------------------------------------------------------
def _read(found, report, saver, max_pixels):
    """Sources -> Begin, Frames and End of each that is not done yet."""
    for source in found:
        if saver is not None and saver.is_done(source):
            report.done_before += 1
            continue
        try:
            begin = Begin(source)
            if source.moves:
                begin.fps, _ = sources.video_info(source)
                begin.start = saver.frames_done(source) if saver is not None else 0
                report.done_before += begin.start
            yield begin
            for frame in sources.read(source, begin.start, max_pixels):
                if isinstance(frame, sources.Unreadable):
                    report.skip(source.name, frame)
                else:
                    yield frame
        except sources.Unreadable as error:
            report.skip(source.path or source.name, error)
        yield End(source)


def _find(items, detector, report):
    """Frames -> FrameTasks with boxes."""
    live = 0
    for item in items:
        if not isinstance(item, sources.Frame):
            yield item
            continue
        if item.source.kind == 'camera':  # number the frames that were not dropped
            item, live = replace(item, index=live), live + 1
        shape, boxes = item.image.shape[:2], detector(item)
        usable = detection.usable(boxes, shape)
        for box in boxes[~usable]:
            report.skip(
                f'{item.source.name}, frame {item.index}',
                f'the box {box[:4].tolist()} is empty, not finite, too far or outside of the image',
            )
        yield FrameTask(item, shape, boxes[usable])


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
                task.crops[index], task.people[index] = None, person
        for item in batch.items:
            if isinstance(item, FrameTask):
                item.result = _result(item, predictor, report)
            yield item


def _result(task, predictor, report):
    """The frame's PoseDataSample; people whose prediction is not finite are left out."""
    from mmpose.structures import PoseDataSample

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
    result = PoseDataSample()
    result.pred_instances = InstanceData(
        **(some or none), bboxes=task.boxes[finite, :4], bbox_scores=task.boxes[finite, 4]
    )
    if people and 'heatmaps' in people[0]:
        heatmaps = np.max([person['heatmaps'] for person in people], axis=0)
        result.pred_fields = PixelData(heatmaps=heatmaps)
    of_frame = dict(img_path=frame.source.path, source=frame.source.name)
    of_frame |= dict(frame_id=frame.index, time=frame.time)
    shape = dict(ori_shape=task.shape, img_shape=task.shape)
    result.set_metainfo(of_frame | shape | predictor.metainfo(task.shape, frame.focal))
    return result


def _draw(items, painter):
    for item in items:
        if isinstance(item, FrameTask):
            item.drawing = painter(item.frame.image, item.result)
        yield item


def _save(items, saver):
    try:
        for item in items:
            if isinstance(item, Begin) and item.source.moves:
                saver.start(item.source, item.fps)
            elif isinstance(item, End):
                saver.finish()
            elif isinstance(item, FrameTask):
                saver.add(item.frame, item.result, item.drawing, item.raw)
            yield item
    finally:
        saver.interrupt()  # nothing is left to do after the last End
