import importlib.util
from pathlib import Path

import torch

from trunchier.conventions import AXIS_ANGLE_FLIP_SIGNS, BODY_POSE_23_FLIP
from trunchier.geometry import matrix_to_axis_angle, rotation_6d_to_matrix
from trunchier.models.mesh.hmr2_head import EMBEDDED_MEAN_PARAMS, read_mean_params

TOOL = Path(__file__).parents[2] / 'tools' / 'make_mean_params.py'
spec = importlib.util.spec_from_file_location('make_mean_params', TOOL)
make_mean_params = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_mean_params)


def test_the_script_writes_the_shipped_file(monkeypatch, tmp_path):
    monkeypatch.setattr('sys.argv', ['make_mean_params.py', '--out', str(tmp_path / 'mean.npz')])
    make_mean_params.main()
    shipped, made = read_mean_params(EMBEDDED_MEAN_PARAMS), read_mean_params(tmp_path / 'mean.npz')
    assert all(torch.allclose(made[name], value, atol=1e-6) for name, value in shipped.items())


def test_mean_person_is_its_own_mirror_image():
    pose = read_mean_params(EMBEDDED_MEAN_PARAMS)['pose'].view(24, 6)
    body = matrix_to_axis_angle(rotation_6d_to_matrix(pose[1:]))
    mirrored = body[list(BODY_POSE_23_FLIP)] * torch.tensor(AXIS_ANGLE_FLIP_SIGNS)
    assert torch.allclose(mirrored, body, atol=1e-5)


def test_the_mean_of_opposite_rotations_is_the_identity():
    poses = torch.zeros(2, 24, 3, dtype=torch.float64)
    poses[0, 3, 0], poses[1, 3, 0] = 0.8, -0.8  # spine1 bends forward, backward
    mean = make_mean_params.mean_pose(poses)
    assert torch.allclose(mean[3], torch.eye(3, dtype=torch.float64))
