"""Motions of the embedded body: walks and runs, turns, reaches, sitting, sports, falls, at 30 fps.

    motions = Motions(seed=0)
    motion = motions.draw(64, frames=81)  # 64 sequences
    motion.rotations, motion.translation, motion.betas

World: y up, the ground at y = 0, meters; a body without rotation faces z. Joint rotations are cubic
B-splines of rotation vectors between poses of poses.py (also of the motion capture there, played
back), so that they are smooth and within the limits `LARGEST`; where feet stay on the ground, legs
follow by inverse kinematics. Self-penetration between key poses is not prevented.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..conventions import SMPL_24_FLIP
from ..geometry import (
    axis_angle_to_matrix,
    matrix_to_axis_angle,
    matrix_to_rotation_6d,
    rotation_6d_to_matrix,
)
from .kinematics import (
    LARGEST,
    about,
    ease,
    kinematics,
    leg_angles,
    leg_length,
    limited_matrices,
    rest_pose,
    smooth_minimum,
    smoothed,
    spline,
    toward,
)
from .poses import compose, hand_target, mirror, motion_clips, rest_joints, sample_pose

FPS = 30
CLIP_FPS = 10
BETA_LIMIT = 2.5
SOLE = 0.02  # meters, joint of the ball of a foot above the ground

ARMS = 13, 14, 16, 17, 18, 19, 20, 21, 22, 23
FEET = (10, 11)


@dataclass
class Motion:
    """Sequences of bodies in the world."""

    rotations: Tensor  # (B, T, 24, 3, 3), relative to the parent; the root's into the world
    translation: Tensor  # (B, T, 3), meters, position of the root joint
    betas: Tensor  # (B, 10)
    contact: Tensor  # (B, T, 2) bool: the ball of the left, right foot stays where it is
    kinds: list[str]  # (B,) of KINDS

    @property
    def axis_angle(self) -> Tensor:
        """Pose as (B, T, 72), radians."""
        return matrix_to_axis_angle(self.rotations).flatten(2)

    @property
    def joints(self) -> Tensor:
        """(B, T, 24, 3), meters, in the world."""
        return kinematics(self.rotations, rest_pose(self.betas)) + self.translation[:, :, None]


class Motions:
    """Random motions; the n-th call of a generator depends on the seed and the sizes alone.

    Args:
        seed: of everything.
        poses: number of key poses to draw from; a second makes some thousands.
        clips: motion capture to play back: axis-angle poses (N, 24, 3), first frame and length of
            each clip, 10 fps; None: `poses.motion_clips`.
    """

    def __init__(self, seed: int, poses: int = 2000, clips: tuple | None = None):
        rng = np.random.default_rng(seed)
        drawn = [sample_pose(rng) for _ in range(poses)]
        vectors = _vectors(np.array([pose.rotations for pose in drawn]))
        roots = torch.from_numpy(np.array([pose.rotations[0] for pose in drawn], np.float32))
        self.keys, self.roots = vectors, matrix_to_rotation_6d(roots)
        lying = torch.tensor([pose.support == 'lie' for pose in drawn])
        upright = roots[:, 1, 1] > 0.8
        self.up, self.lie = torch.nonzero(upright)[:, 0], torch.nonzero(lying)[:, 0]
        if not len(self.up) or not len(self.lie):
            raise ValueError(f'{poses} poses are too few: none is lying; draw 500 or more')
        self.swings = {word: _swings(rng, word) for word in ('swing', 'run')}
        self.clips, self.clip_roots, self.starts, self.lengths = _clips(*(clips or motion_clips()))
        self.random = torch.Generator().manual_seed(seed)

    def draw(self, count: int, frames: int, kinds: dict[str, float] | None = None) -> Motion:
        """`count` sequences of `frames` frames.

        Args:
            kinds: relative frequencies of kinds of motion, of KINDS; None: SHARES.
        """
        shares = SHARES if kinds is None else kinds
        if unknown := set(shares) - set(KINDS):
            raise ValueError(f'no motions {sorted(unknown)}; there are {sorted(KINDS)}')
        weights = torch.tensor([float(share) for share in shares.values()])
        picked = torch.multinomial(weights, count, True, generator=self.random)
        counts = torch.bincount(picked, minlength=len(shares)).tolist()
        betas = self._normal(count, 10).clamp(-BETA_LIMIT, BETA_LIMIT)
        parts, names, done = [], [], 0
        for name, number in zip(shares, counts, strict=True):
            if number:
                rest = rest_pose(betas[done : done + number])
                parts.append(KINDS[name](self, rest, frames))
                names += [name] * number
                done += number
        rotations, places, contact = (torch.cat(each) for each in zip(*parts, strict=True))
        return Motion(rotations, places, betas, contact, names)

    # --- Random numbers and splines ---------------------------------------------------------------
    def _uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=self.random)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.random)

    def _chance(self, share: float, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.random) < share

    def _pick(self, rows: Tensor, *shape: int) -> Tensor:
        return rows[torch.randint(len(rows), shape, generator=self.random)]

    def _time(self, count: int, frames: int, low: float, high: float) -> tuple[Tensor, int]:
        """Time in units of the distance of keys, low to high seconds: (B, T); number of keys."""
        seconds = torch.arange(frames) / FPS
        time = seconds / self._uniform(low, high, count, 1) + self._uniform(0, 1, count, 1)
        return time, int(time.max()) + 4

    def _wander(self, count: int, frames: int, size: int, seconds: float) -> Tensor:
        """Smooth noise of about unit deviation: (B, T, size)."""
        time, keys = self._time(count, frames, seconds, 2 * seconds)
        return 1.4 * spline(self._normal(count, keys, size), time)

    def _held(self, keys: Tensor) -> Tensor:
        """Indices (B, K) of which some stay for several keys."""
        for key in range(1, keys.shape[1]):
            stay = self._chance(0.45, len(keys))
            keys[:, key] = torch.where(stay, keys[:, key - 1], keys[:, key])
        return keys

    def _upper(self, count: int, frames: int) -> Tensor:
        """Rotation vectors (B, T, 24, 3) of trunk, head and arms that move from pose to pose."""
        time, keys = self._time(count, frames, 0.35, 1.2)
        rows = self._held(self._pick(self.up, count, keys))
        vectors = spline(self.keys[rows].flatten(2), time).unflatten(2, (24, 3))
        return vectors + self._trembling(count, frames)

    def _trembling(self, count, frames):
        noise = self._wander(count, frames, 72, 0.5).unflatten(2, (24, 3))
        return noise * math.radians(1.5)

    # --- Kinds of motion: (rotations, translation, contact) --------------------------------------
    def _gait(self, rest, frames):
        """Walk, run, step aside and backwards, turn on the spot."""
        count = len(rest)
        run = self._chance(0.25, count, 1)
        slow = ~run & self._chance(0.25, count, 1)
        speed = torch.where(run, *(self._uniform(*each, count, 1) for each in ((2, 4), (0.4, 1.7))))
        speed = torch.where(slow, self._uniform(0, 0.4, count, 1), speed)
        turn = 0.3 * self._normal(count, 1) * torch.where(slow, 4.0, 1.0)  # radians a second
        turn = turn.clamp(-2.2, 2.2)
        aside = torch.where(self._chance(0.15, count, 1), self._uniform(-3.1, 3.1, count, 1), 0.0)
        aside = torch.where(run, 0.0, aside)
        speed = speed * torch.where(aside.abs() > 0.8, 0.5, 1.0)
        rate = torch.where(run, 1.1 + 0.1 * speed, 0.55 + 0.3 * speed)  # strides a second
        rate = rate * (1 + 0.06 * self._normal(count, 1)).clamp(0.85, 1.15)
        duty = torch.where(run, 0.38, 0.62)
        begin, heading = self._uniform(0, 1, count, 1), self._uniform(-3.1, 3.1, count, 1)
        seconds = torch.arange(frames) / FPS

        def path(time):
            """Ground position (..., 2) as x, z and heading at a time (B, ...)."""
            bent = turn * time / 2
            length = speed * time * torch.sinc(bent / math.pi)
            direction = heading + aside + bent
            return length[..., None] * toward(direction), heading + turn * time

        phase = begin + rate * seconds  # (B, T), strides
        balls, turns, contact, pitches = [], [], [], []
        wide = self._uniform(0.03, 0.12, count, 1) * torch.where(run, 0.4, 1.0)
        out = self._uniform(0, 0.25, count, 1)
        lift = torch.where(
            run, self._uniform(0.10, 0.25, count, 1), self._uniform(0.03, 0.1, count, 1)
        )
        push = torch.where(run, self._uniform(0.6, 0.9, count, 1), 0.2 + 0.3 * speed)
        for side, sign in ((0.0, 1.0), (0.5, -1.0)):
            own = phase - side
            step = own.floor()
            share = own - step
            prints = []
            for number in (step, step + 1):
                place, yaw = path((number + duty / 2 + side - begin) / rate)
                across = toward(yaw + math.pi / 2) * sign * wide[..., None]
                prints.append((place + across, yaw + sign * out))
            flight = ((share - duty) / (1 - duty)).clamp(0, 1)
            moved = ease(flight)[..., None]
            (here, yaw), (there, next_yaw) = prints
            ground = here + moved * (there - here)
            height = SOLE + lift * 16 * flight**2 * (1 - flight) ** 2
            balls.append(torch.stack((ground[..., 0], height, ground[..., 1]), -1))
            turns.append(yaw + moved[..., 0] * (next_yaw - yaw))
            rising = ease(((share / duty - 0.5) / 0.5).clamp(0, 1))
            pitches.append(push * torch.where(flight > 0, 1 - ease(flight), rising))
            contact.append(share < duty)
        place, yaw = path(seconds)
        swing = 2 * math.pi * (phase - duty / 2)  # 0 in the middle of the left foot's stance
        bob = torch.where(run, -0.035 * speed.clamp(max=3) / 3, 0.018) * torch.cos(2 * swing)
        across = toward(yaw + math.pi / 2) * (0.02 * torch.cos(swing))[..., None]
        ground = place + across
        tilt = torch.zeros(count, frames, 3)
        strength = (speed / 1.5).clamp(0.2, 1.2)
        lean = torch.where(run, 0.12, 0.04) + 0.04 * self._normal(count, 1)
        tilt[..., 0], tilt[..., 1] = lean / 2, -0.09 * strength * torch.sin(swing)
        tilt[..., 2] = 0.04 * strength * torch.cos(swing)
        pelvis = about(1, yaw) @ axis_angle_to_matrix(tilt)
        vectors = self._upper(count, frames)
        ends = (self._pick(self.swings[word], count)[:, None] for word in ('run', 'swing'))
        swings = torch.where(run[..., None, None, None], *ends)  # (B, 1, 2, 24, 3)
        middle, half = (
            (swings[:, :, 0] + swings[:, :, 1]) / 2,
            (swings[:, :, 0] - swings[:, :, 1]) / 2,
        )
        # The left arm is behind while the left leg is in front, half of a swing before its stance.
        arms = middle + (strength.clamp(max=1) * -torch.sin(swing))[..., None, None] * half
        free = self._chance(0.65, count, 1, 1, 1)
        arms_of = list(ARMS)
        vectors[:, :, arms_of] = torch.where(free, arms, vectors)[:, :, arms_of]
        spine = torch.zeros(count, frames, 3)
        spine[..., 0], spine[..., 1] = lean, 0.2 * strength * torch.sin(swing)
        for joint in (3, 6, 9):
            vectors[:, :, joint] = 0.3 * vectors[:, :, joint] + spine / 3
        feet = [
            about(1, turn) @ about(0, pitch) for turn, pitch in zip(turns, pitches, strict=True)
        ]
        return self._on_feet(rest, pelvis, ground, bob, vectors, balls, feet, contact)

    def _planted(self, rest, frames):
        """Stand, reach, bow, crouch, squat, sit down and get up: the feet do not move."""
        count = len(rest)
        time, keys = self._time(count, frames, 0.45, 1.3)
        rows = torch.multinomial(POSTURES[:, 0], count, True, generator=self.random)
        others = torch.multinomial(POSTURES[:, 0], count, True, generator=self.random)
        others = torch.where(self._chance(0.55, count), rows, others)
        which = self._held(self._chance(0.5, count, keys).long())
        picked = torch.where(which > 0, rows[:, None], others[:, None])  # (B, K)
        mean, spread = POSTURES[picked, 1:5], POSTURES[picked, 5:9]
        noise = self._held_noise(count, keys)
        values = spline(mean + spread * noise[..., :4], time)
        legs = leg_length(rest)[:, None]
        height, back, pitch, aside = values.unbind(-1)
        heading = self._uniform(-3.1, 3.1, count, 1)
        twist = spline(noise[..., 4:5], time)[..., 0] * 0.15
        ground = -back[..., None] * legs[..., None] * toward(heading)
        ground = ground + (aside * legs)[..., None] * toward(heading + math.pi / 2)
        pelvis = about(1, heading + twist) @ about(0, pitch)
        balls, feet = [], []
        stagger = 0.12 * self._normal(count, 1) * torch.where(self._chance(0.3, count, 1), 2.0, 0.7)
        stagger = stagger.clamp(-0.4, 0.4)
        for sign in (1.0, -1.0):
            wide = self._uniform(0.06, 0.24, count, 1)
            yaw = heading + sign * self._uniform(-0.05, 0.5, count, 1)
            place = toward(heading + math.pi / 2) * sign * wide[..., None]
            place = place + toward(heading) * (0.08 + sign * stagger)[..., None]
            ball = torch.stack((place[..., 0], torch.full((count, 1), SOLE), place[..., 1]), -1)
            balls.append(ball.expand(-1, frames, -1))
            # Heels rise where the body goes down further than ankles bend.
            heel = (
                0.8 * F.softplus(30 * (0.66 - height) - 20 * (back - 0.2).relu()) / 10
            ).clamp_max(0.9)
            feet.append(about(1, yaw) @ about(0, heel))
        vectors = self._upper(count, frames)
        contact = [torch.ones(count, frames, dtype=torch.bool)] * 2
        return self._on_feet(
            rest, pelvis, ground, height * legs, vectors, balls, feet, contact, False
        )

    def _held_noise(self, count, keys):
        index = self._held(torch.arange(keys).repeat(count, 1))
        noise = self._normal(count, keys, 5).clamp(-2, 2)
        return noise.gather(1, index[..., None].expand(-1, -1, 5))

    def _on_feet(self, rest, pelvis, ground, height, vectors, balls, feet, contact, level=True):
        """Rotations, translation, contact; `height` is of the hips, or (level) around the best."""
        reach, near = [], []
        for side, (ball, foot) in enumerate(zip(balls, feet, strict=True)):
            hip = (pelvis @ rest[:, None, 1 + side, :, None])[..., 0]
            ankle = (
                ball - (foot @ (rest[:, 10 + side] - rest[:, 7 + side])[:, None, :, None])[..., 0]
            )
            flat = ankle[..., ::2] - hip[..., ::2] - ground
            length = leg_length(rest, side)[:, None]
            drop = (0.995 * length) ** 2 - flat.square().sum(-1)
            reach.append(ankle[..., 1] - hip[..., 1] + drop.clamp_min(0.05).sqrt())
            near.append(ankle[..., 1] - hip[..., 1] + 0.36 * length)
        limit = torch.minimum(*reach)
        if level:  # one height for the whole sequence, so that knees are nearly straight once
            height = (limit - height).amin(1, keepdim=True) + height
        else:
            height = smooth_minimum(height, limit)
            height = -smooth_minimum(-height, -torch.maximum(*near))
        place = torch.stack((ground[..., 0], height, ground[..., 1]), -1)
        rotations = limited_matrices(vectors)
        rotations[:, :, 0] = pelvis
        for side, (ball, foot) in enumerate(zip(balls, feet, strict=True)):
            hip, knee, ankle = leg_angles(rest, side, pelvis, place, ball, foot)
            rotations[:, :, 1 + side], rotations[:, :, 4 + side] = hip, knee
            bent = matrix_to_axis_angle(ankle)  # beyond the limit in the air only
            share = math.radians(LARGEST[7]) / bent.norm(dim=-1, keepdim=True).clamp_min(1e-6)
            rotations[:, :, 7 + side] = axis_angle_to_matrix(bent * share.clamp_max(1))
            contact[side] = contact[side] & (share[..., 0] >= 1)
            rotations[:, :, 10 + side] = torch.eye(3)
        return rotations, place, torch.stack(contact, -1)

    def _free(self, rest, frames):
        """From pose to pose with all joints: sports, dances, jumps."""
        count = len(rest)
        time, keys = self._time(count, frames, 0.3, 1.0)
        rows = self._held(self._pick(self.up, count, keys))
        return self._keyed(rest, frames, self.keys[rows], self.roots[rows], time)

    def _clip(self, rest, frames):
        """Motion capture, played back; upper bodies of some from elsewhere."""
        count = len(rest)
        pace = self._uniform(0.6, 1.1, count, 1) * CLIP_FPS / FPS
        time = torch.arange(frames) * pace
        keys = int(time.max()) + 5
        clip = torch.randint(len(self.starts), (count,), generator=self.random)
        first = self._uniform(0, 1, count) * (self.lengths[clip] - 1)
        steps = first.floor()[:, None] + torch.arange(keys)
        # There and back again: clips are 5 to 100 frames long.
        cycle = (self.lengths[clip] - 1)[:, None]
        steps = (steps + cycle) % (2 * cycle) - cycle
        rows = (self.starts[clip][:, None] + steps.abs()).long()
        time = time + self._uniform(0, 1, count, 1)
        vectors, roots = self.clips[rows], self.clip_roots[rows]
        mirrored = self._chance(0.5, count)
        vectors[mirrored] = vectors[mirrored][:, :, list(SMPL_24_FLIP)] * torch.tensor(
            [1.0, -1, -1]
        )
        roots[mirrored] = roots[mirrored] * torch.tensor([1.0, -1, -1, -1, 1, 1])
        offset = self._normal(count, 1, 24, 3) * math.radians(5)
        return self._keyed(rest, frames, vectors + offset, roots, time, 0.25)

    def _fall(self, rest, frames):
        """Fall from standing and lie, or get up."""
        count = len(rest)
        time, keys = self._time(count, frames, 0.22, 0.5)
        up, down = self._held(self._pick(self.up, count, keys)), self._pick(self.lie, count, 1)
        down = self._held(
            torch.where(self._chance(0.6, count, keys), down, self._pick(self.lie, count, keys))
        )
        moment = torch.randint(1, max(keys - 1, 2), (count, 1), generator=self.random)
        late = torch.arange(keys) >= moment
        late = torch.where(self._chance(0.3, count, 1), ~late, late)
        vectors = self.keys[torch.where(late, down, up)]
        # A lying body does not roll on: its root is that of its first pose. It fell about x.
        root = rotation_6d_to_matrix(self.roots[down[:, :1]])
        before = about(0, torch.tensor(math.pi / 2)) @ root
        heading = torch.atan2(before[..., 0, 2], before[..., 2, 2])
        stood = about(1, heading) @ rotation_6d_to_matrix(self.roots[up])
        roots = matrix_to_rotation_6d(torch.where(late[..., None, None], root, stood))
        return self._keyed(rest, frames, vectors, roots, time)

    def _lying(self, rest, frames):
        """Move arms and legs on the ground."""
        count = len(rest)
        time, keys = self._time(count, frames, 0.6, 1.5)
        rows = self._held(self._pick(self.lie, count, keys))
        return self._keyed(
            rest, frames, self.keys[rows], self.roots[rows[:, :1]].expand(-1, keys, -1), time
        )

    def _keyed(self, rest, frames, vectors, roots, time, upper=0.0):
        """Splines of rotation vectors (B, K, 24, 3) and roots (B, K, 6); what is low stays."""
        count = len(rest)
        posed = spline(vectors.flatten(2), time).unflatten(2, (24, 3))
        posed = posed + self._trembling(count, frames)
        if upper:
            swapped = self._chance(upper, count, 1, 1, 1)
            arms = list(ARMS)
            posed[:, :, arms] = torch.where(swapped, self._upper(count, frames), posed)[:, :, arms]
        rotations = limited_matrices(posed)
        root = rotation_6d_to_matrix(spline(roots, time))
        turn = 0.35 * self._wander(count, frames, 1, 0.8)[..., 0]
        rotations[:, :, 0] = about(1, self._uniform(-3.1, 3.1, count, 1) + turn) @ root
        places = kinematics(rotations, rest)
        heights = places[..., 1]  # (B, T, 24)
        low = torch.softmax(-heights / 0.02, -1)
        steps = places[:, 1:] - places[:, :-1]
        weights = (low[:, 1:] + low[:, :-1]) / 2
        drift = -(weights[..., None] * steps).sum(2)  # the lowest joints do not slide
        place = F.pad(drift.cumsum(1), (0, 0, 1, 0))
        place[..., 1] = 0.02 * torch.logsumexp(-heights / 0.02, -1) + SOLE
        contact = torch.zeros(count, frames, 2, dtype=torch.bool)
        return rotations, smoothed(place), contact


KINDS: dict[str, Callable[..., tuple[Tensor, Tensor, Tensor]]] = {
    'gait': Motions._gait,
    'planted': Motions._planted,
    'free': Motions._free,
    'clip': Motions._clip,
    'fall': Motions._fall,
    'lying': Motions._lying,
}
SHARES = {'gait': 0.3, 'planted': 0.25, 'free': 0.13, 'clip': 0.22, 'fall': 0.05, 'lying': 0.05}

# Postures on two feet. Rows: relative frequency; mean height of the pelvis, way behind and beside
# the feet, in leg lengths, and forward pitch in radians; deviations of the same.
POSTURES = torch.tensor([
    # share  height  back  pitch aside    deviations
    (0.40,  0.99,  0.02,  0.00,  0.00,  0.01, 0.02, 0.04, 0.04),  # stand
    (0.10,  0.94,  0.02,  0.00,  0.00,  0.03, 0.04, 0.06, 0.10),  # shift weight
    (0.12,  0.95,  0.12,  0.50,  0.00,  0.03, 0.05, 0.25, 0.03),  # bow
    (0.12,  0.76,  0.12,  0.25,  0.00,  0.06, 0.05, 0.15, 0.04),  # crouch
    (0.06,  0.55,  0.22,  0.30,  0.00,  0.06, 0.05, 0.12, 0.03),  # squat
    (0.20,  0.58,  0.48, -0.05,  0.00,  0.05, 0.06, 0.10, 0.03),  # sit
])  # fmt: skip


def _vectors(rotations):
    """Rotation vectors (N, 24, 3) of matrices; the root's are 0."""
    vectors = matrix_to_axis_angle(torch.from_numpy(np.asarray(rotations, np.float32)))
    vectors[:, 0] = 0
    return vectors


