"""Natural poses of SMPL's 24 joints: a procedural sampler and a small set of motion capture.

Frame: the body stands along +y and faces +z, its left side is +x. Legs and trunk are sampled from a
table of stances, hands from a table of positions; the arms follow by inverse kinematics. Poses with
self-penetration (between capsules that approximate the limbs) are rejected.

poses.npz holds 351 poses of 15 DeepMimic clips; see NOTICE.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..conventions import SMPL_24_FLIP, SMPL_PARENTS
from ..files.compiled import compiled
from ..files.shipped import asset

PARENTS = np.array(SMPL_PARENTS)


# Legs and trunk, degrees. A leg: flexion (thigh forward), abduction (outward), rotation (toes
# outward), knee flexion.
@dataclass(frozen=True)
class Stance:
    weight: float
    left: tuple
    right: tuple
    deviation: float = 4.0  # of each angle of the legs
    lean: tuple = (0, 4)  # forward bend of the trunk: mean, deviation
    pitch: tuple = (0, 2)  # of the whole body, forward: mean, deviation
    support: str = 'ground'  # 'ground', 'seat', 'air' or 'lie'
    hands: str = 'any'  # column of HANDS


LEVEL = (0, 2)
STANCES = {name: Stance(*row) for name, row in {
    #                        left: flex abd rot knee   right: flex abd rot knee
    'stand':    (22, (  0,  -2,  6,   3), (  0,  -2,  6,   3), 3),
    'rest leg': (14, ( 12,   2, 12,  22), ( -2,  -4,  6,   1), 4),
    'wide':     ( 8, (  3,  12, 12,   5), (  3,  12, 12,   5), 5),
    'walk':     (12, ( 24,  -4,  4,   8), (-14,  -4,  4,  18), 6, (3, 4), LEVEL, 'ground', 'walk'),
    'pass':     ( 4, ( 22,  -4,  4,  48), ( -2,  -4,  4,   4), 6, (3, 4), LEVEL, 'ground', 'walk'),
    'run':      ( 6, ( 58,  -4,  2,  78), (-20,  -4,  2,  38), 9, (8, 5), (10, 5), 'air', 'run'),
    'push off': ( 3, ( 75,  -3,  2, 100), (-18,  -3,  2,  12), 8, (6, 5), (14, 6), 'ground', 'run'),
    'lunge':    ( 4, ( 70,   2,  4,  80), (-12,   2,  4,  30), 9, (5, 8)),
    'step up':  ( 4, ( 65,   0,  6,  75), (  0,  -2,  6,   3), 9, (4, 5)),
    'kick':     ( 3, ( 62,   2,  4,  22), (  0,   4, 14,  14), 11, (-4, 6)),
    'crouch':   ( 6, ( 58,   8, 10,  68), ( 58,   8, 10,  68), 10, (22, 9), (6, 5)),
    'squat':    ( 3, (112,  12, 14, 128), (112,  12, 14, 128), 8, (22, 7), (6, 4)),
    'bow':      ( 4, ( 38,   2,  6,  12), ( 38,   2,  6,  12), 8, (28, 10), (32, 8)),
    'sit':      (14, ( 86,   5,  2,  86), ( 86,   5,  2,  86), 9, (4, 8), (-4, 5), 'seat', 'sit'),
    'sit long': ( 4, ( 80,   6,  6,  40), ( 80,   6,  6,  40), 12, (6, 6), (-8, 5), 'seat', 'sit'),
    'kneel':    ( 3, ( 84,   4,  4,  86), (  0,   2,  0,  95), 6, (4, 6)),
    'on knees': ( 2, ( 12,   4,  2, 100), ( 12,   4,  2, 100), 7, (5, 8)),
    'jump':     ( 4, ( 28,   8,  4,  50), ( 12,   8,  4,  60), 16, (2, 9), (4, 8), 'air'),
    'lie':      ( 2, ( 12,   4,  8,  16), ( 12,   4,  8,  16), 12, (2, 4), (-88, 6), 'lie'),
}.items()}  # fmt: skip

LIMITS = np.radians(
    # of one leg: flexion, abduction, rotation, knee, ankle (toes up)
    [(-30, 125), (-14, 50), (-20, 40), (0, 140), (-45, 28)]
)


# Hands: positions of a left wrist, centimeters from an anchor joint, in the frame of that joint.
# The elbow points towards the pole. Columns: relative frequencies by kind of stance.
@dataclass(frozen=True)
class HandPosition:
    anchor: int  # joint of the left side
    offset: tuple
    spread: tuple
    pole: tuple
    twist: float  # of the palm, degrees: 0 faces the other hand, negative faces down or back
    chances: tuple


SHOULDER, HIP, KNEE, HEAD, CHEST, WAIST = 16, 1, 4, 15, 9, 3
# fmt: off
HANDS = {name: HandPosition(*row) for name, row in {
    #                          offset         spread        pole        twist any walk run sit
    'hang':        (SHOULDER, (  7, -50,   3), ( 4,  2,  5), ( 5,  0, -10), -15, (24, 20,  0,  2)),
    'hang bent':   (SHOULDER, (  8, -44,  15), ( 5,  3,  5), ( 6, -2, -10), -25, ( 9,  9,  2,  3)),
    'swing front': (SHOULDER, (  3, -43,  24), ( 4,  3,  6), ( 4, -3, -10), -10, ( 1, 14,  2,  0)),
    'swing back':  (SHOULDER, ( 11, -46, -18), ( 3,  3,  5), ( 5,  0, -10), -15, ( 1, 14,  2,  0)),
    'run front':   (SHOULDER, ( -3, -14,  28), ( 5,  6,  5), ( 5, -8,  -5),   0, ( 1,  1, 16,  0)),
    'run back':    (SHOULDER, ( 12, -30,  -8), ( 3,  5,  6), ( 4,  2, -10), -10, ( 1,  1, 16,  0)),
    'hip':         (HIP,      ( 11,  14,  -1), ( 2,  3,  3), (10,  1,  -5), -20, ( 9,  2,  0,  1)),
    'pocket':      (HIP,      ( 10,   4,   7), ( 2,  3,  2), ( 7,  0, -10), -15, ( 7,  6,  0,  1)),
    'front low':   (HIP,      ( -5,   8,  20), ( 5,  6,  4), ( 9, -2,  -4), -35, ( 6,  1,  0,  3)),
    'belly':       (WAIST,    (  6,  12,  30), ( 5,  7,  5), ( 8, -6,  -3), -25, ( 7,  2,  2,  8)),
    'chest':       (CHEST,    (  5,  12,  34), ( 6,  7,  5), ( 6, -9,  -1),  15, ( 5,  2,  2,  7)),
    'across':      (CHEST,    ( -9,   7,  24), ( 3,  4,  2), ( 9, -6,   0), -30, ( 4,  0,  0,  2)),
    'ear':         (HEAD,     ( 13,  -3,   5), ( 2,  3,  2), ( 8, -8,   2),  15, ( 3,  2,  0,  3)),
    'face':        (HEAD,     (  5,  -5,  20), ( 3,  4,  2), ( 7, -8,   0),  20, ( 4,  1,  0,  4)),
    'on head':     (HEAD,     ( 10,  12,   2), ( 3,  3,  4), (10,  1,   0), -10, ( 2,  0,  0,  1)),
    'overhead':    (SHOULDER, (  6,  48,   4), ( 8,  5,  9), ( 8,  0,   2), -15, ( 4,  0,  0,  1)),
    'wave':        (SHOULDER, ( 20,  22,  12), ( 6,  8,  6), ( 6, -8,   0), -55, ( 4,  2,  0,  2)),
    'side':        (SHOULDER, ( 46,  -8,   4), ( 5, 14, 12), ( 0, -6,  -8), -20, ( 4,  0,  1,  1)),
    'side up':     (SHOULDER, ( 32,  34,   2), ( 8,  8, 10), ( 3, -6,  -3), -20, ( 3,  0,  0,  1)),
    'side low':    (SHOULDER, ( 34, -34,   6), ( 8,  6,  8), ( 2,  0, -10), -20, ( 6,  3,  2,  1)),
    'forward':     (SHOULDER, ( -4,  -5,  46), (10, 14,  5), ( 5, -9,   0), -45, ( 5,  1,  1,  2)),
    'reach low':   (SHOULDER, (  2, -36,  32), (10,  8,  8), ( 7, -2,  -6), -35, ( 6,  2,  2,  3)),
    'back':        (HIP,      ( -4,  10, -20), ( 3,  5,  2), ( 9,  2,  -5), -20, ( 2,  0,  0,  0)),
    'thigh':       (KNEE,     ( -1,  12,   7), ( 3,  4,  1), ( 8,  2,  -6), -60, ( 0,  0,  0, 16)),
}.items()}
# fmt: on
HOLDS = {  # objects that may be drawn in the hand
    'hang bent': 'bag',
    'front low': 'box',
    'belly': 'box',
    'reach low': 'box',
    'chest': 'phone',
    'ear': 'phone',
    'face': 'cup',
    'overhead': 'ball',
    'side up': 'ball',
    'forward': 'ball',
}  # fmt: skip
COLUMNS = ('any', 'walk', 'run', 'sit')
PAIRED = 0.35  # probability that both hands take the same position

CLIP_SHARE = 0.22  # of poses from motion capture
CLIP_NOISE = np.radians(5.0)
ATTEMPTS = 12


@dataclass
class Pose:
    rotations: np.ndarray  # (24, 3, 3) relative to the parent, the root's in the frame above
    support: str  # as in Stance, or 'clip'
    holds: tuple  # objects that the left and the right hand may hold, '' for none


def sample_pose(rng: np.random.Generator, captured: float = CLIP_SHARE) -> Pose:
    """A natural pose without self-penetration; captured: share from motion capture."""
    joints = rest_joints()
    from_clip = rng.random() < captured
    for attempt in range(ATTEMPTS):
        clip = from_clip and attempt < ATTEMPTS // 2
        pose = clip_pose(rng) if clip else stance_pose(rng, joints)
        if penetration(forward_kinematics(pose.rotations, joints)[1]) < 0.0:
            return pose
    return standing_pose()


def standing_pose() -> Pose:
    """Upright, arms hanging."""
    angles = np.zeros(18)
    angles[[8, 13]] = np.radians(2)
    hands = np.stack([hand_target('hang', side, np.zeros(7)) for side in (0, 1)])
    return Pose(compose(angles, hands, rest_joints()), 'ground', ('', ''))


def stance_pose(rng: np.random.Generator, joints: np.ndarray) -> Pose:
    """Sample from STANCES and HANDS, mirrored half of the time; joints: (24, 3), rest pose."""
    stance = pick(rng, list(STANCES.values()), [each.weight for each in STANCES.values()])
    noise = rng.standard_normal(24)
    angles = np.zeros(18)  # root pitch, roll; spine bend, side, twist; head pitch, yaw, roll; legs
    angles[0] = math.radians(stance.pitch[0] + stance.pitch[1] * noise[0])
    angles[1] = math.radians(3 * noise[1]) if stance.support != 'lie' else rng.uniform(-3.1, 3.1)
    bend = math.radians(stance.lean[0] + stance.lean[1] * noise[2])
    angles[2:5] = bend, math.radians(5) * noise[3], math.radians(10) * noise[4]
    angles[5:8] = np.radians((4, 0, 0) + np.array((10, 24, 6)) * noise[5:8])
    angles[5] -= 0.5 * (bend + angles[0]) if stance.support != 'lie' else 0.0  # the eyes look ahead
    angles[5:8] = np.clip(angles[5:8], np.radians([-40, -65, -25]), np.radians([40, 65, 25]))
    for leg, target in ((stance.left, slice(8, 13)), (stance.right, slice(13, 18))):
        *jitter, ankle_jitter = noise[target]
        hip_and_knee = np.radians(leg + stance.deviation * np.array((1, 0.5, 1, 1)) * jitter)
        flexion, _, _, knee = hip_and_knee
        # The foot is flat on the ground where the ankle allows it.
        flat = knee - flexion - angles[0] if stance.support in ('ground', 'seat') else -0.4
        ankle = flat + math.radians(4) * ankle_jitter
        angles[target] = np.clip((*hip_and_knee, ankle), *LIMITS.T)

    column = COLUMNS.index(stance.hands)
    chances = [position.chances[column] for position in HANDS.values()]
    left = pick(rng, list(HANDS), chances)
    names = [left, left if rng.random() < PAIRED else pick(rng, list(HANDS), chances)]
    if stance.hands in ('walk', 'run') and rng.random() < 0.75:  # arms swing against the legs
        word = 'swing' if stance.hands == 'walk' else 'run'
        names = [f'{word} back', f'{word} front']
    hands = [hand_target(name, side, rng.standard_normal(7)) for side, name in enumerate(names)]
    rotations = compose(angles, np.stack(hands), joints)
    holds = tuple(HOLDS.get(name, '') for name in names)
    if rng.random() < 0.5:
        rotations, holds = mirror(rotations), holds[::-1]
    return Pose(rotations, stance.support, holds)


def clip_pose(rng: np.random.Generator) -> Pose:
    """Sample between two frames of motion capture, perturb, mirror half of the time."""
    poses, starts, lengths = motion_clips()
    clip = rng.integers(len(starts))  # equally likely: long clips are slow
    time = rng.uniform(0, lengths[clip] - 1)
    frame = starts[clip] + int(time)
    pose = poses[frame] + (time % 1) * _axis_angle_difference(poses[frame], poses[frame + 1])
    noise = rng.standard_normal((len(PARENTS), 3)) * CLIP_NOISE
    noise[0] *= 0.5
    noise[[20, 21, 22, 23]] *= 2.0
    rotations = np.stack([_rotation_about(vector) for vector in pose + noise])
    rotations[0] = _without_yaw(rotations[0])
    if rng.random() < 0.5:
        rotations = mirror(rotations)
    return Pose(rotations, 'clip', ('', ''))


def mirror(rotations: np.ndarray) -> np.ndarray:
    """Exchange left and right: (24, 3, 3) -> (24, 3, 3)."""
    flip = np.diag(np.array([-1.0, 1.0, 1.0]))
    return flip @ rotations[list(SMPL_24_FLIP)] @ flip


@functools.lru_cache(maxsize=1)
def motion_clips() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(351, 24, 3) axis-angle float64, radians; first frame and length of each clip."""
    with np.load(asset('poses.npz')) as file:
        poses, lengths = file['poses'].astype(np.float64), file['lengths']
    return poses, np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths


