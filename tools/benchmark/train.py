"""Training: forward, backward and an AdamW step."""

import argparse
import contextlib
import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmark import networks
from benchmark.machine import tf32
from benchmark.networks import DTYPES
from benchmark.peers import load_peers
from benchmark.report import Table, progress
from benchmark.timing import measure


def add_arguments(add: Callable) -> None:
    networks.add_arguments(add, batch=32)
    add('--with-cp', action='store_true', help='activation checkpointing of the blocks')


def run(args: argparse.Namespace) -> Table:
    peers = load_peers(args.against, 'build')
    columns = dict(
        name='model', who='', dtype='dtype', batch='batch', ms='ms / step', spread='+- %',
        fps='images/s', megabytes='MB',
    )  # fmt: skip
    columns |= {f'x {peer}': f'x {peer}' for peer in peers}
    rows = []
    for name in networks.names(args.models, args.part):
        built = {'ours': networks.build(name, args.device)}
        for module in built['ours'].modules() if args.with_cp else ():
            if hasattr(module, 'with_cp'):
                module.with_cp = True
        built |= {peer: module for peer, build in peers.items() if (module := build(name))}
        for dtype, batch in itertools.product(args.dtype, args.batch):
            with tf32(dtype == 'tf32'):
                tasks = {
                    who: training_step(module.to(args.device), dtype, batch, args)
                    for who, module in built.items()
                }
                times = measure(tasks, args)
            for who, time in times.items():
                row = dict(name=name, who=who, dtype=dtype, batch=batch, **time)
                row['fps'] = 1e3 * batch / time['ms']
                if who == 'ours':
                    others = {peer: t['ms'] for peer, t in times.items() if peer != 'ours'}
                    row |= {f'x {peer}': ms / time['ms'] for peer, ms in others.items()}
                rows.append(row)
        progress(name)
    checkpointed = ', with activation checkpointing' if args.with_cp else ''
    notes = ['MB: activations and gradients, without weights and optimizer state']
    return Table(f'Training, {args.part}s{checkpointed}', columns, rows, notes)


def training_step(
    module: nn.Module, dtype: str, batch: int, args: argparse.Namespace
) -> Callable[[], None]:
    module.train()
    images = torch.randn(batch, 3, *args.size, device=args.device)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-5)
    low = DTYPES[dtype] if dtype in ('bf16', 'fp16') else None

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(images.device.type, low) if low else contextlib.nullcontext():
            loss = sum(map(some_loss, tensors_in(module(images))))
        loss.backward()
        optimizer.step()

    return step


def some_loss(tensor: Tensor) -> Tensor:
    """Weighted mean; an unweighted mean of squares is constant after a norm: no gradient."""
    weights = torch.linspace(-1, 1, tensor.numel(), device=tensor.device)
    return (tensor.float().flatten() * weights).mean()


def tensors_in(output: Tensor | tuple | list | dict) -> list[Tensor]:
    if torch.is_tensor(output):
        return [output]
    parts = output.values() if isinstance(output, dict) else output
    return [tensor for part in parts for tensor in tensors_in(part)]
