import subprocess
import sys

import numpy as np
import pytest
import torch
from golden_rule import golden_tensor as tensor
from golden_rule import load_golden, max_error_in_std
from versions import needs_torch

from trunchier.conventions import JOINTS_44, JOINTS_44_FLIP, SMPL_24, SMPL_PARENTS
from trunchier.geometry import axis_angle_to_matrix
from trunchier.models.mesh.body import BodyModel, read_body

smplx = pytest.importorskip('smplx')


def numbers():
    """The arrays of the body that the golden run used (random, not a person)."""
    golden = load_golden('hmr2_smpl_layer')
    rng = np.random.Generator(np.random.PCG64(golden['seed']))

    def normal(*shape):
        return rng.standard_normal(size=shape)

    def softmax(x):
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    arrays = {
        'v_template': 0.4 * normal(6890, 3),
        'shapedirs': 0.02 * normal(6890, 3, 10),
        'posedirs': 0.01 * normal(6890, 3, 207),
        'J_regressor': softmax(4 * normal(24, 6890)),
        'weights': softmax(2 * normal(6890, 24)),
        'J_regressor_extra': softmax(4 * normal(19, 6890)),
    }
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    arrays['kintree_table'] = np.stack([golden['parents'], np.arange(24)])
    arrays['f'] = np.zeros((13776, 3), np.uint16)
    return arrays


@pytest.fixture(scope='module')
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp('body') / 'SMPL_NEUTRAL.npz'
    np.savez(path, **numbers())
    return path


@pytest.fixture(scope='module')
def body():
    return BodyModel()


def standing(batch=1):
    eye = torch.eye(3).expand(batch, 24, 3, 3)
    return {'global_orient': eye[:, :1], 'body_pose': eye[:, 1:], 'betas': torch.zeros(batch, 10)}


def bent(batch=2):
    matrices = axis_angle_to_matrix(0.4 * torch.randn(batch, 24, 3))
    return {
        'global_orient': matrices[:, :1],
        'body_pose': matrices[:, 1:],
        'betas': torch.randn(batch, 10),
    }


def test_body_is_the_official_one(file):
    golden = load_golden('hmr2_smpl_layer')
    posed = BodyModel(file)(*(tensor(golden[k]) for k in ('global_orient', 'body_pose', 'betas')))
    assert (posed['joints'] - tensor(golden['outputs']['joints'])).abs().max() < 1e-5
    assert max_error_in_std(posed['vertices'], golden['outputs']['vertices']) < 1e-5


@pytest.mark.parametrize('official', [True, False])
def test_joints_without_vertices_are_the_same(file, official):
    """In value and in gradient."""
    body, pose = BodyModel(file if official else None), bent()
    found = []
    for posed in (body, body.joints):
        leaves = {name: value.clone().requires_grad_() for name, value in pose.items()}
        out = posed(**leaves)
        (out['joints'].sin().sum() + out['skeleton'].cos().sum()).backward()
        found.append([out['joints'], out['skeleton'], *(each.grad for each in leaves.values())])
    for whole, part in zip(*found, strict=True):
        torch.testing.assert_close(part, whole, rtol=1e-4, atol=2e-5)


def test_joints_without_vertices_of_nobody(body):
    nobody = {name: value[:0] for name, value in bent().items()}
    assert body.joints(**nobody)['joints'].shape == (0, 44, 3)


def test_a_folder_may_replace_the_file_in_it(file):
    assert torch.equal(
        BodyModel(file.parent)(**standing())['joints'], BodyModel(file)(**standing())['joints']
    )


def test_the_embedded_body_is_upright_and_faces_forward(body):
    joints = body(**standing())['joints'][0]
    x, y, z = {name: joints[i] for i, name in enumerate(JOINTS_44)}, 1, 2
    for low, high in [
        ('left_ankle', 'left_knee'),
        ('extra_left_ankle', 'extra_left_knee'),
        ('left_knee', 'left_hip'),
        ('mid_hip', 'neck'),
        ('extra_pelvis_mpii', 'extra_spine_h36m'),
        ('extra_spine_h36m', 'extra_thorax_mpii'),
        ('extra_thorax_mpii', 'extra_neck_lsp'),
        ('extra_neck_lsp', 'extra_jaw_h36m'),
        ('extra_jaw_h36m', 'extra_head_h36m'),
        ('extra_head_h36m', 'extra_head_top_lsp'),
    ]:
        assert x[low][y] < x[high][y]
    assert x['nose'][z] > x['neck'][z]
    assert x['left_big_toe'][z] > x['left_heel'][z]
    height = joints[:, y].max() - joints[:, y].min()
    assert 1.6 < height < 1.95


def test_embedded_body_is_nearly_its_own_mirror_image(body):
    joints = body(**standing())['joints'][0]
    mirrored = joints[list(JOINTS_44_FLIP)] * torch.tensor([-1, 1, 1])
    assert (mirrored - joints).norm(dim=1).max() < 0.02  # meters; the heels' vertices differ most