@functools.lru_cache(maxsize=1)
def rest_joints() -> np.ndarray:
    """(24, 3) joints of the embedded body's mean shape in the T-pose, meters, pelvis at 0."""
    with np.load(asset('body.npz')) as body:
        joints = body['J_regressor'].astype(np.float64) @ body['v_template'].astype(np.float64)
    return joints - joints[0]


def pick(rng: np.random.Generator, options: Sequence, chances: Sequence | None = None) -> Any:
    """One of the options, by relative frequency; ten times as fast as rng.choice."""
    if chances is None:
        return options[int(rng.random() * len(options))]
    left = rng.random() * sum(chances)
    for option, chance in zip(options, chances, strict=True):
        left -= chance
        if left < 0:
            return option
    return options[-1]


def hand_target(name: str, side: int, jitter: np.ndarray) -> np.ndarray:
    """Row of `hands` of `compose`: the position `name` of HANDS for the left (0) or right (1) side.

    Args:
        jitter: (7,) standard deviations: position (3,), twist, wrist bend, wrist turn, finger curl.

    Returns:
        (11,): anchor joint, offset from it (3,), pole (3,), twist, wrist bend and turn, curl.
    """
    position = HANDS[name]
    x = 1.0 if side == 0 else -1.0
    offset = (np.array(position.offset) + np.array(position.spread) * jitter[:3]) / 100
    pole = np.array(position.pole) / 10 + 0.15 * jitter[2::-1]
    anchor = position.anchor if side == 0 else SMPL_24_FLIP[position.anchor]
    twist = math.radians(np.clip(position.twist + 20 * jitter[3], -80, 80))
    bend, turn = np.radians(np.clip((12, 8) * jitter[4:6], -35, 35))
    curl = math.radians(np.clip(28 + 18 * jitter[6], -5, 70))
    return np.array(
        (anchor, offset[0] * x, *offset[1:], pole[0] * x, *pole[1:], twist, bend, turn, curl)
    )


