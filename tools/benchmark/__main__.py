"""Speed and memory, measured side by side on this machine, as tables.

    python tools/benchmark models --models 'VM*-T-S2' ViTPose-B --batch 1 8 --threads 1
    python tools/benchmark models --part backbone --models '*-t-s4' --against official=DIR
    python tools/benchmark scan --lengths 48 3072 --channels 96
    python tools/benchmark train --models 'swin-t-s*' --part backbone --batch 32
    python tools/benchmark data --num 200 --workers 2
    python tools/benchmark pipeline --model VMPose-T-S2 --frames 150
    python tools/benchmark scaling --models swin-t-s4 vm-t-s4
    python tools/benchmark export --models 'VM*-T-S4' --batch 1 8 --threads 1
    python tools/benchmark export --models all --check-only
    python tools/benchmark all --out docs/benchmarks/DATE-DEVICE.md

What stands in one table was measured in interleaved rounds: medians, and +- half the distance of
the quartiles. The weights are random; that changes no time here.

--against NAME=DIR times a peer beside ours. DIR/peer.py is yours (examples/peer.py takes the
authors' checkouts, see there) and has one or both of

    build(name)        a module that takes our input (batch, 3, H, W), for a name of the table
                       ('swin-t-s4' with --part backbone, else 'SwinPose-T-S4'); None if it has none
    selective_scan(u, delta, A, B, C, D, delta_bias, delta_softplus)      as trunchier.ops has it

and may import what lies in DIR. Without mmpose and mmpretrain, their head and ViT are stood in for
by the same layers (the table says so); `data` and `pipeline` need mmpose.
"""

import argparse
import contextlib
import importlib.util
import json
import logging
import os
import shlex
import sys
import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import NamedTuple

if 'pipeline' in sys.argv:
    os.environ.setdefault('OMP_WAIT_POLICY', 'passive')  # as tools/predict.py does

import networks
import numpy as np
import torch
from timing import ROOT, environment, interleaved, markdown, peak_memory, peaks

import trunchier
from trunchier import ops
from trunchier.deploy import export as exporting
from trunchier.models.create import build_model
from trunchier.weights.find import find_config

DTYPES = {
    'fp32': torch.float32,
    'tf32': torch.float32,
    'bf16': torch.bfloat16,
    'fp16': torch.float16,
}
COMPILE = ('no', 'default', 'reduce-overhead', 'max-autotune', 'graph')
REFERENCE = dict(pose='vit-b', mesh='vit-b')  # ViTPose-B and HMR2.0-B

# What `all` runs, by kind of device.
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
        'scaling',
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
        'scaling --batch 1 4 16 64',
    ),
}


class Table(NamedTuple):
    """`columns` is {key: heading}; `rows` are dicts; `notes` are sentences."""

    title: str
    columns: dict
    rows: list
    notes: tuple = ()


def main(arguments=None):
    args = parse_args(arguments)
    logging.disable(logging.WARNING)
    warnings.filterwarnings('ignore', category=UserWarning)
    try:
        if args.command == 'all':
            report = run_all(args)
        else:
            report = Report(args)
            report.run(args, shlex.join(sys.argv[1:] if arguments is None else arguments))
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        sys.exit(f'error: {error}')
    if args.out is None:
        sys.stdout.write(report.text())


def parse_args(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest='command', required=True)
    for name, (_, add_arguments, help_) in COMMANDS.items():
        command = commands.add_parser(name, help=help_, description=help_)
        add_arguments(command.add_argument)
        _common_arguments(command)
    command = commands.add_parser('all', help='all of these, with what suits the device')
    command.add_argument('--only', nargs='+', choices=COMMANDS, help='some of them')
    command.add_argument('--against', nargs='+', default=[], metavar='NAME=DIR', help='peers')
    _common_arguments(command)
    args = parser.parse_args(arguments)
    if torch.device(args.device).type == 'cuda' and not torch.cuda.is_available():
        parser.error(f'--device {args.device}, and torch finds no GPU; leave it out')
    return args


def _common_arguments(command):
    group = command.add_argument_group('how')
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    group.add_argument('--device', default=device, help=f'default: {device}')
    group.add_argument('--threads', type=int, help="of the CPU (default: torch's choice)")
    group.add_argument('--rounds', type=int, default=7, help='default: 7')
    group.add_argument(
        '--seconds', type=float, default=0.2, help='of one measurement at least (default: 0.2)'
    )
    group = command.add_argument_group('results')
    group.add_argument('--format', choices=('markdown', 'json'), default='markdown')
    group.add_argument('--out', type=Path, metavar='FILE', help='instead of printing')
    group.add_argument('--json', type=Path, metavar='FILE', help='also as JSON')


# --- models --------------------------------------------------------------------------------------


