"""Annotate on a Ray cluster: rows of `inference.distributed` with measures, in OUT/rows.

All nodes reach the folder OUT, as the workers of `annotate` do. `merge` reads the rows.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from ..files.images import EXIF_REACH, is_turned
from ..inference.command import parse_models
from ..inference.detection import GivenBoxes
from ..inference.distributed import (
    CAMERA,
    OF_FRAME,
    ROWS,
    Predict,
    join_tracks,
    listed,
    predict_on_ray,
    read_rows,
)
from ..inference.sources import is_url
from ..inference.writers import write_image
from .annotate import IMAGES, MEASURES
from .check import load_check
from .views import Views
from .work import Workplace

OF_CHECK = ('device', 'precision', 'trust', 'runtime')  # options that the check shares


class Annotate(Predict):
    """`Predict` by a teacher that measures itself; rows have `file_name`, relative to `out`.

    Args:
        given: model, weights and task, as the options of the command; None where not given.
        out: folder that all nodes reach.
        mirrored, scaled: see `Views`.
        boxes: file, see `GivenBoxes.of`.
        check: model and weights of the independent pose model, as the options of the command.
    """

    measures = MEASURES

    def __init__(
        self,
        given: tuple[str | None, str | None, str | None],
        out: str,
        mirrored: bool = True,
        scaled: bool = True,
        boxes: str | None = None,
        images: bool = False,
        check: tuple[str | None, str | None] = (None, None),
        **options: Any,
    ):
        name, weights, task = given
        (found,) = parse_models([name] if name else [], [weights] if weights else [], task, [])
        super().__init__(found, images, **options)
        common = {key: value for key, value in options.items() if key in OF_CHECK}
        other = load_check(*check, **common)
        checking = other.predictor if other else None
        self.predictor = Views(self.infer.predictor, mirrored, scaled, checking)
        if boxes:
            self.detector = of_named(boxes)
        self.out = Path(out)

    def _row(self, piece, task, why):
        row = super()._row(piece, task, why)
        return row | dict(file_name='' if task is None else self._file_name(row, task))

    def _file_name(self, row, task):
        """File of a frame: written to OUT/images if it has none that trains as it is."""
        path = row['path']
        if not (row['member'] or task.frame.source.moves or is_url(path)):
            with open(path, 'rb') as file:
                if not is_turned(file.read(EXIF_REACH)):
                    return Path(os.path.relpath(path, self.out)).as_posix()
        if not len(task.result):
            return ''
        name = Path(row['member'] or path).stem
        index = f'-{row["frame"]:06d}' if task.frame.source.moves else ''
        key = f'{row["key"] % 2**64:016x}'
        file_name = Path(IMAGES, key[:2], f'{name}-{key}{index}.jpg')
        if not row['lead']:
            write_image(task.frame.image, self.out / file_name)
        return file_name.as_posix()


def of_named(path: str) -> GivenBoxes:
    """Boxes of a file; ValueError if it lists them by the order of the inputs."""
    boxes = GivenBoxes.of(path)
    if isinstance(boxes.boxes, list):
        raise ValueError(
            f'{path} lists boxes in the order of the inputs, which Ray does not keep: name the '
            'images, as COCO annotations do'
        )
    return boxes


def annotate_on_ray(
    inputs: list[str], work: Workplace, options: dict[str, Any], **cluster: Any
) -> int:
    """Annotate what is not done; returns the number of images and chunks done before.

    Args:
        options: of `Annotate`.
        cluster: arguments of `predict_on_ray`.

    Raises:
        ImportError: as `predict_on_ray`.
    """
    work.remember(inputs)
    options = dict(options, out=str(work.out.absolute()))
    given = options.pop('given')
    return predict_on_ray(inputs, work.out, given, options, Annotate, state=work.state, **cluster)


def parts_of_rows(work: Workplace) -> Iterator[tuple[dict[str, Any], dict[str, np.ndarray]]]:
    """Frames (`about`) and people of each image and video, as a part file has them."""
    rows = sorted(
        read_rows(work.out / ROWS), key=lambda row: (row['path'], row['member'], row['frame'])
    )
    for (path, member), group in groupby(rows, lambda row: (row['path'], row['member'])):
        found = list(group)
        name = path if is_url(path) else Path(os.path.relpath(path, work.out)).as_posix()
        errors = [row['error'] for row in found if row['error']]
        frames = [row for row in found if row['frame'] >= 0]
        if len({row['key'] for row in frames}) > 1:
            frames = join_tracks(frames)
        about = dict(file_name='/'.join(filter(None, (name, member))), path=path, errors=errors)
        about['frames'] = [
            dict(file_name=row['file_name'], index=row['frame'], width=row['width'],
                 height=row['height'],
                 **{name: row[name].tolist() for name in CAMERA if name in row})
            for row in frames
        ]  # fmt: skip
        arrays = {}
        if frames:
            ignored = {*OF_FRAME, *CAMERA, 'file_name', 'time', 'jpg'}
            arrays['frame'] = np.repeat(np.arange(len(frames)), [len(r['bboxes']) for r in frames])
            for field in frames[0].keys() - ignored:
                # An array without people has lost its shape.
                some = [row[field] for row in frames if len(row['bboxes'])]
                if some:
                    arrays[field] = np.concatenate(some)
            if (arrays.get('track_ids', np.zeros(1)) < 0).all():
                arrays.pop('track_ids', None)
        yield about, arrays


def missing_inputs(work: Workplace, done: set[str]) -> Iterator[str]:
    """Inputs that no row is about."""
    for path in listed(work.given()):
        path = path if is_url(path) else os.path.abspath(path)
        if path not in done:
            yield path if is_url(path) else Path(os.path.relpath(path, work.out)).as_posix()
