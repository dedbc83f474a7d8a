"""Bodies lifted from the keypoints of a pose model, see `models.lifting.body`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..conventions import COCO_17, COCO_17_SYNONYMS, JOINTS_44, person
from ..files import shipped
from ..geometry import (
    camera_to_translation,
    matrix_to_rotation_6d,
    perspective_projection,
    rotation_6d_to_matrix,
)
from ..models.lifting.body import load_lifter
from ..models.lifting.facing import facing, facing_track, turned
from ..models.lifting.fit import FRAMES, KeypointFit
from ..models.lifting.track import TRACK_LIFTER, BodyTrackLifter, load_track_lifter
from ..visualization.overlays import PerspectivePainter
from .camera import crop_camera, translations
from .mesh import MeshPredictor
from .pose import PosePredictor
from .predictor import Crop
from .windows import WindowModel

if TYPE_CHECKING:
    from mmengine.config import Config

    from ..deploy.runtime import Network

_LIMBS = (f'extra_{name}' if f'extra_{name}' in JOINTS_44 else name for name in COCO_17)
COCO_17_IN_44 = [JOINTS_44.index(name) for name in _LIMBS]
OUTLINE = 10  # every such vertex, of those that may be at the sides of a box
LEAST_KEYPOINTS = 10  # of COCO's that a model must know by name
SETS = 'COCO, COCO-WholeBody, Halpe, MPII, AIC, CrowdPose, JHMDB, PoseTrack18, Human3.6M'


class LiftPredictor(MeshPredictor):
    """Bodies of people, from the keypoints that a pose model finds.

    Args:
        cfg, network, common: of the pose model; see `coco_places` for which.
        flip_test: see `PosePredictor`.
        lifter: weights of a `BodyLifter`; None: those of this package.
        causal: if these lift windows of videos, from past frames alone; None: of cameras.
        options: see `MeshPredictor`.

    Raises:
        ValueError: see `coco_places`.
    """

    painter_type = PerspectivePainter

    def __init__(
        self,
        cfg: Config,
        network: Network | nn.Module,
        *common: Any,
        flip_test: bool | None = False,
        lifter: str | None = None,
        causal: bool | None = None,
        **options: Any,
    ):
        super().__init__(cfg, network, *common, **options)
        own = dict(device=self.device, precision=self.precision, dataset_meta=self.dataset_meta)
        self.pose = PosePredictor(cfg, network, flip_test=flip_test, **own)
        self.known = coco_places(self.pose.keypoint_names)
        self.lifter, self.fit, self.causal = load_lifter(lifter), KeypointFit(), causal
        if lifter is None and shipped.asset(TRACK_LIFTER).is_file():
            self.windows = BodyWindows(self, load_track_lifter())
        self.fields |= dict(coco_keypoints=person()['coco_keypoints'].shape)
        self.settings |= dict(self.pose.settings, lifter=lifter and str(lifter), causal=causal)

    build = PosePredictor.build
    as_network = PosePredictor.as_network

    def crop_box(self, image: np.ndarray, box: np.ndarray) -> Crop:
        return self.pose.crop_box(image, box)

    def compute(self, images: Tensor) -> dict[str, Tensor]:
        return self.pose.compute(images)

    @torch.no_grad()
    def people(self, tensors: dict[str, Tensor], crops: list[Crop]) -> list[dict[str, np.ndarray]]:
        ours, theirs = map(list, zip(*self.known, strict=True))
        keypoints = torch.zeros(len(crops), len(COCO_17), 3)
        for index, found in enumerate(self.pose.people(tensors, crops)):
            keypoints[index, ours, :2] = torch.from_numpy(found['keypoints'][theirs]).float()
            keypoints[index, ours, 2] = torch.from_numpy(found['keypoint_scores'][theirs]).float()
        keypoints[..., 2].clamp_(0, 1)
        bodies = self.lifted(keypoints[..., :2], keypoints[..., 2], *self.lenses(crops))
        return self.placed(bodies, keypoints, crops)

    def lenses(self, crops: list[Crop]) -> tuple[np.ndarray, np.ndarray]:
        """Focal lengths and principal points of the crops' images: (P, 2) each, pixels."""
        lenses = [self.metainfo(crop.shape, crop.focal).values() for crop in crops]
        focal, center = (np.stack(each) for each in zip(*lenses, strict=True))
        return focal, center

    def lifted(
        self, keypoints: Tensor, scores: Tensor, focal: np.ndarray, center: np.ndarray
    ) -> dict[str, Tensor]:
        """Bodies of keypoints, each of a frame alone, and fitted.

        Args:
            keypoints: (P, 17, 2), pixels. scores: (P, 17). focal, center: see `facing`.
        """
        seen, turns = facing(keypoints, scores, focal, center)
        return turned(self.fit(self.lifter.lift(seen, scores), seen, scores), turns)

    def placed(
        self, bodies: dict[str, Tensor], keypoints: Tensor, crops: list[Crop]
    ) -> list[dict[str, np.ndarray]]:
        """People with the bodies (P, ...) of a lifter, put onto keypoints (P, 17, 3)."""
        pose = (bodies[name].to(self.device) for name in ('global_orient', 'body_pose', 'betas'))
        body = {name: each.cpu() for name, each in self.body(*pose).items()}
        focal, center = self.lenses(crops)
        place = translations(
            body['joints'][:, COCO_17_IN_44].numpy(),
            keypoints[..., :2].numpy(),
            keypoints[..., 2].numpy(),
            focal,
            center,
            np.array([crop.box for crop in crops], np.float64),
            body['vertices'][:, ::OUTLINE].numpy(),
            np.array([crop.shape for crop in crops]),
        )
        middle = np.array([crop.center for crop in crops])
        side = np.array([crop.size.max() for crop in crops])
        camera = torch.from_numpy(crop_camera(place, middle, side, focal, center))
        translation = torch.from_numpy(place)
        pixels = perspective_projection(body['joints'], translation, torch.from_numpy(focal))
        pixels += torch.from_numpy(center)[:, None]
        found = bodies | body | dict(
            keypoints=pixels, translation=translation, camera=camera, coco_keypoints=keypoints,
            camera_translation=camera_to_translation(camera),
        )  # fmt: skip
        found = {name: found[name].float().cpu().numpy() for name in self.fields}
        return [{name: each[index] for name, each in found.items()} for index in range(len(crops))]


