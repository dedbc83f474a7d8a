"""Parameters and GFLOPs of all models, beside the paper's Tables 3 and 4.

    python tools/model_table.py --task pose
    python tools/model_table.py --task all --format csv --out models.csv

Parameters are counted on the built model; GFLOPs follow the paper's convention (multiply-
accumulates of the official code at 1 x 3 x 256 x 192, see paper_costs.py). A note explains each row
that differs from the paper's printed digits.
"""

import argparse
import csv
import io
import json
import logging
import sys
from collections.abc import Iterable, Iterator
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import paper_costs as costs
import torch
import yaml
from mmengine.registry import MODELS

from trunchier import zoo
from trunchier.files import whole_file
from trunchier.files.shipped import of_repository
from trunchier.models.create import create_backbone, create_model

PARTS = ('backbone', 'adapter', 'decoder')
# HMR2.0's embedding of a zero token, which is part of a bias in our head.
FOLDED_TOKEN = 2048 / 1e6
MISPRINTS = {'VMHMR2.0-T-S3': "the paper repeats SwinHMR2.0-T-S3's row"}
RENAMED = {
    'SwinHMR2.0-T-S3': 'printed as SwinHMR2.0-T-S4, second of three',
    'SwinHMR2.0-T-S2': 'printed as SwinHMR2.0-T-S4, third of three',
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--task', choices=[*zoo.TASKS, 'all'], default='all')
    parser.add_argument('--format', choices=FORMATS, default='markdown')
    parser.add_argument(
        '--freezing',
        action='store_true',
        help='print instead the parameters of each backbone that are trained while one kind of '
        'layers is frozen',
    )
    parser.add_argument(
        '--timm', nargs='+', metavar='NAME', help='print encoders of timm, up to 1/16, instead'
    )
    parser.add_argument('--out', type=Path, help='file to write instead of printing')
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    if args.timm:
        print(of_timm(args.timm), end='')
        return
    if args.freezing:
        print(freezing(zoo.ENCODERS), end='')
        return
    tasks = zoo.TASKS if args.task == 'all' else (args.task,)
    rows = [row(name, task) for task in tasks for name in zoo.ENCODERS]
    text = FORMATS[args.format](rows)
    if args.out is None:
        sys.stdout.write(text)
        return
    with whole_file(args.out) as part:
        part.write_text(text)


def row(name: str, task: str) -> dict:
    """Row of an encoder's model, with parameters (M) and GFLOPs of each of `PARTS`."""
    paper = zoo.paper_name(name, task)
    with torch.device('meta'):
        model = create_model(paper)
    parts = costs.model_costs(model)
    params = sum(part[0] for part in parts.values()) / 1e6
    gflops = sum(part[1] for part in parts.values()) / 1e9
    figures = published(task)[paper]
    printed = figures['Paper Parameters (M)'], figures['Paper GFLOPs']
    result = dict(
        name=paper,
        config=zoo.config_path(name, task),
        params_m=round(params, 2),
        gflops=round(gflops, 2),
        paper_params_m=printed[0],
        paper_gflops=printed[1],
        note='; '.join(notes(name, paper, params, gflops, printed)),
    )
    for part in PARTS:
        result[f'{part}_params_m'] = round(parts[part][0] / 1e6, 2)
        result[f'{part}_gflops'] = round(parts[part][1] / 1e9, 3)
    result |= dict(exact_params_m=f'{params:.6f}', exact_gmacs=f'{gflops:.9f}')
    return result


def freezing(names: Iterable[str]) -> str:
    """Table of the trained parameters of backbones by the kind of layers that is frozen."""
    lines = ['| backbone | all | mixers frozen | FFNs frozen |', '|---|---|---|---|']
    for name in names:
        plain = dict(type='PlainViT') if zoo.encoder(name).num_stages is None else {}
        mixer = 'ss2d' if name.startswith('vm-') else 'attn'
        counts = []
        for kinds in ((), (mixer,), ('ffn',)):
            with torch.device('meta'):
                model = create_backbone(name, freeze=kinds, **plain)
            trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
            counts.append(f'{trained:,}')
        lines.append(f'| {name} (`{mixer}`) | {" | ".join(counts)} |')
    return '\n'.join(lines) + '\n'


def of_timm(names: Iterable[str]) -> str:
    """Table of encoders of timm up to 1/16 at 256 x 192; those that cannot be built say why."""
    from torch.utils.flop_counter import FlopCounterMode

    lines = ['| encoder | channels | params (M) | GMACs |', '|---|---|---|---|']
    for name in names:
        try:
            with torch.device('meta'), FlopCounterMode(display=False) as counter, torch.no_grad():
                model = MODELS.build(dict(type='TruncatedTimm', model_name=name)).eval()
                model(torch.empty(1, 3, 256, 192))
        except (ValueError, AssertionError) as error:
            lines.append(f'| `{name}` | {error} | | |')
            continue
        macs = counter.get_total_flops() / 2e9
        params = costs.parameters(model) / 1e6
        lines.append(f'| `{name}` | {model.channels[-1]} | {params:.2f} | {macs:.2f} |')
    return '\n'.join(lines) + '\n'


def published(task: str) -> dict[str, dict]:
    """{paper's name: figures that the paper prints}, from the metafile of a task."""
    metafile = of_repository(f'configs/{zoo.TASKS[task].folder}/metafile.yml')
    return {m['Alias']: m['Metadata'] for m in yaml.safe_load(metafile.read_text())['Models']}


def notes(
    name: str, paper: str, params: float, gflops: float, printed: tuple[float, float]
) -> Iterator[str]:
    """Explanations of the differences from the paper's printed digits."""
    if paper in RENAMED:
        yield RENAMED[paper]
    if paper in MISPRINTS:
        yield MISPRINTS[paper]
        return
    if rounded(params) != printed[0]:
        yield params_note(name, params, printed[0])
    if rounded(gflops) != printed[1]:
        if rounded(rounded(gflops, 2)) == printed[1]:
            yield f'{gflops:.3f} GFLOPs: the paper rounds twice'
        else:
            yield f'GFLOPs differ by {printed[1] - gflops:+.2f}, unexplained'


def params_note(name: str, params: float, printed: float) -> str:
    if rounded(rounded(params + FOLDED_TOKEN, 2)) == printed:
        return (
            f'{params:.3f} M: official code has 0.002 M more, added to one bias here, and the '
            'paper rounds twice'
        )
    dead = dead_patch_embeddings(name)
    if dead and abs(params + dead - printed) <= 0.1:
        return (
            f'paper {printed - params:+.2f} M: within rounding, the {dead:.2f} M of patch '
            'embeddings of stages that are never run'
        )
    return f'parameters differ by {printed - params:+.2f} M, unexplained'


def dead_patch_embeddings(name: str) -> float:
    """Parameters (M) of the patch embeddings of the stages that truncation removes from a GMF."""
    row = zoo.encoder(name)
    if row.backbone.type != 'TruncatedGMF' or row.num_stages == 4:
        return 0
    with torch.device('meta'):
        full = create_backbone(f'{row.backbone_name}-s4')
    removed = full.stages[row.num_stages :]
    return sum(costs.parameters(stage.downsample) for stage in removed) / 1e6


def rounded(value: float, digits: int = 1) -> float:
    """Rounded half up, as in printed tables."""
    return float(Decimal(repr(value)).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP))


