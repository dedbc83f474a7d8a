"""BVH and animated glTF, read again by parsers of this file."""

import json

import numpy as np
import pytest
import torch

from trunchier.conventions import SMPL_24, SMPL_PARENTS
from trunchier.geometry import axis_angle_to_matrix
from trunchier.inference.animation import in_world, motions_of, write_animated_glb, write_bvh
from trunchier.inference.world import World
from trunchier.models.mesh.body import BodyModel

Y_UP = np.array([1, -1, -1])
FPS = 25.0
FRAMES = {3: [0, 1, 2, 3, 4], 8: [2, 3, 6, 7, 40]}  # of tracks: the second has gaps


@pytest.fixture(scope='module')
def body():
    return BodyModel()


@pytest.fixture(scope='module')
def arrays():
    """Rows as of `--save npz`, of two people with large rotations and of one without a track."""
    rng = np.random.default_rng(0)
    rows = sorted((f, t) for t, frames in {**FRAMES, -1: [1]}.items() for f in frames)
    frames, tracks = np.array(rows).T
    count = len(rows)
    return dict(
        frame=100 + 2 * frames,  # every other frame from 100 on
        track_ids=tracks,
        global_orient=rng.normal(0, 2.0, (count, 3)),
        body_pose=rng.normal(0, 0.6, (count, 69)),
        betas=np.where(tracks[:, None] == 3, 1.0, -0.5) * np.ones((count, 10)),
        transl=rng.normal(0, 1, (count, 3)) + [0, 0, 5],
    )


@pytest.fixture(scope='module')
def motions(arrays, body):
    return motions_of(arrays, body, first=100, step=2)


def posed(arrays, body, track):
    """Joints (T, 24, 3) and vertices of a track, y up, by the body model."""
    mine = arrays['track_ids'] == track
    pose = np.hstack([arrays['global_orient'], arrays['body_pose']])[mine].reshape(-1, 24, 3)
    rotations = axis_angle_to_matrix(torch.from_numpy(pose)).float()
    betas = torch.from_numpy(arrays['betas'][mine]).float()
    out = body(rotations[:, :1], rotations[:, 1:], betas)
    shift = arrays['transl'][mine][:, None]
    return [(out[name].numpy() + shift) * Y_UP for name in ('skeleton', 'vertices')]


# --- BVH ------------------------------------------------------------------------------------------
def read_bvh(path):
    """Positions (T, J, 3), names and seconds per frame of a BVH with channels XYZ and ZXY."""
    lines = iter(path.read_text().split('\n'))
    names, parents, offsets, stack = [], [], [], []
    for line in lines:
        word, *rest = line.split() or ['']
        if word in ('ROOT', 'JOINT', 'End'):
            stack.append(None if word == 'End' else len(names))
            if word != 'End':
                names.append(rest[0])
                parents.append(stack[-2] if len(stack) > 1 else -1)
        elif word == 'OFFSET' and stack[-1] is not None:
            offsets.append([float(each) for each in rest])
        elif word == '}':
            stack.pop()
        elif word == 'Frames:':
            count = int(rest[0])
            seconds = float(next(lines).split()[-1])
            table = np.array([next(lines).split() for _ in range(count)], float)
    angles = torch.from_numpy(np.radians(table[:, 3:].reshape(count, -1, 3)))
    turn = {
        axis: axis_angle_to_matrix(angles[..., i, None] * torch.eye(3, dtype=float)[axis]).numpy()
        for i, axis in enumerate((2, 0, 1))
    }
    local = turn[2] @ turn[0] @ turn[1]
    world, places = {}, {}
    for joint, parent in enumerate(parents):
        if parent < 0:
            world[joint], places[joint] = local[:, joint], table[:, :3] + offsets[joint]
        else:
            world[joint] = world[parent] @ local[:, joint]
            places[joint] = places[parent] + world[parent] @ np.array(offsets[joint])
    return np.stack([places[i] for i in range(len(names))], 1), names, seconds


@pytest.mark.parametrize('index, track', list(enumerate(FRAMES)))
def test_bvh_holds_the_same_joints(motions, arrays, body, tmp_path, index, track):
    write_bvh(motions[index], FPS, tmp_path / 'a.bvh')
    places, names, seconds = read_bvh(tmp_path / 'a.bvh')
    joints, _ = posed(arrays, body, track)
    order = [names.index(name) for name in SMPL_24]
    known = np.array(FRAMES[track]) - FRAMES[track][0]
    assert seconds == pytest.approx(1 / FPS) and len(places) == known[-1] + 1
    np.testing.assert_allclose(places[known][:, order], joints, rtol=0, atol=1e-4)
    bones = np.linalg.norm(places[:, order[4]] - places[:, order[1]], axis=1)
    np.testing.assert_allclose(bones, bones[0], atol=1e-4)  # also in the gaps