def model_arguments(add):
    add('--models', nargs='+', default=['*-t-s2'], metavar='NAME', help='names or patterns; all')
    add('--part', choices=networks.PARTS, default='network', help='default: the whole network')
    add('--batch', nargs='+', type=int, default=[1], metavar='N')
    add('--dtype', nargs='+', choices=DTYPES, default=['fp32'], help='of weights and images')
    add('--size', nargs=2, type=int, default=networks.SIZE, metavar=('H', 'W'))
    add(
        '--compile', nargs='+', choices=COMPILE, default=['no'], help='graph: a CUDA graph of eager'
    )
    add('--channels-last', action='store_true', help='memory format of weights and images')
    add('--deploy', action='store_true', help='time what trunchier.deploy makes of ours')
    add('--against', nargs='+', default=[], metavar='NAME=DIR', help='peers, see above')
    add('--relative', action='store_true', help="beside ViT-B, as the paper's FPS columns have it")


def models(args):
    """Images a second and what they cost."""
    if 'graph' in args.compile and torch.device(args.device).type != 'cuda':
        raise ValueError(f'--compile graph captures a CUDA graph; --device is {args.device}')
    peers = load_peers(args.against, 'build')
    columns = dict(
        name='model', who='', dtype='dtype', batch='batch', mode='compile', ms='ms', spread='+- %',
        fps='images/s', gmac='GMAC', gmacs='GMAC/s', fraction='of peak', megabytes='MB',
    )  # fmt: skip
    columns |= {f'x {peer}': f'x {peer}' for peer in peers}
    notes = stand_in_notes()
    if args.relative:
        columns |= {'relative': 'x ViT-B', 'paper': "paper's"}
        paper = paper_fps()
        notes.append(
            'The column x ViT-B: images/s by those of ViTPose-B or HMR2.0-B in the same rounds, '
            "beside the same ratio in the paper's tables"
        )
    notes.append(
        'GMAC: the matrix products and convolutions that are executed for one image; of peak: by a '
        'large matrix product, ' + peak_note(args)
    )
    best = {dtype: max(peaks_of(args.device, dtype).values()) for dtype in args.dtype}
    build = networks.build_deployed if args.deploy else networks.build
    rows = []
    for name, (encoder, task) in networks.names(args.models, args.part).items():
        gmac = networks.macs(encoder, task, args.part, args.size) / 1e9
        whole = {'ours': lambda e=encoder, t=task: build(e, t, args.part, args.device)}
        whole |= {peer: lambda b=theirs, n=name: b(n) for peer, theirs in peers.items()}
        if args.relative:
            whole['ViT-B'] = lambda t=task: build(REFERENCE[t], t, args.part, args.device)
        built = {who: module for who, make in whole.items() if (module := make()) is not None}
        for dtype in args.dtype:
            for batch in args.batch:
                found = time_networks(built, dtype, batch, args)
                for row in found:
                    row |= dict(name=name, dtype=dtype, batch=batch)
                    if row['who'] == 'ours' and 'ms' in row:
                        row['gmac'] = gmac
                        row['gmacs'] = gmac * row['fps']
                        row['fraction'] = row['gmacs'] / best[dtype]
                        for other in found:
                            if other['who'] in peers and 'ms' in other:
                                row[f'x {other["who"]}'] = other['ms'] / row['ms']
                            if other['who'] == 'ViT-B' and 'ms' in other:
                                row['relative'] = other['ms'] / row['ms']
                                row['paper'] = paper.get(name)
                rows += [row for row in found if row['who'] != 'ViT-B']
        progress(name)
    what = f'Inference, {"deployed " if args.deploy else ""}{args.part}s'
    return Table(f'{what}, {args.size[0]} x {args.size[1]}', columns, rows, notes)


def time_networks(built, dtype, batch, args):
    """Rows (who, mode, ms, spread, fps, megabytes) of modules that are timed together."""
    images = torch.randn(batch, 3, *args.size, device=args.device, dtype=DTYPES[dtype])
    if args.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    tasks, rows = {}, []
    with torch.no_grad(), tf32(dtype == 'tf32'):
        for who, module in built.items():
            module.eval()  # mmpretrain's returns None
            module = module.to(args.device, DTYPES[dtype])
            if args.channels_last:
                module = module.to(memory_format=torch.channels_last)
            for mode in args.compile if who == 'ours' else ['no']:
                row = dict(who=who, mode=mode)
                rows.append(row)
                try:
                    task = compiled(module, images, mode)
                    task()
                    with peak_memory(args.device) as peak:
                        task()
                except Exception as error:  # a peer's, or out of memory: the others go on
                    row['mode'] = f'{mode}: {type(error).__name__}: {str(error).splitlines()[0]}'
                    continue
                row['megabytes'] = peak() / 1e6
                tasks[len(rows) - 1] = task
        times = interleaved(tasks, args.rounds, args.seconds, args.device)
    for index, time in times.items():
        rows[index] |= dict(ms=1e3 * time.median, spread=100 * time.spread, fps=batch / time.median)
    return rows