def as_markdown(rows: list[dict]) -> str:
    lines = [
        '| model | params (M) | GFLOPs | paper params | paper GFLOPs | '
        'backbone + adapter + decoder, params (M) | note |',
        '|---|---|---|---|---|---|---|',
    ]
    for r in rows:
        parts = ' + '.join(f'{r[f"{part}_params_m"]:.2f}' for part in PARTS)
        lines.append(
            f'| {r["name"]} | {r["params_m"]:.2f} | {r["gflops"]:.2f} '
            f'| {r["paper_params_m"]} | {r["paper_gflops"]} | {parts} | {r["note"]} |'
        )
    return '\n'.join(lines) + '\n'


def as_csv(rows: list[dict]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_results(rows: list[dict]) -> str:
    """The exact counts as results for `trunchier report`: the file results/counts.csv."""
    lines = ['model,source,protocol,params_m,gmacs']
    for r in rows:
        counts = f'{r["exact_params_m"]},{r["exact_gmacs"]}'
        lines.append(f'{r["name"]},ours,counted at 256x192,{counts}')
    return '\n'.join(lines) + '\n'


FORMATS = dict(
    markdown=as_markdown,
    csv=as_csv,
    json=lambda rows: json.dumps(rows, indent=1) + '\n',
    results=as_results,
)

if __name__ == '__main__':
    main()
