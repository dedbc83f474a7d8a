#!/usr/bin/env python
"""Make `trunchier/assets/pose_prior.npz`, the real poses that the discriminator sees by default.

    python tools/make_pose_prior.py [--num 4000] [--seed 0]

They are drawn as those of the synthetic people are: natural stances within the limits of the
joints, and motion capture (poses.npz) between its frames. The array `body_pose` (N, 72) is
axis-angle, as in 4D-Humans' cmu_mocap.npz, whose place it takes; float16, which is exact to a tenth
of a degree. It states no betas: the shape components of the embedded body have unit variance.
"""

import argparse
import os
from pathlib import Path

import numpy as np
import torch

from trunchier.files import shipped
from trunchier.geometry import matrix_to_axis_angle
from trunchier.synthetic.poses import sample_pose

OUT = shipped.asset('pose_prior.npz')


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--num', type=int, default=4000, help='poses (default 4000)')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--out', type=Path, default=OUT)
    arguments = parser.parse_args()
    if arguments.num < 1:
        parser.error(f'--num wants 1 or more poses, got {arguments.num}')

    part = arguments.out.with_suffix('.part.npz')
    np.savez_compressed(part, body_pose=draw(arguments.num, arguments.seed))
    os.replace(part, arguments.out)
    print(f'{arguments.out}: {arguments.num} poses')


def draw(number, seed):
    """(number, 72) float16 axis-angle poses, the root's in the upright frame."""
    rng = np.random.default_rng(seed)
    rotations = np.stack([sample_pose(rng).rotations for _ in range(number)])
    poses = matrix_to_axis_angle(torch.from_numpy(rotations))
    return poses.flatten(1).numpy().astype(np.float16)


if __name__ == '__main__':
    main()
