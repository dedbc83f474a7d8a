#!/usr/bin/env python
r"""Compare pose models under one budget: train each, score it, print a table and a plot.

    trunchier compare vm-t-s3 swin-t-s3 repvit_m0_9-s3 swin-t-s3+simple --seeds 0 1 \
        --train data/synthetic/train --test data/synthetic/test --out work_dirs/compare
    trunchier compare @truncation.txt          # the same, one argument a line

A NAME is an encoder of the paper or of timm with its stages, or a config; `+simple` takes ViTPose's
simple decoder, `+parts` trains on crops to parts of bodies too. Folders are those of `trunchier
make-synthetic`, or others with `annotations.json` in COCO's format and `images`. An interrupted
study goes on with the same command; a training that failed is a row that says so.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import launch  # noqa: F401  idle threads, before torch
import numpy as np
import torch
from benchmark.machine import environment
from benchmark.networks import macs
from benchmark.timing import interleaved
from mmengine.config import Config

import trunchier
from trunchier import zoo
from trunchier.deploy.runtime import ModuleNetwork
from trunchier.files import need, whole_file
from trunchier.files.processes import clean_end
from trunchier.metrics.partial import EXTENTS
from trunchier.weights.find import build_model, find_config

TOOLS = Path(__file__).resolve().parent
RESAMPLES = 2000
# Settings that make two runs comparable: all of a study have the same.
BUDGET = (
    *('train', 'test', 'steps', 'batch_size', 'lr', 'size', 'test_parts'),
    *('pretrained', 'weights', 'amp'),
)


def main(arguments: list[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    try:
        with clean_end():
            failed = compare(args)
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f'error: {error}')
    if failed:
        sys.exit(f'{failed} trainings failed; see train.log in their folders')


def parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=formatter, fromfile_prefix_chars='@'
    )
    add = parser.add_argument
    add('names', nargs='+', metavar='NAME', help='encoder or config, with +simple, +parts')
    add('--train', required=True, metavar='DIR', help='people to train on')
    add('--test', required=True, metavar='DIR', help='other people')
    add('--out', required=True, metavar='DIR', help='runs, table and plot')
    add('--steps', type=int, default=750, help='of training (default: 750)')
    add('--batch-size', type=int, default=16, metavar='N', help='default: 16')
    add('--lr', type=float, default=7e-4, help='of AdamW (default: 7e-4)')
    add('--size', type=_size, default=(96, 128), metavar='HxW', help='default: 128x96')
    add('--seeds', type=int, nargs='+', default=[0], metavar='N', help='default: 0')
    add('--test-parts', action='store_true', help='crop three quarters of the test people to parts')
    add('--pretrained', action='store_true', help='start from the weights of the recipes')
    add('--weights', metavar='FILE', help='start all from this checkpoint of the model')
    add('--amp', action='store_true', help='mixed precision')
    add('--jobs', type=_count, default=1, metavar='N', help='trainings at a time (default: 1)')
    add('--rounds', type=int, default=7, metavar='N', help='of timing; 0: do not time')
    return parser


def compare(args: argparse.Namespace) -> int:
    """Run what is missing and write the report; returns the number of failed trainings."""
    configs = {name: config(name, args) for name in dict.fromkeys(args.names)}  # before any trains
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    check_budget(out / 'budget.json', args)
    runs = [*product(configs, args.seeds)]
    children = set()
    with ThreadPoolExecutor(args.jobs) as pool:
        tasks = [
            pool.submit(run, folder(out, *each), configs[each[0]], each[1], i, children, args)
            for i, each in enumerate(runs)
        ]
        try:
            for (name, seed), task in zip(runs, tasks, strict=True):
                print(f'{name}, seed {seed}: {task.result()}', flush=True)
        except BaseException:  # interrupted: end the trainings too
            pool.shutdown(wait=False, cancel_futures=True)
            for child in tuple(children):
                child.terminate()
            raise
    done = {
        name: [counts(path) for seed in args.seeds if (path := people(out, name, seed)).exists()]
        for name in configs
    }
    rows = [row(name, configs[name], done[name], args) for name in configs]
    if args.rounds:
        for each, ms in zip(rows, timed(configs, args), strict=True):
            each['ms'] = ms
    facts = dict(environment(), command=command(args))
    text = '\n'.join([*table(rows, args), *differences(done), *described(facts)]) + '\n'
    with whole_file(out / 'table.md') as part:
        part.write_text(text)
    with whole_file(out / 'results.json') as part:
        part.write_text(json.dumps(dict(facts=facts, rows=rows), indent=1) + '\n')
    draw(rows, out)
    print(f'\n{text}\nwritten: {out}/table.md, results.json, plot.svg, plot.png')
    return sum(len(args.seeds) - len(each) for each in done.values())


# --- runs ----------------------------------------------------------------------------------------
def config(variant: str, args: argparse.Namespace) -> Config:
    """The recipe of the study with the model of a variant; ValueError for an unknown one."""
    name, *changes = variant.split('+')
    if unknown := set(changes) - {'simple', 'parts'}:
        raise ValueError(f'{variant}: no change {"+".join(unknown)!r}; choose +simple or +parts')
    model = find_config(name, None if name.endswith('.py') else 'pose').cfg.model
    if 'simple' in changes:
        model = zoo.simple_decoder(model)
    width, height = args.size
    codec = dict(
        type='UDPHeatmap', input_size=args.size, heatmap_size=(width // 4, height // 4), sigma=1.5
    )
    model['head']['decoder'] = codec
    backbone = model['backbone']
    if 'img_size' in backbone:
        backbone['img_size'] = (height, width)
    if 'Timm' not in backbone['type']:
        backbone['drop_path_rate'] = 0.0  # timm's default; the budget is too small for it
    if not args.pretrained or args.weights:
        backbone['init_cfg'] = None
    if args.weights:
        model['init_cfg'] = dict(type='OfficialPretrained', checkpoint=args.weights)
    cfg = Config.fromfile(TOOLS.parent / 'configs' / '_base_' / 'pose2d.py')
    cfg = Config(dict(cfg.to_dict(), model=model, codec=codec, **schedule(args)))
    tail = [
        dict(type='GetBBoxCenterScale'),
        dict(type='TopdownAffine', input_size=args.size, use_udp=True),
        dict(type='PackPoseInputs'),
    ]
    train = [dict(type='LoadImage'), *tail]
    train[2:2] = [
        dict(type='RandomFlip', direction='horizontal'),
        dict(type='RandomBBoxTransform', rotate_factor=20.0, scale_factor=(0.75, 1.25)),
    ]
    train[-1:-1] = [dict(type='GenerateTarget', encoder=codec)]
    test = [dict(type='LoadImage'), *tail]
    if 'parts' in changes:
        train.insert(1, dict(type='CropBodyPart', chance=0.5))
    if args.test_parts:
        parts = ('whole', 'upper', 'lower', 'limb')
        test.insert(1, dict(type='CropBodyPart', parts=parts, by_id=True))
    for loader, root, pipeline in (
        (cfg.train_dataloader, args.train, train),
        (cfg.val_dataloader, args.test, test),
    ):
        if not Path(root, 'annotations.json').is_file():
            raise FileNotFoundError(f'no {root}/annotations.json; see trunchier make-synthetic')
        loader.update(num_workers=1, batch_size=args.batch_size)
        loader.dataset.update(
            data_root=f'{root}/', ann_file='annotations.json', data_prefix=dict(img='images/'),
            pipeline=pipeline,
        )  # fmt: skip
    cfg.val_dataloader.dataset.bbox_file = None
    cfg.train_dataloader.sampler = dict(type='InfiniteSampler', shuffle=True)
    cfg.test_dataloader, cfg.test_cfg = cfg.val_dataloader, dict()
    return cfg


def schedule(args: argparse.Namespace) -> dict:
    """What a config says of the budget."""
    warm = max(1, min(100, args.steps // 10))
    step = dict(by_epoch=False, interval=max(1, args.steps // 4), max_keep_ckpts=1)
    base = Config.fromfile(TOOLS.parent / 'configs' / '_base_' / 'pose2d.py')
    hooks = dict(base.default_hooks.to_dict(), checkpoint=dict(type='SafeCheckpointHook', **step))
    return dict(
        train_cfg=dict(by_epoch=False, max_iters=args.steps, val_interval=args.steps),
        optim_wrapper=dict(
            base.optim_wrapper.to_dict(),
            optimizer=dict(type='AdamW', lr=args.lr, weight_decay=0.05),
            paramwise_cfg=dict(layer_decay_rate=1.0),
        ),
        param_scheduler=[
            dict(type='LinearLR', begin=0, end=warm, start_factor=0.01, by_epoch=False),
            dict(
                type='CosineAnnealingLR', begin=warm, end=args.steps, by_epoch=False,
                T_max=args.steps - warm, eta_min=args.lr / 35,
            ),
        ],
        default_hooks=dict(hooks, logger=dict(type='LoggerHook', interval=10)),
        log_processor=dict(type='LogProcessor', window_size=10, by_epoch=False),
    )  # fmt: skip


def run(
    path: Path, cfg: Config, seed: int, number: int, children: set, args: argparse.Namespace
) -> str:
    """Train and score one model in `path`, unless that is done; returns what happened.

    Args:
        number: of the run, which chooses its GPU.
        children: gets the process while it runs.
    """
    if (path / 'people.json').exists():
        return 'done before'
    path.mkdir(parents=True, exist_ok=True)
    cfg = Config(cfg.to_dict())
    cfg.randomness = dict(seed=seed)
    scored = path / 'people.json'
    cfg.val_evaluator = cfg.test_evaluator = dict(type='PartialPCK', out=str(scored))
    (path / 'config.py').write_text(cfg.pretty_text)
    pointer = path / 'last_checkpoint'
    options = [*(['--amp'] if args.amp else []), *(['--resume'] if pointer.exists() else [])]
    variables = dict(os.environ)
    if torch.cuda.device_count() > 1:
        gpu = number % args.jobs % torch.cuda.device_count()
        variables['CUDA_VISIBLE_DEVICES'] = str(gpu)
    began = time.time()

    def call(tool: str, *arguments: str) -> int:
        command = [sys.executable, str(TOOLS / tool), str(path / 'config.py'), *arguments]
        command += ['--work-dir', str(path)]
        with open(path / 'train.log', 'a', encoding='utf-8') as log:
            child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=variables)
            children.add(child)
            code = child.wait()
            children.discard(child)
        return code

    code = call('train.py', *options)
    if not code and not scored.exists():  # stopped between its last checkpoint and its score
        code = call('test.py', pointer.read_text(encoding='utf-8').strip())
    if code or not scored.exists():
        return f'FAILED with exit code {code}, see {path}/train.log'
    return f'{time.time() - began:.0f} s'


def check_budget(path: Path, args: argparse.Namespace) -> None:
    """Keep the budget of a study; ValueError if the folder has runs of another one."""
    budget = json.loads(json.dumps({key: getattr(args, key) for key in BUDGET}))
    if path.exists():
        before = json.loads(path.read_text(encoding='utf-8'))
        if changed := [key for key in BUDGET if before.get(key) != budget[key]]:
            named = ', '.join(f'{key} {before.get(key)}, now {budget[key]}' for key in changed)
            raise ValueError(
                f'{path.parent} has runs of another budget ({named}); name another --out'
            )
    with whole_file(path) as part:
        part.write_text(json.dumps(budget, indent=1) + '\n')


def folder(out: Path, name: str, seed: int) -> Path:
    """Of a run."""
    return out / 'runs' / f'{name.replace("/", "_")}-seed{seed}'


def people(out: Path, name: str, seed: int) -> Path:
    return folder(out, name, seed) / 'people.json'


def counts(path: Path) -> list:
    """[id, extent, keypoints found, keypoints labeled] of each test person of a run."""
    return json.loads(path.read_text(encoding='utf-8'))['people']


# --- scores --------------------------------------------------------------------------------------
def pck(runs: list, resamples: int = RESAMPLES) -> tuple[float, np.ndarray]:
    """Mean over seeds of the share of keypoints found, in %, and its bootstrap over people.

    The same people are drawn for equal numbers of people: bootstraps of two models are paired.

    Args:
        runs: of each seed the rows of `counts`, of the same people.

    Returns:
        The score and (resamples,) scores of people drawn with replacement.
    """
    found = np.mean([[row[2] for row in people] for people in runs], axis=0)
    labeled = np.array([row[3] for row in runs[0]], float)
    drawn = np.random.default_rng(0).integers(0, len(labeled), (resamples, len(labeled)))
    scores = found[drawn].sum(1) / labeled[drawn].sum(1)
    return 100 * found.sum() / labeled.sum(), 100 * scores


def interval(scores: np.ndarray) -> tuple[float, float]:
    """95 %."""
    low, high = np.percentile(scores, (2.5, 97.5))
    return float(low), float(high)


def row(name: str, cfg: Config, runs: list, args: argparse.Namespace) -> dict:
    """Sizes and scores of a variant; `score` is None if no training ended."""
    with torch.device('meta'):
        network = ModuleNetwork(build_model(cfg)).graph
    width, height = args.size
    found = dict(name=name, seeds=len(runs), score=None)
    found['parameters'] = sum(map(torch.numel, network.parameters()))
    found['gmacs'] = macs(network, (height, width)) / 1e9
    if runs:
        score, scores = pck(runs)
        found |= dict(score=score, interval=interval(scores))
        found['by_seed'] = [pck([each])[0] for each in runs]
        for part in EXTENTS:
            of_part = [[each for each in people if each[1] == part] for people in runs]
            if args.test_parts and of_part[0]:
                found[part] = pck(of_part)[0]
    return found


def timed(configs: dict[str, Config], args: argparse.Namespace) -> list[float]:
    """Milliseconds of one crop through each deployed network, measured in turn, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    images = torch.zeros(1, 3, args.size[1], args.size[0])
    networks = {}
    for name, cfg in configs.items():
        graph = ModuleNetwork(trunchier.deploy(build_model(cfg), inplace=True)).graph
        networks[name] = lambda graph=graph: graph(images)
    try:
        with torch.inference_mode():
            times = interleaved(networks, rounds=args.rounds)
    finally:
        torch.set_num_threads(threads)
    return [1e3 * each.median for each in times.values()]


