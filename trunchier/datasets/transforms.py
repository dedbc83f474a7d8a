"""Transforms of the mesh model: from a record (one person in an image) to a packed sample.

A record is a dict: `image` (H, W, 3) uint8 BGR as OpenCV reads it (EXIF orientation ignored);
`center` and `scale` of the box; for training and evaluation the other fields of
`conventions.ANNOTATED`; the metainfo `key`, `dataset`, `img_path` and `id`; perhaps `mask` (H, W)
uint8; and for training `rng`, a np.random.Generator seeded by the sample's position in the stream
(a sample is the same in whichever process it is drawn). Pipelines:

    training    [AugmentPerson(), CropPerson(), AddRealPoses(), PackPerson()]
    evaluation  [CropPerson(aspect=(192, 256)), PackPerson()]
"""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.registry import TRANSFORMS

from ..conventions import IMAGE_SIZE, TARGETS, person
from ..files import shipped
from . import crops


@TRANSFORMS.register_module()
@dataclass
class AugmentPerson:
    """Draw the augmentation that `CropPerson` applies. Defaults: HMR2.0's training.

    Args:
        scale: the box is scaled by 1 + scale * N, with N normal and clipped to +-1.
        rotation: degrees, times N clipped to +-2, with probability `rotation_rate`.
        shift: box sides, times N clipped to +-1; always.
        flip_rate: probability of a horizontal flip.
        color: each channel is multiplied by a uniform factor in 1 +- color.
        part_rate: probability of a crop to a part of the body (EFT's extreme crop).
        part_level: 'mild' or 'aggressive', see `crops.PART_RATES`.
    """

    scale: float = 0.3
    rotation: float = 30.0
    rotation_rate: float = 0.6
    shift: float = 0.02
    flip_rate: float = 0.5
    color: float = 0.2
    part_rate: float = 0.1
    part_level: str = 'aggressive'

    def __post_init__(self):
        if (self.part_level, 'full') not in crops.PART_RATES:
            raise ValueError(f"expected part_level 'mild' or 'aggressive', got {self.part_level!r}")

    def __call__(self, record: dict) -> dict:
        rng = record['rng']
        normal = rng.standard_normal(4)
        shift_x, shift_y, grow = np.clip(normal[:3], -1, 1)
        rotates, flip = rng.random(2) < (self.rotation_rate, self.flip_rate)
        augmentation = crops.Augmentation(
            scale=1 + self.scale * grow,
            rotation=self.rotation * np.clip(normal[3], -2, 2) if rotates else 0.0,
            mirror=bool(flip),
            color=tuple(rng.uniform(1 - self.color, 1 + self.color, 3)),
            shift=(self.shift * shift_x, self.shift * shift_y),
        )
        crop_to_part, part = rng.random(2)
        if crop_to_part < self.part_rate:
            augmentation.part = crops.pick_body_part(record['keypoints_2d'], part, self.part_level)
        return {**record, 'augmentation': augmentation}


