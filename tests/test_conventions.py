import ast
from pathlib import Path

import pytest
from golden_rule import load_golden

from trunchier import conventions as c

GOLDEN = load_golden('hmr2_joints')

ORDERS = ['OPENPOSE_25', 'JOINTS_44', 'SMPL_24', 'SMPLX_45', 'COCO_17']
FLIPS = {'COCO_17_FLIP': 'COCO_17', 'SMPL_24_FLIP': 'SMPL_24', 'JOINTS_44_FLIP': 'JOINTS_44'}


@pytest.mark.parametrize('name', ORDERS)
def test_every_order_has_as_many_distinct_names_as_it_says(name):
    order = getattr(c, name)
    assert len(order) == len(set(order)) == int(name.rsplit('_', 1)[1])


@pytest.mark.parametrize('name', FLIPS)
def test_flipping_twice_changes_nothing(name):
    flip = getattr(c, name)
    assert [flip[i] for i in flip] == list(range(len(flip)))


@pytest.mark.parametrize('name', FLIPS)
def test_flip_exchanges_left_and_right_and_moves_nothing_else(name):
    order = getattr(c, FLIPS[name])
    for i, j in enumerate(getattr(c, name)):
        sided = 'left' in order[i] or 'right' in order[i]
        assert (i != j) == sided
        assert order[i].replace('left', '?').replace('right', '?') == order[j].replace(
            'left', '?'
        ).replace('right', '?')


def test_44_joints_are_the_official_ones():
    def official(name):
        side = {'R': 'right_', 'L': 'left_'}
        name = name.removeprefix('extra ')
        if name[0] in side and name[1].isupper():
            name = side[name[0]] + name[1:]
        return name.split(' (')[0].replace('_', '').lower()

    def ours(name):
        for suffix in ('_lsp', '_mpii', '_h36m'):
            name = name.removesuffix(suffix)
        return name.removeprefix('extra_').replace('_', '')

    assert [ours(n) for n in c.JOINTS_44] == [official(n) for n in GOLDEN['joint_names_44']]


@pytest.mark.parametrize(
    ('ours', 'official'),
    [
        ('SMPLX_TO_OPENPOSE', 'joint_map_25'),
        ('SMPLX_45', 'smplx_joint_names_45'),
        ('JOINTS_44_FLIP', 'flip_permutation_44'),
        ('BODY_POSE_23_FLIP', 'smpl_body_pose_flip_joint_permutation_23'),
        ('EVAL_IGNORED_3D', 'eval_body_keypoints_3d_confidence_zeroed'),
        ('PELVIS', 'pelvis_index'),
    ],
)
def test_table_is_the_official_one(ours, official):
    value = getattr(c, ours)
    assert (list(value) if isinstance(value, tuple) else value) == GOLDEN[official]


@pytest.mark.parametrize('name', ['H36M-VAL-P2', '3DPW-TEST'])
def test_evaluation_joints_are_the_official_ones(name):
    assert list(c.EVAL_14_IN_44) == GOLDEN['eval_keypoint_lists'][name]


def test_the_map_of_human36m_keeps_the_anatomy():
    names = (
        'pelvis', 'right_hip', 'right_knee', 'right_ankle', 'left_hip', 'left_knee', 'left_ankle',
        'spine', 'neck', 'jaw', 'head', 'left_shoulder', 'left_elbow', 'left_wrist',
        'right_shoulder', 'right_elbow', 'right_wrist',
    )  # fmt: skip
    for name, index in zip(names, c.H36M_17_IN_44, strict=True):
        assert name in c.JOINTS_44[index]


def test_spin_files_end_with_nose_eyes_and_ears():
    names = [c.JOINTS_44[i] for i in c.SPIN_24_IN_44]
    assert names[:19] == list(c.EXTRA_19)
    assert names[19:] == ['nose', 'left_eye', 'right_eye', 'left_ear', 'right_ear']


def test_smpl_joints_meet_openpose_joints_of_the_same_name():
    for index, name in zip(c.SMPLX_TO_OPENPOSE, c.OPENPOSE_25, strict=True):
        assert c.SMPLX_45[index] == name.replace('mid_hip', 'pelvis')
    assert sum(index < len(c.SMPL_24) for index in c.SMPLX_TO_OPENPOSE) == 14


def test_every_joint_but_the_root_has_an_earlier_parent():
    assert c.SMPL_PARENTS[0] == -1
    assert all(0 <= parent < joint for joint, parent in enumerate(c.SMPL_PARENTS) if joint)


# --- a person ------------------------------------------------------------------------------------


def test_a_pose_holds_one_axis_angle_for_each_rotation_matrix():
    fields = c.person()
    rotations = fields['global_orient'].shape[0] + fields['body_pose'].shape[0]
    assert fields['pose'].shape == (3 * rotations,) == (3 * len(c.SMPL_24),)


@pytest.mark.parametrize('names', ['HEAD_FIELDS', 'POSED_FIELDS', 'ANNOTATED', 'TARGETS'])
def test_every_group_names_fields_of_a_person(names):
    assert set(getattr(c, names)) <= set(c.person())


def test_another_body_is_one_row_more(monkeypatch):
    row = c.Body(('root', 'tip'), (-1, 0), num_vertices=5, num_faces=6, num_betas=2)
    monkeypatch.setitem(c.BODIES, 'stick', row)
    fields = c.person('stick')
    assert fields['body_pose'].shape == (1, 3, 3)
    assert fields['vertices'].shape == (5, 3)
    assert fields['betas'].shape == (2,)


def shapes_written_by_hand(path):
    """Lines with the shape of one of a person's larger fields, or with a size of the body."""
    shapes = {field.shape for field in c.person().values() if any(n > 9 for n in field.shape)}
    for node in ast.walk(ast.parse(path.read_text())):
        values = [n.value for n in getattr(node, 'elts', ()) if isinstance(n, ast.Constant)]
        is_shape = isinstance(node, ast.Tuple) and len(values) == len(node.elts)
        is_size = isinstance(node, ast.Constant) and node.value in (6890, 13776)
        if (is_shape and tuple(values) in shapes) or is_size:
            yield f'{path.name}:{node.lineno}'


def test_no_other_table_says_what_a_person_is():
    root = Path(c.__file__).parent.parent
    files = [*root.glob('trunchier/**/*.py'), *root.glob('tools/**/*.py')]
    files = [path for path in files if path.name != 'conventions.py']
    assert len(files) > 50
    assert [each for path in files for each in shapes_written_by_hand(path)] == []