def compiled(module, images, mode):
    """A function without arguments that runs `module` on `images`."""
    if mode == 'graph':
        for _ in range(3):
            module(images)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            module(images)
        return graph.replay
    if mode != 'no':
        torch.compiler.reset()
        module = torch.compile(module, fullgraph=True, mode=mode)
    return lambda: module(images)


def paper_fps():
    """{paper's name: its FPS by that of ViTPose-B or HMR2.0-B, as the paper prints them}."""
    import yaml

    ratios = {}
    for folder, reference in (('pose2d', 'ViTPose-B'), ('mesh', 'HMR2.0-B')):
        rows = yaml.safe_load((ROOT / 'configs' / folder / 'metafile.yml').read_text())['Models']
        fps = {row['Alias']: row['Metadata']['Paper FPS (A100)'] for row in rows}
        ratios |= {name: value / fps[reference] for name, value in fps.items()}
    return ratios


def stand_in_notes():
    absent = networks.stood_in_for()
    return (
        [f'Without {" and ".join(absent)}: the same layers stand in for theirs'] if absent else []
    )


# --- training ------------------------------------------------------------------------------------


def train_arguments(add):
    add('--models', nargs='+', default=['*-t-s2'], metavar='NAME', help='names or patterns; all')
    add('--part', choices=networks.PARTS, default='network', help='default: the whole network')
    add('--batch', nargs='+', type=int, default=[32], metavar='N')
    add('--dtype', nargs='+', choices=DTYPES, default=['fp32'], help='bf16, fp16: by autocast')
    add('--size', nargs=2, type=int, default=networks.SIZE, metavar=('H', 'W'))
    add('--with-cp', action='store_true', help='recompute blocks in the backward pass')
    add('--against', nargs='+', default=[], metavar='NAME=DIR', help='peers, see above')


def train(args):
    """Forward, backward and an AdamW step."""
    peers = load_peers(args.against, 'build')
    columns = dict(
        name='model', who='', dtype='dtype', batch='batch', ms='ms a step', spread='+- %',
        fps='images/s', megabytes='MB',
    )  # fmt: skip
    columns |= {f'x {peer}': f'x {peer}' for peer in peers}
    rows = []
    for name, (encoder, task) in networks.names(args.models, args.part).items():
        built = {'ours': networks.build(encoder, task, args.part, args.device)}
        built |= {peer: build(name) for peer, build in peers.items()}
        if args.with_cp:
            for module in built['ours'].modules():
                if hasattr(module, 'with_cp'):
                    module.with_cp = True
        for dtype in args.dtype:
            for batch in args.batch:
                tasks, memory = {}, {}
                for who, module in built.items():
                    if module is not None:
                        tasks[who] = training_step(module.to(args.device), dtype, batch, args)
                        tasks[who]()
                        with peak_memory(args.device) as peak:
                            tasks[who]()
                        memory[who] = peak() / 1e6
                with tf32(dtype == 'tf32'):
                    times = interleaved(tasks, args.rounds, args.seconds, args.device)
                for who, time in times.items():
                    row = dict(name=name, who=who, dtype=dtype, batch=batch)
                    row |= dict(ms=1e3 * time.median, spread=100 * time.spread)
                    row |= dict(fps=batch / time.median, megabytes=memory[who])
                    if who == 'ours':
                        for peer in times.keys() & peers.keys():
                            row[f'x {peer}'] = times[peer].median / time.median
                    rows.append(row)
        progress(name)
    recomputed = ', blocks recomputed' if args.with_cp else ''
    notes = ['MB: activations and gradients, beyond weights and optimizer', *stand_in_notes()]
    return Table(f'Training, {args.part}s{recomputed}', columns, rows, notes)


def training_step(module, dtype, batch, args):
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


def some_loss(tensor):
    """A mean with unequal weights: that of squares is 1 behind a norm, and no gradient comes."""
    weights = torch.linspace(-1, 1, tensor.numel(), device=tensor.device)
    return (tensor.float().flatten() * weights).mean()


def tensors_in(output):
    if torch.is_tensor(output):
        return [output]
    return [t for each in (output.values() if isinstance(output, dict) else output)
            for t in tensors_in(each)]  # fmt: skip


# --- the scan ------------------------------------------------------------------------------------


def scan_arguments(add):
    add('--lengths', nargs='+', type=int, default=[48, 192, 768, 3072], metavar='L')
    add('--channels', nargs='+', type=int, default=[96, 384], metavar='D', help='of a direction')
    add('--states', type=int, default=1, metavar='N')
    add('--batch', nargs='+', type=int, default=[1], metavar='B')
    add('--dtype', nargs='+', choices=('fp32', 'bf16', 'fp16'), default=['fp32'])
    add('--backends', nargs='+', help='default: all that work here but reference')
    add('--against', nargs='+', default=[], metavar='NAME=DIR', help='peers, see above')