@TRANSFORMS.register_module()
@dataclass
class CropPerson:
    """Crop the square box of a person and transform the annotation, if there is one.

    Adds `crop` (size, size, 3) BGR, `crop_keypoints_2d`, `warp` (2, 3) from image to crop,
    `box_size` (side of the square box before augmentation, pixels), `input_center` and
    `input_side` of the crop's box, `flip`, and `crop_mask` if the record has a mask. Rotates
    `keypoints_3d` and `pose`.

    Args:
        size: side of the crop, pixels.
        aspect: (width, height) that the box is expanded to before its longer side is taken; None in
            HMR2.0's training, (192, 256) in its evaluation.
        border: 'constant' (black) or 'replicate'.
        antialias: blur before the crop is reduced; 'demo': as 4D-Humans' demo does, by half of the
            reduction, so that 256-pixel crops are blurred of boxes beyond 563 pixels.
        official: reproduce 4D-Humans exactly: colors are not rounded (the crop is float32), and
            `antialias` blurs crops that are *enlarged*.
        box_padding: factor of people's boxes in prediction (1: as 4D-Humans' demo). Not of records:
            their `scale` has it.
    """

    size: int = IMAGE_SIZE
    aspect: tuple[float, float] | None = None
    border: str = 'constant'
    antialias: bool | str = False
    official: bool = False
    box_padding: float = 1.0

    def __post_init__(self):
        if self.border not in ('constant', 'replicate'):
            raise ValueError(f"expected border 'constant' or 'replicate', got {self.border!r}")
        if self.antialias not in (True, False, 'demo'):
            raise ValueError(f"expected antialias True, False or 'demo', got {self.antialias!r}")

    def __call__(self, record: dict) -> dict:
        augmentation = record.get('augmentation') or crops.Augmentation()
        image, size = record['image'], self.size
        width = image.shape[1]
        box_size = crops.expand_to_aspect(record['scale'] * 200.0, self.aspect).max()
        center, side = self._box(record, augmentation, np.float64(record['center']), box_size)

        mirrored = np.array([width - 1 - center[0], center[1]]) if augmentation.mirror else center
        side = side * augmentation.scale
        matrix = crops.crop_matrix(mirrored, side, size, augmentation.rotation)
        demo = self.antialias == 'demo'
        reduced = side / 2 if demo else side
        sigma = crops.blur_sigma(reduced, size, self.official) if self.antialias else 0.0
        truncate = 4.0 if demo else 3.0
        crop = crops.warp(image, matrix, size, augmentation.mirror, self.border, sigma, truncate)

        added = dict(
            crop=self._scale_colors(crop, augmentation.color),
            warp=matrix,
            box_size=float(box_size),
            input_center=center,
            input_side=float(side),
            flip=augmentation.mirror,
        )
        if 'keypoints_2d' in record:
            keypoints = record['keypoints_2d']
            if augmentation.mirror:
                keypoints = crops.flip_keypoints(keypoints, width)
            points = crops.transform_points(keypoints[:, :2].astype(np.float64), matrix)
            points = np.hstack([points / size - 0.5, keypoints[:, 2:]])
            added['crop_keypoints_2d'] = np.float32(points)
        for name, rotate in (('keypoints_3d', crops.rotate_joints), ('pose', crops.rotate_pose)):
            if name in record:
                added[name] = rotate(record[name], augmentation.rotation, augmentation.mirror)
        if record.get('mask') is not None:
            added['crop_mask'] = crops.warp(record['mask'], matrix, size, augmentation.mirror)
        return {**record, **added}

    @staticmethod
    def _box(record, augmentation, center, side):
        if augmentation.part is not None:
            part_center, part_size = crops.body_part_box(
                record['keypoints_2d'], augmentation.part, center, (side, side)
            )
            if part_size.max() >= 4:  # pixels; as in 4D-Humans
                center, side = part_center, part_size.max()
        return center + side * np.array(augmentation.shift), side

    def _scale_colors(self, crop, factors):
        if self.official:
            return crops.scale_colors(crop, factors[::-1])
        if crop.dtype != np.uint8:
            crop = np.uint8(np.clip(np.rint(crop), 0, 255))
        if tuple(factors) == (1, 1, 1):
            return crop
        return crops.scale_colors_uint8(crop, factors[::-1])


@TRANSFORMS.register_module()
class AddRealPoses:
    """Add random real poses for the discriminator to each sample.

    They are drawn with the sample, hence as deterministic as it is: the same after a resume and for
    any number of processes. Adds `real_body_pose` (number, 69), axis-angle of the 23 body joints,
    and `real_betas` (number, 10).

    Args:
        path: npz with `body_pose` (N, 72) and `betas` (N, 10), 4D-Humans' `cmu_mocap.npz`; or
            with `poses` (N, 24, 3); None for the embedded poses.
        number: real poses per sample; 2 in HMR2.0.
    """

    def __init__(self, path: str | Path | None = None, number: int = 2):
        self.path = path
        self.number = number
        self._poses = self._betas = None

    def load(self) -> None:
        """Read the file once, before worker processes are started."""
        if self._poses is None:
            self._poses, self._betas = load_real_poses(self.path)

    def __call__(self, record: dict) -> dict:
        self.load()
        rng = record['rng']
        index = rng.integers(len(self._poses), size=self.number)
        if self._betas is None:
            # The shape components of the embedded body have unit variance.
            betas = rng.standard_normal((self.number, NUM_BETAS)).clip(-3, 3).astype(np.float32)
        else:
            betas = self._betas[index]
        return {**record, 'real_body_pose': self._poses[index], 'real_betas': betas}


