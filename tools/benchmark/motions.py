"""Synthetic motions: frames/s of poses, of keypoints before a camera, of a detector's errors."""

import argparse
import time
from collections.abc import Callable

import torch

from benchmark.report import Table, progress
from benchmark.timing import seconds_each


def add_arguments(add: Callable) -> None:
    add('--frames', type=int, default=81, help='of a sequence (default: 81)')
    add('--batch', type=int, default=256, help='sequences (default: 256)')


def run(args: argparse.Namespace) -> Table:
    from trunchier.synthetic.motion import KINDS, SHARES  # numba
    from trunchier.synthetic.noise import read_noise
    from trunchier.synthetic.sequences import KeypointSequences, film

    stream, noise = KeypointSequences(0, 600), read_noise()
    motions, random = stream.motions, torch.Generator().manual_seed(0)
    progress('key poses')
    motion = motions.draw(args.batch, args.frames)
    truth = film(motion, random, stream.points).truth

    def drawing(kinds):
        return lambda index: motions.draw(args.batch, args.frames, kinds)

    tasks = {('poses', kind): drawing({kind: 1.0}) for kind in KINDS}
    tasks['poses', 'all, as in training'] = drawing(SHARES)
    tasks['camera and keypoints', ''] = lambda index: film(motion, random, stream.points)
    tasks['errors of a detector', ''] = lambda index: noise.sample(truth, random)
    rows = []
    for (stage, kind), task in tasks.items():
        seconds = seconds_each(task, args.rounds, time.process_time)
        rows.append(dict(stage=stage, kind=kind, rate=args.batch * args.frames / seconds))
    columns = dict(stage='stage', kind='kind', rate='frames per second of CPU time')
    return Table('Motions', columns, rows, [f'{args.batch} sequences of {args.frames} frames'])
