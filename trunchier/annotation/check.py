"""An independent pose model that checks a teacher: how far off the teacher's keypoints are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..inference.command import parse_models
from ..inference.inferencer import Inferencer

LEAST_WEIGHT = 1e-6  # of a keypoint: where the pose model sees nothing, all count alike


def load_check(name: str | None, weights: str | None, **options: Any) -> Inferencer | None:
    """The model of --check-pose and --check-weights; None: neither is given.

    Args:
        options: of `Inferencer`.
    """
    if not (name or weights):
        return None
    (found,) = parse_models([name] if name else [], [weights] if weights else [], None, [])
    return Inferencer(found, **options)


def common_keypoints(names: Sequence[str], others: Sequence[str]) -> tuple[list[int], list[int]]:
    """Where keypoints of the same names are in both sets; ValueError if there are none."""
    both = [name for name in names if name in others]
    if not both:
        raise ValueError(
            f'the model of --check-pose ({", ".join(others)}) has no keypoint of the same name as '
            f'the teacher ({", ".join(names)}): take one of COCO keypoints'
        )
    return [names.index(name) for name in both], [others.index(name) for name in both]


def deviation(
    points: np.ndarray, others: np.ndarray, scores: np.ndarray, box: np.ndarray
) -> np.float32:
    """Mean distance of keypoints (K, 2), in square roots of the area of the box (4,), xyxy.

    Args:
        scores: (K,), of `others`, which weight them; clipped to 0..1.
    """
    weights = np.clip(scores, LEAST_WEIGHT, 1)
    distances = np.linalg.norm(points - others, axis=-1)
    size = np.sqrt(max(float(np.prod(box[2:] - box[:2])), 1))
    return np.float32(np.average(distances, weights=weights) / size)
