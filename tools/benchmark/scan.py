"""The selective scan of four directions, by backend."""

import argparse
import itertools
from collections.abc import Callable

import torch

from benchmark.networks import DTYPES
from benchmark.peers import load_peers
from benchmark.report import Table, progress
from benchmark.timing import measure
from trunchier import ops


def add_arguments(add: Callable) -> None:
    add('--lengths', nargs='+', type=int, default=[48, 192, 768, 3072], metavar='L')
    add('--channels', nargs='+', type=int, default=[96, 384], metavar='D', help='per direction')
    add('--states', type=int, default=1, metavar='N')
    add('--batch', nargs='+', type=int, default=[1], metavar='B')
    add('--dtype', nargs='+', choices=('fp32', 'bf16', 'fp16'), default=['fp32'])
    add('--backends', nargs='+', help='default: all that are available here, but reference')
    add('--against', nargs='+', default=[], metavar='NAME=DIR', help='peers, see above')


def run(args: argparse.Namespace) -> Table:
    peers = load_peers(args.against, 'selective_scan')
    backends = args.backends
    if backends is None:
        table = ops.available_backends()['selective_scan_2d']
        left_out = 'reference', 'triton' if args.device == 'cpu' else 'numba'
        backends = [
            name for name, state in table.items() if state == 'available' and name not in left_out
        ]
    columns = dict(
        op='operation', length='length', channels='channels', batch='batch', dtype='dtype',
        who='backend', forward='forward ms', forward_spread='+- %', both='forward + backward ms',
        both_spread='+- %', nanoseconds='forward ns / step', megabytes='MB, both',
    )  # fmt: skip
    rows = []
    for dtype, batch, channels in itertools.product(args.dtype, args.batch, args.channels):
        for length in args.lengths:
            rows += scan_rows(length, channels, batch, dtype, backends, peers, args)
        progress(f'{dtype}, batch {batch}, {channels} channels')
    notes = [
        'selective_scan: four directions as four groups; selective_scan_2d: the same work on a map '
        'with the projection to delta, as in the models. Steps: batch x 4 channels x length'
    ]
    return Table(f'Selective scan, {args.states} states', columns, rows, notes)


def scan_rows(
    length: int,
    channels: int,
    batch: int,
    dtype: str,
    backends: list[str],
    peers: dict[str, Callable],
    args: argparse.Namespace,
) -> list[dict]:
    generator = torch.Generator(args.device).manual_seed(0)

    def randn(*shape, dtype=torch.float32):
        made = torch.randn(shape, generator=generator, device=args.device)
        return made.to(dtype).requires_grad_()

    low, states, rank = DTYPES[dtype], args.states, max(1, channels // 16)
    wide = batch, 4 * channels, length
    narrow = batch, 4, states, length
    A = (-torch.rand(4 * channels, states, device=args.device) - 0.1).requires_grad_()
    sequence = (
        randn(*wide, dtype=low), randn(*wide, dtype=low), A, randn(*narrow, dtype=low),
        randn(*narrow, dtype=low), randn(4 * channels), randn(4 * channels), True,
    )  # fmt: skip
    calls = {}
    for backend in backends:
        if backend in ('torch', 'reference'):  # the others scan maps only
            calls['selective_scan', backend] = ops.selective_scan, (*sequence, backend)
    for peer, function in peers.items():
        calls['selective_scan', peer] = function, sequence
    height = round((length * 4 / 3) ** 0.5)
    if length % height == 0:
        width = length // height
        on_map = (
            randn(batch, height, width, channels, dtype=low),
            randn(batch, height, width, 4, rank + 2 * states, dtype=low),
            A.detach().view(4, channels, states).requires_grad_(),
            randn(4, channels), randn(4, channels, rank), randn(4, channels),
        )  # fmt: skip
        for backend in backends:
            calls['selective_scan_2d', backend] = ops.selective_scan_2d, (*on_map, backend)

    tasks = {}
    for key, (function, tensors) in calls.items():
        forward, both = forward_and_both(function, tensors)
        tasks |= {(*key, 'forward'): forward, (*key, 'both'): both}
    times = measure(tasks, args)
    rows = []
    for op, who in calls:
        forward, both = times[op, who, 'forward'], times[op, who, 'both']
        rows.append(dict(
            op=op, length=length, channels=channels, batch=batch, dtype=dtype, who=who,
            forward=forward['ms'], forward_spread=forward['spread'],
            both=both['ms'], both_spread=both['spread'], megabytes=both['megabytes'],
            nanoseconds=1e6 * forward['ms'] / (batch * 4 * channels * length),
        ))  # fmt: skip
    return rows


def forward_and_both(function: Callable, arguments: tuple) -> tuple[Callable, Callable]:
    """Functions without arguments: the forward pass, and forward and backward together."""
    leaves = [argument for argument in arguments if torch.is_tensor(argument)]

    def forward():
        with torch.no_grad():
            return function(*arguments)

    grad = torch.ones_like(forward())
    return forward, lambda: torch.autograd.grad(function(*arguments), leaves, grad)
