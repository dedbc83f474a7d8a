"""New processes that predict one photo: CPU seconds by step, seconds to the result, peak memory."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import torch

from benchmark.report import Table, progress
from trunchier.deploy.export import export
from trunchier.models.create import create_model

MODELS = ('VMPose-T-S2', 'VMHMR2.0-T-S2', 'SwinPose-T-S3', 'GMFPose-T-S3', 'ViTPose-S')
STEPS = dict(
    python='Python', torch='torch', imports='other imports', model='model and weights',
    photo='photo',
)  # fmt: skip
# The command, in a process that keeps the CPU time at its first message, which comes after all
# imports, and when the model is loaded. Without the folders and modules of this benchmark.
CHILD = """
import json, logging, os, runpy, sys, time
began, needs_torch, *arguments = sys.argv[1:]
spent = dict(python=time.process_time())
if needs_torch:
    import torch
    spent['torch'] = time.process_time()
class Keep(logging.Handler):
    def emit(self, record):
        spent.setdefault('imports', time.process_time())
        if record.getMessage().startswith('loaded in'):
            spent['model'] = time.process_time()
logging.getLogger('trunchier').addHandler(Keep())
sys.orig_argv, sys.argv = [sys.executable, '-m', 'trunchier'], ['-m', 'predict', *arguments]
code = 0
try: runpy.run_module('trunchier', run_name='__main__')
except SystemExit as stop: code = stop.code
spent['photo'] = time.process_time()
elapsed = time.time() - float(began)
peak = [line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')]
print(json.dumps(dict(spent=spent, elapsed=elapsed, kilobytes=int(peak[0]))))
os._exit(code or 0)
"""


def add_arguments(add: Callable) -> None:
    add('--models', nargs='+', default=MODELS, metavar='NAME', help=f'default: {" ".join(MODELS)}')
    add('--photo', type=Path, metavar='FILE', help='default: of a synthetic person')
    add('--detector', default='whole_image', metavar='FILE', help='default: none')
    add('--exported', action='store_true', help='also ONNX files of the pose models')


def run(args: argparse.Namespace) -> Table:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        photo = args.photo or Path(folder, 'photo.png')
        if args.photo is None:
            from trunchier.synthetic.people import SyntheticPeople  # needs numba

            cv2.imwrite(str(photo), SyntheticPeople(0)[0]['image'][..., ::-1])
        for name in args.models:
            weights = Path(folder, 'random.pth')
            torch.save(dict(state_dict=create_model(name).state_dict()), weights)
            files = {name: weights}
            if args.exported and 'Pose' in name:
                files[f'{name}.onnx'] = Path(folder, 'model.onnx')
                export(name, files[f'{name}.onnx'], weights)
            for label, file in files.items():
                options = ['--model', name, '--weights', file, '--detector', args.detector]
                arguments = [photo, *options, '--device', args.device, '--offline']
                found = [measure(arguments, args.threads) for _ in range(args.rounds)]
                keys = found[0].keys()
                rows.append(dict(name=label))
                rows[-1] |= {key: statistics.median(each[key] for each in found) for key in keys}
                progress(label)
    columns = dict(name='model', elapsed='seconds to the result', total='CPU s')
    columns |= {key: f'{step}, CPU s' for key, step in STEPS.items()} | dict(megabytes='peak MB')
    notes = [
        'Medians of new processes that run `trunchier predict`, which draws and saves. CPU s: in '
        'all, then by step, in order. '
        f'People are found by {Path(args.detector).name}; kernels were compiled earlier'
    ]
    return Table('Cold start and memory', columns, rows, notes)


def measure(arguments: Sequence[str | Path], threads: int | None) -> dict[str, float]:
    """Seconds of a new process in all and by step, and megabytes; `arguments` of `predict`."""
    environment = dict(os.environ)
    if threads:
        environment['OMP_NUM_THREADS'] = str(threads)
    needs_torch = not any(str(each).endswith('model.onnx') for each in arguments)
    with tempfile.TemporaryDirectory() as out:
        words = [time.time(), 'torch' * needs_torch, *arguments, '--out-dir', out]
        done = subprocess.run(
            [sys.executable, '-c', CHILD, *map(str, words)],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f'prediction failed: {done.stderr.strip()[-1000:]}')
    found = json.loads(done.stdout.splitlines()[-1])
    row, before = {}, 0.0
    for step, seconds in found['spent'].items():
        row[step], before = seconds - before, seconds
    row |= dict(elapsed=found['elapsed'], total=before, megabytes=found['kilobytes'] * 1024 / 1e6)
    return row
