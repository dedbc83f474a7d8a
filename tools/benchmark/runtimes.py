"""Ours beside what a user would run instead: other code, runtimes, torch.compile, int8."""

import argparse
import json
import math
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

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
CROP = dict(
    input_size=networks.SIZE[::-1], box_padding=1.25, channels='RGB',
    mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375],
)  # fmt: skip
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
            tasks, modules = build(name, peers, Path(folder), args)
            for who, module in [*modules.items()]:
                if not getattr(module, 'traceable', True):
                    notes.append(f'{name} of {who} is not exported or compiled: a loop in Python')
                    del modules[who]
            for batch in args.batch:
                images = torch.randn(batch, 3, *networks.SIZE)
                timed = {key: partial(task, images) for key, task in tasks.items()}
                for who in modules.keys() - {'ours'} if args.runtimes else ():
                    try:
                        file = Path(folder, f'{who}-{batch}.onnx')
                        found = export_plainly(modules[who], file, images, args)
                        timed |= {(who, how): partial(run, images) for how, run in found.items()}
                    except Exception as error:  # of any class: exporters have none in common
                        reason = str(error).splitlines()[:1]
                        notes.append(f'{name} of {who}, batch {batch}, was not exported: {reason}')
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
        'are random. Files of ours take any number of crops; those of peers, and torch.compile '
        '(inductor with freezing), are for the batch size; in int8, peers are measured at batch 1'
    )
    return Table('Ours beside other code, runtimes and compilers', columns, rows, notes)


def build(
    name: str,
    peers: dict[str, Callable],
    folder: Path,
    args: argparse.Namespace,
) -> tuple[dict[tuple[str, str], Callable], dict[str, nn.Module]]:
    """Functions of images by (who, how), and modules by who.

    Args:
        peers: {name: its `build`}. folder: for files.
    """
    found = find_config(name)
    model, facts = build_model(found.cfg), describe(found, META)
    modules = dict(ours=make_graph(model))
    modules |= {peer: made.eval() for peer, make in peers.items() if (made := make(name))}
    tasks = {(who, 'torch'): module for who, module in modules.items()}
    tasks['ours', 'deployed'] = make_graph(deploy(model))
    if args.int8:
        tasks['ours', 'deployed, int8'] = make_graph(deploy(model, precision='int8'))
    if args.runtimes:
        exporting.write(model, folder / 'ours.onnx', facts, dynamic_batch=True)
        networks = networks_of(folder / 'ours.onnx', args.int8, args)
        tasks |= {('ours', how): network for how, network in networks.items()}
    return tasks, modules


def networks_of(path: Path, int8: bool, args: argparse.Namespace) -> dict[str, ExportedNetwork]:
    """{how: network} of an ONNX file, in each runtime, and in int8."""
    files = {'': path}
    if int8:
        facts = ExportedNetwork(path).metadata
        files[', int8'] = path.with_suffix('.int8.onnx')
        quantize(path, files[', int8'], calibration_crops(facts, num=CROPS), math.inf)
    return {
        runtime + precision: ExportedNetwork(file, runtime=runtime)
        for precision, file in files.items()
        for runtime in args.runtimes
    }


def export_plainly(
    module: nn.Module, path: Path, images: Tensor, args: argparse.Namespace
) -> dict[str, ExportedNetwork]:
    """`networks_of` a peer that torch's exporter alone writes, for a batch of this size."""
    program = torch.onnx.export(
        module, (images,), input_names=[INPUT], opset_version=exporting.OPSET, dynamo=True,
        verbose=False,
    )  # fmt: skip
    names = [each.name for each in program.model.graph.outputs]
    facts = dict(task='pose', model=path.stem, dynamic_batch=True, outputs=names, **CROP)
    program.model.metadata_props.update({key: json.dumps(each) for key, each in facts.items()})
    program.save(path)
    return networks_of(path, args.int8 and len(images) == 1, args)


def compiled(module: nn.Module, images: Tensor) -> Callable:
    """The module by torch.compile with constant-folded weights, compiled for these images."""
    import torch._inductor.config as settings

    with settings.patch(freezing=True):
        made = torch.compile(module, dynamic=False)
        made(images)
    return made