def _swings(rng, word, number=200):
    """Ends of the swing of both arms, rotation vectors (number, 2, 24, 3)."""
    ends = []
    for _ in range(number):
        hands = [
            hand_target(f'{word} {end}', side, rng.standard_normal(7))
            for side, end in enumerate(('back', 'front'))
        ]
        rotations = compose(np.zeros(18), np.stack(hands), rest_joints())
        ends.append((rotations, mirror(rotations)))
    return _vectors(np.array(ends).reshape(-1, 24, 3, 3)).unflatten(0, (number, 2))


def _clips(poses, starts, lengths):
    """Rotation vectors (N, 24, 3), roots (N, 6) without heading, starts and lengths."""
    rotations = axis_angle_to_matrix(torch.from_numpy(poses.astype(np.float32)))
    roots = rotations[:, 0].clone()
    for start, length in zip(starts, lengths, strict=True):
        front = roots[start, :, 2]
        heading = torch.atan2(front[0], front[2])
        roots[start : start + length] = about(1, -heading) @ roots[start : start + length]
    vectors = _vectors(rotations)
    for frame in set(range(1, len(vectors))) - set(starts.tolist()):  # no jumps at half a turn
        length = vectors[frame].norm(dim=-1, keepdim=True).clamp_min(1e-6)
        other = vectors[frame] * (1 - 2 * math.pi / length)
        nearer, near = (
            (each - vectors[frame - 1]).norm(dim=-1) for each in (other, vectors[frame])
        )
        vectors[frame] = torch.where((nearer < near)[:, None], other, vectors[frame])
    return (
        vectors, matrix_to_rotation_6d(roots),
        torch.from_numpy(starts.astype(np.float32)), torch.from_numpy(lengths.astype(np.float32)),
    )  # fmt: skip