def scan(args):
    """The selective scan of four directions, by backend."""
    peers = load_peers(args.against, 'selective_scan')
    backends = args.backends
    if backends is None:
        usable = [n for n, state in ops.available_backends().items() if state == 'available']
        other = 'triton' if args.device == 'cpu' else 'numba'
        backends = [name for name in usable if name not in ('reference', other)]
    columns = dict(
        op='operation', length='length', channels='channels', batch='batch', dtype='dtype',
        who='backend', forward='forward ms', forward_spread='+- %', both='forward + backward ms',
        both_spread='+- %', nanoseconds='forward ns / step', megabytes='MB, both',
    )  # fmt: skip
    rows = []
    for dtype in args.dtype:
        for batch in args.batch:
            for channels in args.channels:
                for length in args.lengths:
                    rows += scan_rows(length, channels, batch, dtype, backends, peers, args)
                progress(f'{dtype}, batch {batch}, {channels} channels')
    notes = [
        'The operation selective_scan: four directions as four groups; selective_scan_2d: the same '
        'work on a map, with the projection to delta, as the models call it. A step: one of batch '
        'x 4 channels x length'
    ]
    return Table(f'Selective scan, {args.states} states', columns, rows, notes)


def scan_rows(length, channels, batch, dtype, backends, peers, args):
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

    tasks, memory = {}, {}
    for key, (function, tensors) in calls.items():
        forward, both = forward_and_both(function, tensors)
        forward()
        both()
        with peak_memory(args.device) as peak:
            both()
        memory[key] = peak() / 1e6
        tasks |= {(*key, 'forward'): forward, (*key, 'both'): both}
    times = interleaved(tasks, args.rounds, args.seconds, args.device)
    rows = []
    for op, who in calls:
        forward, both = times[op, who, 'forward'], times[op, who, 'both']
        rows.append(dict(
            op=op, length=length, channels=channels, batch=batch, dtype=dtype, who=who,
            forward=1e3 * forward.median, forward_spread=100 * forward.spread,
            both=1e3 * both.median, both_spread=100 * both.spread,
            nanoseconds=1e9 * forward.median / (batch * 4 * channels * length),
            megabytes=memory[op, who],
        ))  # fmt: skip
    return rows


def forward_and_both(function, arguments):
    leaves = [a for a in arguments if torch.is_tensor(a)]

    def forward():
        with torch.no_grad():
            function(*arguments)

    with torch.no_grad():
        grad = torch.ones_like(function(*arguments))

    def both():
        torch.autograd.grad(function(*arguments), leaves, grad)

    return forward, both


# --- data ----------------------------------------------------------------------------------------


def data_arguments(add):
    add('--num', type=int, default=100, metavar='N', help='pictures (default: 100)')
    add('--size', nargs=2, type=int, default=(640, 480), metavar=('W', 'H'), help='of a picture')
    add('--workers', type=int, default=min(os.cpu_count() or 1, 16), metavar='N')


def data(args):
    """Samples a second that the training loaders make, by stage; synthetic people; overlays."""
    from trunchier.synthetic.coco import write_coco
    from trunchier.synthetic.people import images_per_second

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_coco(folder / 'people', args.num, 0, tuple(args.size), 1, None, 1, quiet=True)
        progress('pictures made')
        rows += pose_rows(folder / 'people', args)
        progress('pose loader')
        rows += mesh_rows(folder, args)
        progress('mesh loader')
    rows.append(dict(what='synthetic people, 256 x 256', stage='all', rate=images_per_second(20)))
    rows.append(dict(what='mesh overlay, 512 x 512', stage='all', rate=overlays_per_second(args)))
    columns = dict(what='data', stage='stage', rate='a second', microseconds='microseconds each')
    for row in rows:
        row['microseconds'] = 1e6 / row['rate']
    notes = [
        f'{args.num} pictures of {args.size[0]} x {args.size[1]}, one person each, on a local disk '
        f'that has them in memory; one process, but for the loader with {args.workers}'
    ]
    return Table('Data', columns, rows, notes)


