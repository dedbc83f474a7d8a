import importlib.util
from pathlib import Path

import numpy as np
import torch

from trunchier.conventions import AXIS_ANGLE_FLIP_SIGNS, BODY_POSE_23_FLIP, SMPL_24_FLIP
from trunchier.datasets.transforms import EMBEDDED_POSES, load_real_poses
from trunchier.geometry import matrix_to_axis_angle, rotation_6d_to_matrix
from trunchier.models.mesh.hmr2_head import EMBEDDED_MEAN_PARAMS, read_mean_params

TOOL = Path(__file__).parents[2] / 'tools' / 'make_pose_prior.py'
spec = importlib.util.spec_from_file_location('make_pose_prior', TOOL)
make_pose_prior = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_pose_prior)


def run(monkeypatch, *arguments):
    monkeypatch.setattr('sys.argv', ['make_pose_prior.py', *map(str, arguments)])
    make_pose_prior.main()


def test_the_script_draws_the_shipped_poses(monkeypatch, tmp_path):
    run(monkeypatch, '--num', 40, '--out', tmp_path)
    with np.load(EMBEDDED_POSES) as file:
        shipped = file['body_pose']
    with np.load(tmp_path / 'pose_prior.npz') as file:
        drawn = file['body_pose']
    assert shipped.shape == (4000, 72)
    assert np.allclose(drawn, shipped[:40], atol=4e-3)
    assert (tmp_path / 'mean_params.npz').is_file()


def test_the_shipped_mean_person_is_that_of_the_shipped_poses(monkeypatch, tmp_path):
    run(monkeypatch, '--poses', EMBEDDED_POSES, '--out', tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['mean_params.npz']
    made = read_mean_params(tmp_path / 'mean_params.npz')
    for name, value in read_mean_params(EMBEDDED_MEAN_PARAMS).items():
        assert torch.allclose(made[name], value, atol=1e-6)


def test_mean_person_is_its_own_mirror_image():
    pose = read_mean_params(EMBEDDED_MEAN_PARAMS)['pose'].view(24, 6)
    body = matrix_to_axis_angle(rotation_6d_to_matrix(pose[1:]))
    mirrored = body[list(BODY_POSE_23_FLIP)] * torch.tensor(AXIS_ANGLE_FLIP_SIGNS)
    assert torch.allclose(mirrored, body, atol=1e-5)


def test_the_mean_of_opposite_rotations_is_the_identity():
    poses = torch.zeros(2, 24, 3, dtype=torch.float64)
    poses[0, 3, 0], poses[1, 3, 0] = 0.8, -0.8  # spine1 bends forward, backward
    mean = make_pose_prior.mean_pose(poses)
    assert torch.allclose(mean[3], torch.eye(3, dtype=torch.float64))


def test_left_and_right_are_equally_likely():
    poses, _ = load_real_poses()
    poses = np.concatenate((np.zeros_like(poses[:, :3]), poses), axis=1).reshape(-1, 24, 3)
    mirrored = poses[:, list(SMPL_24_FLIP)] * np.array(AXIS_ANGLE_FLIP_SIGNS)
    difference = poses.mean(0) - mirrored.mean(0)
    noise = poses.std(0) * (2 / len(poses)) ** 0.5
    assert (abs(difference) <= 4.5 * noise + 1e-3).all()
    assert poses.std(0).max() > 0.5  # radians: they do move
