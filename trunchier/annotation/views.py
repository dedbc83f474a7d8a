"""A teacher that also looks at each person mirrored and from farther away, to measure itself.

Agreement is the similarity of COCO's OKS, exp(-d^2 / (2 area (2 sigma)^2)), of each keypoint in two
views, relative to the size of the person; the smaller one of the two further views counts. An
independent pose model, if there is one, sees each person once.
"""

from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np

from ..conventions import COCO_17, COCO_17_SIGMAS, JOINTS_44, JOINTS_44_FLIP, SMPL_24
from ..inference.predictor import Crop, Output, Predictor
from .check import common_keypoints, deviation

ZOOM = 1.25  # of the box of the second scale
SIGMA = 0.079  # of keypoints that COCO does not have
BODY_SHARE = 0.53  # of a box, the area that OKS is relative to
STORED = (  # fields of a person that are written
    'keypoints', 'keypoint_scores', 'global_orient', 'body_pose', 'betas', 'camera', 'translation',
    'joints',
)  # fmt: skip

# Largest angle of each joint of SMPL's skeleton after the pelvis, degrees: left and right alike.
LARGEST = {
    'hip': 145, 'spine1': 70, 'knee': 165, 'spine2': 60, 'ankle': 85, 'spine3': 60, 'foot': 70,
    'neck': 95, 'collar': 70, 'head': 75, 'shoulder': 150, 'elbow': 170, 'wrist': 110, 'hand': 80,
}  # fmt: skip
LIMITS = np.array(
    [LARGEST[joint.removeprefix('left_').removeprefix('right_')] for joint in SMPL_24[1:]]
)
KNEES, STRAIGHT = (3, 4), -35.0  # of the 23 joints; a knee bends forward by less, degrees


@dataclass
class View:
    """Crops of a person: as it is, mirrored, at another scale; those that are asked for."""

    crops: list[Crop]
    box: np.ndarray  # (4,), xyxy
    checked: list[Crop]  # that of the independent pose model, if there is one


class Views:
    """A predictor (see `inference.predictor.Predictor`) that measures each of its predictions.

    Further fields of a person: `agreement` (K,), 0 to 1; `fingerprint` () uint64, see
    `difference_hash`; of bodies `overlap` (), the intersection over union of box and
    projected body, and `excess` (), degrees beyond the limits of the joints. With `check`:
    `deviation` (), see `check.deviation`.

    Args:
        predictor: of the teacher.
        mirrored, scaled: which further views to look at.
        check: of an independent pose model, whose keypoints are compared with the teacher's of the
            same names (of bodies, with their projected joints).

    Raises:
        ValueError: the teacher or `check` finds people itself, in whole images; the teacher gives
            3D joints without bodies; `check` gives bodies, or no keypoint that the teacher has.
    """

    windows = None  # lifted bodies are those of each frame: what is measured is what is written

    def __init__(
        self,
        predictor: Predictor,
        mirrored: bool = True,
        scaled: bool = True,
        check: Predictor | None = None,
    ):
        if predictor.finds_people:
            raise ValueError('a teacher looks at boxes; take a top-down model, not a bottom-up one')
        if getattr(predictor, 'windows', None) is not None and not predictor.has_meshes:
            raise ValueError('3D joints of windows are not annotated; take the 2D model as teacher')
        self.predictor, self.mirrored, self.scaled = predictor, mirrored, scaled
        names = predictor.keypoint_names
        known = dict(zip(COCO_17, COCO_17_SIGMAS, strict=True))
        self.sigmas = np.array([known.get(name.removeprefix('extra_'), SIGMA) for name in names])
        own = names == JOINTS_44
        self.flips = list(JOINTS_44_FLIP if own else predictor.dataset_meta['flip_indices'])
        self.fields = {n: shape for n, shape in predictor.fields.items() if n in STORED}
        self.fields |= dict(agreement=(len(names),), fingerprint=())
        if predictor.has_meshes:
            self.fields |= dict(overlap=(), excess=())
        self.check = check
        if check is not None:
            if check.finds_people or check.has_meshes:
                raise ValueError('only a top-down pose model can check a teacher (--check-pose)')
            self.common = common_keypoints(names, check.keypoint_names)
            self.fields |= dict(deviation=())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.predictor, name)

    def crop(self, image: np.ndarray, box: np.ndarray, focal: float | None = None) -> View:
        first = self.predictor.crop(image, box, focal)
        crops = [first]
        if self.mirrored:
            crops.append(mirrored(first, box[:4]))
        if self.scaled:
            center, half = (box[:2] + box[2:4]) / 2, (box[2:4] - box[:2]) / 2 * ZOOM
            wide = np.concatenate([center - half, center + half, box[4:]])
            crops.append(replace(self.predictor.crop(image, wide, focal), box=box[:4]))
        checked = [self.check.crop(image, box, focal)] if self.check is not None else []
        return View(crops, box[:4], checked)

    def forward(self, views: list[View]) -> list[Output]:
        outputs = [self.predictor.forward([crop for view in views for crop in view.crops])]
        if self.check is not None:
            outputs.append(self.check.forward([crop for view in views for crop in view.checked]))
        return outputs

    def decode(self, outputs: list[Output], views: list[View]) -> list[dict[str, np.ndarray]]:
        crops = [crop for view in views for crop in view.crops]
        predicted = iter(self.predictor.decode(outputs[0], crops))
        people = [self._person(view, [next(predicted) for _ in view.crops]) for view in views]
        if self.check is not None:
            crops = [crop for view in views for crop in view.checked]
            others, (own, same) = self.check.decode(outputs[1], crops), self.common
            for view, person, other in zip(views, people, others, strict=True):
                person['deviation'] = deviation(
                    person['keypoints'][own],
                    other['keypoints'][same, :2],
                    other['keypoint_scores'][same],
                    view.box,
                )
        return people

    def _person(self, view, predictions):
        first, *others = predictions
        points = [first['keypoints'], *(each['keypoints'] for each in others)]
        if self.mirrored:
            points[1] = points[1][self.flips]
            points[1][:, 0] = view.crops[0].shape[1] - 1 - points[1][:, 0]
        area = float(np.prod(view.box[2:] - view.box[:2]))
        alike = [similarity(points[0], each, area, self.sigmas) for each in points[1:]]
        agreement = np.min([np.ones(len(self.sigmas)), *alike], axis=0)
        person = {name: array for name, array in first.items() if name in STORED}
        person['agreement'] = np.float32(agreement)
        person['fingerprint'] = difference_hash(view.crops[0].pixels.numpy())
        if self.predictor.has_meshes:
            camera = self.predictor.metainfo(view.crops[0].shape, view.crops[0].focal)
            placed = first['vertices'] + first['translation']
            person['overlap'] = np.float32(overlap(placed, view.box, *camera.values()))
            person['excess'] = np.float32(joint_excess(first['body_pose']))
        return person