def pose_rows(people, args):
    """Stages of the pose recipe's training pipeline (mmpose)."""
    import mmpose.datasets  # noqa: F401
    from mmengine.config import Config
    from mmengine.registry import DATASETS, init_default_scope

    from trunchier.weights.find import find_config

    cfg = find_config('vm-t-s2', 'pose').cfg
    init_default_scope('mmpose')
    spec = Config(dict(cfg.train_dataloader.dataset)).to_dict()
    spec.update(data_root=str(people), ann_file='annotations.json', data_prefix=dict(img='images/'))
    with contextlib.redirect_stdout(None):  # pycocotools announces its index
        dataset = DATASETS.build(spec)
    stages = stage_seconds(dataset.get_data_info, dataset.pipeline.transforms, len(dataset))
    files = [dataset.get_data_info(index)['img_path'] for index in range(len(dataset))]
    stages = insert(stages, 'LoadImage', file_seconds(files))
    return loader_rows('pose', cfg, dataset, stages, args)


def mesh_rows(folder, args):
    """Stages of the mesh recipe's training pipeline, from tar shards."""
    import make_shards
    from mmengine.registry import DATASETS

    from trunchier.weights.find import find_config

    with contextlib.redirect_stdout(None):
        make_shards.main([str(folder / 'people'), '--out', str(folder / 'shards')])
    cfg = find_config('vm-t-s2', 'mesh').cfg
    pipeline = [dict(step) for step in cfg.train_pipeline]
    for step in pipeline:
        if step['type'] == 'AddRealPoses':
            step['path'] = None
    dataset = DATASETS.build(dict(
        type='MixedPeople', pipeline=pipeline, epoch_size=args.num,
        datasets=[dict(type='ShardPeople', urls=str(folder / 'shards'), filters=None)],
    ))  # fmt: skip
    dataset.full_init()
    (shards,) = dataset.datasets

    def record(index):
        return {**shards.record(index % len(shards)), 'rng': np.random.default_rng(index)}

    stages = {'read and check': seconds_each(record, args.num)}
    stages |= stage_seconds(record, dataset.pipeline.transforms, args.num)
    files = sorted((folder / 'people' / 'images').iterdir())
    stages = insert(stages, 'read and check', file_seconds(files))
    return loader_rows('mesh', cfg, dataset, stages, args)


def file_seconds(files):
    """Median seconds of reading and of decoding a picture."""
    import cv2

    contents = [np.frombuffer(Path(file).read_bytes(), np.uint8) for file in files]
    return {
        'of it: read file': seconds_each(lambda i: Path(files[i]).read_bytes(), len(files)),
        'of it: decode JPEG': seconds_each(
            lambda i: cv2.imdecode(contents[i], cv2.IMREAD_COLOR), len(files)
        ),
    }


def insert(stages, after, more):
    """`stages` with `more` behind the stage `after`."""
    place = list(stages).index(after) + 1
    items = list(stages.items())
    return dict([*items[:place], *more.items(), *items[place:]])


def seconds_each(function, num):
    """Median seconds of function(i)."""
    import time

    function(0)
    times = []
    for index in range(num):
        start = time.perf_counter()
        function(index)
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def stage_seconds(source, transforms, num):
    """{name of a transform: median seconds}."""
    import time

    times = {type(transform).__name__: [] for transform in transforms}
    for index in range(num):
        sample = source(index)
        for transform in transforms:
            start = time.perf_counter()
            sample = transform(sample)
            times[type(transform).__name__].append(time.perf_counter() - start)
    return {name: float(np.median(seconds)) for name, seconds in times.items()}


def loader_rows(what, cfg, dataset, stages, args):
    from mmengine.dataset import pseudo_collate
    from mmengine.registry import MODELS
    from torch.utils.data import DataLoader

    batch = [dataset[i] for i in range(min(32, args.num))]
    preprocess = MODELS.build(cfg.model.data_preprocessor)
    stages['collate'] = seconds_each(lambda _: pseudo_collate(batch), 20) / len(batch)
    collated = pseudo_collate(batch)
    stages['stack, normalise'] = seconds_each(lambda _: preprocess(collated), 5) / len(batch)
    rows = [dict(what=what, stage=name, rate=1 / seconds) for name, seconds in stages.items()]
    for workers in sorted({0, args.workers}):
        loader = DataLoader(
            dataset, 16, num_workers=workers, collate_fn=pseudo_collate,
            sampler=range(args.num), persistent_workers=workers > 0,
        )  # fmt: skip
        epoch = seconds_each(lambda _, loader=loader: [None for _ in loader], 3)
        rows.append(dict(what=what, stage=f'loader, {workers} workers', rate=args.num / epoch))
    return rows


def overlays_per_second(args):
    """Bodies that the renderer draws over a picture of 512 x 512."""
    from trunchier.models.mesh.body import EMBEDDED_BODY, read_body
    from trunchier.render.meshes import draw_meshes

    body = read_body(EMBEDDED_BODY)
    vertices = np.float32(body['v_template'] * [1, -1, -1] + [0, -0.3, 2.6])[None]
    picture = np.zeros((512, 512, 3), np.uint8)
    colours = np.full((1, 3), 200.0)

    def draw(_):
        draw_meshes(picture, vertices, body['f'], (512, 512), (256, 256), colours)

    return 1 / seconds_each(draw, 30)


