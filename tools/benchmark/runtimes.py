"""Ours beside what a user would run instead: other code, runtimes, torch.compile, int8."""

import argparse
import json
import math
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmark import networks
from benchmark.peers import load_peers
from benchmark.report import Table, progress
from benchmark.timing import interleaved
from trunchier.deploy import export as exporting
from trunchier.deploy.calibration import calibration_crops
from trunchier.deploy.fuse import deploy
from trunchier.deploy.graph import describe, make_graph
from trunchier.deploy.quantize import quantize
from trunchier.deploy.runtime import INPUT, ExportedNetwork
from trunchier.weights.find import build_model, find_config

RUNTIMES = 'onnxruntime', 'openvino'
MODELS = 'SwinPose-T-S3', 'GMFPose-T-S3', 'VMPose-T-S3', 'ViTPose-S'
CROPS = 12  # synthetic people that give the scales of int8 files
KEYPOINTS = range(17)
META = dict(keypoint_id2name=KEYPOINTS, flip_indices=KEYPOINTS, skeleton_links=[])


def add_arguments(add: Callable) -> None:
    add('--models', nargs='+', default=MODELS, metavar='NAME', help=f'default: {" ".join(MODELS)}')
    add('--batch', nargs='+', type=int, default=[1, 8], metavar='N', help='default: 1 8')
    add('--runtimes', nargs='*', choices=RUNTIMES, default=RUNTIMES, help='of exported files')
    add('--int8', action='store_true', help='also in int8: deployed, and files')
    add('--compile', nargs='+', default=[], metavar='WHO', help='ours, or names of peers')
    add('--against', nargs='+', default=[], metavar='NAME=DIR', help='peers, see above')


def run(args: argparse.Namespace) -> Table:
    if torch.device(args.device).type != 'cpu':
        raise ValueError(f'runtimes are compared on the CPU, --device is {args.device}; give cpu')
    rows, notes = [], []
    peers = load_peers(args.against, 'build')
    for name in networks.names(args.models):
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            tasks, modules = build(name, peers, Path(folder), notes, args)
            for batch in args.batch:
                images = torch.randn(batch, 3, *networks.SIZE)
                timed = {key: partial(task, images) for key, task in tasks.items()}
                for who, module in modules.items():
                    if who in args.compile:
                        timed[who, 'torch.compile'] = partial(compiled(module, images), images)
                times = interleaved(timed, args.rounds, args.seconds)
                ours = times['ours', 'deployed'].median
                rows += [
                    dict(name=name, batch=batch, who=who, how=how, ms=1e3 * time.median,
                         spread=100 * time.spread, ratio=time.median / ours)
                    for (who, how), time in times.items()
                ]  # fmt: skip
                progress(f'{name}, batch {batch}')
    columns = dict(name='model', batch='batch', who='code', how='runtime', ms='ms', spread='+- %')
    columns |= dict(ratio='x deployed')
    notes.append(
        'x deployed: milliseconds relative to ours, deployed in fp32, in the same rounds. Weights '
        'are random. Files are exported with any number of crops; torch.compile: inductor with '
        'freezing, compiled for the batch size'
    )
    return Table('Ours beside other code, runtimes and compilers', columns, rows, notes)


def build(
    name: str,
    peers: dict[str, Callable],
    folder: Path,
    notes: list[str],
    args: argparse.Namespace,
) -> tuple[dict[tuple[str, str], Callable], dict[str, nn.Module]]:
    """Functions of images by (who, how), and modules that torch.compile takes by who.

    Args:
        peers: {name: its `build`}. folder: for files. notes: gets what could not be exported.
    """
    found = find_config(name)
    model, facts = build_model(found.cfg), describe(found, META)
    crops = calibration_crops(facts, num=CROPS) if args.int8 else np.empty(0)
    modules = dict(ours=make_graph(model))
    modules |= {peer: made.eval() for peer, make in peers.items() if (made := make(name))}
    tasks = {(who, 'torch'): module for who, module in modules.items()}
    tasks['ours', 'deployed'] = make_graph(deploy(model))
    if args.int8:
        tasks['ours', 'deployed, int8'] = make_graph(deploy(model, precision='int8'))
    for who, module in [*modules.items()]:
        if not getattr(module, 'traceable', True):
            notes.append(f'{name} of {who} cannot be exported or compiled, see examples/peer.py')
            del modules[who]
            continue
        files = {'': folder / f'{who}.onnx'} if args.runtimes else {}
        try:
            if files and who == 'ours':
                exporting.write(model, files[''], facts, dynamic_batch=True)
            elif files:
                export_plainly(module, files[''])
            if files and args.int8:
                files[', int8'] = folder / f'{who}-int8.onnx'
                quantize(files[''], files[', int8'], crops, math.inf)
        except Exception as error:  # of any class: exporters have none in common
            notes.append(f'{name} of {who} was not exported: {str(error).splitlines()[:1]}')
            continue
        for precision, file in files.items():
            for runtime in args.runtimes:
                tasks[who, runtime + precision] = ExportedNetwork(file, runtime=runtime)
    return tasks, modules


def export_plainly(module: nn.Module, path: Path) -> None:
    """Write a peer as ONNX by torch's exporter alone, for crops of `networks.SIZE`."""
    images = torch.zeros(2, 3, *networks.SIZE)
    shapes = ({0: torch.export.Dim('batch')},)
    traced = torch.export.export(module, (images,), dynamic_shapes=shapes, strict=False)
    program = torch.onnx.export(
        traced, input_names=[INPUT], opset_version=exporting.OPSET, verbose=False
    )
    names = [each.name for each in program.model.graph.outputs]
    facts = dict(task='pose', model=path.stem, dynamic_batch=True, outputs=names)
    program.model.metadata_props.update({key: json.dumps(each) for key, each in facts.items()})
    program.save(path)


def compiled(module: nn.Module, images: Tensor) -> Callable:
    """The module by torch.compile with constant-folded weights, compiled for these images."""
    import torch._inductor.config as settings

    with settings.patch(freezing=True):
        made = torch.compile(module, dynamic=False)
        made(images)
    return made
