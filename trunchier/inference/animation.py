"""Motion of people for animation tools: BVH, and animated, skinned glTF.

Both hold the skeleton of the body model, in meters, in the frame of the video's camera with y up
(x right, z towards the viewer). A person's shape is the mean over the track, so bones keep their
lengths. Pose correctives of SMPL are not part of linear skinning and are left out.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..conventions import SMPL_24, SMPL_PARENTS
from ..files import whole_file
from ..visualization.overlays import PALETTE
from .writers import CAMERA_TO_Y_UP, linear_color, vertex_normals

if TYPE_CHECKING:
    from ..models.mesh.body import BodyModel
    from .world import World

HIDDEN_AFTER = 0.5  # seconds: shorter gaps of a track are filled; in longer ones nobody is shown
HALF_TURN_X = np.array([1.0, 0.0, 0.0, 0.0])  # CAMERA_TO_Y_UP as a quaternion
INFLUENCES = 4  # joints that may move a vertex in glTF
MOTION_FIELDS = ('frame', 'track_ids', 'global_orient', 'body_pose', 'betas', 'transl')


@dataclass
class Motion:
    """One person's motion.

    Attributes:
        track: id.
        frames: (T,) int, ascending, frames of the clip, counted from 0.
        quaternions: (T, 24, 4) xyzw, relative to the parent, the root's in the frame above;
            neighbors in time have the nearer sign.
        positions: (T, 3), of the root joint, meters.
        joints: (24, 3), rest pose, meters, y up.
        vertices: (V, 3), rest pose, meters, y up.
    """

    track: int
    frames: np.ndarray
    quaternions: np.ndarray
    positions: np.ndarray
    joints: np.ndarray
    vertices: np.ndarray


def motions_of(
    arrays: dict[str, np.ndarray], body: BodyModel, first: int = 0, step: int = 1
) -> list[Motion]:
    """The motion of each person of a video.

    Args:
        arrays: `MOTION_FIELDS` as `--save npz` writes them: axis-angle, (N, ...), a row per person
            and frame. People with track id -1 are left out. Without `track_ids` the n-th person of
            each frame is taken for track n.
        body: that was posed.
        first, step: frame and stride of the video that are frame 0 and stride 1 of the clip.
    """
    frames = (arrays['frame'] - first) // step
    tracks = arrays['track_ids'] if 'track_ids' in arrays else _places(frames)
    layer, found = body.layer, []
    template, directions, regressor = (
        each.detach().cpu().double().numpy()
        for each in (layer.v_template, layer.shapedirs, layer.J_regressor)
    )
    poses = np.hstack([arrays['global_orient'], arrays['body_pose']]).reshape(-1, 24, 3)
    for track in np.unique(tracks[tracks >= 0]).tolist():
        mine = np.flatnonzero(tracks == track)
        mine = mine[np.argsort(frames[mine], kind='stable')]
        vertices = template + directions @ arrays['betas'][mine].mean(0, dtype=np.float64)
        joints = regressor @ vertices
        quaternions = axis_angle_to_quaternion(poses[mine].astype(np.float64))
        quaternions[:, 0] = _product(HALF_TURN_X, quaternions[:, 0])
        dots = (quaternions[1:] * quaternions[:-1]).sum(-1)
        quaternions[1:] *= np.cumprod(np.where(dots < 0, -1.0, 1.0), axis=0)[..., None]
        positions = (joints[0] + arrays['transl'][mine]) * CAMERA_TO_Y_UP
        found.append(Motion(track, frames[mine], quaternions, positions, joints, vertices))
    return found


def _places(frames):
    """Of each row, how many rows of its frame come before; rows of a frame follow each other."""
    starts = np.r_[True, frames[1:] != frames[:-1]]
    index = np.arange(len(frames))
    return index - np.maximum.accumulate(np.where(starts, index, 0)) if len(frames) else index


def in_world(motion: Motion, world: World) -> Motion:
    """The motion in the world instead of in the camera's frame; the person's size changes, too."""
    scale = world.scales.get(motion.track, 1.0)
    turn = _turn(world)
    positions = world(motion.positions * CAMERA_TO_Y_UP, np.full(len(motion.frames), motion.track))
    quaternions = motion.quaternions.copy()
    quaternions[:, 0] = _product(turn, quaternions[:, 0])
    body = dict(joints=scale * motion.joints, vertices=scale * motion.vertices)
    return replace(motion, quaternions=quaternions, positions=positions, **body)


def _turn(world):
    """Quaternion of the camera's frame, y up, in the world."""
    import torch  # of meshes, whose models need it anyway

    from ..geometry import matrix_to_axis_angle

    matrix = torch.from_numpy(world.rotation * CAMERA_TO_Y_UP)
    return axis_angle_to_quaternion(matrix_to_axis_angle(matrix).numpy())


