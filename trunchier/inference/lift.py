"""Bodies lifted from the keypoints of a pose model, see `models.lifting`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..conventions import COCO_17
from ..models.lifting import load_lifter
from ..models.mesh.estimator import pose_bodies
from .mesh import MeshPredictor
from .pose import PosePredictor
from .predictor import Crop

if TYPE_CHECKING:
    from mmengine.config import Config

    from ..deploy.runtime import Network

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
        bodies = self.lifter.lift(keypoints, scores.clamp(0, 1))
        squares = [replace(crop, size=np.full(2, crop.size.max())) for crop in crops]
        center = torch.from_numpy(np.float32([crop.center for crop in squares]))
        side = torch.from_numpy(np.float32([crop.size[:1] for crop in squares]))
        scale, shift = bodies['camera'].split((1, 2), 1)  # to pixels of the image
        bodies['camera'] = torch.cat((2 * scale / side, shift - center / scale), 1)
        posed = pose_bodies(
            {name: each.to(self.device) for name, each in bodies.items()}, self.body
        )
        return super().people({name: each.cpu() for name, each in posed.items()}, squares)
