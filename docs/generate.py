"""Rewrite the generated parts of README.md and docs/*.md.

    python docs/generate.py

A generated part stands between `<!-- generated: NAME -->` and `<!-- end -->`, NAME being a key of
`PARTS`; tests/test_docs.py fails while one is out of date.
"""

from __future__ import annotations

import inspect
import re
import sys
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'tools')]

import model_table  # noqa: E402

from trunchier import zoo  # noqa: E402
from trunchier.compat import patches  # noqa: E402

PAGES = ('README.md', 'docs/models.md', 'docs/recipes.md', 'docs/troubleshooting.md')
PART = re.compile(r'(<!-- generated: ([a-z ]+) -->\n).*?(<!-- end -->)', re.S)
FEW = ('swin-t-s3', 'swin-b-s3', 'gmf-t-s3', 'gmf-b-s3', 'vm-t-s3', 'vm-b-s3')
DECODERS = dict(h='huge', l='large', b='base', s='small')


@lru_cache
def models(task: str) -> str:
    """Sizes and costs of all models of a task, beside the paper's."""
    return model_table.as_markdown([model_table.row(name, task) for name in zoo.ENCODERS])


def few_models() -> str:
    """Sizes and costs of six encoders, with both tasks."""
    lines = ['| encoder | pose model | params (M) | GFLOPs | mesh model | params (M) | GFLOPs |']
    lines += ['|---|---|---|---|---|---|---|']
    for name in FEW:
        cells = [f'`{name}`']
        for task in ('pose', 'mesh'):
            row = next(r for r in models(task).splitlines() if zoo.paper_name(name, task) in r)
            cells += row.split(' | ')[:3]
        lines.append('| ' + ' | '.join(cell.removeprefix('| ') for cell in cells) + ' |')
    return '\n'.join(lines) + '\n'


def recipes() -> str:
    """What the encoder decides of a recipe."""
    lines = [
        '| encoder | class | drop path | layer decay (pose) | mesh decoder: layers, heads, width '
        'of a head, width of the MLP | initial weights (pose) |',
        '|---|---|---|---|---|---|',
    ]
    for name, row in zoo.BACKBONES.items():
        decoder = zoo.MESH_DECODERS[row.decoder]
        sizes = ', '.join(str(decoder[k]) for k in ('depth', 'num_heads', 'head_dim', 'mlp_dim'))
        file = zoo.WEIGHTS[name].rpartition('/')[2]
        lines.append(
            f'| `{name}` | `{row.type}` | {row.drop_path} | {row.layer_decay} | {sizes} | `{file}` |'
        )
    return '\n'.join(lines) + '\n'


def symptoms() -> str:
    """The docstring of each patch of trunchier.compat: a heading, the cause, the condition."""
    parts = []
    for patch in patches.PATCHES:
        symptom, _, rest = inspect.getdoc(patch).partition('\n\n')
        text = re.sub(r'^(Upstream|Condition):', r'**\1:**', rest, flags=re.M)
        text = re.sub(r'(?<=: )?(https://\S+)', r'<\1>', text).replace('>\n**Cond', '>  \n**Cond')
        heading = ' '.join(symptom.split()).rstrip('.')
        parts.append(f'### {heading}\n\n{text}\n\nPatch: `trunchier.compat.patches.{patch.__name__}`.\n')
    return '\n'.join(parts)


PARTS = {
    'pose models': lambda: models('pose'),
    'mesh models': lambda: models('mesh'),
    'six models': few_models,
    'recipes': recipes,
    'symptoms': symptoms,
}


def rewritten(text: str) -> str:
    """The text of a page with its generated parts as they should be."""
    return PART.sub(lambda part: f'{part[1]}\n{PARTS[part[2]]()}\n{part[3]}', text)


if __name__ == '__main__':
    for page in PAGES:
        path = ROOT / page
        path.write_text(rewritten(path.read_text()))
