#!/usr/bin/env python
"""Write `trunchier/assets/pose_prior.npz`, the default real poses of the discriminator.

    python tools/make_pose_prior.py [--num 4000] [--seed 0]

They are drawn like those of the synthetic people: natural poses within the limits of the joints,
and interpolated motion capture (poses.npz). The array `body_pose` (N, 72) is axis-angle, as in
4D-Humans' cmu_mocap.npz, which it replaces; float16 is exact to a tenth of a degree. There are no
betas: the shape components of the embedded body have unit variance.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from trunchier.files import shipped, whole_file
from trunchier.geometry import matrix_to_axis_angle
from trunchier.synthetic.poses import sample_pose


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--num', type=int, default=4000, help='poses (default 4000)')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--out', type=Path, default=shipped.asset('pose_prior.npz'))
    arguments = parser.parse_args()
    if arguments.num < 1:
        parser.error(f'--num: expected 1 or more poses, got {arguments.num}')

    with whole_file(arguments.out) as part:
        np.savez_compressed(part, body_pose=draw(arguments.num, arguments.seed))
    print(f'{arguments.out}: {arguments.num} poses')


def draw(number: int, seed: int) -> np.ndarray:
    """(number, 72) float16 axis-angle poses of upright people."""
    rng = np.random.default_rng(seed)
    rotations = np.stack([sample_pose(rng).rotations for _ in range(number)])
    poses = matrix_to_axis_angle(torch.from_numpy(rotations))
    return poses.flatten(1).numpy().astype(np.float16)


if __name__ == '__main__':
    main()
