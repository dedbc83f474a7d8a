"""Measure speed and memory on this machine, side by side.

    trunchier benchmark models --models 'VM*-T-S2' ViTPose-B --batch 1 8 --threads 1
    trunchier benchmark models --part backbone --models '*-t-s4' --against official=DIR
    trunchier benchmark scan --lengths 48 3072 --channels 96
    trunchier benchmark train --models 'swin-t-s*' --part backbone --batch 32
    trunchier benchmark data --num 200 --workers 2
    trunchier benchmark pipeline --model VMPose-T-S2 --frames 150
    trunchier benchmark latency --people 1 4 --detector yolox_nano.onnx
    trunchier benchmark cold --models VMPose-T-S2 ViTPose-S --exported
    trunchier benchmark models --models swin-t-s4 vm-t-s4 --heights 256 384 512 768 1024
    trunchier benchmark export --models 'VM*-T-S4' --batch 1 8 --threads 1
    trunchier benchmark export --models all --check-only
    trunchier benchmark runtimes --int8 --compile official --against official=examples
    trunchier benchmark subnormal --threads 1
    trunchier benchmark busy --processes 2
    trunchier benchmark soak --frames 10000 --iterations 5000 --plot soak.svg
    trunchier benchmark annotation --num 10000
    trunchier benchmark lifting --frames 243 --plot lifting.svg
    trunchier benchmark motions --threads 1
    trunchier benchmark all --out docs/benchmarks/DATE-DEVICE.md

The rows of a table are measured in interleaved rounds: medians, +- half the interquartile range.
Weights are random, which does not affect speed.

--against NAME=DIR measures another implementation (a peer) beside ours. DIR/peer.py may import
modules from DIR (examples/peer.py uses the authors' repositories) and defines one or both of

    build(name)        a module with our input (batch, 3, H, W), for a name of the table
                       ('swin-t-s4' with --part backbone, else 'SwinPose-T-S4'), or None
    selective_scan(u, delta, A, B, C, D, delta_bias, delta_softplus)    as in trunchier.ops

Pose networks, `data` and `pipeline` require mmpose, ViTs require mmpretrain; torch, numpy and
mmengine suffice for the other backbones and the scan.
"""

import argparse
import logging
import shlex
import sys
import warnings
from pathlib import Path

import torch

from benchmark import (
    annotation,
    busy,
    cold,
    data,
    export,
    latency,
    lifting,
    models,
    motions,
    pipeline,
    runtimes,
    scan,
    soak,
    subnormal,
    train,
)
from benchmark.report import Report, Table, progress

COMMANDS = {
    'models': (models, 'images/s, GMAC/s and memory of inference'),
    'scan': (scan, 'the selective scan by backend, forward and backward'),
    'data': (data, 'the data loaders by stage, synthetic people, the renderer'),
    'train': (train, 'images/s and memory of training'),
    'pipeline': (pipeline, 'a video to its results, beside the network alone'),
    'latency': (latency, 'milliseconds from a frame to its results, percentiles'),
    'cold': (cold, 'new processes that predict a photo: seconds by step, memory'),
    'export': (export, 'error and speed of exported files'),
    'runtimes': (runtimes, 'ours beside other code in onnxruntime, OpenVINO, torch.compile'),
    'busy': (busy, 'training and prediction beside busy processes'),
    'annotation': (annotation, 'overhead of `trunchier annotate` per input'),
    'lifting': (lifting, 'lifters on fewer frames: tokens against milliseconds'),
    'motions': (motions, 'synthetic motions: frames/s of poses, keypoints, errors'),
    'subnormal': (subnormal, 'masked windows and strong decays beside ordinary numbers'),
    'soak': (soak, 'memory, open files and threads of long runs'),
}

