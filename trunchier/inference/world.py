"""World coordinates from a camera that does not move: gravity, ground and sizes of people.

The world is y up, in meters, with the ground at y = 0, the camera above the origin, looking along
-z. A single camera does not tell the size of anybody: people's bodies give it to some 10 %. That
their feet stand on one ground makes these sizes agree, and puts people in the right order of depth.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..conventions import COCO_17

SIZE_ERROR = 0.12  # standard deviation of the logarithm of predicted distances
GROUND_ERROR = 0.08  # meters, of feet that stand on the ground
OUTLIER = 0.3  # of the logarithm of heights: feet farther from the ground do not stand on it
UP_ERROR = 0.2  # radians, of one body's up
PITCHES = np.radians(np.arange(-34, 61, 2.0))  # of cameras: positive looks down
ROLLS = np.radians(np.arange(-24, 25, 2.0))
PITCH_PRIOR, ROLL_PRIOR = (np.radians(6), np.radians(18)), (0.0, np.radians(5))
SEEN = 0.3  # score of ankles
LEAST_HEIGHT = 0.15  # meters of the camera above the ground


@dataclass
class World:
    """Where a camera stands.

    Attributes:
        rotation: (3, 3), camera axes (x right, y down, z forward) to the world's.
        position: (3,), of the camera, meters.
        scales: of tracks: how much larger and farther away people are than predicted.
    """

    rotation: np.ndarray
    position: np.ndarray
    scales: dict[int, float] = field(default_factory=dict)

    @classmethod
    def of_extrinsics(cls, matrix: np.ndarray) -> World:
        """A camera that was measured.

        Args:
            matrix: (3, 4) or (4, 4), world to camera axes, meters; the world's y points up.

        Raises:
            ValueError: no rotation and translation.
        """
        matrix = np.asarray(matrix, np.float64)
        rotation = matrix[:3, :3] if matrix.shape in ((3, 4), (4, 4)) else np.zeros((3, 3))
        proper = np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-3)
        if not proper or np.linalg.det(rotation) < 0 or not np.isfinite(matrix).all():
            raise ValueError(
                'extrinsics are a (3, 4) matrix [R | t] with a rotation R, world to camera, got '
                f'{np.array2string(matrix, threshold=12)}'
            )
        return cls(rotation.T, -rotation.T @ matrix[:3, 3])

    @classmethod
    def of_people(
        cls,
        tracks: np.ndarray,
        joints: np.ndarray,
        feet: list[int],
        top: list[int],
        seen: np.ndarray | None = None,
    ) -> World:
        """Find the ground that people stand on.

        Args:
            tracks: (N,), of each person and frame; negative: of nobody.
            joints: (N, J, 3), meters, camera frame.
            feet, top: indices of joints that may touch the ground, and of joints above them.
            seen: (N,), whether the feet were; the others' distances stay as they are.
        """
        known = np.ones(len(joints), bool) if seen is None else np.asarray(seen, bool)
        if not known.any():
            return cls(np.diag([1.0, -1.0, -1.0]), np.zeros(3))
        tracks, joints = tracks[known], joints[known]
        bodies = joints[:, top].mean(1) - joints[:, feet].mean(1)
        bodies /= np.maximum(np.linalg.norm(bodies, axis=1, keepdims=True), 1e-9)
        pitch, roll = (each.ravel() for each in np.meshgrid(PITCHES, ROLLS))
        # World up in the camera's axes, of a camera that is rolled about z, then pitched about x.
        ups = np.stack(
            [-np.sin(roll) * np.cos(pitch), -np.cos(roll) * np.cos(pitch), -np.sin(pitch)], 1
        )
        people = len(np.unique(tracks[tracks >= 0])) + (tracks < 0).sum()
        share = people / len(joints)  # frames of a person are no independent observations
        angles = np.arccos(np.clip(bodies @ ups.T, -1, 1))  # (N, U)
        costs = share * np.minimum((angles / UP_ERROR) ** 2, 6).sum(0)
        costs += ((pitch - PITCH_PRIOR[0]) / PITCH_PRIOR[1]) ** 2
        costs += ((roll - ROLL_PRIOR[0]) / ROLL_PRIOR[1]) ** 2
        heights = -(joints[:, feet] @ ups.T).min(1)  # (N, U), of the camera above each
        below = heights > LEAST_HEIGHT
        heights = np.log(np.maximum(heights, LEAST_HEIGHT))
        grounds = _middle(heights)
        errors = GROUND_ERROR / np.exp(grounds)
        apart = (grounds - heights) / np.hypot(SIZE_ERROR, errors)
        costs += share * np.where(below, np.minimum(apart**2, 9), 9).sum(0)
        best = int(costs.argmin())
        up, ground = ups[best], grounds[best]
        scales = {
            int(track): _scale(ground - heights[tracks == track, best], errors[best])
            for track in np.unique(tracks)
            if track >= 0
        }
        back = np.array([0.0, 0.0, -1.0]) + up[2] * up
        back /= np.linalg.norm(back)
        rotation = np.stack([np.cross(up, back), up, back])
        return cls(rotation, np.array([0.0, np.exp(ground), 0.0]), scales)

    def __call__(self, points: np.ndarray, tracks: np.ndarray) -> np.ndarray:
        """Points (N, ..., 3) of people in the camera's frame -> in the world.

        Args:
            tracks: (N,), of each person.
        """
        scale = np.array([self.scales.get(int(track), 1.0) for track in tracks])
        scale = scale.reshape(-1, *[1] * (points.ndim - 1))
        return scale * points @ self.rotation.T + self.position

    @classmethod
    def of_arrays(cls, arrays: dict[str, np.ndarray], names: Sequence[str]) -> World:
        """The world of the people of a video, by `of_people`.

        Args:
            arrays: `track_ids`, `joints` and `transl` of `--save npz`, a row per person and frame.
                Without `track_ids` each row is another person, as in an image.
            names: of the joints.
        """
        feet = [i for i, name in enumerate(names) if re.search('ankle|heel|toe|foot', name)]
        top = [names.index(f'{side}_shoulder') for side in ('left', 'right')]
        joints = arrays['joints'] + arrays['transl'][:, None]
        tracks = arrays.get('track_ids', np.arange(len(joints)))
        seen = None
        if 'coco_keypoints' in arrays:
            ankles = [COCO_17.index(f'{side}_ankle') for side in ('left', 'right')]
            seen = arrays['coco_keypoints'][:, ankles, 2].max(1) > SEEN
        return cls.of_people(tracks, joints.astype(np.float64), feet, top, seen)

    @property
    def matrix(self) -> np.ndarray:
        """(4, 4), camera axes to the world."""
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = self.rotation, self.position
        return matrix


def _middle(values):
    """A mean (U,) of values (N, U) that outliers move little."""
    middle = np.median(values, axis=0)
    for _ in range(5):
        weights = 1 / (1 + ((values - middle) / OUTLIER) ** 2) ** 2
        middle = (weights * values).sum(0) / weights.sum(0)
    return middle


def _scale(apart, error):
    """Size of a person, from logarithms (T,) that put the feet of each frame on the ground."""
    logarithm = float(_middle(apart[:, None])[0])
    trust = 1 / (1 + (logarithm / OUTLIER) ** 4)  # who is far from the ground does not stand on it
    return float(np.exp(trust * logarithm * SIZE_ERROR**2 / (SIZE_ERROR**2 + error**2)))
