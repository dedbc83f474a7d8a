"""Long runs of prediction and training: memory, open files and threads of all processes."""

import argparse
import contextlib
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import make_shards
import numpy as np
from demo import config_for

from benchmark.pipeline import write_clip
from benchmark.report import Table, progress
from trunchier.files import whole_file

TOOLS = Path(__file__).resolve().parents[1]
FLAT = 5  # percent by which memory may vary after the first tenth
QUANTITIES = dict(megabytes='resident MB', files='open files', threads='threads')


def add_arguments(add: Callable) -> None:
    add('--frames', type=int, default=10_000, metavar='N', help='of video (default: 10000)')
    add('--iterations', type=int, default=5_000, metavar='N', help='of training (default: 5000)')
    add('--batch', type=int, default=8, metavar='N', help='of training (default: 8)')
    add('--minutes', type=float, default=1e6, metavar='M', help='end each run after M minutes')
    add('--every', type=float, default=1.0, metavar='S', help='seconds between samples')
    add('--plot', type=Path, metavar='FILE', help='.png or .svg of the three over time')


def run(args: argparse.Namespace) -> Table:
    rows, curves = [], {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for what, wanted, (command, reached) in (
            ('prediction, frames', args.frames, prediction(folder, args.frames)),
            ('training, iterations', args.iterations, training(folder, args)),
        ):
            if not wanted:
                continue
            samples = watch(command, folder / 'log.txt', args.minutes, args.every)
            curves[what] = samples
            rows.append(dict(what=what, wanted=wanted, reached=reached(), **summary(samples)))
            progress(f'{what}: {rows[-1]["reached"]}')
    if args.plot:
        plot(curves, args.plot)
    columns = dict(
        what='', wanted='of', reached='done', minutes='minutes', samples='samples',
        megabytes='resident MB', range='range %', change='change %', flat=f'within {FLAT} %',
        files='open files', threads='threads',
    )  # fmt: skip
    notes = [
        'After the first tenth of the time, in nine parts: range is the largest minus the smallest '
        'median of a part, change the last minus the first, both relative to the mean. Files and '
        'threads: smallest to largest. Sums over the process and all that it started'
    ]
    return Table('Long runs', columns, rows, notes)


def prediction(folder: Path, frames: int) -> tuple[list[str], Callable[[], int]]:
    """Command, and a function that tells how many frames it did."""
    clip, out = folder / 'clip.mp4', folder / 'out'
    if frames:
        write_clip(clip, frames, (192, 256))
    command = ['predict.py', str(clip), '--save', 'json', '--out-dir', str(out)]

    def reached():
        ends = [int(part.stem[-8:]) for part in (out / '.clip.part').glob('*.npz')]
        done = [path.read_text().count('"frame_id"') for path in out.rglob('clip.json')]
        return max([0, *ends, *done])

    return command, reached


def training(folder: Path, args: argparse.Namespace) -> tuple[list[str], Callable[[], int]]:
    """Command, and a function that tells how many iterations it did."""
    if args.iterations:
        from trunchier.synthetic.coco import write_coco

        write_coco(folder / 'train', 64, size=(128, 128), quiet=True)
        with contextlib.redirect_stdout(None):
            make_shards.main([str(folder / 'train'), '--out', str(folder / 'shards')])
    config = config_for('hmr2_vm-t-s2_synthetic-128.py', folder)
    options = dict(max_iters=args.iterations, val_interval=args.iterations)
    options = [f'train_cfg.{name}={value}' for name, value in options.items()]
    options += [f'train_dataloader.batch_size={args.batch}', 'model.init_cfg=None']
    options += [f'default_hooks.checkpoint.interval={max(args.iterations // 10, 1)}']
    options += ['default_hooks.logger.interval=10']
    command = ['train.py', str(config), '--work-dir', str(folder / 'work'), '--no-validate']

    def reached():
        log = (folder / 'log.txt').read_text(errors='replace')
        return max(map(int, re.findall(r'Iter\(train\) *\[ *(\d+)/', log)), default=0)

    return [*command, '--cfg-options', *options], reached


def watch(command: list[str], log: Path, minutes: float, every: float) -> list[dict]:
    """Run a tool; samples (seconds, megabytes, files, threads) of all of its processes.

    Raises:
        RuntimeError: the tool fails before `minutes` have passed; then it is ended.
    """
    samples, start = [], time.monotonic()
    command = [sys.executable, str(TOOLS / command[0]), *command[1:]]
    with log.open('w') as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        while process.poll() is None:
            if found := usage(process.pid):
                samples.append(dict(seconds=time.monotonic() - start, **found))
            if time.monotonic() - start > 60 * minutes:
                process.send_signal(signal.SIGTERM)  # SIGINT is ignored by background jobs
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(120)
                process.kill()
                return samples
            time.sleep(every)
    if process.returncode:
        raise RuntimeError(f'{" ".join(command)} failed:\n{log.read_text()[-2000:]}')
    return samples


def usage(root: int) -> dict[str, float] | None:
    """Memory, open files and threads of a process and its descendants (Linux); None: it ended."""
    total, left = dict.fromkeys(QUANTITIES, 0.0), [root]
    while left:
        folder = Path('/proc', str(left.pop()))
        with contextlib.suppress(OSError):  # it ended meanwhile
            status = dict(
                line.split(':', 1) for line in (folder / 'status').read_text().splitlines()
            )
            if 'VmRSS' not in status:
                continue
            total['megabytes'] += int(status['VmRSS'].split()[0]) / 1024
            total['threads'] += int(status['Threads'])
            total['files'] += len(os.listdir(folder / 'fd'))
            for task in (folder / 'task').iterdir():
                left += map(int, (task / 'children').read_text().split())
    return total if total['threads'] else None


def summary(samples: list[dict]) -> dict:
    """Columns of the table."""
    minutes = samples[-1]['seconds'] / 60
    later = [row for row in samples if row['seconds'] > 6 * minutes]
    parts = [part for part in np.array_split(np.arange(len(later)), 9) if len(part)]
    medians = [statistics.median(later[i]['megabytes'] for i in part) for part in parts]
    mean = statistics.mean(medians)
    spread = 100 * (max(medians) - min(medians)) / mean
    found = dict(minutes=minutes, samples=len(samples), megabytes=mean, range=spread)
    found |= dict(change=100 * (medians[-1] - medians[0]) / mean, flat=spread <= FLAT)
    for name in ('files', 'threads'):
        values = [row[name] for row in later]
        found[name] = f'{min(values)} to {max(values)}'
    return found


def plot(curves: dict[str, list[dict]], path: Path) -> None:
    """Draw memory, open files and threads over time."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        len(QUANTITIES), len(curves), figsize=(5 * len(curves), 7), squeeze=False, sharex='col'
    )
    for column, (what, samples) in zip(axes.T, curves.items(), strict=True):
        minutes = [row['seconds'] / 60 for row in samples]
        column[0].set_title(what)
        for axis, (name, label) in zip(column, QUANTITIES.items(), strict=True):
            axis.plot(minutes, [row[name] for row in samples])
            axis.set(ylabel=label, ylim=(0, None))
            axis.axvspan(0, minutes[-1] / 10, alpha=0.1)
        column[-1].set_xlabel('minutes')
    figure.tight_layout()
    with whole_file(path) as part:
        figure.savefig(part, format=path.suffix[1:])
