"""Masked windows and strong decays, whose exponentials are subnormal, beside ordinary numbers.

exp(-95) is below the range of normal float32 numbers, for which some CPUs take a hundred times as
long in each product. The kernels make it zero, so that the ratio of times is near 1.
"""

import argparse
from collections.abc import Callable
from functools import partial

import torch

from benchmark.report import Table
from benchmark.timing import interleaved
from trunchier import ops
from trunchier.ops.windows import window_layout

DEPTH = 95.0  # exp(-DEPTH) is subnormal in float32


def add_arguments(add: Callable) -> None:
    add('--backends', nargs='+', default=['auto'], help='of both operations (default: auto)')


def run(args: argparse.Namespace) -> Table:
    torch.manual_seed(0)
    rows = []
    with torch.no_grad():
        for backend in args.backends:
            for name, make in (('window_attention', windows), ('selective_scan_2d', scan)):
                tasks = {
                    kind: partial(make(depth, args.device), backend=backend)
                    for kind, depth in (('ordinary', 1.0), ('subnormal', DEPTH))
                }
                times = interleaved(tasks, args.rounds, args.seconds, args.device)
                row = {kind: 1e3 * time.median for kind, time in times.items()}
                row |= dict(op=name, backend=backend, ratio=row['subnormal'] / row['ordinary'])
                rows.append(row | dict(spread=100 * max(each.spread for each in times.values())))
    columns = dict(
        op='operation', backend='backend', ordinary='ordinary ms', subnormal='subnormal ms',
        ratio='ratio', spread='+- %',
    )  # fmt: skip
    notes = [
        f'Half of the scores of each window are {-DEPTH:g}, as those of masks, or every decay of '
        f'the scan is exp({-DEPTH:g}), for the maps of Swin-T and VMamba-T in stage 2'
    ]
    return Table('Subnormal numbers', columns, rows, notes)


def windows(depth: float, device: str) -> Callable:
    """Attention in windows of 7 x 7, half of whose scores are about -depth."""
    height, width, channels, heads = 32, 24, 192, 6
    layout = window_layout(height, width, 7, 0, torch.device(device))
    bias = torch.zeros(heads, 49, 49, device=device)
    bias[:, :, ::2] = -depth
    qkv = torch.randn(1, height * width, 3 * channels, device=device)
    return partial(ops.window_attention, qkv, qkv.new_zeros(3 * channels), bias, layout)


def scan(depth: float, device: str) -> Callable:
    """A scan whose decays are exp(-depth)."""
    height, width, channels = 32, 24, 192
    states = torch.randn(1, height, width, 4, 12 + 2, device=device)
    return partial(
        ops.selective_scan_2d,
        torch.randn(1, height, width, channels, device=device),
        states,
        torch.full((4, channels, 1), -1.0, device=device),
        torch.ones(4, channels, device=device),
        torch.zeros(4, channels, 12, device=device),
        torch.full((4, channels), depth, device=device),
    )
