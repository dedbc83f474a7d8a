"""Exported files beside the models that they were made of: error and speed on the CPU."""

import argparse
import math
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from benchmark import networks
from benchmark.report import Table, progress
from benchmark.timing import interleaved
from trunchier.deploy import export as exporting
from trunchier.deploy.fuse import deploy
from trunchier.deploy.runtime import ExportedNetwork
from trunchier.weights.find import build_model, find_config

RUNTIMES = 'onnxruntime', 'openvino'


def add_arguments(add: Callable) -> None:
    add('--models', nargs='+', default=['*-t-s4'], metavar='NAME', help='names, patterns, or all')
    add('--batch', nargs='+', type=int, default=[1], metavar='N')
    add('--to', choices=exporting.FORMATS, default='onnx', help='format (default: onnx)')
    add('--int8', action='store_true', help='also int8: deployed in torch, and as a file (onnx)')
    add('--runtimes', nargs='+', choices=RUNTIMES, help='of the files (onnx)')
    add('--check-only', action='store_true', help='export and compare outputs without timing')


def run(args: argparse.Namespace) -> Table:
    if torch.device(args.device).type != 'cpu':
        raise ValueError(f'files are run on the CPU, --device is {args.device}; give cpu')
    if (args.int8 or args.runtimes) and args.to != 'onnx':
        raise ValueError(f'--int8 and --runtimes are for files of onnx, not {args.to}')
    columns = dict(
        name='model', batch='batch', error='largest error (std)', nodes='nodes', megabytes='MB',
        eager='eager ms', deployed='deployed ms', file=f'{args.to} ms', spread='+- %',
        ratio=f'{args.to} x as fast as eager', failed='failed',
    )  # fmt: skip
    columns |= {who: f'{who} ms' for who in variants(args)}
    keypoints = range(17)
    meta = dict(keypoint_id2name=keypoints, flip_indices=keypoints, skeleton_links=[])
    rows = []
    for name in networks.names(args.models):
        found = find_config(name)
        model = build_model(found.cfg)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, 'model' + exporting.FORMATS[args.to])
            facts = exporting.describe(found, meta)
            try:
                done = exporting.write(model, path, facts, dynamic_batch=True)
            except exporting.ExportError as error:
                rows.append(dict(name=name, failed=str(error)))
                continue
            row = dict(name=name, nodes=done.nodes, megabytes=done.bytes / 1e6)
            row['error'] = f'{max(done.errors.values()):.1e}'
            files = {('fp32', runtime): path for runtime in args.runtimes or ()}
            if args.int8:
                small = path.with_name('int8.onnx')
                exporting.write(model, small, facts, 'int8', True, tolerance=math.inf)
                files |= {('int8', runtime): small for runtime in args.runtimes or RUNTIMES[:1]}
            others = {
                f'{runtime} {precision}': ExportedNetwork(file, runtime=runtime)
                for (precision, runtime), file in files.items()
            }
            times = [{}] if args.check_only else time_file(model, done.network, others, args)
        rows += [row | each for each in times]
        progress(name)
    return Table(f'Files of {args.to}, dynamic batch size, random weights', columns, rows)


def variants(args: argparse.Namespace) -> list[str]:
    """Names of the columns that --int8 and --runtimes add."""
    names = [f'{runtime} fp32' for runtime in args.runtimes or ()]
    if args.int8:
        names += ['deployed int8', *(f'{each} int8' for each in args.runtimes or RUNTIMES[:1])]
    return names


def time_file(
    model: nn.Module,
    file: ExportedNetwork,
    others: dict[str, ExportedNetwork],
    args: argparse.Namespace,
) -> list[dict]:
    """Rows (batch, eager, deployed, file, spread, ratio, and `others`) of a model and its files."""
    graphs = dict(eager=model, deployed=deploy(model))
    if args.int8:
        graphs['deployed int8'] = deploy(model, precision='int8')
    rows = []
    for batch in args.batch:
        images = torch.randn(batch, 3, *networks.SIZE)
        tasks = {who: partial(exporting.make_graph(made), images) for who, made in graphs.items()}
        tasks['file'] = partial(file, images)
        tasks |= {who: partial(other, images) for who, other in others.items()}
        with torch.no_grad():
            times = interleaved(tasks, args.rounds, args.seconds)
        row = {who: 1e3 * time.median for who, time in times.items()}
        row |= dict(batch=batch, spread=100 * max(time.spread for time in times.values()))
        rows.append(row | dict(ratio=row['eager'] / row['file']))
    return rows