# --- BVH ------------------------------------------------------------------------------------------
def write_bvh(motion: Motion, fps: float, path: str | Path) -> None:
    """The motion as BVH: meters, y up, rotation channels Z, X, Y in degrees.

    It begins with the first frame of the track; frames that the track lacks are interpolated.
    """
    frames = np.arange(motion.frames[0], motion.frames[-1] + 1)
    positions = _interpolated(motion.positions, motion.frames, frames)
    quaternions = _interpolated(motion.quaternions, motion.frames, frames)
    order = list(_depth_first(0))
    angles = np.degrees(np.unwrap(_zxy(_matrices(quaternions[:, order])), axis=0))
    table = np.hstack([positions, angles.reshape(len(frames), -1)])
    with whole_file(path) as part, open(part, 'w', newline='\n') as file:
        file.write('HIERARCHY\n' + '\n'.join(_hierarchy(motion.joints)) + '\n')
        file.write(f'MOTION\nFrames: {len(frames)}\nFrame Time: {1 / fps:.9f}\n')
        np.savetxt(file, table, '%.6f')


def _children(joint):
    return [child for child, parent in enumerate(SMPL_PARENTS) if parent == joint]


def _depth_first(joint):
    yield joint
    for child in _children(joint):
        yield from _depth_first(child)


def _hierarchy(joints, joint=0, indent=''):
    """Lines of a joint and of those below it."""

    def offset(vector):
        return 'OFFSET ' + ' '.join(f'{value:.6f}' for value in vector)

    parent, inner, turns = SMPL_PARENTS[joint], indent + '  ', 'Zrotation Xrotation Yrotation'
    bone = joints[joint] - joints[parent] if joint else np.zeros(3)
    places = '' if joint else 'Xposition Yposition Zposition '
    yield f'{indent}{"JOINT" if joint else "ROOT"} {SMPL_24[joint]}'
    yield from (indent + '{', inner + offset(bone))
    yield f'{inner}CHANNELS {3 if joint else 6} {places}{turns}'
    for child in _children(joint):
        yield from _hierarchy(joints, child, inner)
    if not _children(joint):  # the last bone goes on for as long again
        yield from (inner + 'End Site', inner + '{', f'{inner}  {offset(bone)}', inner + '}')
    yield indent + '}'


def _zxy(matrices):
    """Angles (..., 3) about z, x and y of R = Rz Rx Ry, radians."""
    m = matrices
    cosine = np.hypot(m[..., 0, 1], m[..., 1, 1])
    locked = cosine < 1e-7  # z and y turn about the same axis: y stays 0
    z = np.where(
        locked, np.arctan2(m[..., 1, 0], m[..., 0, 0]), np.arctan2(-m[..., 0, 1], m[..., 1, 1])
    )
    y = np.where(locked, 0.0, np.arctan2(-m[..., 2, 0], m[..., 2, 2]))
    return np.stack([z, np.arctan2(m[..., 2, 1], cosine), y], -1)


