"""Inference: images/s, GMAC/s and memory of networks or backbones."""

import argparse
import csv
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from model_table import published
from torch import Tensor, nn

from benchmark import networks
from benchmark.machine import environment, peaks, tf32
from benchmark.networks import DTYPES
from benchmark.peers import load_peers
from benchmark.report import Table, progress
from benchmark.timing import measure
from trunchier import zoo
from trunchier.files import whole_file
from trunchier.files.decided import cpu_name

COMPILE = ('no', 'default', 'reduce-overhead', 'max-autotune', 'graph')


def add_arguments(add: Callable) -> None:
    networks.add_arguments(add, batch=1)
    add('--heights', nargs='+', type=int, default=(), metavar='H', help='images of H x 3/4 H')
    add('--compile', nargs='+', choices=COMPILE, default=['no'], help='graph: eager CUDA graph')
    add('--channels-last', action='store_true', help='memory format of weights and images')
    add('--deploy', action='store_true', help='time trunchier.deploy(model)')
    add('--int8', action='store_true', help='also time each deployed in int8, in the same rounds')
    add('--relative', action='store_true', help="ratio to ViT-B, as in the paper's FPS columns")
    add('--csv', type=Path, metavar='FILE', help='write images/s for `trunchier report` to FILE')


def run(args: argparse.Namespace) -> Table:
    if 'graph' in args.compile and torch.device(args.device).type != 'cuda':
        raise ValueError(f'--compile graph captures a CUDA graph; --device is {args.device}')
    peers = load_peers(args.against, 'build')
    sizes = [(height, height * 3 // 4) for height in args.heights] or [tuple(args.size)]
    columns = dict(
        name='model', who='', dtype='dtype', size='image', batch='batch', mode='compile', ms='ms',
        spread='+- %', fps='images/s', gmac='GMAC', gmacs='GMAC/s', fraction='of peak',
        megabytes='MB', ms_exponent='exponent of time', megabytes_exponent='of memory',
    )  # fmt: skip
    columns |= {f'x {peer}': f'x {peer}' for peer in peers}
    if args.int8:
        columns |= {'x fp32': 'x fp32'}
    notes, paper = [], {}
    if args.relative:
        columns |= {'x ViT-B': 'x ViT-B', 'paper': "paper's"}
        paper = paper_fps()
        notes.append(
            'x ViT-B: images/s relative to ViTPose-B or HMR2.0-B in the same rounds, beside this '
            "ratio in the paper's tables"
        )
    best = {dtype: peaks(args.device, dtype) for dtype in args.dtype}
    rates = [
        f'{dtype} {library} {rate:.0f}'
        for dtype, found in best.items() for library, rate in found.items()
    ]  # fmt: skip
    notes.append(
        'GMAC: executed multiply-accumulates of matrix products and convolutions for one image; of '
        f'peak: relative to a large matrix product ({", ".join(rates)} GMAC/s)'
    )
    rows = []
    for name in networks.names(args.models, args.part):
        meta = networks.build(name, 'meta')
        gmac = {size: networks.macs(meta, size) / 1e9 for size in sizes}
        built = {'ours': networks.build(name, args.device, args.deploy)}
        built |= {peer: module for peer, build in peers.items() if (module := build(name))}
        if args.int8:
            built['int8'] = networks.build(name, args.device, True, 'int8')
        if args.relative:
            built['ViT-B'] = networks.build(reference(name), args.device, args.deploy)
        for dtype, size, batch in itertools.product(args.dtype, sizes, args.batch):
            found = time_networks(built, dtype, batch, size, args)
            timed = {row['who']: row['ms'] for row in found if 'ms' in row}
            ours, fast = timed.pop('ours', None), timed.pop('int8', None)
            for row in found:
                row |= dict(name=name, dtype=dtype, batch=batch, size=f'{size[0]} x {size[1]}')
                if row['who'] == 'ours' and ours:
                    row |= dict(gmac=gmac[size], gmacs=gmac[size] * row['fps'])
                    row |= dict(paper=paper.get(name), pixels=batch * size[0] * size[1])
                    row['fraction'] = row['gmacs'] / max(best[dtype].values())
                    row |= {f'x {other}': ms / row['ms'] for other, ms in timed.items()}
            if ours and fast:
                found[list(built).index('int8')]['x fp32'] = ours / fast
            rows += [row for row in found if row['who'] != 'ViT-B']
        progress(name)
    if add_exponents([row for row in rows if 'pixels' in row]):
        notes.append(
            'Exponent: slope of the line through the logarithms of the rows above; 1 is linear; '
            'the fixed cost of a call makes it smaller'
        )
    if args.csv:
        write_results(args.csv, rows, args)
    title = f'Inference, {"deployed " if args.deploy else ""}{args.part}s'
    return Table(title, columns, rows, notes)


def write_results(path: Path, rows: list[dict], args: argparse.Namespace) -> None:
    """Write our images/s at batch 1 as results for `trunchier report`.

    With --relative these are the ratios to ViT-B, which was timed in the same rounds as each model,
    times the median speed of ViT-B over all rows: other work on the machine cancels in the ratios.
    """
    rows = [row for row in rows if row['who'] == 'ours' and row['batch'] == 1 and 'fps' in row]
    of_reference = {}
    for row in rows if args.relative else ():
        of_reference.setdefault(reference(row['name']), []).append(row['fps'] / row['x ViT-B'])
    facts = environment(args.device)
    threads = torch.get_num_threads()
    device = facts.get('GPU') or f'{cpu_name()}, {threads} thread{"s"[: threads - 1]}'
    with whole_file(path) as part, open(part, 'w', encoding='utf-8', newline='') as file:
        writer = csv.writer(file, lineterminator='\n')
        writer.writerow(('model', 'source', 'protocol', 'fps', 'device', 'note'))
        for row in rows:
            fps = row['fps']
            if args.relative:
                fps = row['x ViT-B'] * np.median(of_reference[reference(row['name'])])
            protocol = f'{row["dtype"]}, {row["size"]}{", deployed" if args.deploy else ""}'
            note = f'{facts["date"][:10]}, load average {facts["load average"]}'
            writer.writerow((row['name'], 'ours', protocol, f'{fps:.2f}', device, note))


def add_exponents(rows: list[dict]) -> bool:
    """Fit time and memory ~ pixels^p; the last row of each network gets p. False: one size only."""
    series = {}
    for row in rows:
        series.setdefault((row['name'], row['dtype'], row['mode']), []).append(row)
    several = [found for found in series.values() if len({row['pixels'] for row in found}) > 1]
    for found in several:
        for key in ('ms', 'megabytes'):
            values = [row[key] for row in found]
            found[-1][f'{key}_exponent'] = slope([row['pixels'] for row in found], values)
    return bool(several)


def slope(amounts: list[float], values: list[float]) -> float:
    """Exponent p of values ~ amounts^p; NaN if a value is not positive."""
    if min(values) <= 0 or np.isnan(values).any():
        return float('nan')
    return float(np.polyfit(np.log(amounts), np.log(values), 1)[0])


def time_networks(
    built: dict[str, nn.Module], dtype: str, batch: int, size: tuple, args: argparse.Namespace
) -> list[dict]:
    """Rows (who, mode, ms, spread, fps, megabytes) of modules that are timed together."""
    images = torch.randn(batch, 3, *size, device=args.device, dtype=DTYPES[dtype])
    if args.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    tasks, rows = {}, []
    with torch.no_grad(), tf32(dtype == 'tf32'):
        for who, module in built.items():
            module.eval()
            module = module.to(args.device, DTYPES[dtype])
            if args.channels_last:
                module = module.to(memory_format=torch.channels_last)
            for mode in args.compile if who == 'ours' else ['no']:
                row = dict(who=who, mode=mode)
                rows.append(row)
                try:
                    task = compiled(module, images, mode)
                    task()
                except Exception as error:  # of a peer, or out of memory: the others are timed
                    row['mode'] = f'{mode}: {type(error).__name__}: {str(error).splitlines()[0]}'
                else:
                    tasks[len(rows) - 1] = task
        times = measure(tasks, args)
    for index, time in times.items():
        rows[index] |= time | dict(fps=1e3 * batch / time['ms'])
    return rows


def compiled(module: nn.Module, images: Tensor, mode: str) -> Callable:
    """A function without arguments that runs `module` on `images`."""
    if mode == 'graph':
        for _ in range(3):
            module(images)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            module(images)
        return graph.replay
    if mode != 'no':
        torch.compiler.reset()
        module = torch.compile(module, fullgraph=True, mode=mode)
    return lambda: module(images)


def reference(name: str) -> str:
    """ViTPose-B or HMR2.0-B, or its backbone: the model that the paper's FPS are relative to."""
    if name in zoo.ENCODERS:
        return 'vit-b'
    return zoo.paper_name('vit-b', zoo.models()[name][1])


def paper_fps() -> dict[str, float]:
    """{paper's name: its FPS divided by that of ViTPose-B or HMR2.0-B, as printed}."""
    ratios = {}
    for task in zoo.TASKS:
        fps = {name: row['Paper FPS (A100)'] for name, row in published(task).items()}
        ratios |= {name: value / fps[zoo.paper_name('vit-b', task)] for name, value in fps.items()}
    return ratios
