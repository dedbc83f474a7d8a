"""Tables 2, 3 and 4 of the paper, from results; cells are text, ready for every format."""

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

from report.results import Result, common_metrics, of_one_protocol, shipped
from trunchier import zoo
from trunchier.metrics import phi_scores

STAGES = (4, 3, 2)
TASK_OF = {'table3': 'pose', 'table4': 'mesh'}
FRACTIONS = ('AP', 'AR')  # what COCO's metrics give as fractions, and our files in %


@dataclass
class Table:
    """`bold` has the (row, column) of the cells that the selection marks."""

    name: str
    title: str
    columns: list[str]
    rows: list[list[str]]
    bold: frozenset[tuple[int, int]] = frozenset()


def costs() -> dict[str, Result]:
    """{model: a result with our exact counts}."""
    return {each.model: each for each in shipped('counts')}


def accuracy(name: str, results: list[Result]) -> list[Table]:
    """Table 3 (pose) or 4 (mesh): costs, speed and metrics of each model.

    Costs that the results lack are our counts.

    Raises:
        ValueError: results of another task only, of several protocols, or with gaps.
    """
    found = of_task(TASK_OF[name], results)
    metrics, counted = common_metrics(found), costs()
    rows = []
    for each in found:
        params, gmacs = (
            getattr(each, key) or getattr(counted[each.model], key) for key in ('params_m', 'gmacs')
        )
        speed = '' if each.fps is None else f'{each.fps:.0f}'
        scores = [digits(each.metrics[metric]) for metric in metrics]
        rows.append([each.model, digits(params), digits(gmacs), speed, *scores])
    title = origin(found)
    return [Table(name, title, ['model', 'params (M)', 'GFLOPs', 'FPS', *metrics], rows)]


def of_task(task: str, results: list[Result]) -> list[Result]:
    """The results of a task, checked to be of one protocol; ValueError if there are none."""
    found = [each for each in results if each.task == task]
    if not found:
        raise ValueError(f'no result of a {task} model; there are {len(results)} others')
    return of_one_protocol(found)


def origin(results: list[Result]) -> str:
    """Where results of one protocol are from."""
    sources = '; '.join(dict.fromkeys(each.source for each in results))
    return f'{sources} (protocol: {results[0].protocol})'


def scores(result: Result) -> dict[str, float]:
    """The paper's scores of a result: PhiP2D (%), or PhiM2D (%) and PhiM3D (mm)."""
    fractions = {
        key: value / 100 if key.rpartition('/')[2] in FRACTIONS else value
        for key, value in result.metrics.items()
    }
    try:
        return phi_scores(fractions)
    except KeyError as error:
        raise ValueError(f'{result.model}: no {error.args[0]}, which its score needs') from None


def truncation(results: list[Result]) -> list[Table]:
    """Table 2: for each score the encoders with 4, 3 and 2 stages, and changes against 4.

    Parameters (P, millions), GFLOPs (F) and their changes (%) are of our exact counts, scores of
    the results.

    Raises:
        ValueError: results of several protocols, with gaps, or none of a truncated model.
    """
    tables, counted = [], costs()
    for task in zoo.TASKS:
        found = [each for each in results if each.task == task and stages(each.model)]
        if not found:
            continue
        common_metrics(of_one_protocol(found))
        by_model = {each.model: scores(each) for each in found}
        for score in next(iter(by_model.values())):
            values = {name: each[score] for name, each in by_model.items()}
            title = f'{score}: {origin(found)}'
            tables.append(of_score(score, title, values, counted))
    if not tables:
        raise ValueError('no result of a truncated model with AP and AR, PCK or MPJPE')
    return tables


def of_score(score: str, title: str, values: dict[str, float], counted: dict[str, Result]) -> Table:
    """Table 2 of one score of {model: value}; models that have no value leave their cells empty."""
    columns = ['encoder']
    for n in STAGES:
        for head in ('P', 'F', 'Phi'):
            columns += [f'S{n} {head}'] if n == STAGES[0] else [f'S{n} {head}', f'S{n} Δ{head}']
    chosen, rows, bold = selection(), [], set()
    for base in dict.fromkeys(name.rpartition('-')[0] for name in values):
        row, full = [base], f'{base}-S{STAGES[0]}'
        for n in STAGES:
            name = f'{base}-S{n}'
            cells = [
                (getattr(counted[name], key), getattr(counted[full], key))
                for key in ('params_m', 'gmacs')
            ]
            cells.append((values.get(name), values.get(full)))
            for value, whole in cells:
                row.append('' if name not in values else digits(value))
                if n != STAGES[0]:
                    known = name in values and whole is not None
                    row.append(digits(100 * (value / whole - 1), sign=True) if known else '')
            if name in chosen and name in values:
                bold.add((len(rows), len(row) - (1 if n == STAGES[0] else 2)))
        rows.append(row)
    return Table(score, title, columns, rows, frozenset(bold))


def stages(model: str) -> int | None:
    """Number of stages of a model's encoder; None: it is a plain ViT."""
    return zoo.encoder(zoo.models()[model][0]).num_stages


def selection() -> dict[str, str]:
    """{model: why}: the truncated models that are compared with others, see results/README.md."""
    return {each.model: each.note for each in shipped('selection')}


def digits(value: float, places: int = 1, sign: bool = False) -> str:
    """Text of a number, rounded half up as in printed tables; -0.0 is 0.0."""
    exact = Decimal(repr(round(value, 9)))  # 77.75, not 77.7499999
    rounded = exact.quantize(Decimal(1).scaleb(-places), ROUND_HALF_UP)
    return f'{rounded or abs(rounded):{"+" if sign and rounded else ""}}'


# --- formats -------------------------------------------------------------------------------------
def as_markdown(tables: Iterable[Table]) -> str:
    parts = []
    for table in tables:
        rows = [
            [f'**{cell}**' if (i, j) in table.bold else cell for j, cell in enumerate(row)]
            for i, row in enumerate(table.rows)
        ]
        lines = [table.columns, ['---'] + ['---:'] * (len(table.columns) - 1), *rows]
        body = ''.join(f'| {" | ".join(line)} |\n' for line in lines)
        parts.append(f'{table.title}\n\n{body}')
    return '\n'.join(parts)


def as_latex(tables: Iterable[Table]) -> str:
    """For the package booktabs."""
    escapes = {each: f'\\{each}' for each in '%&_#$'} | {'Δ': r'$\Delta$'}
    parts = []
    for table in tables:
        rows = [
            [rf'\textbf{{{cell}}}' if (i, j) in table.bold else cell for j, cell in enumerate(row)]
            for i, row in enumerate(table.rows)
        ]
        head, *body = (
            ' & '.join(''.join(escapes.get(letter, letter) for letter in cell) for cell in row)
            + r' \\'
            for row in [table.columns, *rows]
        )
        kinds = 'l' + 'r' * (len(table.columns) - 1)
        lines = [f'% {table.title}', rf'\begin{{tabular}}{{{kinds}}}', r'\toprule', head]
        parts.append(
            '\n'.join([*lines, r'\midrule', *body, r'\bottomrule', r'\end{tabular}']) + '\n'
        )
    return '\n'.join(parts)


def as_csv(tables: Iterable[Table]) -> str:
    """One header; the first column is the name of the table of a row."""
    tables, text = list(tables), io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(['table', *tables[0].columns])
    for table in tables:
        writer.writerows([table.name, *row] for row in table.rows)
    return text.getvalue()


FORMATS = dict(markdown=as_markdown, latex=as_latex, csv=as_csv)