def test_angles_of_bvh_turn_no_full_circle_between_frames(arrays, body, tmp_path):
    turning = {name: array[:1].repeat(60, 0) for name, array in arrays.items()}
    turning |= dict(frame=np.arange(60), body_pose=np.zeros((60, 69)))
    turning['global_orient'] = np.linspace(-8, 8, 60)[:, None] * [0, 1, 0]
    (motion,) = motions_of(turning, body)
    write_bvh(motion, FPS, tmp_path / 'a.bvh')
    rows = (tmp_path / 'a.bvh').read_text().split('Frame Time')[1].split('\n')[1:-1]
    steps = np.abs(np.diff(np.array([row.split() for row in rows], float)[:, 3:], axis=0))
    assert steps.max() == pytest.approx(np.degrees(16 / 59), rel=1e-4)


# --- glTF -----------------------------------------------------------------------------------------
class Gltf:
    """A binary glTF, evaluated at a time."""

    def __init__(self, path):
        data = path.read_bytes()
        length = int.from_bytes(data[12:16], 'little')
        self.tree, self.data = json.loads(data[20 : 20 + length]), data[28 + length :]
        assert data[:4] == b'glTF' and int.from_bytes(data[8:12], 'little') == len(data)
        self.named = {node['name']: i for i, node in enumerate(self.tree['nodes'])}

    def array(self, index):
        item = self.tree['accessors'][index]
        view = self.tree['bufferViews'][item['bufferView']]
        assert view['byteOffset'] % 4 == 0
        kind = {5126: np.float32, 5125: np.uint32, 5121: np.uint8}[item['componentType']]
        size = dict(SCALAR=1, VEC3=3, VEC4=4, MAT4=16)[item['type']] * item['count']
        values = np.frombuffer(self.data, kind, size, view['byteOffset'])
        return values.reshape(item['count'], -1)

    def local(self, node, time):
        """The matrix (4, 4) of a node at a key frame."""
        values = dict(self.tree['nodes'][node])
        for channel in self.tree['animations'][0]['channels']:
            sampler = self.tree['animations'][0]['samplers'][channel['sampler']]
            if channel['target']['node'] == node:
                times = self.array(sampler['input'])[:, 0]
                key = max(np.searchsorted(times, time + 1e-4) - 1, 0)
                values[channel['target']['path']] = self.array(sampler['output'])[key]
        x, y, z, w = np.float64(values.get('rotation', [0, 0, 0, 1]))
        angle, axis = 2 * np.arctan2(np.hypot(x, np.hypot(y, z)), w), np.array([x, y, z])
        vector = axis / max(np.linalg.norm(axis), 1e-12) * angle
        matrix = np.eye(4)
        scale = np.array(values.get('scale', [1, 1, 1]))
        matrix[:3, :3] = axis_angle_to_matrix(torch.from_numpy(vector)).numpy() * scale
        matrix[:3, 3] = values.get('translation', 0)
        return matrix

    def world(self, track, time):
        """Matrices (24, 4, 4) of the joints of a person."""
        matrices = []
        skins = {node['name']: node.get('skin') for node in self.tree['nodes']}
        self.skin = self.tree['skins'][skins[f'body{track}']]
        for joint, node in enumerate(self.skin['joints']):
            above = self.named[f'person{track}']
            parent = SMPL_PARENTS[joint]
            before = matrices[parent] if parent >= 0 else self.local(above, time)
            owner = self.skin['joints'][parent] if parent >= 0 else above
            assert node in self.tree['nodes'][owner]['children']
            matrices.append(before @ self.local(node, time))
        return np.stack(matrices)


@pytest.fixture(scope='module')
def gltf(motions, body, tmp_path_factory):
    path = tmp_path_factory.mktemp('glb') / 'a.glb'
    write_animated_glb(motions, body, FPS, path, (640, 480), 480.0)
    return Gltf(path)


