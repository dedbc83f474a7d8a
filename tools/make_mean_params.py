#!/usr/bin/env python
"""Write `trunchier/assets/mean_params.npz`, the mean parameters of the mesh head.

    python tools/make_mean_params.py

The head predicts differences to a mean person (HMR, Kanazawa et al., CVPR 2018). For the embedded
body, this is the mean of the poses of tools/make_pose_prior.py and their mirror images, with betas
of 0, upright in front of the camera at the scale of a typical crop. The arrays have the names and
sizes of SPIN's smpl_mean_params.npz: pose (144) is 24 rotations in 6D, shape (10), cam (3) as
(s, tx, ty).
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from trunchier.conventions import AXIS_ANGLE_FLIP_SIGNS, BODIES, BODY_POSE_23_FLIP
from trunchier.files import save_npz, shipped
from trunchier.geometry import axis_angle_to_matrix, matrix_to_rotation_6d

# A person of 1.7 to 1.8 m at s = 0.9 fills 0.8 of the crop, as HMR's boxes are drawn.
CAMERA = (0.9, 0.0, 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--poses', type=Path, default=shipped.asset('pose_prior.npz'))
    parser.add_argument('--out', type=Path, default=shipped.asset('mean_params.npz'))
    arguments = parser.parse_args()

    with np.load(arguments.poses, allow_pickle=False) as file:
        poses = torch.from_numpy(file['body_pose'].astype(np.float64)).unflatten(1, (-1, 3))
    pose = matrix_to_rotation_6d(mean_pose(poses)).flatten()

    save_npz(
        arguments.out,
        pose=pose.numpy().astype(np.float32),
        shape=np.zeros(BODIES['smpl'].num_betas, np.float32),
        cam=np.array(CAMERA, np.float32),
    )
    print(f'{arguments.out}: mean of {len(poses)} poses')


def mean_pose(poses: torch.Tensor) -> torch.Tensor:
    """Mean rotations.

    Args:
        poses: (N, 24, 3) axis-angle.

    Returns:
        (24, 3, 3) rotation matrices: the root facing the camera (y down), then the body.
    """
    signs = torch.tensor(AXIS_ANGLE_FLIP_SIGNS, dtype=poses.dtype)
    body = poses[:, 1:]
    both = axis_angle_to_matrix(body) + axis_angle_to_matrix(body[:, BODY_POSE_23_FLIP] * signs)
    total = both.mean(0)
    # The chordal mean of rotations is the rotation nearest to their sum.
    u, _, vh = torch.linalg.svd(total)
    upright = torch.diag(torch.tensor([1, -1, -1], dtype=poses.dtype))
    return torch.cat((upright[None], u @ vh))


if __name__ == '__main__':
    main()
