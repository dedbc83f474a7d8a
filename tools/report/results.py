"""Results of models as data: one schema for the paper's numbers and those of own runs.

A row is a model measured by one protocol. Columns of a CSV, in any order:

    model        the paper's name of the model (`trunchier models`); family, size, stages and task
                 follow from it
    source       where the numbers are from: 'paper Table 3', 'ours', ...
    protocol     how the metrics were measured; tables and figures refuse to mix protocols
    params_m     parameters in millions              optional, as all that follow
    gmacs        billions of multiply-accumulates at 256 x 192 (the paper's GFLOPs)
    fps, device  images per second at batch 1 on this device
    DATASET/METRIC  such as coco/AP or 3dpw-test/PA-MPJPE; AP, AR and PCK in %, errors in mm
    note         in words
"""

import csv
import io
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trunchier import zoo
from trunchier.files.shipped import of_repository

REQUIRED = ('model', 'source', 'protocol')
NUMBERS = ('params_m', 'gmacs', 'fps')
TEXTS = (*REQUIRED, 'device', 'note')


@dataclass
class Result:
    """A row; numbers that it lacks are None. `metrics` is {'DATASET/METRIC': value}."""

    model: str
    source: str
    protocol: str
    params_m: float | None = None
    gmacs: float | None = None
    fps: float | None = None
    device: str = ''
    note: str = ''
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def encoder(self) -> str:
        return zoo.models()[self.model][0]

    @property
    def task(self) -> str:
        return zoo.models()[self.model][1]


def shipped(name: str, known: bool = True) -> list[Result]:
    """Results that come with the package: `results/NAME.csv`."""
    return read_csv(of_repository(f'results/{name}.csv'), known)


def read_csv(path: str | Path, known: bool = True) -> list[Result]:
    """Rows of a CSV file in the schema above, in the order of the paper's tables.

    Args:
        known: the models are the paper's; False: any names, in the order of the file.

    Raises:
        OSError: the file cannot be read.
        ValueError: a missing or unknown column, an unknown model, or a value that is no number; it
            names file, line and column.
    """
    path = Path(path)
    lines = csv.DictReader(io.StringIO(path.read_text(encoding='utf-8-sig')), strict=True)
    try:
        columns = [*(lines.fieldnames or ())]
        if missing := [name for name in REQUIRED if name not in columns]:
            raise ValueError(f'{path}: no column {", ".join(missing)}; there are {columns}')
        names = {*TEXTS, *NUMBERS}
        if unknown := [each for each in columns if each not in names and '/' not in each]:
            raise ValueError(
                f'{path}: unknown column {", ".join(map(repr, unknown))}; expected '
                f'{", ".join((*TEXTS, *NUMBERS))} or DATASET/METRIC'
            )
        results = [_result(line, f'{path}, line {lines.line_num}', known) for line in lines]
    except csv.Error as error:
        raise ValueError(f'{path}, line {lines.line_num}: {error}') from None
    if not known:
        return results
    order = [*zoo.models()]
    return sorted(results, key=lambda each: order.index(each.model))


def _result(line: dict, place: str, known: bool) -> Result:
    if None in line or None in line.values():
        raise ValueError(f'{place}: expected as many cells as the first line has')
    try:
        name = zoo.known_name(line['model']) if known else line['model']
    except ValueError as error:
        raise ValueError(f'{place}: {error}') from None
    numbers = {
        key: _number(value, f'{place}, {key}')
        for key, value in line.items()
        if key not in TEXTS and value.strip()
    }
    for key in ('coco/AP', 'coco/AR'):
        if 0 < numbers.get(key, 0) < 1:
            raise ValueError(f'{place}: {key} is {numbers[key]}; give %, as the paper does')
    cells: dict[str, Any] = {key: line[key] for key in TEXTS if key in line}
    cells |= {key: numbers.pop(key) for key in NUMBERS if key in numbers}
    return Result(**dict(cells, model=name, metrics=numbers))


def _number(text: str, place: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f'{place}: {text!r} is no number') from None
    if not math.isfinite(value):
        raise ValueError(f'{place}: {text!r}; leave the cell empty if there is no result')
    return value


def of_one_protocol(results: list[Result]) -> list[Result]:
    """The same results; ValueError if they cannot stand in one table."""
    models: dict[str, list[str]] = {}
    for each in results:
        models.setdefault(each.protocol, []).append(each.model)
    if len(models) > 1:
        named = '; '.join(f'{protocol!r}: {", ".join(of)}' for protocol, of in models.items())
        raise ValueError(f'results of {len(models)} protocols cannot be compared: {named}')
    names = [each.model for each in results]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f'more than one result of {", ".join(twice)}; keep one')
    return results


def common_metrics(results: list[Result]) -> list[str]:
    """Metrics that all results have, in order; ValueError, naming the gap, if some lack one."""
    names = [*dict.fromkeys(name for each in results for name in each.metrics)]
    for each in results:
        if missing := [name for name in names if name not in each.metrics]:
            raise ValueError(f'{each.model} ({each.source}) lacks {", ".join(missing)}')
    return names