# --- the inference pipeline ----------------------------------------------------------------------


def pipeline_arguments(add):
    add('--model', default='VMPose-T-S2', metavar='NAME', help='default: VMPose-T-S2')
    add('--frames', type=int, default=100, metavar='N', help='of 1280 x 720 (default: 100)')
    add('--people', type=int, default=1, metavar='N', help='boxes in each frame (default: 1)')
    add('--batch', type=int, default=8, metavar='N', help='people a batch (default: 8)')
    add('--precision', choices=('fp32', 'bf16', 'fp16'), default='fp32')
    add('--draw', action='store_true', help='draw the results too')


def pipeline(args):
    """Video to results with boxes given, beside the network alone at the same batch size."""
    from trunchier.inference import inferencer as inferencers
    from trunchier.inference.writers import VideoWriter
    from trunchier.weights.find import find_config

    name, task, cfg, _ = find_config(args.model)
    kind = inferencers.MeshInferencer if task == 'mesh' else inferencers.PoseInferencer
    with tempfile.TemporaryDirectory() as folder:
        weights, clip = Path(folder, 'random.pth'), Path(folder, 'clip.mp4')
        torch.save(dict(state_dict=build_model(cfg).state_dict()), weights)
        write_clip(VideoWriter, clip, args.frames)
        inferencer = kind(
            args.model, str(weights), device=args.device, batch_size=args.batch,
            precision=args.precision, track=False,
        )  # fmt: skip
        boxes = np.array([[100.0 + 40 * i, 60, 500 + 40 * i, 700] for i in range(args.people)])
        images = torch.randn(args.batch, 3, 256, 192, device=args.device)
        low = DTYPES[args.precision] if args.precision != 'fp32' else None
        flips = bool((inferencer.model.test_cfg or {}).get('flip_test'))

        def network():
            with torch.no_grad(), torch.autocast(args.device, low, enabled=low is not None):
                for _ in range(1 + flips):
                    inferencer.model(images, None, mode='tensor')

        reports = []

        def everything():
            for _ in inferencer(str(clip), bboxes=boxes, return_vis=args.draw):
                pass
            reports.append(inferencer.report)

        rounds = max(3, args.rounds // 2)
        times = interleaved(
            {'alone': network, 'all': everything}, rounds, args.seconds, args.device
        )  # fmt: skip
    alone = args.batch / times['alone'].median
    through = args.frames * args.people / times['all'].median
    report = reports[-1]
    rows = [
        dict(what='network alone', rate=alone, spread=100 * times['alone'].spread),
        dict(what='video to results', rate=through, spread=100 * times['all'].spread,
             share=through / alone),
    ]  # fmt: skip
    rows += [
        dict(what=f'stage {stage}', rate=args.frames * args.people / seconds,
             share=seconds / report.elapsed)
        for stage, seconds in report.seconds.most_common() if seconds > 0
    ]  # fmt: skip
    columns = dict(what='', rate='people/s', spread='+- %', share='share')
    notes = [
        'Share: of the network alone; of a stage, its busy time by the time that passed (stages '
        f'overlap); {"two passes a person: flip_test" if flips else "one pass a person"}'
    ]
    title = f'{name}, video of 1280 x 720, batch {args.batch}, {args.precision}'
    return Table(title, columns, rows, notes)


def write_clip(writer, path, frames):
    """Moving noise, which no encoder finds easy."""
    import cv2

    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (90, 200, 3), dtype=np.uint8)
    wide = cv2.resize(coarse, (1600, 720), interpolation=cv2.INTER_CUBIC)
    video = writer(path, 30, (720, 1280))
    for index in range(frames):
        shift = index % 320
        video.write(wide[:, shift : shift + 1280])
    video.close()


# --- scaling -------------------------------------------------------------------------------------

SIZES = ((256, 192), (384, 288), (512, 384), (768, 576), (1024, 768))


def scaling_arguments(add):
    names = ['swin-t-s4', 'gmf-t-s4', 'vm-t-s4']
    add('--models', nargs='+', default=names, metavar='NAME', help=f'default: {" ".join(names)}')
    add('--batch', nargs='+', type=int, default=[1, 2, 4, 8], metavar='N')
    add('--sides', nargs='+', type=int, default=[h for h, _ in SIZES], metavar='H', help='heights')
    add('--dtype', choices=DTYPES, default='fp32')


