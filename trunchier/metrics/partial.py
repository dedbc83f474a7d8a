"""PCK by how much of a person can be seen: whole, upper half, lower half, one limb."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from ..conventions import COCO_17

EXTENTS = ('whole', 'upper', 'lower', 'limb')
LIMBS = tuple(
    frozenset(COCO_17.index(f'{side}_{joint}') for joint in joints)
    for side in ('left', 'right')
    for joints in (('shoulder', 'elbow', 'wrist'), ('hip', 'knee', 'ankle'))
)
HEAD_AND_SHOULDERS, LEGS = frozenset(range(7)), frozenset(range(13, 17))


def extent(visible: np.ndarray) -> str:
    """Which part of a person the visible keypoints are.

    Args:
        visible: (17,), bool, in COCO's order.

    Returns:
        'limb': no keypoint outside one arm or leg; else 'upper': no knee or ankle; 'lower':
        neither head nor shoulders; 'whole': both.
    """
    seen = set(np.flatnonzero(visible).tolist())
    if any(seen <= limb for limb in LIMBS):
        return 'limb'
    if not seen & LEGS:
        return 'upper'
    return 'whole' if seen & HEAD_AND_SHOULDERS else 'lower'


@METRICS.register_module()
class PartialPCK(BaseMetric):
    """Share of the labeled keypoints that are found, of all people and by their `extent`.

    A keypoint is found within `thr` of the longer side of the annotated box. Every keypoint counts
    alike (mmpose's PCKAccuracy averages over the kinds of keypoints).

    Args:
        thr: of the longer side of the box.
        out: JSON file for the counts of each person: {'thr', 'people': [[id, extent, number of
            keypoints found, number labeled], ...]}, by id.
        base: see mmengine's BaseMetric.

    Raises:
        ValueError: keypoints in another order than COCO's 17.
    """

    default_prefix = 'partial'

    def __init__(self, thr: float = 0.1, out: str | None = None, **base: Any):
        super().__init__(**base)
        self.thr, self.out = thr, out

    def process(self, data_batch: object, data_samples: Sequence[dict]) -> None:
        for sample in data_samples:
            truth = sample['gt_instances']
            points, found = np.array(truth['keypoints'][0]), sample['pred_instances']['keypoints']
            if points.shape != (17, 2):
                raise ValueError(f"PartialPCK takes COCO's 17 keypoints, got {points.shape}")
            visible = np.array(truth['keypoints_visible'][0]).reshape(17, -1)[:, 0] > 0
            box = np.array(truth['bboxes'][0])
            reach = self.thr * max(box[2] - box[0], box[3] - box[1])
            near = np.linalg.norm(np.array(found[0])[:, :2] - points, axis=1) <= reach
            counts = int((near & visible).sum()), int(visible.sum())
            self.results.append((int(sample['id']), extent(visible), *counts))

    def compute_metrics(self, results: list[tuple]) -> dict[str, float]:
        people = sorted(row for row in results if row[3])
        if self.out is not None:
            Path(self.out).parent.mkdir(parents=True, exist_ok=True)
            part = Path(f'{self.out}.part')  # an interrupted run leaves no half of a file
            part.write_text(json.dumps(dict(thr=self.thr, people=people)))
            part.replace(self.out)
        metrics = dict(PCK=_pck(people))
        for name in EXTENTS:
            group = [row for row in people if row[1] == name]
            metrics |= {f'PCK/{name}': _pck(group), f'people/{name}': len(group)}
        return metrics


def _pck(people):
    labeled = sum(row[3] for row in people)
    return sum(row[2] for row in people) / labeled if labeled else float('nan')
