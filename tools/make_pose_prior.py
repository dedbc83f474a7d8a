#!/usr/bin/env python
"""Write `pose_prior.npz` and `mean_params.npz` of `trunchier/assets`.

    python tools/make_pose_prior.py [--num 4000] [--seed 0]

pose_prior.npz holds the default real poses of the discriminator, drawn like those of the synthetic
people: natural poses within the limits of the joints, and interpolated motion capture (poses.npz).
The array `body_pose` (N, 72) is axis-angle, as in 4D-Humans' cmu_mocap.npz, which it replaces;
float16 is exact to a tenth of a degree. There are no betas: the shape components of the embedded
body have unit variance.

mean_params.npz holds the mean person to which the mesh head predicts differences (HMR, Kanazawa et
al., CVPR 2018): the mean of these poses and their mirror images, with betas of 0, upright in front
of the camera at the scale of a typical crop. Names and sizes are those of SPIN's
smpl_mean_params.npz: pose (144) is 24 rotations in 6D, shape (10), cam (3) as (s, tx, ty).
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

from trunchier.conventions import AXIS_ANGLE_FLIP_SIGNS, BODIES, BODY_POSE_23_FLIP
from trunchier.files import save_npz, shipped, whole_file
from trunchier.files.processes import clean_end
from trunchier.geometry import axis_angle_to_matrix, matrix_to_axis_angle, matrix_to_rotation_6d
from trunchier.synthetic.poses import sample_pose

# A person of 1.7 to 1.8 m at s = 0.9 fills 0.8 of the crop, as HMR's boxes are drawn.
CAMERA = (0.9, 0.0, 0.0)


@clean_end()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--num', type=int, default=4000, help='poses (default 4000)')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--poses', type=Path, help='.npz of which only the mean person is written')
    parser.add_argument('--out', type=Path, default=shipped.asset('.'), help='folder')
    arguments = parser.parse_args()
    if arguments.num < 1:
        parser.error(f'--num: expected 1 or more poses, got {arguments.num}')

    try:
        print(write(**vars(arguments)))
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f'error: {error}')


def write(num: int, seed: int, poses: Path | None, out: Path) -> str:
    """Write the files into `out`; returns a report."""
    if poses is None:
        drawn = draw(num, seed)
        with whole_file(out / 'pose_prior.npz') as part:
            np.savez_compressed(part, body_pose=drawn)
    else:
        with np.load(poses, allow_pickle=False) as file:
            drawn = file['body_pose']
    pose = mean_pose(torch.from_numpy(drawn.astype(np.float64)).unflatten(1, (-1, 3)))
    save_npz(
        out / 'mean_params.npz',
        pose=matrix_to_rotation_6d(pose).flatten().numpy().astype(np.float32),
        shape=np.zeros(BODIES['smpl'].num_betas, np.float32),
        cam=np.array(CAMERA, np.float32),
    )
    return f'{out}: {len(drawn)} poses'


def draw(number: int, seed: int) -> np.ndarray:
    """(number, 72) float16 axis-angle poses of upright people."""
    rng = np.random.default_rng(seed)
    rotations = np.stack([sample_pose(rng).rotations for _ in range(number)])
    poses = matrix_to_axis_angle(torch.from_numpy(rotations))
    return poses.flatten(1).numpy().astype(np.float16)


def mean_pose(poses: torch.Tensor) -> torch.Tensor:
    """(N, 24, 3) axis-angle -> (24, 3, 3): the root facing the camera (y down), then the body."""
    signs = torch.tensor(AXIS_ANGLE_FLIP_SIGNS, dtype=poses.dtype)
    body = poses[:, 1:]
    both = axis_angle_to_matrix(body) + axis_angle_to_matrix(body[:, BODY_POSE_23_FLIP] * signs)
    # The chordal mean of rotations is the rotation nearest to their sum.
    u, _, vh = torch.linalg.svd(both.mean(0))
    upright = torch.diag(torch.tensor([1, -1, -1], dtype=poses.dtype))
    return torch.cat((upright[None], u @ vh))


if __name__ == '__main__':
    main()