def scaling(args):
    """Time and memory of backbones against batch and pixels, with the exponent that fits."""
    sizes = [(height, height * 3 // 4) for height in args.sides]
    rows = []
    for name, (encoder, _) in networks.names(args.models, 'backbone').items():
        module = networks.build(encoder, part='backbone', device=args.device)
        for what, cases in (
            ('batch', [(batch, sizes[0]) for batch in args.batch]),
            ('pixels', [(1, size) for size in sizes]),
        ):
            found = scaling_rows(name, what, module, cases, args)
            if len(found) > 1:
                amounts = [row['amount'] for row in found]
                exponents = {key: slope(amounts, [row[key] for row in found])
                             for key in ('ms', 'megabytes')}  # fmt: skip
                found[-1] |= {f'{key}_exponent': value for key, value in exponents.items()}
            rows += found
            progress(f'{name}, {what}')
    columns = dict(
        name='backbone', what='against', batch='batch', size='image', ms='ms', spread='+- %',
        nanoseconds='ns a pixel', megabytes='MB', ms_exponent='exponent of time',
        megabytes_exponent='of memory',
    )  # fmt: skip
    notes = [
        'Exponent: slope of a straight line through the logarithms of the rows above; 1 is linear, '
        'and what a call costs whatever its size bends it below'
    ]
    return Table('How cost grows', columns, rows, notes)


def scaling_rows(name, what, module, cases, args):
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
            rows.append(dict(
                name=name, what=what, batch=batch, size=f'{height} x {width}',
                amount=batch * height * width, megabytes=peak() / 1e6,
            ))  # fmt: skip
        times = interleaved(tasks, args.rounds, args.seconds, args.device)
    for index, time in times.items():
        rows[index] |= dict(ms=1e3 * time.median, spread=100 * time.spread)
        rows[index]['nanoseconds'] = 1e9 * time.median / rows[index]['amount']
    return rows


def slope(amounts, values):
    """Exponent p of values ~ amounts^p; NaN where a value is not positive."""
    values = np.asarray(values, float)
    if not (values > 0).all():
        return float('nan')
    return float(np.polyfit(np.log(amounts), np.log(values), 1)[0])


# --- exported files ------------------------------------------------------------------------------


def export_arguments(add):
    add('--models', nargs='+', default=['*-t-s4'], metavar='NAME', help='names or patterns; all')
    add('--batch', nargs='+', type=int, default=[1], metavar='N')
    add('--to', choices=exporting.FORMATS, default='onnx', help='of the files (default: onnx)')
    add('--check-only', action='store_true', help='export and compare, measure no time')


def export(args):
    """What the files of `portable` compute, and how fast, beside the models they were made of."""
    if torch.device(args.device).type != 'cpu':
        raise ValueError(f'files are run on the CPU, --device is {args.device}; give cpu')
    columns = dict(
        name='model', batch='batch', error='largest error (std)', nodes='nodes', megabytes='MB',
        eager='eager ms', deployed='deployed ms', file=f'{args.to} ms', spread='+- %',
        ratio=f'{args.to} x as fast as eager', failed='failed',
    )  # fmt: skip
    keypoints = range(networks.KEYPOINTS)
    meta = dict(keypoint_id2name=keypoints, flip_indices=keypoints, skeleton_links=[])
    rows = []
    for name, (_, task) in networks.names(args.models).items():
        cfg = find_config(name, task).cfg
        model = build_model(cfg)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, 'model' + exporting.FORMATS[args.to])
            facts = exporting.describe(cfg, name, meta)
            try:
                done = exporting.export(model, path, facts, args.to, dynamic_batch=True)
            except exporting.ExportError as error:
                rows.append(dict(name=name, failed=str(error)))
                continue
            row = dict(name=name, nodes=done['nodes'], megabytes=done['bytes'] / 1e6)
            row['error'] = f'{max(done["errors"].values()):.1e}'
            rows += (
                [row]
                if args.check_only
                else [row | times for times in time_file(model, path, args)]
            )
        progress(name)
    return Table(f'Files of {args.to}, any number of crops, random weights', columns, rows)


def time_file(model, path, args):
    """Rows (batch, eager, deployed, file, spread, ratio) of a model and its file."""
    file, graphs = exporting.Exported(path), dict(eager=model, deployed=trunchier.deploy(model))
    rows = []
    for batch in args.batch:
        images = torch.randn(batch, 3, *networks.SIZE)
        tasks = {who: partial(exporting.Graph(made).eval(), images) for who, made in graphs.items()}
        with torch.no_grad():
            tasks['file'] = partial(file, images.numpy())
            times = interleaved(tasks, args.rounds, args.seconds)
        row = {who: 1e3 * time.median for who, time in times.items()}
        row |= dict(batch=batch, spread=100 * max(time.spread for time in times.values()))
        rows.append(row | dict(ratio=row['eager'] / row['file']))
    return rows


# --- peers, settings -----------------------------------------------------------------------------


def load_peers(against, function):
    """{name: the peer's `function`} of those that have it.

    Raises:
        ValueError, FileNotFoundError: an argument that is not NAME=DIR, or no peer.py there.
    """
    found = {}
    for text in against:
        name, equals, folder = text.partition('=')
        if not (name and equals and folder):
            raise ValueError(f'--against wants NAME=DIR, got {text!r}')
        path = Path(folder, 'peer.py')
        if not path.is_file():
            raise FileNotFoundError(f'no {path}; write one with build(name), see --help')
        sys.path.insert(0, str(path.parent.resolve()))
        spec = importlib.util.spec_from_file_location(f'peer_{name}', path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if not (hasattr(module, 'build') or hasattr(module, 'selective_scan')):
            raise ValueError(f'{path} has neither build(name) nor selective_scan(...)')
        if hasattr(module, function):
            found[name] = getattr(module, function)
    return found


@contextlib.contextmanager
def tf32(wanted):
    """TF32 in matrix products and convolutions on CUDA, for a while."""
    if not wanted:
        yield
        return
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = True
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


_peaks = {}


def peaks_of(device, dtype):
    """GMAC/s of large matrix products, see `timing.peaks`; measured once."""
    key = device, dtype, torch.get_num_threads()
    if key not in _peaks:
        with tf32(dtype == 'tf32'):
            _peaks[key] = peaks(device, DTYPES[dtype])
    return _peaks[key]


def peak_note(args):
    texts = []
    for dtype in args.dtype:
        rates = ', '.join(f'{n} {v:.0f}' for n, v in peaks_of(args.device, dtype).items())
        texts.append(f'{dtype} {rates} GMAC/s')
    return '; '.join(texts)


def progress(text):
    if sys.stderr.isatty():
        print(f'  {text}', file=sys.stderr)


# --- reports -------------------------------------------------------------------------------------


class Report:
    """Tables with the commands that made them, and the machine."""

    def __init__(self, args):
        self.args = args
        if args.threads is not None:
            torch.set_num_threads(args.threads)
        self.environment = environment(args.device)
        self.tables = []

    def run(self, args, command):
        self.add(command, COMMANDS[args.command][0](args))

    def add(self, command, table):
        """One more; the files of `self.args` are written again with it."""
        self.tables.append((command, table))
        if self.args.out is not None:
            _write(self.args.out, self.text())
        if self.args.json is not None:
            _write(self.args.json, self.as_json())

    def text(self):
        return self.as_json() if self.args.format == 'json' else self.as_markdown()

    def as_markdown(self):
        lines = [f'- {what}: {value}\n' for what, value in self.environment.items()]
        parts = [''.join(lines)]
        for command, table in self.tables:
            parts.append(f'## {table.title}\n\n    python tools/benchmark {command}\n')
            used = {k for row in table.rows for k, value in row.items() if value is not None}
            columns = {k: heading for k, heading in table.columns.items() if k in used}
            if table.rows:
                parts.append(markdown(columns, table.rows))
            parts += [f'{note}.\n' for note in table.notes]
        return '\n'.join(parts)

    def as_json(self):
        tables = [
            dict(command=command, title=table.title, rows=table.rows, notes=list(table.notes))
            for command, table in self.tables
        ]
        return json.dumps(dict(environment=self.environment, tables=tables), indent=1) + '\n'


def run_all(args):
    report = Report(args)
    kind = torch.device(args.device).type
    for line in ALL[kind]:
        if args.only and line.split()[0] not in args.only:
            continue
        how = ['--device', args.device, '--rounds', args.rounds, '--seconds', args.seconds]
        if args.threads is not None:
            how += ['--threads', args.threads]
        command = [*line.split(), *map(str, how)]
        if args.against and line.split()[0] in HAVE_PEERS:
            command += ['--against', *args.against]
        progress(line)
        try:
            report.run(parse_args(command), shlex.join(command))
        except Exception as error:  # what could be measured is kept, and this is said
            said = f'{type(error).__name__}: {error}'.rstrip('.')
            failed = Table(line.split()[0].capitalize(), {}, [], (f'Not measured: {said}',))
            report.add(line, failed)
    return report


def _write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'.{path.name}.part')
    part.write_text(text)
    os.replace(part, path)


COMMANDS = {
    'models': (models, model_arguments, 'images a second, GMAC/s and memory of inference'),
    'scan': (scan, scan_arguments, 'the selective scan by backend, forward and backward'),
    'data': (data, data_arguments, 'the loaders by stage, synthetic people, the renderer'),
    'train': (train, train_arguments, 'images a second and memory of training'),
    'pipeline': (pipeline, pipeline_arguments, 'video to results, beside the network alone'),
    'scaling': (scaling, scaling_arguments, 'time and memory against batch and pixels'),
    'export': (export, export_arguments, 'exported files: their error and speed'),
}

HAVE_PEERS = ('models', 'scan', 'train')

if __name__ == '__main__':
    main()