def mirrored(crop: Crop, box: np.ndarray) -> Crop:
    """The crop of the person in the mirrored image, where perspective is mirrored, too.

    Args:
        box: (4,), xyxy, of the person in the image.
    """
    last = crop.shape[1] - 1
    center, box = np.array(crop.center), np.array(box)
    center[0], box[[0, 2]] = last - center[0], last - box[[2, 0]]
    return replace(crop, pixels=crop.pixels.flip(-1), center=center, box=box)


def similarity(
    points: np.ndarray, others: np.ndarray, area: float, sigmas: np.ndarray
) -> np.ndarray:
    """Similarity (K,) of keypoints (K, 2) in a box of `area`, pixels: 1 if equal, towards 0."""
    squared = ((points - others) ** 2).sum(-1)
    return np.exp(-squared / (2 * BODY_SHARE * max(area, 1) * (2 * sigmas) ** 2))


def difference_hash(pixels: np.ndarray) -> np.uint64:
    """64 bits: which of 8 x 8 places is brighter than its right neighbor, of (3, h, w) pixels."""
    gray = np.float32(pixels).mean(0)
    small = cv2.resize(gray, (9, 8), interpolation=cv2.INTER_AREA)
    return np.packbits(small[:, 1:] < small[:, :-1]).view('>u8')[0].astype(np.uint64)


def overlap(vertices: np.ndarray, box: np.ndarray, focal: np.ndarray, center: np.ndarray) -> float:
    """Intersection over union of a box (4,) and the bounds of a body in the image.

    Args:
        vertices: (V, 3), meters, camera of the image.
        focal, center: (2,), pixels, x before y.
    """
    depth = vertices[:, 2:]
    if not (depth > 0).all():
        return 0.0
    points = vertices[:, :2] / depth * focal + center
    low, high = points.min(0), points.max(0)
    common = np.prod(np.maximum(np.minimum(high, box[2:]) - np.maximum(low, box[:2]), 0))
    return float(common / (np.prod(high - low) + np.prod(box[2:] - box[:2]) - common))


def joint_excess(body_pose: np.ndarray) -> float:
    """Degrees by which the worst joint of a body pose, (23, 3, 3) matrices, exceeds its limit."""
    cosines = (np.trace(body_pose, axis1=1, axis2=2) - 1) / 2
    angles = np.degrees(np.arccos(np.clip(cosines, -1, 1)))
    bent = [np.degrees(np.arctan2(m[2, 1] - m[1, 2], m[1, 1] + m[2, 2])) for m in body_pose]
    excess = [*(angles - LIMITS), *(STRAIGHT - bent[knee] for knee in KNEES)]
    return float(max(excess))
