"""Learning curves: the loss and the metrics of trainings, from the scalars that they logged."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from report.work_dirs import METRICS, lines

Curve = list[tuple[float, float]]


def read(path: Path) -> dict[str, Curve]:
    """{'loss' or 'DATASET/METRIC': [(step, value)]} of a work_dir, or of one file of scalars.

    Runs of a work_dir that resumed are one curve: of a step that two runs logged the later counts.
    The step of a metric is that of the loss logged before it: mmengine counts epochs there.

    Raises:
        OSError, ValueError: nothing was logged there.
    """
    files = sorted(path.glob('*/vis_data/*.json')) if path.is_dir() else [path]
    curves: dict[str, dict[float, float]] = {}
    for records in map(lines, files):
        if not any('loss' in record for record in records):
            continue  # a test: it has no steps
        step = 0
        for record in records:
            step = record.get('step', step) if 'loss' in record else step
            for key, value in record.items():
                factor = 1 if key == 'loss' else METRICS.get(metric(key))
                if factor and isinstance(value, int | float):
                    curves.setdefault(key, {})[step] = factor * value
    if not curves:
        raise ValueError(f'{path}: no loss and no metric was logged; give a work_dir of training')
    return {key: sorted(points.items()) for key, points in curves.items()}


def metric(key: str) -> str:
    """'coco/AP' -> 'AP'; '' if it is no metric of a data set."""
    return key.rpartition('/')[2] if '/' in key else ''


def draw(named: dict[str, dict[str, Curve]]) -> Figure:
    """A panel for the loss and one for each metric; a line for each training."""
    keys = sorted(
        {key for curves in named.values() for key in curves}, key=lambda k: (k != 'loss', k)
    )
    columns = min(3, len(keys))
    rows = -(-len(keys) // columns)
    figure = Figure(figsize=(5 * columns, 3.6 * rows), layout='constrained')
    grid = figure.subplots(rows, columns, squeeze=False).flat
    for key, axes in zip(keys, grid, strict=False):
        axes.set_gid(key)
        for number, (name, curves) in enumerate(named.items()):
            if key in curves:
                steps, values = np.array(curves[key], float).T
                style = dict(color=f'C{number}', marker='o' if len(steps) < 30 else None, ms=3)
                (line,) = axes.plot(steps, values, label=name, **style)
                line.set_gid(f'{key}/{name}')
        unit = {'': '', 'MPJPE': ', mm', 'PA-MPJPE': ', mm'}.get(metric(key), ', %')
        axes.set(xlabel='step', ylabel=f'{key}{unit}', yscale='linear' if unit else 'log')
        axes.grid(alpha=0.25)
        axes.legend(fontsize=7)
    for axes in grid:  # that no curve needs
        axes.remove()
    return figure


def names(paths: Iterable[Path]) -> dict[str, Path]:
    """{shortest name that tells the paths apart: path}."""
    paths = list(dict.fromkeys(path.resolve() for path in paths))
    for count in range(1, 9):
        named = {'/'.join(path.parts[-count:]): path for path in paths}
        if len(named) == len(paths):
            break
    return named