def coco_places(names: Sequence[str]) -> list[tuple[int, int]]:
    """Where COCO's keypoints are among `names`: (place in COCO's 17, place in names) of each.

    Lifters take the 17, of which those that are not there count as unknown.

    Raises:
        ValueError: there are fewer than `LEAST_KEYPOINTS`.
    """
    places = {name: index for index, name in enumerate(names)}
    found = [places.get(name, places.get(COCO_17_SYNONYMS.get(name))) for name in COCO_17]
    known = [(ours, theirs) for ours, theirs in enumerate(found) if theirs is not None]
    if len(known) < LEAST_KEYPOINTS:
        raise ValueError(
            f'a body is lifted from at least {LEAST_KEYPOINTS} of {", ".join(COCO_17)}, as '
            f'{SETS} and others have them; this model has {len(known)} of them among '
            f'{", ".join(names)}'
        )
    return known


class BodyWindows(WindowModel):
    """Bodies from windows of the keypoints that a LiftPredictor found, instead of from a frame.

    Args:
        predictor: that places the bodies.
        lifter: of windows.
        fit_frames: that the fit to keypoints is averaged over, see `KeypointFit`.
    """

    inputs = ('coco_keypoints',)

    def __init__(
        self, predictor: LiftPredictor, lifter: BodyTrackLifter, fit_frames: float = FRAMES
    ):
        self.predictor, self.lifter, self.length = predictor, lifter, lifter.window
        self.fit_frames = fit_frames
        self.overlap = 2 * self.length // 3

    def __call__(
        self, fields: dict[str, np.ndarray], known: np.ndarray, result: Any
    ) -> dict[str, np.ndarray]:
        keypoints = torch.from_numpy(fields['coco_keypoints']).float()
        scores = keypoints[..., 2] * torch.from_numpy(known)[..., None]
        lens = result.focal_length, result.principal_point
        lifted = [self.lift(*each, *lens) for each in zip(keypoints[..., :2], scores, strict=True)]
        return {name: torch.stack([each[name] for each in lifted]).numpy() for name in lifted[0]}

    def lift(
        self, keypoints: Tensor, scores: Tensor, focal: np.ndarray, center: np.ndarray
    ) -> dict[str, Tensor]:
        """Bodies of a window; of a frame alone, such as an image, by the lifter of frames.

        Args:
            keypoints: (T, 17, 2), pixels. scores: (T, 17). focal, center: (2,), pixels.
        """
        known = (scores > 0).any(1)
        if known.sum() != 1:
            seen, turns = facing_track(keypoints, scores, focal, center)
            bodies = self.lifter.lift(seen, scores)
            return turned(self.predictor.fit(bodies, seen, scores, self.fit_frames), turns)
        body = self.predictor.lifted(keypoints[known], scores[known], focal, center)
        return {name: each.expand(len(known), *each.shape[1:]) for name, each in body.items()}

    @torch.no_grad()
    def finish(self, result: Any, values: dict[str, np.ndarray]) -> None:
        people = result.pred_instances
        if not len(people):
            return
        bodies = {name: torch.from_numpy(array) for name, array in values.items()}
        for name in ('global_orient', 'body_pose'):  # blended linearly
            bodies[name] = rotation_6d_to_matrix(matrix_to_rotation_6d(bodies[name]))
        lens = dict(shape=result.ori_shape, focal=float(result.focal_length[0]))
        crops = [Crop.of_box(box, **lens) for box in people.bboxes[:, :4]]
        keypoints = torch.from_numpy(people.coco_keypoints)
        placed = self.predictor.placed(bodies, keypoints, crops)
        for name in placed[0]:
            people.set_field(np.stack([each[name] for each in placed]), name)