def _axis_angle_difference(a, b):
    """b - a, where b stands for the equal rotation nearer to a if a vector passes pi."""
    length = np.linalg.norm(b, axis=-1, keepdims=True)
    other = b * (1 - 2 * np.pi / np.maximum(length, 1e-6))
    nearer = np.linalg.norm(other - a, axis=-1) < np.linalg.norm(b - a, axis=-1)
    return np.where(nearer[..., None], other, b) - a


def _without_yaw(rotation):
    """Rotate about the vertical until the front of the body (lying: its top) has x = 0."""
    lying = abs(rotation[1, 2]) >= 0.8
    front = -np.sign(rotation[1, 2]) * rotation[:, 1] if lying else rotation[:, 2]
    angle = -math.atan2(front[0], front[2])
    return rotation_about_axis(1, angle) @ rotation


def rotation_about_axis(axis: int, angle: float) -> np.ndarray:
    """(3, 3) for an angle in radians about x (0), y (1) or z (2)."""
    c, s = math.cos(angle), math.sin(angle)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    out = np.eye(3)
    out[i, i], out[i, j], out[j, i], out[j, j] = c, -s, s, c
    return out


# --- Kinematics -----------------------------------------------------------------------------------
@compiled
def _rotation_about(vector):
    """Rodrigues' formula: axis-angle (3,) -> (3, 3). Compiled, for `compose`."""
    x, y, z = vector[0], vector[1], vector[2]
    angle = math.sqrt(x * x + y * y + z * z)
    out = np.eye(3)
    if angle < 1e-9:
        return out
    x, y, z = x / angle, y / angle, z / angle
    c, s = math.cos(angle), math.sin(angle)
    v = 1 - c
    out[0, 0], out[0, 1], out[0, 2] = c + v * x * x, v * x * y - s * z, v * x * z + s * y
    out[1, 0], out[1, 1], out[1, 2] = v * x * y + s * z, c + v * y * y, v * y * z - s * x
    out[2, 0], out[2, 1], out[2, 2] = v * x * z - s * y, v * y * z + s * x, c + v * z * z
    return out


