"""Time and memory of backbones against batch size and resolution, with fitted exponents."""

import argparse
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from benchmark import networks
from benchmark.machine import DTYPES, tf32
from benchmark.report import Table, progress
from benchmark.timing import interleaved, peak_memory

MODELS = ('swin-t-s4', 'gmf-t-s4', 'vm-t-s4')
HEIGHTS = (256, 384, 512, 768, 1024)


def add_arguments(add: Callable) -> None:
    add('--models', nargs='+', default=MODELS, metavar='NAME', help=f'default: {" ".join(MODELS)}')
    add('--batch', nargs='+', type=int, default=[1, 2, 4, 8], metavar='N')
    add('--sides', nargs='+', type=int, default=HEIGHTS, metavar='H', help='heights of images')
    add('--dtype', choices=DTYPES, default='fp32')


def run(args: argparse.Namespace) -> Table:
    sizes = [(height, height * 3 // 4) for height in args.sides]
    rows = []
    for name in networks.names(args.models, 'backbone'):
        module = networks.build(name, args.device)
        for what, cases in (
            ('batch', [(batch, sizes[0]) for batch in args.batch]),
            ('pixels', [(1, size) for size in sizes]),
        ):
            found = scaling_rows(module, cases, args)
            if len(found) > 1:
                amounts = [row['amount'] for row in found]
                for key in ('ms', 'megabytes'):
                    found[-1][f'{key}_exponent'] = slope(amounts, [row[key] for row in found])
            rows += [dict(name=name, what=what, **row) for row in found]
            progress(f'{name}, {what}')
    columns = dict(
        name='backbone', what='against', batch='batch', size='image', ms='ms', spread='+- %',
        nanoseconds='ns / pixel', megabytes='MB', ms_exponent='exponent of time',
        megabytes_exponent='of memory',
    )  # fmt: skip
    notes = [
        'Exponent: slope of the line through the logarithms of the rows above; 1 is linear, the '
        'fixed cost of a call makes it smaller'
    ]
    return Table('Scaling', columns, rows, notes)


def scaling_rows(
    module: nn.Module, cases: list[tuple[int, tuple[int, int]]], args: argparse.Namespace
) -> list[dict]:
    """Rows of (batch, (H, W)) cases that are timed together."""
    tasks, rows = {}, []
    with torch.no_grad(), tf32(args.dtype == 'tf32'):
        module = module.to(DTYPES[args.dtype])
        for batch, (height, width) in cases:
            shape = (batch, 3, height, width)
            images = torch.randn(shape, device=args.device, dtype=DTYPES[args.dtype])
            task = lambda images=images: module(images)  # noqa: E731
            task()
            with peak_memory(args.device) as peak:
                task()
            tasks[len(rows)] = task
            size, amount = f'{height} x {width}', batch * height * width
            rows.append(dict(batch=batch, size=size, amount=amount, megabytes=peak() / 1e6))
        times = interleaved(tasks, args.rounds, args.seconds, args.device)
    for row, time in zip(rows, times.values(), strict=True):
        row |= dict(ms=1e3 * time.median, spread=100 * time.spread)
        row['nanoseconds'] = 1e9 * time.median / row['amount']
    return rows


def slope(amounts: list[float], values: list[float]) -> float:
    """Exponent p of values ~ amounts^p; NaN if a value is not positive."""
    if min(values) <= 0 or np.isnan(values).any():
        return float('nan')
    return float(np.polyfit(np.log(amounts), np.log(values), 1)[0])