def test_both_sets_of_joints_agree_on_the_limbs(body):
    joints = dict(zip(JOINTS_44, body(**standing())['joints'].unbind(1), strict=True))
    for side in ('left', 'right'):
        for name in ('ankle', 'knee', 'hip', 'wrist', 'elbow', 'shoulder'):
            name = f'{side}_{name}'
            assert (joints[name] - joints[f'extra_{name}']).norm(dim=1).max() < 0.05


def test_bending_an_elbow_moves_that_arm_only(body):
    pose = standing()
    pose['body_pose'] = pose['body_pose'].clone()
    elbow = SMPL_24.index('left_elbow')
    pose['body_pose'][:, elbow - 1] = axis_angle_to_matrix(torch.tensor([0.0, -1.0, 0.0]))
    moved = (body(**pose)['skeleton'] - body(**standing())['skeleton']).norm(dim=-1)[0] > 1e-3
    below = [SMPL_24.index(name) for name in ('left_wrist', 'left_hand')]
    assert moved.nonzero().flatten().tolist() == below


def test_bones_keep_their_length_in_any_pose(body):
    pose = bent(4)
    pose['betas'] = torch.zeros(4, 10)
    children, parents = list(range(1, 24)), list(SMPL_PARENTS[1:])
    skeleton = body(**pose)['skeleton']
    rest = body(**standing())['skeleton']
    lengths = (skeleton[:, children] - skeleton[:, parents]).norm(dim=-1)
    assert torch.allclose(lengths, (rest[:, children] - rest[:, parents]).norm(dim=-1), atol=1e-5)


def test_faces_point_outward(body):
    triangles = body(**standing())['vertices'][0][torch.from_numpy(body.faces)]
    a, b, c = triangles.unbind(1)
    volume = (a * torch.linalg.cross(b, c)).sum() / 6
    assert 0.05 < volume < 0.12  # cubic meters


def test_gradients_reach_pose_and_betas(body):
    pose = {name: value.clone().requires_grad_() for name, value in bent().items()}
    body(**pose)['joints'].square().sum().backward()
    assert all((value.grad != 0).any() for value in pose.values())


@pytest.mark.parametrize(
    'dtype',
    [
        torch.bfloat16,
        pytest.param(torch.float16, marks=needs_torch('2.4', 'autocast to float16 on CPU')),
    ],
)
def test_body_stays_in_float32_under_autocast(body, dtype):
    pose = bent()
    with torch.autocast('cpu', dtype=dtype):
        posed = body(**{name: value.to(dtype) for name, value in pose.items()})
    exact = body(**{name: value.to(dtype).float() for name, value in pose.items()})
    assert posed['vertices'].dtype == torch.float32
    assert all(torch.equal(posed[name], exact[name]) for name in exact)


def test_body_adds_nothing_to_a_checkpoint(body):
    assert not body.state_dict()
    assert not list(body.parameters())


@needs_torch('2.6', 'one graph')
def test_the_body_is_traceable(body):
    traced = torch.compile(body, fullgraph=True, backend='eager')
    pose = bent()
    assert torch.equal(traced(**pose)['joints'], body(**pose)['joints'])


def test_building_a_body_prints_nothing():
    done = subprocess.run(
        [sys.executable, '-c', 'from trunchier.models.mesh.body import BodyModel; BodyModel()'],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '')


# bad input


def test_a_missing_file_names_the_section_of_the_readme(tmp_path):
    with pytest.raises(FileNotFoundError, match='no SMPL_NEUTRAL.npz in .*"Body model" in README'):
        BodyModel(tmp_path)


def test_an_official_pickle_names_the_converter(tmp_path):
    (tmp_path / 'SMPL_NEUTRAL.pkl').write_bytes(b'')
    with pytest.raises(ValueError, match='by trunchier convert-smpl'):
        BodyModel(tmp_path / 'SMPL_NEUTRAL.pkl')


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'v_template': np.zeros((10475, 3))}, r'v_template .*\(10475, 3\), expected \(6890, 3\)'),
        ({'weights': None}, "no array 'weights'"),
        ({'J_regressor_extra': None}, "no array 'J_regressor_extra'"),
        ({'kintree_table': np.zeros((2, 24))}, 'skeleton'),
        ({'f': np.full((13776, 3), 6890)}, 'f of .* names vertices outside of 0 to 6889'),
        ({'f': np.full((13776, 3), -1)}, 'f of .* names vertices outside of 0 to 6889'),
        ({'v_template': np.full((6890, 3), np.nan)}, 'v_template of .* not finite numbers'),
        ({'weights': np.full((6890, 24), 'a')}, 'weights of .* not finite numbers'),
        ({'weights': np.full((6890, 24), None)}, 'holds objects'),
    ],
)
def test_a_file_of_another_layout_is_an_error(tmp_path, change, message):
    arrays = {name: array for name, array in {**numbers(), **change}.items() if array is not None}
    np.savez(tmp_path / 'other.npz', **arrays)
    with pytest.raises(ValueError, match=message):
        read_body(tmp_path / 'other.npz')


def test_without_smplx_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'smplx', None)
    with pytest.raises(ImportError, match='pip install smplx'):
        BodyModel()
