"""Exported files beside the models that they were made of: error and speed on the CPU."""

import argparse
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


def add_arguments(add: Callable) -> None:
    add('--models', nargs='+', default=['*-t-s4'], metavar='NAME', help='names, patterns, or all')
    add('--batch', nargs='+', type=int, default=[1], metavar='N')
    add('--to', choices=exporting.FORMATS, default='onnx', help='format (default: onnx)')
    add('--check-only', action='store_true', help='export and compare outputs without timing')


def run(args: argparse.Namespace) -> Table:
    if torch.device(args.device).type != 'cpu':
        raise ValueError(f'files are run on the CPU, --device is {args.device}; give cpu')
    columns = dict(
        name='model', batch='batch', error='largest error (std)', nodes='nodes', megabytes='MB',
        eager='eager ms', deployed='deployed ms', file=f'{args.to} ms', spread='+- %',
        ratio=f'{args.to} x as fast as eager', failed='failed',
    )  # fmt: skip
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
            times = [{}] if args.check_only else time_file(model, done.network, args)
        rows += [row | each for each in times]
        progress(name)
    return Table(f'Files of {args.to}, dynamic batch size, random weights', columns, rows)


def time_file(model: nn.Module, file: ExportedNetwork, args: argparse.Namespace) -> list[dict]:
    """Rows (batch, eager, deployed, file, spread, ratio) of a model and its file."""
    graphs = dict(eager=model, deployed=deploy(model))
    rows = []
    for batch in args.batch:
        images = torch.randn(batch, 3, *networks.SIZE)
        tasks = {who: partial(exporting.make_graph(made), images) for who, made in graphs.items()}
        tasks['file'] = partial(file, images)
        with torch.no_grad():
            times = interleaved(tasks, args.rounds, args.seconds)
        row = {who: 1e3 * time.median for who, time in times.items()}
        row |= dict(batch=batch, spread=100 * max(time.spread for time in times.values()))
        rows.append(row | dict(ratio=row['eager'] / row['file']))
    return rows