@compiled
def _axis(axis, angle):
    vector = np.zeros(3)
    vector[axis] = angle
    return _rotation_about(vector)


@compiled
def _unit(v):
    return v / max(math.sqrt((v * v).sum()), 1e-9)


@compiled
def forward_kinematics(rotations: np.ndarray, joints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """World rotations (24, 3, 3) and positions (24, 3) of a pose, contiguous, all float64.

    Args:
        rotations: (24, 3, 3), relative to the parent.
        joints: (24, 3), rest pose, meters.
    """
    world, positions = np.empty_like(rotations), np.empty_like(joints)
    world[0], positions[0] = rotations[0], joints[0]
    for j in range(1, len(PARENTS)):
        p = PARENTS[j]
        world[j] = world[p] @ rotations[j]
        positions[j] = positions[p] + world[p] @ (joints[j] - joints[p])
    return world, positions


@compiled
def compose(angles: np.ndarray, hands: np.ndarray, joints: np.ndarray) -> np.ndarray:
    """Rotations (24, 3, 3) from angles of trunk and legs and positions of the hands.

    Args:
        angles: (18,) radians, see `stance_pose`.
        hands: (2, 11), see `hand_target`.
        joints: (24, 3), rest pose, meters.
    """
    x, y, z = 0, 1, 2
    rotations = np.zeros((len(PARENTS), 3, 3)) + np.eye(3)
    rotations[0] = _axis(x, angles[0]) @ _axis(y if abs(angles[0]) > 1 else z, angles[1])
    bend, side, twist = angles[2], angles[3], angles[4]
    for joint, share in ((3, 0.35), (6, 0.25), (9, 0.4)):
        rotations[joint] = _rotation_about(share * np.array([bend, twist, -side]))
    for joint, share in ((12, 0.4), (15, 0.6)):
        rotations[joint] = _rotation_about(share * angles[5:8])
    for hip, knee, ankle, out, first in ((1, 4, 7, 1.0, 8), (2, 5, 8, -1.0, 13)):
        flexion, abduction, rotation = angles[first], angles[first + 1], angles[first + 2]
        rotations[hip] = _axis(x, -flexion) @ _axis(z, out * abduction) @ _axis(y, out * rotation)
        rotations[knee] = _axis(x, angles[first + 3])
        rotations[ankle] = _axis(x, -angles[first + 4])

    world, positions = forward_kinematics(rotations, joints)
    chest = world[9]
    for i in range(2):
        out = 1.0 if i == 0 else -1.0
        collar, shoulder, elbow, wrist, fingers = 13 + i, 16 + i, 18 + i, 20 + i, 22 + i
        hand = hands[i]
        anchor = int(hand[0])
        # The arm has no frame yet: offsets from the shoulder are in that of the chest.
        frame = chest if anchor == shoulder else world[anchor]
        target = positions[anchor] + frame @ hand[1:4]

        # The shoulder blade lifts a raised arm and comes forward with a crossing one.
        reach = chest.T @ (target - positions[shoulder])
        lift = math.atan2(reach[1], math.hypot(reach[0], reach[2]))
        forward = math.atan2(reach[2], max(out * reach[0], 0.0) + 0.2)
        rotations[collar] = _axis(z, out * min(max(0.3 * (lift + 0.2), -0.05), 0.42)) @ _axis(
            y, -out * min(max(0.15 * forward, -0.1), 0.2)
        )
        shoulder_frame = chest @ rotations[collar]
        root = positions[collar] + shoulder_frame @ (joints[shoulder] - joints[collar])

        upper = joints[elbow] - joints[shoulder]
        lower = joints[wrist] - joints[elbow]
        a, b = math.sqrt((upper * upper).sum()), math.sqrt((lower * lower).sum())
        to = target - root
        distance = min(max(math.sqrt((to * to).sum()), 0.3 * (a + b)), 0.99 * (a + b))
        to = _unit(to)
        pole = chest @ hand[4:7]
        pole = _unit(pole - (pole * to).sum() * to)
        along = (a * a + distance * distance - b * b) / (2 * distance)
        aside = math.sqrt(max(a * a - along * along, 0.0))
        u = _unit(along * to + aside * pole)  # of the upper arm
        f = _unit(distance * to - a * u)  # of the forearm
        hinge = _unit(np.cross(u, f))
        flexion = math.acos(min(max((u * f).sum(), -1.0), 1.0))

        # In the T-pose the arm lies along x and the elbow bends forward, about -y on the left.
        arm = np.empty((3, 3))
        arm[:, 0], arm[:, 1], arm[:, 2] = u, hinge, np.cross(u, hinge)
        rest = np.zeros((3, 3))
        rest[0, 0], rest[1, 1], rest[2, 2] = out, -out, -1.0
        rotations[shoulder] = shoulder_frame.T @ arm @ rest.T
        pronation = hand[7]
        rotations[elbow] = _axis(y, -out * flexion) @ _axis(x, -0.5 * pronation)
        rotations[wrist] = (
            _axis(x, -0.5 * pronation) @ _axis(z, out * hand[8]) @ _axis(y, out * hand[9])
        )
        rotations[fingers] = _axis(z, -out * hand[10])
    return rotations


# Self-penetration. Rows of CAPSULES: joint, joint, radius, shift in x of both ends, meters (the
# trunk is wider than deep: two capsules).
CAPSULES = np.array(
    [
        (0, 9, 0.095, 0.06), (0, 9, 0.095, -0.06),     # 0, 1 belly
        (9, 12, 0.095, 0.07), (9, 12, 0.095, -0.07),   # 2, 3 chest
        (15, 15, 0.095, 0.0),                          # 4 head
        (16, 18, 0.040, 0.0), (17, 19, 0.040, 0.0),    # 5, 6 upper arms
        (18, 20, 0.032, 0.0), (19, 21, 0.032, 0.0),    # 7, 8 forearms
        (20, 22, 0.028, 0.0), (21, 23, 0.028, 0.0),    # 9, 10 hands
        (1, 4, 0.060, 0.0), (2, 5, 0.060, 0.0),        # 11, 12 thighs
        (4, 7, 0.045, 0.0), (5, 8, 0.045, 0.0),        # 13, 14 shins
        (7, 10, 0.035, 0.0), (8, 11, 0.035, 0.0),      # 15, 16 feet
    ]
)  # fmt: skip
TRUNK_AND_HEAD = (0, 1, 2, 3, 4)
PAIRS = np.array(
    [(arm, other) for arm in (7, 8, 9, 10) for other in (*TRUNK_AND_HEAD, 11, 12, 13, 14)]
    + [(7, 8), (7, 10), (9, 8), (9, 10), (5, 8), (5, 10), (6, 7), (6, 9), (5, 4), (6, 4)]
    + [(13, 14), (13, 16), (15, 14), (15, 16), (13, 12), (14, 11), (15, 12), (16, 11)]
    + [(leg, trunk) for leg in (13, 14, 15, 16) for trunk in TRUNK_AND_HEAD]
    + [(leg, chest) for leg in (11, 12) for chest in (2, 3, 4)]
)
TOLERANCE = 0.012  # meters, for soft parts


@compiled
def penetration(positions: np.ndarray) -> float:
    """Deepest overlap of two limbs beyond TOLERANCE, meters; negative: none.

    Args:
        positions: (24, 3), joints, meters.
    """
    across = _unit(positions[1] - positions[2])  # from right hip to left: the trunk's own x
    shoulders, up = _unit(positions[16] - positions[17]), _unit(positions[15] - positions[12])
    start, end = np.empty((2, len(CAPSULES), 3))
    for i in range(len(CAPSULES)):
        a, b = int(CAPSULES[i, 0]), int(CAPSULES[i, 1])
        start[i] = positions[a] + CAPSULES[i, 3] * (across if a == 0 else shoulders)
        end[i] = positions[b] + CAPSULES[i, 3] * shoulders
        if a == b:
            start[i], end[i] = positions[a] + 0.02 * up, positions[a] + 0.08 * up
    worst = -1.0
    for k in range(len(PAIRS)):
        i, j = PAIRS[k, 0], PAIRS[k, 1]
        gap = _distance(start[i], end[i], start[j], end[j])
        worst = max(worst, CAPSULES[i, 2] + CAPSULES[j, 2] - gap)
    return worst - TOLERANCE


@compiled
def _distance(p, p_end, q, q_end):
    """Distance of two segments (Ericson, Real-Time Collision Detection, 5.1.9)."""
    d, e, r = p_end - p, q_end - q, p - q
    a, b, c = (d * d).sum() + 1e-12, (d * e).sum(), (d * r).sum()
    g, f = (e * e).sum() + 1e-12, (e * r).sum()
    det = a * g - b * b
    s = min(max((b * f - c * g) / det, 0.0), 1.0) if det > 1e-12 else 0.0
    t = (b * s + f) / g
    if t < 0.0:
        t, s = 0.0, min(max(-c / a, 0.0), 1.0)
    elif t > 1.0:
        t, s = 1.0, min(max((b - c) / a, 0.0), 1.0)
    gap = r + s * d - t * e
    return math.sqrt((gap * gap).sum())
