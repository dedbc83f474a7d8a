import importlib.util
from pathlib import Path

import numpy as np

from trunchier.conventions import AXIS_ANGLE_FLIP_SIGNS, SMPL_24_FLIP
from trunchier.datasets.transforms import EMBEDDED_POSES, load_real_poses

TOOL = Path(__file__).parents[2] / 'tools' / 'make_pose_prior.py'
spec = importlib.util.spec_from_file_location('make_pose_prior', TOOL)
make_pose_prior = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_pose_prior)


def test_the_script_draws_the_shipped_poses():
    with np.load(EMBEDDED_POSES) as file:
        shipped = file['body_pose']
    drawn = make_pose_prior.draw(40, seed=0)
    assert shipped.shape == (4000, 72)
    assert np.allclose(drawn, shipped[:40], atol=4e-3)


def test_left_and_right_are_equally_likely():
    poses, _ = load_real_poses()
    poses = np.concatenate((np.zeros_like(poses[:, :3]), poses), axis=1).reshape(-1, 24, 3)
    mirrored = poses[:, list(SMPL_24_FLIP)] * np.array(AXIS_ANGLE_FLIP_SIGNS)
    difference = poses.mean(0) - mirrored.mean(0)
    noise = poses.std(0) * (2 / len(poses)) ** 0.5
    assert (abs(difference) <= 4.5 * noise + 1e-3).all()
    assert poses.std(0).max() > 0.5  # radians: they do move
