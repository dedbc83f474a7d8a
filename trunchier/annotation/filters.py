"""Which people of the parts are kept, and why the others are dropped: in this order, by one reason.

Nothing is computed again when a threshold changes: filters work on the measures in the parts.
"""

from dataclasses import dataclass

import numpy as np

from .views import SIGMA, similarity

BITS = 64
ALIKE_POSE = 0.9  # OKS of two people in their boxes, above which these are the same picture


@dataclass(frozen=True)
class Thresholds:
    """What is kept.

    Attributes:
        box_score: minimum score of the detection.
        keypoint_score: keypoints with a lower score are not labeled.
        agreement: keypoints that agree less with the other views are not labeled; people whose
            keypoints do so on average are dropped; 0 to 1.
        keypoints: minimum number of labeled keypoints.
        overlap: minimum intersection over union of box and projected body.
        excess: degrees that joints may exceed their limits.
        deviation: mean distance to the keypoints of an independent pose model, in square roots of
            the box's area, that the teacher's may have; see `check.deviation`.
        duplicate: bits of 64 by which hashes of equal pictures may differ; -1 keeps duplicates.
    """

    box_score: float = 0.5
    keypoint_score: float = 0.3
    agreement: float = 0.5
    keypoints: int = 6
    overlap: float = 0.5
    excess: float = 0.0
    deviation: float = 0.1
    duplicate: int = 3


# Reasons, in order, and the attribute of Thresholds that decides.
REASONS = {
    'detector score': 'box_score',
    'few keypoints': 'keypoints',
    'views disagree': 'agreement',
    'reprojection': 'overlap',
    'joint limits': 'excess',
    'pose model disagrees': 'deviation',
    'duplicate': 'duplicate',
}
AT_MOST = ('excess', 'deviation')  # the others are minima
MEASURED = ('overlap', 'excess', 'deviation')  # as they are in parts, if at all


def measures(arrays: dict[str, np.ndarray], limits: Thresholds) -> dict[str, np.ndarray]:
    """Of the people of a part: what `reasons` compares and the report shows, (P,) each.

    `labeled` (P, K) bool says which keypoints are good enough.
    """
    agreement = arrays['agreement']
    scores = arrays.get('keypoint_scores', np.ones_like(agreement))
    seen = scores >= limits.keypoint_score
    count = np.maximum(seen.sum(1), 1)
    labeled = seen & (agreement >= limits.agreement)
    found = {
        'detector score': arrays['bbox_scores'],
        'few keypoints': labeled.sum(1),
        'views disagree': (agreement * seen).sum(1) / count,
        'labeled': labeled,
    }
    if 'keypoint_scores' in arrays:
        found['keypoint score'] = scores.mean(1)
    for reason, name in REASONS.items():
        if name in MEASURED and name in arrays:
            found[reason] = arrays[name]
    return found


def reasons(found: dict[str, np.ndarray], limits: Thresholds) -> list[str | None]:
    """Why each person is dropped, by `measures`; None: it is kept, unless it is a duplicate."""
    answer: list[str | None] = [None] * len(found['detector score'])
    for reason, name in REASONS.items():
        if reason not in found:
            continue
        limit = getattr(limits, name)
        good = found[reason] <= limit if name in AT_MOST else found[reason] >= limit
        for index in np.flatnonzero(~good):
            answer[index] = answer[index] or reason
    return answer


class Seen:
    """People that were kept, to find those that are the same picture again.

    Two 64-bit hashes that differ in at most n bits are equal in one of n + 1 parts, therefore
    people are looked up by these parts. The poses must be alike as well.

    Args:
        bits: by which equal pictures may differ.
    """

    def __init__(self, bits: int):
        self.bits = bits
        edges = np.linspace(0, BITS, bits + 2).astype(int).tolist()
        self.parts = [
            (low, (1 << (high - low)) - 1) for low, high in zip(edges, edges[1:], strict=False)
        ]
        self.places: dict[tuple[int, int], list[int]] = {}
        self.hashes: list[int] = []
        self.poses: list[np.ndarray] = []

    def add(self, fingerprint: int, pose: np.ndarray) -> bool:
        """Whether it is new; `pose` (K, 2) in fractions of the box."""
        keys = [(part, fingerprint >> low & mask) for part, (low, mask) in enumerate(self.parts)]
        for index in {index for key in keys for index in self.places.get(key, ())}:
            if (self.hashes[index] ^ fingerprint).bit_count() <= self.bits and alike(
                self.poses[index], pose
            ):
                return False
        for key in keys:
            self.places.setdefault(key, []).append(len(self.hashes))
        self.hashes.append(fingerprint)
        self.poses.append(np.float16(pose))
        return True


def alike(pose: np.ndarray, other: np.ndarray) -> bool:
    """Whether two poses in fractions of their boxes are the same, up to noise."""
    sigmas = np.full(len(pose), SIGMA)
    return similarity(np.float32(pose), np.float32(other), 1.0, sigmas).mean() >= ALIKE_POSE
