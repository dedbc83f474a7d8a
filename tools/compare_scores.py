"""Scores of a comparison, with bootstraps over people, its tables and its plot."""

import argparse
import itertools
from pathlib import Path

import numpy as np

from trunchier.files import need
from trunchier.metrics.partial import EXTENTS

RESAMPLES = 2000


def pck(runs: list, resamples: int = RESAMPLES) -> tuple[float, np.ndarray]:
    """Mean over seeds of the share of keypoints found, in %, and its bootstrap over people.

    The same people are drawn for equal numbers of people: bootstraps of two models are paired.

    Args:
        runs: of each seed the rows of `counts`, of the same people.

    Returns:
        The score and (resamples,) scores of people drawn with replacement.
    """
    found = np.mean([[row[2] for row in people] for people in runs], axis=0)
    labeled = np.array([row[3] for row in runs[0]], float)
    drawn = np.random.default_rng(0).integers(0, len(labeled), (resamples, len(labeled)))
    scores = found[drawn].sum(1) / labeled[drawn].sum(1)
    return 100 * found.sum() / labeled.sum(), 100 * scores


def interval(scores: np.ndarray) -> tuple[float, float]:
    """95 %."""
    low, high = np.percentile(scores, (2.5, 97.5))
    return float(low), float(high)


def differences(done: dict[str, list]) -> list[str]:
    """Table of |score(Sn) - score(Sm)| for each encoder that is compared at two truncations."""
    groups = {}
    for name, runs in done.items():
        base, *changes = name.split('+')
        stem, _, stages = base.rpartition('-s')
        if runs and stages in ('2', '3', '4'):
            groups.setdefault((stem, *changes), {})[int(stages)] = name
    lines = []
    for stages in groups.values():
        deepest = stages[max(stages)]
        for number in sorted(stages)[:-1]:
            score, scores = pck(done[stages[number]])
            reference, references = pck(done[deepest])
            if len(scores) != len(references):
                continue
            low, high = interval(scores - references)
            change = f'{score - reference:+.1f}'
            lines.append(
                f'| {stages[number]} | {deepest} | {abs(score - reference):.1f} | {change} '
                f'[{low:+.1f}, {high:+.1f}] |'
            )
    head = ['', '| model | against | difference | signed, 95 % over people |', '|---|---|---|---|']
    return head + lines if lines else []


def against(reference: str, scored: dict[str, dict[str, list]]) -> list[str]:
    """Table of the differences of all others to one, on each test, paired over people.

    Args:
        scored: of each test and NAME the rows of people of each seed.
    """
    names = [Path(test).name for test in scored]
    lines = ['', f'| minus {reference}, 95 % over people | {" | ".join(names)} |']
    lines += ['|---|' + '---|' * len(names)]
    for name in next(iter(scored.values())):
        cells = []
        for runs in scored.values():
            if runs[name] and runs[reference]:
                score, scores = pck(runs[name])
                other, others = pck(runs[reference])
                low, high = interval(scores - others)
                cells.append(f'{score - other:+.1f} [{low:+.1f}, {high:+.1f}]')
            else:
                cells.append('')
        if name != reference:
            lines.append(f'| {name} | {" | ".join(cells)} |')
    return lines


def table(rows: list[dict], args: argparse.Namespace) -> list[str]:
    """The report in Markdown."""
    parts = [part for part in EXTENTS if any(part in each for each in rows)]
    also = [Path(test).name for test in args.also]
    head = ['model', 'PCK@0.1, % [95 %]', 'by seed', *parts, *also, 'params (M)', 'GMACs']
    head += ['ms'] if args.rounds else []
    lines = [f'| {" | ".join(head)} |', '|' + '---|' * len(head)]
    for each in sorted(rows, key=lambda each: -(each['score'] or -1)):
        cells = [each['name'], 'failed', '', *('' for _ in (*parts, *also))]
        if each['score'] is not None:
            low, high = each['interval']
            cells[1] = f'{each["score"]:.1f} [{low:.1f}, {high:.1f}]'
            cells[2] = ' '.join(f'{score:.1f}' for score in each['by_seed'])
            cells[3:] = [f'{each[part]:.1f}' if part in each else '' for part in parts]
            cells += [each.get(name, '') for name in also]
        cells += [f'{each["parameters"] / 1e6:.2f}', f'{each["gmacs"]:.2f}']
        cells += [f'{each["ms"]:.1f}'] if args.rounds else []
        lines.append(f'| {" | ".join(cells)} |')
    return lines


def described(facts: dict) -> list[str]:
    kept = ('command', 'date', 'commit', 'torch', 'CPU', 'load average')
    return ['', *(f'{key}: {facts[key]}  ' for key in kept if key in facts)]


def draw(rows: list[dict], out: Path) -> None:
    """Score against time and operations; the area of a circle is the number of parameters."""
    figure_type = need('matplotlib.figure', 'the plot').Figure
    rows = [each for each in rows if each['score'] is not None]
    axes_of = dict(ms='ms of one crop here, one thread', gmacs='GMACs')
    axes_of = {key: label for key, label in axes_of.items() if all(key in each for each in rows)}
    figure = figure_type(figsize=(6.5 * len(axes_of), 5), layout='constrained')
    panels = figure.subplots(1, len(axes_of), sharey=True, squeeze=False)[0]
    for axes, (key, label) in zip(panels, axes_of.items(), strict=True):
        heights = itertools.cycle((5, -10))  # of names: those of similar scores are apart
        for each in sorted(rows, key=lambda each: each['score']):
            low, high = each['interval']
            area = 12 * each['parameters'] / 1e6 + 8
            (bar,) = axes.plot([each[key]] * 2, [low, high], lw=1)
            axes.scatter(each[key], each['score'], area, color=bar.get_color(), alpha=0.7)
            axes.annotate(
                each['name'], (each[key], each['score']), xytext=(5, next(heights)), fontsize=7,
                textcoords='offset points',
            )  # fmt: skip
        axes.set_xscale('log')
        axes.margins(x=0.25)
        axes.xaxis.set_major_formatter('{x:g}')
        axes.xaxis.set_minor_formatter('{x:g}')
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel('PCK@0.1, %, with 95 % over people')
    with need('matplotlib', 'the plot').rc_context({'svg.fonttype': 'none'}):  # text, not outlines
        for suffix in ('svg', 'png'):
            figure.savefig(out / f'plot.{suffix}', dpi=120)
