"""Synthetic motions: frames/s of poses, of keypoints before a camera, of a detector's errors."""

import argparse
from collections.abc import Callable

import torch

from benchmark.report import Table, progress
from benchmark.timing import measure


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
        return lambda: motions.draw(args.batch, args.frames, kinds)

    tasks = {('poses', kind): drawing({kind: 1.0}) for kind in KINDS}
    tasks['poses', 'all, as in training'] = drawing(SHARES)
    tasks['camera and keypoints', ''] = lambda: film(motion, random, stream.points)
    tasks['errors of a detector', ''] = lambda: noise.sample(truth, random)
    rows = [
        dict(stage=stage, kind=kind, rate=1e3 * args.batch * args.frames / found['ms'],
             spread=found['spread'])
        for (stage, kind), found in measure(tasks, args).items()
    ]  # fmt: skip
    columns = dict(stage='stage', kind='kind', rate='frames/s', spread='+- %')
    return Table('Motions', columns, rows, [f'{args.batch} sequences of {args.frames} frames'])