# The commands of `all`, by type of device.
ALL = {
    'cpu': (
        'models --deploy --part backbone --models *-s4 vit-s vit-b',
        'models --deploy --part backbone --models *-t-s4 vit-s --batch 8',
        'models --deploy --models *-t-s4 vit-s --batch 1 8',
        'models --part backbone --models *-t-s4 vit-s',
        'models --deploy --part backbone --models *-t-s4 vit-s --batch 1 8 --dtype bf16',
        'scan',
        'train --part backbone --models *-t-s4 --batch 4',
        'data',
        'pipeline',
        'latency',
        'cold --exported',
        'models --part backbone --models *-t-s4 --batch 1 2 4 8',
        'models --part backbone --models *-t-s4 --heights 256 384 512 768 1024',
        'export',
    ),
    'cuda': (
        'models --models all --batch 1 64 --dtype fp32 fp16 --relative',
        'models --part backbone --models *-t-s4 vit-b --batch 1 --dtype fp16 --compile no graph',
        'models --part backbone --models *-t-s4 --batch 1 64 --dtype fp16 '
        '--compile no default reduce-overhead',
        'scan --batch 1 64 --dtype fp32 bf16',
        'train --models *-b-s4 vit-b --batch 64 --dtype tf32 bf16',
        'data',
        'pipeline --precision fp16 --batch 64',
        'models --part backbone --models *-t-s4 --batch 1 4 16 64',
        'models --part backbone --models *-t-s4 --heights 256 384 512 768 1024',
    ),
}


def main(arguments: list[str] | None = None) -> None:
    args = parse_args(arguments)
    logging.disable(logging.WARNING)
    warnings.filterwarnings('ignore', category=UserWarning)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    report = Report(args.device, args.out, args.json)
    try:
        if args.command == 'all':
            run_all(args, report)
        else:
            command = shlex.join(sys.argv[1:] if arguments is None else arguments)
            report.add(command, COMMANDS[args.command][0].run(args))
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        sys.exit(f'error: {error}')
    if args.out is None:
        sys.stdout.write(report.as_markdown())


def run_all(args: argparse.Namespace, report: Report) -> None:
    """Run the commands of `ALL`; a command that fails is reported and the others still run."""
    for line in ALL[torch.device(args.device).type]:
        name = line.split()[0]
        if args.only and name not in args.only:
            continue
        shared = f'--device {args.device} --rounds {args.rounds} --seconds {args.seconds}'
        command = line.split() + shared.split()
        if args.threads:
            command += ['--threads', str(args.threads)]
        if args.against and name in ('models', 'scan', 'train'):
            command += ['--against', *args.against]
        progress(line)
        try:
            table = COMMANDS[name][0].run(parse_args(command))
        except Exception as error:
            reason = f'{type(error).__name__}: {error}'.rstrip('.')
            table = Table(name.capitalize(), {}, [], [f'Not measured: {reason}'])
        report.add(shlex.join(command), table)


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='trunchier benchmark',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest='command', required=True)
    for name, (module, help_) in COMMANDS.items():
        command = commands.add_parser(name, help=help_, description=help_)
        module.add_arguments(command.add_argument)
        _add_common_arguments(command)
    command = commands.add_parser('all', help='all of these, with settings that suit the device')
    command.add_argument('--only', nargs='+', choices=COMMANDS, help='run these commands only')
    command.add_argument('--against', nargs='+', default=[], metavar='NAME=DIR', help='peers')
    _add_common_arguments(command)
    args = parser.parse_args(arguments)
    if torch.device(args.device).type == 'cuda' and not torch.cuda.is_available():
        parser.error(f'--device {args.device}: torch finds no GPU')
    return args


def _add_common_arguments(command):
    add = command.add_argument_group('measurement').add_argument
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    add('--device', default=device, help=f'default: {device}')
    add('--threads', type=int, help="CPU threads (default: torch's choice)")
    add('--rounds', type=int, default=7, help='default: 7')
    add('--seconds', type=float, default=0.2, help='at least, for one measurement (default: 0.2)')
    add = command.add_argument_group('results').add_argument
    add('--out', type=Path, metavar='FILE', help='write to FILE instead of printing')
    add('--json', type=Path, metavar='FILE', help='also write JSON to FILE')