EMBEDDED_POSES = shipped.asset('pose_prior.npz')
(POSE_SIZE,), (NUM_BETAS,) = person()['pose'].shape, person()['betas'].shape


def load_real_poses(path: str | Path | None = None) -> tuple[np.ndarray, np.ndarray | None]:
    """Read real poses for the discriminator; `path` as in `AddRealPoses`.

    Returns:
        axis-angle of the body joints (N, 69); betas (N, 10), or None if the file has none.

    Raises:
        FileNotFoundError, ValueError: no such file, or other arrays.
    """
    if path is not None and not Path(path).is_file():
        raise FileNotFoundError(
            f'no real poses {path}; they come with the 4D-Humans training data '
            '(hmr2_training_data/cmu_mocap.npz), or set path=None for the embedded ones'
        )
    with np.load(path or EMBEDDED_POSES, allow_pickle=False) as data:
        name = next((n for n in ('body_pose', 'poses') if n in data), None)
        if name is None:
            raise ValueError(f'{path}: expected body_pose (N, 72), got {sorted(data.files)}')
        poses = data[name].astype(np.float32)
        betas = data['betas'].astype(np.float32) if 'betas' in data else None
    poses = poses.reshape(len(poses), int(np.prod(poses.shape[1:])))
    rows = len(poses) or 'N'
    for key, array, size in ((name, poses, POSE_SIZE), ('betas', betas, NUM_BETAS)):
        if array is not None and (array.shape != (rows, size) or not np.isfinite(array).all()):
            raise ValueError(f'{path}: expected finite {key} ({rows}, {size}), got {array.shape}')
    return poses[:, 3:], betas


@TRANSFORMS.register_module()
class PackPerson:
    """Pack a cropped record as dict(inputs, data_samples), the input of mmpose's models.

    `inputs`: (3, size, size) BGR, uint8 (float32 in 0..255 with `official` crops), which
    PoseDataPreprocessor(bgr_to_rgb=True) converts to RGB and normalizes. `data_samples`: a
    PoseDataSample whose `gt_instances` has one instance with `bboxes` (1, 4) xyxy and, of an
    annotated record, `conventions.TARGETS`, `keypoints` (1, 44, 2) and `keypoints_visible` (1, 44)
    in the image, `real_body_pose`, `real_betas`, `masks`. They are numpy arrays: processes would
    pass each of hundreds of small tensors per batch in a file of its own. Metainfo:
    `META`, `img_shape`, `ori_shape`, `input_size`, `input_scale`, `box_center`, `box_scale`.
    """

    META = ('id', 'key', 'dataset', 'img_path', 'box_size', 'warp', 'input_center', 'flip')

    def __call__(self, record: dict) -> dict:
        from mmengine.structures import InstanceData
        from mmpose.structures import PoseDataSample

        half = record['scale'] * 100
        fields = {'bboxes': np.concatenate([record['center'] - half, record['center'] + half])}
        for name in (*TARGETS, 'real_body_pose', 'real_betas'):
            if name in record:
                fields[name] = record[name]
        if 'keypoints_2d' in record:
            fields['keypoints'] = record['keypoints_2d'][:, :2]
            fields['keypoints_visible'] = record['keypoints_2d'][:, 2]
        if 'crop_mask' in record:
            fields['masks'] = record['crop_mask']
        instances = InstanceData(**{name: array[None] for name, array in fields.items()})

        size = record['crop'].shape[:2]
        meta = {name: record[name] for name in self.META}
        meta.update(
            img_shape=size,
            ori_shape=record['image'].shape[:2],
            input_size=size[::-1],
            input_scale=np.full(2, record['input_side']),
            box_center=record['center'],
            box_scale=record['scale'],
        )
        sample = PoseDataSample(metainfo=meta)
        sample.gt_instances = instances
        crop = np.stack(cv2.split(record['crop']))
        return dict(inputs=torch.from_numpy(crop), data_samples=sample)
