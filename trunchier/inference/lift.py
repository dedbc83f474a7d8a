"""Bodies lifted from the keypoints of a pose model, see `models.lifting.body`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..conventions import COCO_17, JOINTS_44
from ..models.lifting.body import load_lifter
from ..models.mesh.estimator import pose_bodies
from .mesh import MeshPredictor
from .pose import PosePredictor
from .predictor import Crop

if TYPE_CHECKING:
    from mmengine.config import Config

    from ..deploy.runtime import Network

_LIMBS = (f'extra_{name}' if f'extra_{name}' in JOINTS_44 else name for name in COCO_17)
COCO_17_IN_44 = [JOINTS_44.index(name) for name in _LIMBS]
LEAST_KEYPOINTS = 8  # of COCO's that a model must know by name


class LiftPredictor(MeshPredictor):
    """Bodies of people, from the keypoints that a pose model finds.

    Args:
        cfg, network, common: of the pose model; those of its keypoints that have COCO's names are
            used.
        flip_test: see `PosePredictor`.
        lifter: weights of a `BodyLifter`; None: those of this package.
        options: see `MeshPredictor`.

    Raises:
        ValueError: the model knows too few of COCO's keypoints.
    """

    def __init__(
        self,
        cfg: Config,
        network: Network | nn.Module,
        *common: Any,
        flip_test: bool | None = False,
        lifter: str | None = None,
        **options: Any,
    ):
        super().__init__(cfg, network, *common, **options)
        own = dict(device=self.device, precision=self.precision, dataset_meta=self.dataset_meta)
        self.pose = PosePredictor(cfg, network, flip_test=flip_test, **own)
        names = self.pose.keypoint_names
        self.known = [(i, names.index(name)) for i, name in enumerate(COCO_17) if name in names]
        if len(self.known) < LEAST_KEYPOINTS:
            raise ValueError(
                f"a body is lifted from at least {LEAST_KEYPOINTS} of COCO's keypoints; this model "
                f'has {len(self.known)} of them among {", ".join(names)}'
            )
        self.lifter = load_lifter(lifter)
        self.settings |= dict(self.pose.settings, lifter=lifter and str(lifter))

    build = PosePredictor.build
    as_network = PosePredictor.as_network

    def crop_box(self, image: np.ndarray, box: np.ndarray) -> Crop:
        return self.pose.crop_box(image, box)

    def compute(self, images: Tensor) -> dict[str, Tensor]:
        return self.pose.compute(images)

    @torch.no_grad()
    def people(self, tensors: dict[str, Tensor], crops: list[Crop]) -> list[dict[str, np.ndarray]]:
        ours, theirs = map(list, zip(*self.known, strict=True))
        keypoints = torch.zeros(len(crops), len(COCO_17), 2)
        scores = torch.zeros(len(crops), len(COCO_17))
        for index, person in enumerate(self.pose.people(tensors, crops)):
            keypoints[index, ours] = torch.from_numpy(person['keypoints'][theirs]).float()
            scores[index, ours] = torch.from_numpy(person['keypoint_scores'][theirs]).float()
        scores = scores.clamp(0, 1)
        bodies = self.lifter.lift(keypoints, scores)
        pose = (bodies[name].to(self.device) for name in ('global_orient', 'body_pose', 'betas'))
        points = self.body(*pose)['joints'][:, COCO_17_IN_44].cpu()
        bodies['camera'] = fitted_camera(points, keypoints, scores, bodies['camera'])
        squares = [replace(crop, size=np.full(2, crop.size.max())) for crop in crops]
        center = torch.from_numpy(np.float32([crop.center for crop in squares]))
        side = torch.from_numpy(np.float32([crop.size[:1] for crop in squares]))
        scale, shift = bodies['camera'].split((1, 2), 1)  # to pixels of the image
        bodies['camera'] = torch.cat((2 * scale / side, shift - center / scale), 1)
        posed = pose_bodies(
            {name: each.to(self.device) for name, each in bodies.items()}, self.body
        )
        return super().people({name: each.cpu() for name, each in posed.items()}, squares)


def fitted_camera(points: Tensor, keypoints: Tensor, scores: Tensor, guess: Tensor) -> Tensor:
    """The camera that puts points of a body onto keypoints: least squares, weighted by scores.

    Args:
        points: (B, K, 3), meters. keypoints: (B, K, 2), in any unit. scores: (B, K), 0 to 1.
        guess: (B, 3), camera where the points do not tell one, such as two in the same place.

    Returns:
        (B, 3) as (s, tx, ty): a point X is at s * (X[:2] + t).
    """
    weights = scores[..., None].square()
    total = weights.sum(1, keepdim=True).clamp_min(1e-6)
    points = points[..., :2]
    middle, center = ((weights * each).sum(1, keepdim=True) / total for each in (points, keypoints))
    offsets = points - middle
    scale = (weights * offsets * (keypoints - center)).sum((1, 2))
    scale = (scale / (weights * offsets.square()).sum((1, 2)).clamp_min(1e-6))[:, None]
    usable = (scale > 0.5 * guess[:, :1]) & (scale < 2 * guess[:, :1])
    camera = torch.cat((scale, center[:, 0] / scale - middle[:, 0]), 1)
    return torch.where(usable, camera, guess)
