"""The report of a merged data set: HTML with histograms that loads sheet.jpg beside it, no more."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..files import whole_file
from .filters import REASONS, Thresholds

if TYPE_CHECKING:
    from .merge import Merged

BARS, WIDTH, HEIGHT = 40, 420, 120
TITLES = {  # of the measures that reasons go by
    'few keypoints': 'labeled keypoints',
    'views disagree': 'agreement of the views',
    'reprojection': 'overlap of box and body',
    'joint limits': 'degrees beyond the limits of the joints',
    'pose model disagrees': 'distance to the pose model, in roots of the area of the box',
}
LISTED = 1000  # inputs that are named one by one
STYLE = (
    'body{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em}'
    'table{border-collapse:collapse}td,th{padding:.2em 1em .2em 0;text-align:left}'
    'td.n{text-align:right}figure{display:inline-block;margin:0 2em 1em 0}'
    'img{max-width:100%}rect{fill:#4878a8}line{stroke:#c03030;stroke-width:2}'
)


def write_report(
    path: Path,
    merged: Merged,
    values: dict[str, np.ndarray],
    limits: Thresholds,
    settings: dict,
    has_sheet: bool,
) -> None:
    """Write the page.

    Args:
        values: measures of all people by name, (P,), see `filters.measures`.
        settings: of the run.
        has_sheet: whether sheet.jpg lies beside it.
    """
    total = max(sum(merged.counts.values()), 1)
    rows = ''.join(
        f'<tr><td>{escape(why)}</td><td class="n">{count}</td>'
        f'<td class="n">{100 * count / total:.1f} %</td></tr>'
        for why, count in merged.counts.most_common()
    )
    thresholds = {reason: getattr(limits, name) for reason, name in REASONS.items()}
    thresholds['keypoint score'] = limits.keypoint_score
    plots = ''.join(
        histogram(TITLES.get(name, name), each, thresholds.get(name))
        for name, each in values.items()
        if len(each)
    )
    title = escape(f'Annotations by {settings.get("model")}')
    body = [
        f'<h1>{title}</h1><p>{escape(str(merged))}.</p>',
        f'<table><tr><th>people</th><th>number</th><th>share</th></tr>{rows}</table>',
        f'<h2>Measures</h2><p>Red: the threshold.</p>{plots}',
        '<h2>Kept and dropped</h2><img src="sheet.jpg" alt="contact sheet">' if has_sheet else '',
        _listed('Missing inputs', merged.missing),
        _listed('Inputs with errors', merged.unreadable),
        '<h2>Settings</h2><table>',
        *(
            f'<tr><td>{escape(str(name))}</td><td>{escape(str(value))}</td></tr>'
            for name, value in settings.items()
        ),
        '</table>',
    ]
    head = f'<meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    with whole_file(path) as part:
        part.write_text(f'<!doctype html>{head}{"".join(body)}\n', encoding='utf-8')


def histogram(name: str, values: np.ndarray, threshold: float | None = None) -> str:
    """A histogram of (P,) values as a figure with inline SVG."""
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    elif low == high:
        low, high = low - 1, high + 1
    counts, _ = np.histogram(values, BARS, (low, high))
    step, top = WIDTH / BARS, max(int(counts.max()), 1)
    bars = ''.join(
        f'<rect x="{index * step:.1f}" y="{HEIGHT * (1 - count / top):.1f}" '
        f'width="{step - 1:.1f}" height="{HEIGHT * count / top:.1f}"/>'
        for index, count in enumerate(counts.tolist())
    )
    mark = ''
    if threshold is not None and low <= threshold <= high:
        x = WIDTH * (threshold - low) / (high - low)
        mark = f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{HEIGHT}"/>'
    return (
        f'<figure><svg width="{WIDTH}" height="{HEIGHT}" role="img">{bars}{mark}</svg>'
        f'<figcaption>{escape(name)}: {low:.3g} to {high:.3g}, median '
        f'{float(np.median(values)) if len(values) else 0:.3g}</figcaption></figure>'
    )


def _listed(title, entries):
    if not entries:
        return ''
    lines = ''.join(f'<li>{escape(where)}: {escape(why)}</li>' for where, why in entries[:LISTED])
    more = f'<p>and {len(entries) - LISTED} more</p>' if len(entries) > LISTED else ''
    return f'<h2>{title}</h2><ul>{lines}</ul>{more}'
