"""Rewrite the generated parts of README.md and docs/*.md.

    python docs/generate.py

A generated part stands between `<!-- generated: NAME -->` and `<!-- end -->`, NAME being a key of
`PARTS`; tests/test_docs.py fails while one is out of date.
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'tools')]

import model_table  # noqa: E402
from report import results, tables  # noqa: E402

from trunchier import zoo  # noqa: E402
from trunchier.compat import patches  # noqa: E402
from trunchier.weights.families import LAYOUTS  # noqa: E402

PAGES = (
    'docs/checkpoints.md',
    'docs/models.md',
    'docs/recipes.md',
    'docs/results.md',
    'docs/troubleshooting.md',
    'README.md',
)
PART = re.compile(r'(<!-- generated: ([a-z ]+) -->\n).*?(<!-- end -->)', re.S)
SIX = ('swin-t-s3', 'swin-b-s3', 'gmf-t-s3', 'gmf-b-s3', 'vm-t-s3', 'vm-b-s3')


def models(task: str) -> str:
    """Sizes and costs of all models of a task, beside the paper's."""
    return model_table.as_markdown([model_table.row(name, task) for name in zoo.ENCODERS])


def table_2() -> str:
    """Table 2, as `trunchier report table2` prints it."""
    return tables.as_markdown(tables.truncation(results.shipped('paper')))


def six_models() -> str:
    """Sizes and costs of six encoders with both tasks, from the page of all models."""
    rows = re.findall(r'^\| (\S+) \| (\S+) \| (\S+) ', (ROOT / 'docs/models.md').read_text(), re.M)
    sizes = {name: f'{name} | {params} | {gflops}' for name, params, gflops in rows}
    lines = [
        '| encoder | pose model | params (M) | GFLOPs | mesh model | params (M) | GFLOPs |',
        '|---|---|---|---|---|---|---|',
    ]
    for encoder in SIX:
        pose, mesh = (sizes[zoo.paper_name(encoder, task)] for task in ('pose', 'mesh'))
        lines.append(f'| `{encoder}` | {pose} | {mesh} |')
    return '\n'.join(lines) + '\n'


def layouts() -> str:
    """Layouts of checkpoints, with the models that are recognized in each."""
    lines = ['| family | names of keys by | for example | models |', '|---|---|---|---|']
    for layout in LAYOUTS:
        rows = [name for name, row in zoo.BACKBONES.items() if row.type == layout.kind]
        encoders = [name for name in zoo.ENCODERS if zoo.encoder(name).backbone_name in rows]
        names = [task.paper_name(name) for task in zoo.TASKS.values() for name in encoders]
        key = re.sub(r'\(\?:(\w+)\|.*?\)', r'\1', layout.anchor).replace('\\', '')
        cells = zoo.BACKBONES[rows[0]].paper, layout.name, f'`{key}`', f'all {len(names)}'
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines) + '\n'


def recipes() -> str:
    """What the encoder decides of a recipe."""
    lines = [
        '| encoder | class | drop path | layer decay | mesh decoder | initial weights |',
        '|---|---|---|---|---|---|',
    ]
    for name, row in zoo.BACKBONES.items():
        decoder = zoo.MESH_DECODERS[row.decoder]
        sizes = ', '.join(str(decoder[k]) for k in ('depth', 'num_heads', 'head_dim', 'mlp_dim'))
        file = zoo.WEIGHTS[name].rpartition('/')[2]
        cells = (f'`{name}`', f'`{row.type}`', row.drop_path, row.layer_decay, sizes, f'`{file}`')
        lines.append(f'| {" | ".join(map(str, cells))} |')
    return '\n'.join(lines) + '\n'


def architectures() -> str:
    """The model of each leaf: what stands behind the encoder's name, with its channels."""
    lines = [
        '| encoder | `type`, `arch` | blocks | channels | stride | adapter | head, decoder |',
        '|---|---|---|---|---|---|---|',
    ]
    for name, row in zoo.ENCODERS.items():
        kind, arch = row.backbone.type, row.backbone.arch
        depths, channels = (
            ', '.join(map(str, zoo.ARCHS[kind][arch][key][: row.num_stages]))
            for key in ('depths', 'channels')
        )
        neck = zoo.neck_cfg(name)
        adapter = f'{neck["in_channels"]} to {neck["out_channels"]}' if neck else 'none'
        cells = (f'`{name}`', f'`{kind}`, {arch}', depths, channels, row.stride, adapter)
        lines.append(f'| {" | ".join(map(str, (*cells, row.decoder_channels)))} |')
    return '\n'.join(lines) + '\n'


def symptoms() -> str:
    """The docstring of each patch of trunchier.compat: a heading, the cause, the condition."""
    parts = []
    for patch in patches.PATCHES:
        symptom, _, rest = inspect.getdoc(patch).partition('\n\n')
        text = re.sub(r'^(Upstream|Condition):', r'**\1:**', rest, flags=re.M)
        text = re.sub(r'(?<=: )?(https://\S+)', r'<\1>', text).replace('>\n**Cond', '>  \n**Cond')
        heading = ' '.join(symptom.split()).rstrip('.')
        name = f'trunchier.compat.patches.{patch.__name__}'
        parts.append(f'### {heading}\n\n{text}\n\nPatch: `{name}`.\n')
    return '\n'.join(parts)


PARTS = {
    'pose models': lambda: models('pose'),
    'mesh models': lambda: models('mesh'),
    'six models': six_models,
    'table two': table_2,
    'layouts': layouts,
    'recipes': recipes,
    'architectures': architectures,
    'symptoms': symptoms,
}


def rewritten(text: str) -> str:
    """The text of a page with its generated parts up to date."""
    return PART.sub(lambda part: f'{part[1]}\n{PARTS[part[2]]()}\n{part[3]}', text)


if __name__ == '__main__':
    for page in PAGES:
        path = ROOT / page
        path.write_text(rewritten(path.read_text()))
