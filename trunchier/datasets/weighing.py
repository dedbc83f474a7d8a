"""How much a person's labels and the teacher count in distillation."""

from dataclasses import dataclass

import numpy as np
from mmengine.registry import TRANSFORMS

CONFIDENT = ('keypoints_2d', 'crop_keypoints_2d', 'keypoints_3d')  # confidence in the last column


@TRANSFORMS.register_module()
@dataclass
class WeighPerson:
    """Multiply the weights of a person's labels, and set that of the teacher.

    Between GenerateTarget and PackPoseInputs of a pose pipeline, anywhere before PackPerson of a
    mesh pipeline. `labels=0` hides the labels: of people without any, as detections are, or in
    experiments. The teacher's weight is read by HeatmapDistiller; a BodyDistiller weighs by the
    teacher's agreement with itself.

    Args:
        labels, teacher: factors, at least 0.

    Raises:
        ValueError: a negative factor; KeyError: no labels to weigh, it is in the wrong place.
    """

    labels: float = 1.0
    teacher: float = 1.0

    def __post_init__(self):
        if self.labels < 0 or self.teacher < 0:
            raise ValueError(f'weights are at least 0, got {self.labels} and {self.teacher}')

    def __call__(self, record: dict) -> dict:
        record = dict(record)
        if 'keypoint_weights' in record:
            record['keypoint_weights'] = record['keypoint_weights'] * np.float32(self.labels)
            packed = record.get('label_mapping_table') or dict(keypoint_weights='keypoint_weights')
            record['label_mapping_table'] = dict(packed, teacher_weight='teacher_weight')
            record['teacher_weight'] = np.float32([self.teacher])
        elif 'has_pose' in record:
            for name in CONFIDENT:
                if name in record:
                    record[name] = _with_confidence(record[name], self.labels)
            for name in ('has_pose', 'has_betas'):
                record[name] = record[name] * np.float32(self.labels)
        else:
            raise KeyError('WeighPerson stands after GenerateTarget, or before PackPerson')
        return record


def _with_confidence(points, factor):
    points = np.array(points)
    points[..., -1] *= factor
    return points
