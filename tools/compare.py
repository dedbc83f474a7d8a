#!/usr/bin/env python
r"""Compare pose models under one budget: train each, score it, print a table and a plot.

    trunchier compare vm-t-s3 swin-t-s3 repvit_m0_9-s3 swin-t-s3+simple --seeds 0 1 \
        --train data/synthetic/train --test data/synthetic/test --out work_dirs/compare
    trunchier compare @truncation.txt          # the same, one argument a line

A NAME is an encoder of the paper or of timm with its stages, or a config; `+simple` takes ViTPose's
simple decoder, `+parts` trains on crops to parts of bodies too, `+hard` on the endless stream of
harder people, `+hard-cutout` on it without an ingredient, `+hard+revisit` shows its hard images
again, `+ema` averages the weights. Folders are those of `trunchier make-synthetic`, or others with
`annotations.json` in COCO's format and `images`. An interrupted study goes on with the same
command; a training that failed is a row that says so.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import launch  # noqa: F401  idle threads, before torch
import torch
from benchmark.machine import environment
from benchmark.networks import macs
from benchmark.timing import interleaved
from compare_recipes import config, people_of_test
from compare_scores import against, described, differences, draw, interval, pck, table
from mmengine.config import Config

import trunchier
from trunchier.deploy.runtime import ModuleNetwork
from trunchier.files import whole_file
from trunchier.files.lock import FolderInUse, FolderLock
from trunchier.files.processes import clean_end
from trunchier.metrics.partial import EXTENTS
from trunchier.weights.find import build_model

TOOLS = Path(__file__).resolve().parent
# Settings that make two runs comparable: all of a study have the same.
BUDGET = (
    *('train', 'test', 'steps', 'batch_size', 'lr', 'size', 'test_parts'),
    *('pretrained', 'weights', 'amp', 'no_flip'),
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
        prog='trunchier compare',
        description=__doc__,
        formatter_class=formatter,
        fromfile_prefix_chars='@',
    )
    add = parser.add_argument
    add('names', nargs='+', metavar='NAME', help='encoder or config, with changes: +parts')
    add('--train', metavar='DIR', help='people to train on; without use for +hard')
    add('--test', required=True, metavar='DIR', help='other people; `stream`: of the harder ones')
    add('--also', nargs='+', default=[], metavar='DIR', help='more people to test on')
    add('--against', metavar='NAME', help='of the NAMEs: differences of all others to this')
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
    add('--no-flip', action='store_true', help='test without flipped images: half the time')
    add('--jobs', type=_count, default=1, metavar='N', help='trainings at a time (default: 1)')
    add('--rounds', type=int, default=7, metavar='N', help='of timing; 0: do not time')
    return parser


def compare(args: argparse.Namespace) -> int:
    """Run what is missing and write the report; returns the number of failed trainings."""
    configs = {name: config(name, args) for name in dict.fromkeys(args.names)}  # before any trains
    for test in args.also:
        people_of_test(test, args)
    if args.against not in (None, *configs):
        raise ValueError(f'--against {args.against} is none of {", ".join(configs)}')
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
    scored = {
        test: {
            name: [
                counts(path)
                for seed in args.seeds
                if (path := people(folder(out, name, seed), test, args)).exists()
            ]
            for name in configs
        }
        for test in (args.test, *args.also)
    }
    done = scored[args.test]
    rows = [row(name, configs[name], scored, args) for name in configs]
    if args.rounds:
        for each, ms in zip(rows, timed(configs, args), strict=True):
            each['ms'] = ms
    facts = dict(environment(), command=command(args))
    compared = against(args.against, scored) if args.against else differences(done)
    text = '\n'.join([*table(rows, args), *compared, *described(facts)]) + '\n'
    with whole_file(out / 'table.md') as part:
        part.write_text(text)
    with whole_file(out / 'results.json') as part:
        part.write_text(json.dumps(dict(facts=facts, rows=rows), indent=1) + '\n')
    draw(rows, out)
    print(f'\n{text}\nwritten: {out}/table.md, results.json, plot.svg, plot.png')
    return sum(len(args.seeds) - len(each) for each in done.values())


# --- runs ----------------------------------------------------------------------------------------
def run(
    path: Path, cfg: Config, seed: int, number: int, children: set, args: argparse.Namespace
) -> str:
    """Train and score one model in `path`, unless that is done; returns what happened.

    Args:
        number: of the run, which chooses its GPU.
        children: gets the process while it runs.
    """
    tests = {test: people(path, test, args) for test in (args.test, *args.also)}
    if all(each.exists() for each in tests.values()):
        return 'done before'
    path.mkdir(parents=True, exist_ok=True)
    try:
        lock = FolderLock(path)
    except FolderInUse as error:  # another study trains it
        return f'FAILED: {error}'
    try:
        return train(path, cfg, seed, number, children, tests, args)
    finally:
        lock.release()


def train(
    path: Path,
    cfg: Config,
    seed: int,
    number: int,
    children: set,
    tests: dict[str, Path],
    args: argparse.Namespace,
) -> str:
    """What `run` does, in a folder that is its own; `tests`: files of what is found in each."""
    cfg = Config(cfg.to_dict())
    cfg.randomness = dict(seed=seed)
    if 'seed' in cfg.train_dataloader.sampler:
        cfg.train_dataloader.sampler.seed = seed
    scored = tests[args.test]
    cfg.val_evaluator = cfg.test_evaluator = dict(type='PartialPCK', out=str(scored))
    config = config_of(path)
    config.write_text(cfg.pretty_text)
    pointer = path / 'last_checkpoint'
    options = [*(['--amp'] if args.amp else []), *(['--resume'] if pointer.exists() else [])]
    variables = dict(os.environ)
    if torch.cuda.device_count() > 1:
        gpu = number % args.jobs % torch.cuda.device_count()
        variables['CUDA_VISIBLE_DEVICES'] = str(gpu)
    began = time.time()

    def call(tool: str, *arguments: str) -> int:
        command = [sys.executable, str(TOOLS / tool), str(config), *arguments]
        command += ['--work-dir', str(path)]
        with open(path / 'train.log', 'a', encoding='utf-8') as log:
            child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=variables)
            children.add(child)
            code = child.wait()
            children.discard(child)
        return code

    code = 0 if scored.exists() else call('train.py', *options)
    for test, scores in tests.items():
        # The first was scored after training, unless that was stopped after its last checkpoint.
        if not code and not scores.exists():
            cfg.test_dataloader.dataset = people_of_test(test, args)
            cfg.test_evaluator = dict(type='PartialPCK', out=str(scores))
            config.write_text(cfg.pretty_text)
            code = call('test.py', pointer.read_text(encoding='utf-8').strip())
    if code or not all(each.exists() for each in tests.values()):
        return f'FAILED with exit code {code}, see {path}/train.log'
    return f'{time.time() - began:.0f} s'


def check_budget(path: Path, args: argparse.Namespace) -> None:
    """Keep the budget of a study; ValueError if the folder has runs of another one."""
    budget = json.loads(json.dumps({key: getattr(args, key) for key in BUDGET}))
    if path.exists():
        before = json.loads(path.read_text(encoding='utf-8'))
        if changed := [key for key in BUDGET if (before.get(key) or None) != (budget[key] or None)]:
            named = ', '.join(f'{key} {before.get(key)}, now {budget[key]}' for key in changed)
            raise ValueError(
                f'{path.parent} has runs of another budget ({named}); name another --out'
            )
    with whole_file(path) as part:
        part.write_text(json.dumps(budget, indent=1) + '\n')


def folder(out: Path, name: str, seed: int) -> Path:
    """Of a run."""
    return out / 'runs' / f'{name.replace("/", "_")}-seed{seed}'


def config_of(folder: Path) -> Path:
    """Config of a run, named as in configs/: `trunchier report` knows the model by it."""
    name, _, seed = folder.name.rpartition('-')
    return folder / f'td-hm_{name}_{seed}.py'


def people(path: Path, test: str, args: argparse.Namespace) -> Path:
    """Of a run in `path`: what it found of the people of a test."""
    return path / ('people.json' if test == args.test else f'people-{Path(test).name}.json')


def counts(path: Path) -> list:
    """[id, extent, keypoints found, keypoints labeled] of each test person of a run."""
    return json.loads(path.read_text(encoding='utf-8'))['people']


# --- report ---------------------------------------------------------------------------------------
def row(name: str, cfg: Config, scored: dict, args: argparse.Namespace) -> dict:
    """Sizes and scores of a variant; `score` is None if no training ended.

    Args:
        scored: of each test and NAME the `counts` of each seed.
    """
    runs = scored[args.test][name]
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
        for test in args.also:
            if of_test := scored[test][name]:
                score, scores = pck(of_test)
                found[Path(test).name] = (
                    f'{score:.1f} [{"{:.1f}, {:.1f}".format(*interval(scores))}]'
                )
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


def command(args: argparse.Namespace) -> str:
    """The command of a study, with all that its numbers depend on."""
    width, height = args.size
    switches = [f'--{key.replace("_", "-")}' for key in BUDGET if getattr(args, key) is True]
    switches += ['--weights', args.weights] if args.weights else []
    switches += ['--also', *args.also] if args.also else []
    switches += ['--against', args.against] if args.against else []
    train = f'--train {args.train}' if args.train else ''
    return ' '.join(
        f'trunchier compare {" ".join(args.names)} {train} --test {args.test} '
        f'--out {args.out} --steps {args.steps} --batch-size {args.batch_size} --lr {args.lr:g} '
        f'--size {height}x{width} --seeds {" ".join(map(str, args.seeds))}'.split()
        + switches
    )


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