def differences(done: dict[str, list]) -> list[str]:
    """Table of |score(Sn) - score(Sm)| for each encoder that is compared at two truncations."""
    groups = {}
    for name, runs in done.items():
        base, *changes = name.split('+')
        stem, _, stages = base.rpartition('-s')
        if runs and stages in ('2', '3', '4'):
            groups.setdefault((stem, *changes), {})[int(stages)] = name
    lines = []
    for stages in groups.values():
        deepest = stages[max(stages)]
        for number in sorted(stages)[:-1]:
            score, scores = pck(done[stages[number]])
            reference, references = pck(done[deepest])
            if len(scores) != len(references):
                continue
            low, high = interval(scores - references)
            change = f'{score - reference:+.1f}'
            lines.append(
                f'| {stages[number]} | {deepest} | {abs(score - reference):.1f} | {change} '
                f'[{low:+.1f}, {high:+.1f}] |'
            )
    head = ['', '| model | against | difference | signed, 95 % over people |', '|---|---|---|---|']
    return head + lines if lines else []


def table(rows: list[dict], args: argparse.Namespace) -> list[str]:
    """The report in Markdown."""
    parts = [part for part in EXTENTS if any(part in each for each in rows)]
    head = ['model', 'PCK@0.1, % [95 %]', 'by seed', *parts, 'params (M)', 'GMACs']
    head += ['ms'] if args.rounds else []
    lines = [f'| {" | ".join(head)} |', '|' + '---|' * len(head)]
    for each in sorted(rows, key=lambda each: -(each['score'] or -1)):
        cells = [each['name'], 'failed', '', *('' for _ in parts)]
        if each['score'] is not None:
            low, high = each['interval']
            cells[1] = f'{each["score"]:.1f} [{low:.1f}, {high:.1f}]'
            cells[2] = ' '.join(f'{score:.1f}' for score in each['by_seed'])
            cells[3:] = [f'{each[part]:.1f}' if part in each else '' for part in parts]
        cells += [f'{each["parameters"] / 1e6:.2f}', f'{each["gmacs"]:.2f}']
        cells += [f'{each["ms"]:.1f}'] if args.rounds else []
        lines.append(f'| {" | ".join(cells)} |')
    return lines