@pytest.mark.parametrize('track', FRAMES)
def test_glb_holds_the_same_joints_and_a_skin_that_follows_them(gltf, arrays, body, track):
    joints, vertices = posed(arrays, body, track)
    for row, frame in enumerate(FRAMES[track]):
        world = gltf.world(track, frame / FPS)
        np.testing.assert_allclose(world[:, :3, 3], joints[row], rtol=0, atol=1e-4)
    (primitive,) = gltf.tree['meshes'][list(FRAMES).index(track)]['primitives']
    names = ('POSITION', 'JOINTS_0', 'WEIGHTS_0')
    points, influences, weights = (gltf.array(primitive['attributes'][name]) for name in names)
    binds = gltf.array(gltf.skin['inverseBindMatrices']).reshape(-1, 4, 4).transpose(0, 2, 1)
    matrices = np.einsum('vi,vijk->vjk', weights, (world @ binds)[influences])
    skinned = np.einsum('vij,vj->vi', matrices, np.c_[points, np.ones(len(points))])[:, :3]
    # A tenth of the vertices follow a fifth joint in the body, which glTF leaves out.
    assert np.median(np.linalg.norm(skinned - vertices[-1], axis=1)) < 1e-5
    np.testing.assert_allclose(skinned, vertices[-1], rtol=0, atol=0.02)
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)


def test_people_are_hidden_in_long_gaps_and_before_and_after_their_track(gltf):
    def size(track, frame):
        return np.linalg.norm(gltf.local(gltf.named[f'person{track}'], frame / FPS)[:3, 0])

    # A point in the view, so that viewers which cull by the first frame draw the person later.
    place = gltf.local(gltf.named['person8'], 0)[:3, 3]
    np.testing.assert_allclose(place, gltf.world(8, 2 / FPS)[0, :3, 3], atol=1e-6)
    assert [size(3, frame) for frame in (0, 4, 5, 40)] == [1, 1, 0, 0]
    assert [size(8, frame) for frame in (0, 1, 2, 5, 7, 8, 39, 40)] == [0, 0, 1, 1, 1, 0, 0, 1]


def test_glb_has_the_camera_of_the_video(gltf):
    lens = gltf.tree['cameras'][0]['perspective']
    assert lens['yfov'] == pytest.approx(2 * np.arctan(0.5)) and lens['aspectRatio'] == 640 / 480
    assert gltf.tree['nodes'][gltf.named['camera']] == dict(name='camera', camera=0)


def test_a_clip_without_people_gives_an_empty_glb(body, arrays, tmp_path):
    none = motions_of({name: array[:0] for name, array in arrays.items()}, body)
    write_animated_glb(none, body, FPS, tmp_path / 'a.glb')
    assert none == [] and Gltf(tmp_path / 'a.glb').tree['nodes'] == [dict(name='nobody')]


def test_without_track_ids_the_place_in_the_frame_counts(arrays, body):
    untracked = {name: array for name, array in arrays.items() if name != 'track_ids'}
    found = motions_of(untracked, body, first=100, step=2)
    frames = [motion.frames.tolist() for motion in found]
    assert frames == [[0, 1, 2, 3, 4, 6, 7, 40], [1, 2, 3]]


def test_motion_in_the_world_has_the_joints_of_the_world(motions, arrays, body, tmp_path):
    world = World.of_extrinsics(np.array([[0, 0, 1, 0.2], [0.6, -0.8, 0, 1.5], [0.8, 0.6, 0, 4]]))
    world.scales = {8: 1.1}
    moved = [in_world(motion, world) for motion in motions]
    write_bvh(moved[1], FPS, tmp_path / 'a.bvh')
    places, names, _ = read_bvh(tmp_path / 'a.bvh')
    joints, vertices = posed(arrays, body, 8)
    expected = world(joints * Y_UP, np.full(len(joints), 8))
    known = np.array(FRAMES[8]) - FRAMES[8][0]
    order = [names.index(name) for name in SMPL_24]
    np.testing.assert_allclose(places[known][:, order], expected, atol=1e-4)
    write_animated_glb(moved, body, FPS, tmp_path / 'a.glb', (64, 48), 50.0, world)
    found = Gltf(tmp_path / 'a.glb')
    camera = found.tree['nodes'][found.named['camera']]
    np.testing.assert_allclose(camera['translation'], world.position)
    for frame, wanted in zip(FRAMES[8], expected, strict=True):
        places = found.world(8, frame / FPS)[:, :3, 3]
        np.testing.assert_allclose(places, wanted, atol=1e-4)