# --- glTF -----------------------------------------------------------------------------------------
def write_animated_glb(
    motions: list[Motion],
    body: BodyModel,
    fps: float,
    path: str | Path,
    image_size: tuple[float, float] | None = None,
    focal: float | None = None,
    world: World | None = None,
) -> None:
    """All people of a clip as one binary glTF: a skinned mesh, a skeleton and an animation each.

    Nodes: `personN` for track N, above its joints, and `bodyN`, its mesh. A person who is not in
    the picture has scale 0. `camera` is the video's, at the origin, or in the world.

    Args:
        motions: in the camera's frame, or, with `world`, `in_world`.
        image_size: (W, H). focal: along y. Pixels; None: no camera.
    """
    glb = _Glb()
    faces = glb.accessor(body.faces.astype(np.uint32).reshape(-1, 1), 'indices')
    influences, weights = _skin(body.layer.lbs_weights.detach().cpu().numpy())
    skin = dict(
        JOINTS_0=glb.accessor(influences, 'vertices'), WEIGHTS_0=glb.accessor(weights, 'vertices')
    )
    end = max((motion.frames[-1] for motion in motions), default=0)
    for motion in motions:
        glb.add_person(motion, body.faces, faces, skin, fps, end)
    if image_size is not None and focal:
        width, height = image_size
        yfov = 2 * np.arctan(height / 2 / focal)
        lens = dict(aspectRatio=width / height, yfov=float(yfov), znear=0.05)
        glb.tree['cameras'] = [dict(type='perspective', perspective=lens)]
        place = {}
        if world is not None:
            place = dict(translation=world.position.tolist(), rotation=_turn(world).tolist())
        glb.node(name='camera', camera=0, **place)
    with whole_file(path) as part:
        part.write_bytes(glb.content())


class _Glb:
    """A glTF under construction: `tree` is its JSON, `chunks` its binary part."""

    def __init__(self):
        asset = dict(version='2.0', generator='trunchier')
        self.tree: dict[str, Any] = dict(asset=asset, scene=0, scenes=[dict(nodes=[])], nodes=[])
        self.chunks, self.size = [], 0

    def _append(self, kind, item):
        self.tree.setdefault(kind, []).append(item)
        return len(self.tree[kind]) - 1

    def node(self, top=True, **node):
        """Index of a new node, at the top of the scene unless it is a child."""
        index = self._append('nodes', node)
        if top:
            self.tree['scenes'][0]['nodes'].append(index)
        return index

    def accessor(self, array, use='', bounds=False):
        """Index of an accessor of (N, C) values, or (N, 4, 4) matrices in glTF's column order."""
        kinds = {'f4': 5126, 'u4': 5125, 'u1': 5121}
        array = np.ascontiguousarray(array, np.float32 if array.dtype.kind == 'f' else None)
        data = array.tobytes()
        view = dict(buffer=0, byteOffset=self.size, byteLength=len(data))
        if use:
            view['target'] = 34963 if use == 'indices' else 34962
        padding = -len(data) % 4
        self.chunks.append(data + bytes(padding))
        self.size += len(data) + padding
        name = (
            'MAT4' if array.ndim == 3 else {1: 'SCALAR'}.get(array.shape[1], f'VEC{array.shape[1]}')
        )
        item = dict(bufferView=self._append('bufferViews', view), count=len(array), type=name)
        item['componentType'] = kinds[array.dtype.str[1:]]
        if bounds:
            item |= dict(min=array.min(0).tolist(), max=array.max(0).tolist())
        return self._append('accessors', item)

    def add_person(self, motion, faces, indices, skin, fps, end):
        joints, base = motion.joints, len(self.tree['nodes']) + 1
        # Hidden people shrink to where they appear: three.js culls by the place of the first frame.
        start = motion.positions[0]
        above = self.node(name=f'person{motion.track}', translation=start.tolist(), children=[base])
        for joint, name in enumerate(SMPL_24):
            bone = joints[joint] - joints[SMPL_PARENTS[joint]] if joint else np.zeros(3)
            node = dict(name=name, translation=bone.tolist())
            node['rotation'] = motion.quaternions[0, joint].tolist()
            if _children(joint):
                node['children'] = [base + child for child in _children(joint)]
            self.node(top=False, **node)

        binds = np.tile(np.eye(4), (len(joints), 1, 1))
        binds[:, 3, :3] = -joints  # transposed: columns follow each other
        skeleton = dict(
            joints=list(range(base, base + len(joints))),
            skeleton=base,
            inverseBindMatrices=self.accessor(binds),
        )
        attributes = dict(
            POSITION=self.accessor(motion.vertices, 'vertices', bounds=True),
            NORMAL=self.accessor(vertex_normals(motion.vertices, faces), 'vertices'),
            **skin,
        )
        color = linear_color(PALETTE[motion.track % len(PALETTE)][::-1] / 255)
        surface = dict(baseColorFactor=[*color.tolist(), 1.0], metallicFactor=0.0)
        material = self._append('materials', dict(pbrMetallicRoughness=surface))
        mesh = dict(primitives=[dict(attributes=attributes, indices=indices, material=material)])
        self.node(
            name=f'body{motion.track}',
            mesh=self._append('meshes', mesh),
            skin=self._append('skins', skeleton),
        )

        if 'animations' not in self.tree:
            self.tree['animations'] = [dict(name='clip', channels=[], samplers=[])]
        times = self.accessor(motion.frames[:, None] / fps, bounds=True)
        self._animate(base, 'translation', times, motion.positions - start)
        for joint in range(len(joints)):
            self._animate(base + joint, 'rotation', times, motion.quaternions[:, joint])
        frames, visible = _visible(motion.frames, HIDDEN_AFTER * fps, end)
        if not all(visible):
            scales = np.repeat(np.float32(visible)[:, None], 3, 1)
            times = self.accessor(np.array(frames)[:, None] / fps, bounds=True)
            self._animate(above, 'scale', times, scales, 'STEP')

    def _animate(self, node, path, times, values, interpolation='LINEAR'):
        animation = self.tree['animations'][0]
        sampler = dict(input=times, output=self.accessor(values), interpolation=interpolation)
        target = dict(sampler=len(animation['samplers']), target=dict(node=node, path=path))
        animation['samplers'].append(sampler)
        animation['channels'].append(target)

    def content(self):
        """Bytes of the file."""
        self.tree['buffers'] = [dict(byteLength=self.size)]
        if not self.tree['nodes']:  # glTF has no empty lists
            self.tree |= dict(nodes=[dict(name='nobody')], scenes=[dict(nodes=[0])])
        text = json.dumps(self.tree, separators=(',', ':')).encode()
        text += b' ' * (-len(text) % 4)
        head = struct.pack('<4sII', b'glTF', 2, 12 + 8 + len(text) + 8 + self.size)
        head += struct.pack('<I4s', len(text), b'JSON') + text
        return head + struct.pack('<I4s', self.size, b'BIN\0') + b''.join(self.chunks)


