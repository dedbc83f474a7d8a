"""Bodies of people in the SMPL layout, and the camera of the whole image."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from mmengine.registry import TRANSFORMS
from torch import Tensor

from ..conventions import HEAD_FIELDS, JOINTS_44, person
from ..deploy.graph import pipeline_steps
from ..geometry import camera_crop_to_full, full_image_focal, seen_columns
from ..models.mesh.body import BodyModel
from ..models.mesh.estimator import pose_bodies
from ..visualization.overlays import MeshPainter
from .inferencer import Inferencer
from .predictor import Crop, Predictor, checked

if TYPE_CHECKING:
    from mmengine.config import Config

    from ..deploy.runtime import Network

LONG_LENS = '4D-Humans'  # value of `focal`
FIELD_OF_VIEW = 60.0  # degrees along the longer side, of a photo whose lens is unknown
PREDICTED = (
    'keypoints', *HEAD_FIELDS, 'camera_translation', 'vertices', 'joints',
    'translation',
)  # fmt: skip


class MeshPredictor(Predictor):
    """Bodies of people.

    Args:
        network: gives `global_orient`, `body_pose`, `betas` and `camera`.
        focal: focal length of the images, pixels: a number or (fx, fy); or '4D-Humans': 5000 / 256
            of the longer side, as there. None: that of the photo's EXIF data, else by `fov`.
        fov: field of view along the longer side, degrees. None: as `focal` says, else 60.
        intrinsics: (3, 3) camera matrix, instead of `focal`.
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
        self.focal, self.principal_point = _intrinsics(focal, fov, intrinsics)
        self.fov = fov
        self.settings = dict(
            focal=None if focal is None else np.ravel(focal).tolist(),
            fov=fov,
            intrinsics=None if intrinsics is None else np.asarray(intrinsics).tolist(),
            body_model=body_model and str(body_model),
        )
        path = dict(path=str(body_model)) if body_model is not None else None
        self.body = BodyModel(**(path or cfg.model.get('body_model') or {})).to(self.device)
        self.faces = self.body.faces
        self.fields = {name: field.shape for name, field in person().items() if name in PREDICTED}

    @cached_property
    def crop_person(self) -> Callable:
        """Large boxes are blurred as in 4D-Humans' demo, unless the config decides; its evaluation
        does not blur.
        """
        step = pipeline_steps(self.cfg).get('CropPerson', dict(type='CropPerson'))
        return TRANSFORMS.build(dict(antialias='demo') | dict(step))

    def crop_box(self, image: np.ndarray, box: np.ndarray) -> Crop:
        """The columns that the backbone sees of 4D-Humans' square crop."""
        box = box[:4].astype(np.float64)
        center, scale = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 200
        record = self.crop_person(dict(image=image, center=center, scale=scale))
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
        """Camera of the image: `focal_length` and `principal_point`, (2,) pixels, x before y."""
        height, width = shape
        center = self.principal_point
        if center is None:
            center = np.array([width / 2, height / 2])
        if isinstance(self.focal, str):
            focal = float(full_image_focal(torch.tensor([[width, height]])))
        elif self.focal is not None:
            focal = self.focal
        elif self.fov is not None or not focal:
            focal = max(shape) / 2 / np.tan(np.deg2rad(self.fov or FIELD_OF_VIEW) / 2)
        focal = np.broadcast_to(np.float64(focal), 2).copy()
        return dict(focal_length=focal, principal_point=center)

    @torch.no_grad()
    def derived(self, fields: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Vertices and joints of smoothed poses."""
        names = ('global_orient', 'body_pose', 'betas')
        pose = (torch.from_numpy(fields[name]).float().to(self.device) for name in names)
        posed = self.body(*pose)
        return {name: posed[name].cpu().numpy() for name in ('vertices', 'joints')}

    def painter(self, **options: Any) -> MeshPainter:
        return MeshPainter(self.faces, **options)


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


def _intrinsics(focal, fov, intrinsics):
    """Focal lengths as `focal` of MeshPredictor, and (2,) principal point; None: of the image."""
    options = dict(focal=focal, fov=fov, intrinsics=intrinsics)
    given = [name for name, value in options.items() if value is not None]
    if len(given) > 1:
        raise ValueError(f'give one of focal, fov and intrinsics, not both {" and ".join(given)}')
    if fov is not None and not 1 <= fov <= 170:
        raise ValueError(f'fov must be between 1 and 170 degrees, got {fov}')
    if focal is None and intrinsics is None:
        return None, None
    text = np.ravel(focal).tolist()[0] if focal is not None else None  # of the command, [text]
    if isinstance(text, str):
        if text.lower() != LONG_LENS.lower():
            raise ValueError(f'focal must be a number, (fx, fy) or {LONG_LENS!r}, got {text!r}')
        return LONG_LENS, None
    center = None
    if intrinsics is not None:
        matrix = np.asarray(intrinsics, np.float64)
        if matrix.shape != (3, 3):
            raise ValueError(f'intrinsics must have shape (3, 3), got {matrix.shape}')
        focal, center = matrix[[0, 1], [0, 1]], matrix[:2, 2]
    focal = np.asarray(focal, np.float64).reshape(-1)
    if focal.size not in (1, 2) or not (np.isfinite(focal).all() and (focal > 0).all()):
        raise ValueError(f'focal must be one or two positive numbers, in pixels; got {focal}')
    return focal, center


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
