"""Inference: images/s, GMAC/s and memory of networks or backbones."""

import argparse
import itertools
from collections.abc import Callable

import torch
from model_table import published
from torch import Tensor, nn

from benchmark import networks
from benchmark.machine import DTYPES, peaks, tf32
from benchmark.peers import load_peers
from benchmark.report import Table, progress
from benchmark.timing import interleaved, peak_memory
from trunchier import zoo

COMPILE = ('no', 'default', 'reduce-overhead', 'max-autotune', 'graph')


def add_arguments(add: Callable) -> None:
    add('--models', nargs='+', default=['*-t-s2'], metavar='NAME', help='names, patterns, or all')
    add('--part', choices=networks.PARTS, default='network', help='default: network')
    add('--batch', nargs='+', type=int, default=[1], metavar='N')
    add('--dtype', nargs='+', choices=DTYPES, default=['fp32'], help='of weights and images')
    add('--size', nargs=2, type=int, default=networks.SIZE, metavar=('H', 'W'))
    add('--compile', nargs='+', choices=COMPILE, default=['no'], help='graph: eager CUDA graph')
    add('--channels-last', action='store_true', help='memory format of weights and images')
    add('--deploy', action='store_true', help='time trunchier.deploy(model)')
    add('--against', nargs='+', default=[], metavar='NAME=DIR', help='peers, see above')
    add('--relative', action='store_true', help="ratio to ViT-B, as in the paper's FPS columns")


def run(args: argparse.Namespace) -> Table:
    if 'graph' in args.compile and torch.device(args.device).type != 'cuda':
        raise ValueError(f'--compile graph captures a CUDA graph; --device is {args.device}')
    peers = load_peers(args.against, 'build')
    columns = dict(
        name='model', who='', dtype='dtype', batch='batch', mode='compile', ms='ms', spread='+- %',
        fps='images/s', gmac='GMAC', gmacs='GMAC/s', fraction='of peak', megabytes='MB',
    )  # fmt: skip
    columns |= {f'x {peer}': f'x {peer}' for peer in peers}
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
        gmac = networks.macs(networks.build(name, 'meta'), args.size) / 1e9
        built = {'ours': networks.build(name, args.device, args.deploy)}
        built |= {peer: module for peer, build in peers.items() if (module := build(name))}
        if args.relative:
            built['ViT-B'] = networks.build(reference(name), args.device, args.deploy)
        for dtype, batch in itertools.product(args.dtype, args.batch):
            found = time_networks(built, dtype, batch, args)
            others = {
                row['who']: row['ms'] for row in found if row['who'] != 'ours' and 'ms' in row
            }
            for row in found:
                row |= dict(name=name, dtype=dtype, batch=batch)
                if row['who'] == 'ours' and 'ms' in row:
                    row |= dict(gmac=gmac, gmacs=gmac * row['fps'], paper=paper.get(name))
                    row['fraction'] = row['gmacs'] / max(best[dtype].values())
                    row |= {f'x {other}': ms / row['ms'] for other, ms in others.items()}
            rows += [row for row in found if row['who'] != 'ViT-B']
        progress(name)
    title = f'Inference, {"deployed " if args.deploy else ""}{args.part}s'
    return Table(f'{title}, {args.size[0]} x {args.size[1]}', columns, rows, notes)


def time_networks(
    built: dict[str, nn.Module], dtype: str, batch: int, args: argparse.Namespace
) -> list[dict]:
    """Rows (who, mode, ms, spread, fps, megabytes) of modules that are timed together."""
    images = torch.randn(batch, 3, *args.size, device=args.device, dtype=DTYPES[dtype])
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
                    with peak_memory(args.device) as peak:
                        task()
                except Exception as error:  # of a peer, or out of memory: the others are timed
                    row['mode'] = f'{mode}: {type(error).__name__}: {str(error).splitlines()[0]}'
                    continue
                row['megabytes'] = peak() / 1e6
                tasks[len(rows) - 1] = task
        times = interleaved(tasks, args.rounds, args.seconds, args.device)
    for index, time in times.items():
        rows[index] |= dict(ms=1e3 * time.median, spread=100 * time.spread, fps=batch / time.median)
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