def _skin(weights):
    """The INFLUENCES joints (V, 4) that move a vertex most, and their weights, which sum to 1."""
    joints = np.argsort(-weights, axis=1, kind='stable')[:, :INFLUENCES]
    weights = np.take_along_axis(weights, joints, 1).astype(np.float64)
    weights /= weights.sum(1, keepdims=True)
    return np.where(weights > 0, joints, 0).astype(np.uint8), weights


def _visible(frames, patience, end):
    """Frames at which a person appears or disappears, from 0 on, and which of it."""
    last = np.flatnonzero(np.diff(frames) > patience)
    changes = [(int(frames[0]), True)]
    for index in last:
        changes += [(int(frames[index]) + 1, False), (int(frames[index + 1]), True)]
    if frames[-1] < end:
        changes.append((int(frames[-1]) + 1, False))
    if frames[0] > 0:
        changes.insert(0, (0, False))
    return zip(*changes, strict=True)


# --- Quaternions, xyzw ----------------------------------------------------------------------------
def axis_angle_to_quaternion(vectors: np.ndarray) -> np.ndarray:
    """(..., 3), radians -> (..., 4) xyzw."""
    angle = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.concatenate([np.sinc(angle / (2 * np.pi)) / 2 * vectors, np.cos(angle / 2)], -1)


def _product(a, b):
    axes = a[..., 3:] * b[..., :3] + b[..., 3:] * a[..., :3] + np.cross(a[..., :3], b[..., :3])
    return np.concatenate([axes, a[..., 3:] * b[..., 3:] - (a * b)[..., :3].sum(-1)[..., None]], -1)


def _matrices(quaternions):
    """(..., 4) -> (..., 3, 3)."""
    x, y, z, w = np.moveaxis(quaternions, -1, 0)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return np.stack(rows, -1).reshape(*x.shape, 3, 3)


def _interpolated(values, known, frames):
    """Rows of `values` (T, ...) at `known` frames, linear between; quaternions normalized."""
    if len(frames) == len(known):
        return values
    after = np.clip(np.searchsorted(known, frames), 1, len(known) - 1)
    before = after - 1
    share = (frames - known[before]) / (known[after] - known[before])
    share = share.reshape(-1, *[1] * (values.ndim - 1))
    mixed = (1 - share) * values[before] + share * values[after]
    if values.shape[-1] == 4:
        mixed /= np.linalg.norm(mixed, axis=-1, keepdims=True)
    return mixed
