"""Annotate inputs: a teacher's predictions of each and measures of their quality, in a part file.

A part is an .npz: arrays (P, ...) of its people (`inference.results.to_record` and MEASURES),
`frame` (P,) the index among its frames, and `about`, JSON text: names, sizes and cameras of its
frames, and errors.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..files import save_npz
from ..files.images import EXIF_REACH, MAX_PIXELS, is_turned
from ..inference import sources
from ..inference.pipeline import End, FrameTask, Stage
from ..inference.results import to_record
from ..inference.run import Run
from ..inference.writers import write_image
from .views import Views
from .work import Claims, Shard, Unit, Workplace, units

PEOPLE_PER_BATCH = 8
MEASURES = ('camera', 'agreement', 'fingerprint', 'overlap', 'excess', 'deviation')
CAMERA = ('focal_length', 'principal_point')
EVERYTHING = Shard()
IMAGES = 'images'  # folder of frames of videos, and of images that cannot be used as they are


@dataclass
class Progress:
    """What a worker has done.

    Attributes:
        done: inputs that it annotated; `before`: that were done before; `held`: that other living
            workers are at, with their names; `unreadable`: of which nothing could be read.
        people: found.
    """

    done: int = 0
    before: int = 0
    people: int = 0
    unreadable: int = 0
    held: dict[str, str] = field(default_factory=dict)


def annotate(
    inputs: list[str],
    work: Workplace,
    teacher: Views,
    detector: Callable,
    shard: Shard = EVERYTHING,
    take_over: bool = False,
    batch_size: int = PEOPLE_PER_BATCH,
    frames: range = sources.EVERY_FRAME,
    max_pixels: int = MAX_PIXELS,
    stale: float | None = None,
) -> Progress:
    """Annotate the inputs of a shard that are not done and that no living worker is at.

    Args:
        detector: function of a Frame to boxes (P, 5), see `inference.detection`.
        shard: share of the inputs.
        take_over: afterwards go on with the inputs of other shards.
        batch_size, frames, max_pixels: see `inference.run.Run`.
        stale: see `work.Claims`; None: its default.

    Raises:
        OSError: the disk is full, or another error of writing.
    """
    work.remember(inputs)
    progress = Progress()
    with Claims(work.claims, **({} if stale is None else dict(stale=stale))) as claims:
        waiting: dict[str, tuple[Unit, Path]] = {}  # claimed, with its part, by name of the source
        run = Run(
            teacher,  # type: ignore[arg-type]
            detector,
            batch_size,
            keep_images=True,
            max_pixels=max_pixels,
            frames=frames,
        )
        write = partial(_write, work=work, claims=claims, waiting=waiting, run=run)
        run.stages.append(Stage('write', partial(write, progress=progress)))
        todo = _todo(inputs, work, claims, shard, take_over, waiting, progress)
        for _ in run(todo):
            pass
    return progress


def _todo(inputs, work, claims, shard, take_over, waiting, progress):
    """Sources that this worker has claimed."""
    for own in (True, False) if take_over else (True,):
        for unit in units(inputs, work.out):
            if (unit.key in shard) is not own:
                continue
            path = work.part(unit)
            if path.exists():
                progress.before += own
            elif not claims.take(unit.key):
                progress.held[unit.file_name] = (
                    claims.holder(unit.key) or 'a worker that just ended'
                )
            elif path.exists():  # by a worker that has just let go
                claims.release(unit.key)
                progress.before += own
            else:
                waiting[unit.source.name] = unit, path
                yield unit.source


def _write(items: Iterable, work, claims, waiting, run, progress) -> Iterator:
    """Write the part of each source when it ends."""
    tasks: list[FrameTask] = []
    errors, seen = defaultdict(list), 0
    names: list[str] = []
    for item in items:
        if isinstance(item, FrameTask):
            unit, _ = waiting[item.frame.source.name]
            names.append(_file_name(item, unit, work.out))
            item.frame, item.people = replace(item.frame, image=None), []
            tasks.append(item)
        elif isinstance(item, End):
            unit, path = waiting.pop(item.source.name)
            skipped = run.report.skipped
            while seen < len(skipped):
                where, why = skipped[seen]
                errors[re.sub(r', frame \d+$', '', where)].append(why)
                seen += 1
            reasons = errors.pop(item.source.path, []) + errors.pop(item.source.name, [])
            if tasks or not sources.is_url(item.source.path):  # a server may answer next time
                _save(path, unit, tasks, names, reasons)
            claims.release(unit.key)
            progress.done += 1
            progress.people += sum(len(task.result) for task in tasks)
            progress.unreadable += not tasks
            tasks, names = [], []
        yield item


def _file_name(task, unit, out):
    """File of a frame, relative to OUT: written here if it has none that trains as it is."""
    frame = task.frame
    if not frame.source.moves and not sources.is_url(frame.source.path):
        with open(frame.source.path, 'rb') as file:
            if not is_turned(file.read(EXIF_REACH)):
                return unit.file_name
    if not len(task.result):
        return ''
    index = f'-{frame.index:06d}' if frame.source.moves else ''
    path = Path(IMAGES, unit.key[:2], f'{frame.source.name}-{unit.key}{index}.jpg')
    write_image(frame.image, out / path)
    return path.as_posix()


def _save(path, unit, tasks, names, errors):
    about: dict[str, Any] = dict(file_name=unit.file_name, errors=errors)
    about['frames'] = [
        dict(
            file_name=name,
            index=int(task.result.frame_id),
            width=int(task.result.ori_shape[1]),
            height=int(task.result.ori_shape[0]),
            **{name: task.result.get(name).tolist() for name in CAMERA if name in task.result},
        )
        for name, task in zip(names, tasks, strict=True)
    ]
    arrays = {}
    if tasks:
        people = [task.result.pred_instances for task in tasks]
        counts = [len(each) for each in people]
        arrays['frame'] = np.repeat(np.arange(len(tasks)), counts)
        rows = [to_record(each) | {n: each[n] for n in MEASURES if n in each} for each in people]
        for name in rows[0]:
            arrays[name] = np.concatenate([row[name] for row in rows])
    save_npz(path, about=np.array(json.dumps(about)), **arrays)
