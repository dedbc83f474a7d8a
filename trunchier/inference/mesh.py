"""Bodies of people in the SMPL layout, and the camera of the whole image."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from mmengine.registry import TRANSFORMS
from torch import Tensor

from ..conventions import HEAD_FIELDS, JOINTS_44, person
from ..deploy.graph import pipeline_steps
from ..geometry import camera_crop_to_full, seen_columns
from ..models.mesh.body import BodyModel
from ..models.mesh.estimator import pose_bodies
from ..visualization.overlays import MeshPainter
from .camera import Lens
from .inferencer import Inferencer
from .predictor import Crop, Predictor, checked

if TYPE_CHECKING:
    from mmengine.config import Config

    from ..datasets.transforms import CropPerson
    from ..deploy.runtime import Network

PREDICTED = (
    'keypoints', *HEAD_FIELDS, 'camera_translation', 'vertices', 'joints',
    'translation',
)  # fmt: skip


class MeshPredictor(Predictor):
    """Bodies of people.

    Args:
        network: gives `global_orient`, `body_pose`, `betas` and `camera`.
        focal, fov, intrinsics: of the images, see `camera.Lens`.
        body_model: path of an SMPL model, see `models.mesh.body.BodyModel`; None: the embedded
            body.
        cfg, device, precision, dataset_meta: see `Predictor`.
    """

    smoothed = ('keypoints', 'global_orient', 'body_pose', 'betas', 'translation')
    painter_type = MeshPainter
    has_meshes = True
    keypoint_names = JOINTS_44

    def __init__(
        self,
        cfg: Config,
        network: Network,
        *common: Any,
        focal: float | tuple[float, float] | str | None = None,
        fov: float | None = None,
        intrinsics: np.ndarray | None = None,
        body_model: str | None = None,
        **options: Any,
    ):
        super().__init__(cfg, network, *common, **options)
        self.lens = Lens(focal, fov, intrinsics)
        self.settings = dict(self.lens.settings, body_model=body_model and str(body_model))
        path = dict(path=str(body_model)) if body_model is not None else None
        self.body = BodyModel(**(path or cfg.model.get('body_model') or {})).to(self.device)
        self.faces = self.body.faces
        self.fields = {name: field.shape for name, field in person().items() if name in PREDICTED}

    @cached_property
    def crop_person(self) -> CropPerson:
        """Large boxes are blurred as in 4D-Humans' demo, unless the config decides; its evaluation
        does not blur.
        """
        step = dict(antialias='demo') | dict(pipeline_steps(self.cfg).get('CropPerson', {}))
        step.pop('type', None)
        return TRANSFORMS.get('CropPerson')(**step)  # `build` would import mmpose

    def crop_box(self, image: np.ndarray, box: np.ndarray) -> Crop:
        """The columns that the backbone sees of 4D-Humans' square crop."""
        box = box[:4].astype(np.float64)
        center, size = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) * self.crop_person.box_padding
        record = self.crop_person(dict(image=image, center=center, scale=size / 200))
        pixels = seen_columns(torch.from_numpy(record['crop']).permute(2, 0, 1)).contiguous()
        side = np.full(2, record['input_side'])
        return Crop(pixels, record['input_center'], side, image.shape[:2])

    def compute(self, images: Tensor) -> dict[str, Tensor]:
        shapes = {name: person()[name].shape for name in HEAD_FIELDS}
        return pose_bodies(checked(self.network(images), shapes, len(images)), self.body)

    def people(self, tensors: dict[str, Tensor], crops: list[Crop]) -> list[dict[str, np.ndarray]]:
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        points, people = arrays.pop('crop_keypoints'), []
        for index, crop in enumerate(crops):
            person = {name: array[index] for name, array in arrays.items()}
            person['keypoints'] = points[index] * np.float32(crop.size) + np.float32(crop.center)
            box, camera = [[*crop.center, crop.size[0]]], self.metainfo(crop.shape, crop.focal)
            person['translation'] = full_camera(person['camera'][None], box, *camera.values())[0]
            people.append(person)
        return people

    def metainfo(self, shape: tuple[int, int], focal: float | None = None) -> dict[str, np.ndarray]:
        """Camera of the image, see `camera.Lens`."""
        return self.lens.of(shape, focal)

    @torch.no_grad()
    def derived(self, fields: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Vertices and joints of smoothed poses."""
        names = ('global_orient', 'body_pose', 'betas')
        pose = (torch.from_numpy(fields[name]).float().to(self.device) for name in names)
        posed = self.body(*pose)
        return {name: posed[name].cpu().numpy() for name in ('vertices', 'joints')}

    def painter(self, **options: Any) -> MeshPainter:
        return self.painter_type(self.faces, **options)


def full_camera(
    camera: np.ndarray, boxes: np.ndarray, focal: np.ndarray, center: np.ndarray
) -> np.ndarray:
    """Translations of bodies into the camera of the whole image.

    The crop's camera (s, tx, ty) puts a point X of the body at pixel box_center + s * side / 2 *
    (X + t) for points at the body's depth; so does the camera with `focal` and `center` after this
    translation. Pixels that are not square (fx != fy) are first made square, along y.

    Args:
        camera: (P, 3) as (s, tx, ty).
        boxes: (P, 3) as center x, center y, side of the square crop, pixels of the image.
        focal, center: (2,), pixels of the image, x before y.

    Returns:
        (P, 3), meters.
    """
    camera, boxes, focal, center = (
        torch.from_numpy(np.asarray(a, np.float64)) for a in (camera, boxes, focal, center)
    )
    y = center[1] + (boxes[:, 1] - center[1]) * focal[0] / focal[1]
    squared, size = torch.stack([boxes[:, 0], y], 1), (2 * center).expand(len(boxes), 2)
    return camera_crop_to_full(camera, squared, boxes[:, 2], size, focal[0]).float().numpy()


class MeshInferencer(Inferencer):
    """Bodies of people in images, videos and cameras, in the SMPL layout.

    `pred_instances` of a result: `keypoints` (P, 44, 2) pixels, `global_orient` (P, 1, 3, 3) and
    `body_pose` (P, 23, 3, 3) rotation matrices, `betas` (P, 10), `camera` (P, 3) and
    `camera_translation` (P, 3) of the crop, `vertices` (P, 6890, 3) and `joints` (P, 44, 3) in
    meters before `translation` (P, 3), which moves them into the camera of the whole image: x
    right, y down, z forward. Its `focal_length` (2,) and `principal_point` (2,), in pixels, are
    metainfo.

    Args:
        focal, fov, intrinsics, body_model: see `MeshPredictor`.
        model, weights, options: see `Inferencer`.
    """

    task = 'mesh'