def described(facts: dict) -> list[str]:
    kept = ('command', 'date', 'commit', 'torch', 'CPU', 'load average')
    return ['', *(f'{key}: {facts[key]}  ' for key in kept if key in facts)]


def command(args: argparse.Namespace) -> str:
    """The command of a study, with all that its numbers depend on."""
    width, height = args.size
    switches = [f'--{key.replace("_", "-")}' for key in BUDGET if getattr(args, key) is True]
    switches += ['--weights', args.weights] if args.weights else []
    return ' '.join(
        f'trunchier compare {" ".join(args.names)} --train {args.train} --test {args.test} '
        f'--out {args.out} --steps {args.steps} --batch-size {args.batch_size} --lr {args.lr:g} '
        f'--size {height}x{width} --seeds {" ".join(map(str, args.seeds))}'.split()
        + switches
    )


def draw(rows: list[dict], out: Path) -> None:
    """Score against time and operations; the area of a circle is the number of parameters."""
    figure_type = need('matplotlib.figure', 'the plot').Figure
    rows = [each for each in rows if each['score'] is not None]
    axes_of = dict(ms='ms of one crop here, one thread', gmacs='GMACs')
    axes_of = {key: label for key, label in axes_of.items() if all(key in each for each in rows)}
    figure = figure_type(figsize=(6.5 * len(axes_of), 5), layout='constrained')
    panels = figure.subplots(1, len(axes_of), sharey=True, squeeze=False)[0]
    for axes, (key, label) in zip(panels, axes_of.items(), strict=True):
        heights = itertools.cycle((5, -10))  # of names: those of similar scores are apart
        for each in sorted(rows, key=lambda each: each['score']):
            low, high = each['interval']
            area = 12 * each['parameters'] / 1e6 + 8
            (bar,) = axes.plot([each[key]] * 2, [low, high], lw=1)
            axes.scatter(each[key], each['score'], area, color=bar.get_color(), alpha=0.7)
            axes.annotate(
                each['name'], (each[key], each['score']), xytext=(5, next(heights)), fontsize=7,
                textcoords='offset points',
            )  # fmt: skip
        axes.set_xscale('log')
        axes.margins(x=0.25)
        axes.xaxis.set_major_formatter('{x:g}')
        axes.xaxis.set_minor_formatter('{x:g}')
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel('PCK@0.1, %, with 95 % over people')
    with need('matplotlib', 'the plot').rc_context({'svg.fonttype': 'none'}):  # text, not outlines
        for suffix in ('svg', 'png'):
            figure.savefig(out / f'plot.{suffix}', dpi=120)


def _count(text):
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is no number of trainings; give 1 or more')
    return int(text)


def _size(text):
    """'HxW' -> (width, height)."""
    try:
        height, width = map(int, text.lower().split('x'))
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r} is no size; give HxW, as 128x96') from None
    if height % 32 or width % 32 or min(height, width) < 32:
        raise argparse.ArgumentTypeError(f'{text}: give multiples of 32, as 128x96')
    return width, height


if __name__ == '__main__':
    main()
