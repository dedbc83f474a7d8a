"""Figure 1 of the paper: accuracy against costs, the area of a circle being the parameters.

A row of panels for each task, a column for each kind of cost. In an SVG every axes and circle is
named, `mesh-gmacs` and `mesh-gmacs/SwinHMR2.0-T-S3`, and text is text.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from report.results import Result, of_one_protocol
from report.tables import costs, of_task, origin, selection, stages
from trunchier import zoo
from trunchier.files import whole_file

AREA = 3.0  # square points of a circle per million parameters
COLORS = {'Swin': 'tab:blue', 'GMF': 'tab:green', 'VM': 'tab:red', 'ViT': 'tab:purple'}
GREY = '0.6'
# What the figure shows of a task.
METRICS = {
    'mesh': ('h36m-val-p2/PA-MPJPE', 'PA-MPJPE on Human3.6M, mm\n(lower is better)'),
    'pose': ('coco/AP', 'AP on COCO val2017, %\n(higher is better)'),
}


class Circle(NamedTuple):
    """`x`: GFLOPs or images/s; `y`: the metric; `size`: millions of parameters."""

    name: str
    x: float
    y: float
    size: float
    color: str


class Panel(NamedTuple):
    name: str
    title: str
    xlabel: str
    ylabel: str
    circles: list[Circle]


def panels(
    results: list[Result], speed: list[Result], others: list[Result], everything: bool = False
) -> list[list[Panel]]:
    """The panels that have circles, by row; ValueError without any.

    Args:
        results: accuracies, and speed in the second column.
        speed: images per second on another device, shown in the third column relative to those of
            ViT-B; accuracies are those of `results`.
        others: other methods, drawn grey where their costs are known.
        everything: all results instead of the selection and the plain ViTs.
    """
    rows, chosen, counted = [], selection(), costs()
    for task, (metric, ylabel) in METRICS.items():
        if not any(each.task == task for each in results):
            continue
        found = [
            each
            for each in of_task(task, results)
            if everything or each.model in chosen or not stages(each.model)
        ]
        if missing := [each.model for each in found if metric not in each.metrics]:
            raise ValueError(f'no {metric} of {", ".join(missing)}, which the figure shows')
        source = '; '.join(dict.fromkeys(each.source for each in found))
        device = ', '.join(sorted({each.device for each in found if each.fps}))
        here, there = relative(speed, zoo.paper_name('vit-b', task))
        columns = (
            ('gmacs', 'GFLOPs', {each.model: counted[each.model].gmacs for each in found}),
            ('fps', f'images/s, {device} ({source})', {each.model: each.fps for each in found}),
            ('here', there, here),
        )  # fmt: skip
        title = f'accuracy: {origin(found)}'
        row = []
        for name, xlabel, costs_of in columns:
            circles = [
                Circle(
                    each.model,
                    costs_of[each.model],
                    each.metrics[metric],
                    each.params_m or counted[each.model].params_m,
                    COLORS[zoo.encoder(each.encoder).backbone.paper],
                )
                for each in found
                if costs_of.get(each.model)
            ]
            circles += [
                Circle(each.model, getattr(each, name), each.metrics[metric], each.params_m, GREY)
                for each in others
                if metric in each.metrics and getattr(each, name, None)
            ]
            if circles:
                row.append(Panel(f'{task}-{name}', title, xlabel, ylabel, circles))
        rows.append(row)
    if not any(rows):
        raise ValueError('no result to draw')
    return rows


def relative(speed: list[Result], reference: str) -> tuple[dict[str, float], str]:
    """{model: images/s relative to those of `reference`} and what they are; {} without it.

    Ratios, since other work on the machine changes times but hardly their ratios.
    """
    of = {each.model: each for each in of_one_protocol(speed) if each.fps}
    if reference not in of:
        return {}, ''
    base = of[reference]
    what = f'speed relative to {reference}, {base.device} ({base.source})'
    return {name: each.fps / base.fps for name, each in of.items()}, what


def figure_1(rows: list[list[Panel]]) -> Figure:
    count = max(map(len, rows))
    figure = Figure(figsize=(5.2 * count, 4.4 * len(rows)), layout='constrained')
    grid = figure.subplots(len(rows), count, squeeze=False)
    for line, row in zip(grid, rows, strict=True):
        for axes, panel in zip(line, row, strict=False):
            draw(axes, panel)
        for axes in line[len(row) :]:
            axes.remove()
        line[0].set_ylabel(row[0].ylabel)
    figure.get_layout_engine().execute(figure)  # labels are placed in the final axes
    figure.set_layout_engine('none')
    for axes in figure.axes:
        place_labels(axes)
    return figure


def draw(axes: Axes, panel: Panel) -> None:
    axes.set_gid(panel.name)
    axes.set_xscale('log')
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter('{x:g}')
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.25)
    axes.set_xlabel(panel.xlabel)
    for each in sorted(panel.circles, key=lambda each: -each.size):
        drawn = axes.scatter(
            each.x, each.y, AREA * each.size, color=each.color, alpha=0.5, linewidth=0
        )
        drawn.set_gid(f'{panel.name}/{each.name}')
        axes.annotate(
            short(each.name), (each.x, each.y), xytext=(3, 3), textcoords='offset points',
            fontsize=6, color='0.4' if each.color == GREY else each.color,
        )  # fmt: skip
    axes.set_title(panel.title, fontsize=7)
    axes.margins(x=0.14, y=0.12)


def place_labels(axes: Axes) -> None:
    """Move each label to the side of its circle where it covers the fewest others."""
    placed = []
    for text in axes.texts:
        tried = []
        for x, y in ((3, 3), (3, -9), (-3, 3), (-3, -9), (3, 9), (-3, 9), (3, -15), (-3, -15)):
            text.set(position=(x, y), horizontalalignment='left' if x > 0 else 'right')
            box = text.get_window_extent()
            outside = box.x1 > axes.bbox.x1 or box.x0 < axes.bbox.x0
            tried.append((box.count_overlaps(placed) + outside, len(tried), (x, y), box))
            if not tried[-1][0]:
                break
        _, _, (x, y), box = min(tried, key=lambda each: each[:2])
        text.set(position=(x, y), horizontalalignment='left' if x > 0 else 'right')
        placed.append(box)


def short(name: str) -> str:
    """SwinPose-T-S3 -> Swin-T-S3; other names as they are."""
    return re.sub(r'^(Swin|GMF|VM|ViT)(Pose|HMR2\.0)-', r'\1-', name)


def check_formats(paths: Iterable[Path]) -> None:
    """ValueError for a suffix that `save` does not write."""
    known = Figure().canvas.get_supported_filetypes()
    for path in paths:
        if path.suffix.lstrip('.') not in known:
            raise ValueError(f'{path}: no format {path.suffix!r}; name it .svg, .png or .pdf')


def save(figure: Figure, paths: Iterable[Path]) -> None:
    """Write a figure to files, in the formats of their suffixes; the same bytes every time."""
    for path in paths:
        metadata = dict(Date=None) if path.suffix == '.svg' else None
        with (
            rc_context({'svg.fonttype': 'none', 'svg.hashsalt': 'trunchier'}),
            whole_file(path) as part,
        ):
            figure.savefig(part, dpi=150, metadata=metadata)
