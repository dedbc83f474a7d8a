"""Lifters with fewer frames: tokens and G against measured milliseconds."""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from mmengine.registry import MODELS
from torch import nn

from benchmark.report import Table, progress
from benchmark.timing import measure
from trunchier.files import whole_file
from trunchier.models.lifting.hourglass import steps_of

MARKS = {'TPC TRA': 'o', 'TPC center': 's', 'TPA TRI': '^', 'TPMo TRI': 'v', 'TPS TRI': 'D'}
# {layer: share of the window}, as of HoT and H2OT.
SCHEDULES = ({7: 1 / 4}, {3: 1 / 3}, {1: 1 / 2, 3: 1 / 3, 5: 1 / 4}, {1: 1 / 4}, {1: 1 / 12})


def add_arguments(add: Callable) -> None:
    add('--frames', type=int, default=243, help='of a window (default: 243)')
    add('--width', type=int, default=512, help='channels of a token (default: 512)')
    add('--batch', type=int, default=1)
    add('--plot', type=Path, metavar='FILE', help='.png or .svg of milliseconds over tokens')


def run(args: argparse.Namespace) -> Table:
    rows = []
    networks = {('', 'MixSTE'): lifter(args, None)}
    for schedule in SCHEDULES:
        kept = {layer: round(args.frames * share) for layer, share in schedule.items()}
        words = ', '.join(f'{layer}: {frames}' for layer, frames in kept.items())
        for kind in MARKS:
            networks[words, kind] = lifter(args, kept, *kind.split())
    window = torch.randn(args.batch, args.frames, 17, 2, device=args.device)
    tasks = {name: calling(network, window) for name, network in networks.items()}
    progress(f'{len(tasks)} networks')
    times = measure(tasks, args)
    base = times['', 'MixSTE']['ms']
    for (words, kind), network in networks.items():
        found = times[words, kind]
        rows.append(dict(
            kind=kind, schedule=words, tokens=17 * frames_run(network, args.frames),
            giga=2 * linear_macs(network, window) / args.batch / 1e9,
            ms=found['ms'], spread=found['spread'], speed=base / found['ms'],
        ))  # fmt: skip
    columns = dict(
        kind='pruner, recovery', schedule='{layer: frames}', tokens='tokens, all layers',
        giga='G of linear layers', ms='ms', spread='+- %', speed='times as fast as MixSTE',
    )  # fmt: skip
    if args.plot:
        plot(rows, args.plot)
    notes = [
        f'Windows of {args.frames} frames, batch {args.batch}, width {args.width}, random weights',
        'G: twice the multiplications of linear layers, as HoT counts; milliseconds have attention '
        'and the selection of frames, too',
    ]
    return Table('Lifters', columns, rows, notes)


def lifter(
    args: argparse.Namespace,
    schedule: dict[int, int] | None,
    pruner: str = 'TPC',
    recovery: str | None = None,
) -> nn.Module:
    """A PoseLifter in eval mode; without a schedule, MixSTE."""
    backbone = dict(type='MixSTE', width=args.width, seq_len=args.frames)
    if schedule:
        backbone = dict(
            type='HourglassTokenizer',
            backbone=backbone,
            schedule=schedule,
            pruner=pruner,
            recovery=None if recovery == 'center' else recovery,
        )
    head = dict(type='LiftingHead', in_channels=args.width)
    model = MODELS.build(dict(type='mmpose.PoseLifter', backbone=backbone, head=head))
    return model.to(args.device).eval()


def calling(network: nn.Module, window: torch.Tensor) -> Callable[[], torch.Tensor]:
    """A function without arguments that lifts the window."""

    def call():
        with torch.inference_mode():
            return network(window, None, mode='tensor')

    return call


def frames_run(network: nn.Module, frames: int) -> int:
    """Frames that all layers together run on."""
    schedule = getattr(network.backbone, 'schedule', {})
    total = 0
    for layer in range(steps_of(getattr(network.backbone, 'backbone', network.backbone)).depth):
        frames = schedule.get(layer, frames)
        total += frames
    return total


def linear_macs(network: nn.Module, window: torch.Tensor) -> int:
    """Multiplications of linear layers in one call."""
    total = []
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    hooks = [
        layer.register_forward_hook(
            lambda layer, args, out: total.append(out.numel() * layer.in_features)
        )
        for layer in layers
    ]
    calling(network, window)()
    for hook in hooks:
        hook.remove()
    return sum(total)


def plot(rows: list[dict], path: Path) -> None:
    """Draw milliseconds over tokens; the line is MixSTE's share of its tokens."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    base = next(row for row in rows if row['kind'] == 'MixSTE')
    figure, axis = pyplot.subplots(figsize=(7, 4.5))
    most = base['tokens'] / 1000
    axis.plot([0, most], [0, base['ms']], color='0.7', label='in proportion to tokens')
    axis.plot(most, base['ms'], '*', markersize=12, color='black', label='MixSTE')
    for kind, mark in MARKS.items():
        own = [row for row in rows if row['kind'] == kind]
        axis.plot([r['tokens'] / 1000 for r in own], [r['ms'] for r in own], mark, label=kind)
    axis.set(xlabel='thousand tokens, all layers together', ylabel='ms a window')
    axis.set_ylim(0, None)
    axis.legend()
    figure.tight_layout()
    with whole_file(path) as part:
        figure.savefig(part, format=path.suffix[1:])
