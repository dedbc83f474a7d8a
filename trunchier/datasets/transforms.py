"""From a record (a picture and one person in it) to what the mesh model is fed.

A record is a dict: `image` (H, W, 3) uint8 BGR as OpenCV reads it (EXIF orientation ignored), the
keys of `annotations.FORM`, the names `key`, `dataset`, `img_path` and the number `id`, perhaps
`mask` (H, W) uint8, and `rng`, a np.random.Generator seeded by the sample's position in the stream
(so that a sample is the same, whichever process draws it). Pipelines:

    training    [AugmentPerson(), CropPerson(), AddRealPoses(), PackPerson()]
    evaluation  [CropPerson(aspect=(192, 256)), PackPerson()]
"""

from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.registry import TRANSFORMS

from ..conventions import BODIES, IMAGE_SIZE
from ..files import shipped
from . import crops

NUM_BETAS = BODIES['smpl'].num_betas


@TRANSFORMS.register_module()
class AugmentPerson:
    """Draws what happens to a sample; `CropPerson` does it. Defaults: HMR2.0's training.

    Args:
        scale, rotation, rotation_rate, shift, flip_rate, colour: see `crops.draw_augmentation`.
        part_rate: probability of a crop to a part of the body (EFT's extreme crop).
        part_level: 'mild' or 'aggressive', see `crops.PART_RATES`.
    """

    def __init__(
        self,
        scale=0.3,
        rotation=30.0,
        rotation_rate=0.6,
        shift=0.02,
        flip_rate=0.5,
        colour=0.2,
        part_rate=0.1,
        part_level='aggressive',
    ):
        if (part_level, 'full') not in crops.PART_RATES:
            raise ValueError(f"part_level is 'mild' or 'aggressive', got {part_level!r}")
        self.draw = dict(
            scale=scale,
            rotation=rotation,
            rotation_rate=rotation_rate,
            shift=shift,
            flip_rate=flip_rate,
            colour=colour,
        )
        self.part_rate = part_rate
        self.part_level = part_level

    def __call__(self, record):
        rng = record['rng']
        augmentation = crops.draw_augmentation(rng, **self.draw)
        crop_to_part, which = rng.random(2)
        if crop_to_part < self.part_rate:
            augmentation.part = crops.pick_body_part(record['keypoints_2d'], which, self.part_level)
        return {**record, 'augmentation': augmentation}


@TRANSFORMS.register_module()
class CropPerson:
    """Cuts the square crop and moves the annotation with it.

    Adds `crop` (size, size, 3) BGR, `crop_keypoints` (44, 3) in crop units (-0.5 to 0.5 across),
    `joints` (44, 4), `pose` (72,), `warp` (2, 3) from picture to crop, `box_size` (the side of
    the square box before augmentation, pixels), `input_center` and `input_side` of the box that
    was cut, and `crop_mask` if the record has a mask.

    Args:
        size: side of the crop, pixels.
        aspect: (width, height) that the box is expanded to before its longer side counts; None in
            HMR2.0's training, (192, 256) in its evaluation.
        border: 'constant' (black) or 'replicate'.
        antialias: blur before the crop is made smaller.
        official: as 4D-Humans where a result depends on it: colours are not rounded (the crop is
            float32), and `antialias` blurs what is *enlarged*.
    """

    def __init__(
        self, size=IMAGE_SIZE, aspect=None, border='constant', antialias=False, official=False
    ):
        if border not in ('constant', 'replicate'):
            raise ValueError(f"border is 'constant' or 'replicate', got {border!r}")
        self.size = size
        self.aspect = aspect
        self.border = border
        self.antialias = antialias
        self.official = official

    def __call__(self, record):
        augmentation = record.get('augmentation') or crops.Augmentation()
        image, size = record['image'], self.size
        width = image.shape[1]
        box_size = crops.expand_to_aspect(record['scale'] * 200.0, self.aspect).max()
        centre, side = self._place(record, augmentation, np.float64(record['center']), box_size)

        mirrored = np.array([width - 1 - centre[0], centre[1]]) if augmentation.mirror else centre
        side = side * augmentation.scale
        matrix = crops.crop_matrix(mirrored, side, size, augmentation.rotation)
        sigma = crops.blur_sigma(side, size, self.official) if self.antialias else 0.0
        crop = crops.warp(
            image, matrix, size, augmentation.mirror, self.border, sigma=sigma, truncate=3.0
        )

        keypoints = record['keypoints_2d']
        if augmentation.mirror:
            keypoints = crops.flip_keypoints(keypoints, width)
        points = crops.transform_points(keypoints[:, :2].astype(np.float64), matrix) / size - 0.5
        added = dict(
            crop=self._paint(crop, augmentation.colour),
            crop_keypoints=np.float32(np.hstack([points, keypoints[:, 2:]])),
            joints=crops.turn_joints(
                record['keypoints_3d'], augmentation.rotation, augmentation.mirror
            ),
            pose=crops.turn_pose(record['body_pose'], augmentation.rotation, augmentation.mirror),
            warp=matrix,
            box_size=float(box_size),
            input_center=centre,
            input_side=float(side),
            flip=augmentation.mirror,
        )
        if record.get('mask') is not None:
            added['crop_mask'] = crops.warp(record['mask'], matrix, size, augmentation.mirror)
        return {**record, **added}

    @staticmethod
    def _place(record, augmentation, centre, side):
        if augmentation.part is not None:
            part_centre, part_size = crops.body_part_box(
                record['keypoints_2d'], augmentation.part, centre, (side, side)
            )
            if part_size.max() >= 4:  # pixels; as in 4D-Humans
                centre, side = part_centre, part_size.max()
        return centre + side * np.array(augmentation.shift), side

    def _paint(self, crop, factors):
        if self.official:
            return crops.scale_colours(crop, factors[::-1])
        if crop.dtype != np.uint8:
            crop = np.uint8(np.clip(np.rint(crop), 0, 255))
        if tuple(factors) == (1, 1, 1):
            return crop
        return crops.scale_colours_uint8(crop, factors[::-1])


@TRANSFORMS.register_module()
class AddRealPoses:
    """Gives each sample some real poses, for the discriminator.

    They ride with the sample so that they are as deterministic as it is: the same after a resume
    and for any number of processes. Adds `real_body_pose` (number, 69) axis-angle and
    `real_betas` (number, 10).

    Args:
        path: npz with `body_pose` (N, 72) and `betas` (N, 10), 4D-Humans' `cmu_mocap.npz`; or
            with `poses` (N, 24, 3); None for the embedded poses.
        number: real poses a sample; 2 in HMR2.0.
    """

    def __init__(self, path=None, number=2):
        self.path = path
        self.number = number
        self._poses = self._betas = None

    def load(self):
        """Read the file, once, before worker processes share it."""
        if self._poses is None:
            self._poses, self._betas = load_real_poses(self.path)

    def __call__(self, record):
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


def load_real_poses(path=None):
    """Real poses for the discriminator.

    Args:
        path: see `AddRealPoses`.

    Returns:
        body pose (N, 69), axis-angle; betas (N, 10), or None if the file states none.

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
            raise ValueError(f'{path} wants body_pose (N, 72), found {sorted(data.files)}')
        poses = data[name].astype(np.float32)
        betas = data['betas'].astype(np.float32) if 'betas' in data else None
    poses = poses.reshape(len(poses), int(np.prod(poses.shape[1:])))
    if len(poses) == 0 or poses.shape[1] != 72 or not np.isfinite(poses).all():
        raise ValueError(f'{path}: {name} wants finite (N, 72), got {poses.shape}')
    if betas is not None and (
        betas.shape != (len(poses), NUM_BETAS) or not np.isfinite(betas).all()
    ):
        raise ValueError(f'{path}: betas want finite ({len(poses)}, 10), got {betas.shape}')
    return poses[:, 3:], betas


@TRANSFORMS.register_module()
class PackPerson:
    """Packs a cropped record as dict(inputs, data_samples), as mmpose's models take it.

    `inputs`: (3, size, size) BGR, uint8 (float32 in 0..255 with `official` crops), which
    PoseDataPreprocessor(bgr_to_rgb=True) turns and normalises. `data_samples`: a PoseDataSample
    whose `gt_instances` hold numpy arrays with a leading 1: `keypoints_2d` (1, 44, 3) in crop
    units, `keypoints_3d` (1, 44, 4) metres, `global_orient` (1, 3) and `body_pose` (1, 69)
    axis-angle, `betas` (1, 10), `has_body_pose` (for both rotations) and `has_betas` (1,),
    `keypoints` (1, 44, 2) and `keypoints_visible` (1, 44) in the picture, `bboxes` (1, 4) xyxy,
    and, where there are any, `real_body_pose`, `real_betas`, `masks`. Arrays, not tensors:
    hundreds of small tensors a batch would each travel in a file of their own between processes.
    Metainfo: `META`, `img_shape`, `ori_shape`, `input_size`, `input_scale`.
    """

    META = ('id', 'key', 'dataset', 'img_path', 'box_size', 'warp', 'input_center', 'flip')

    def __call__(self, record):
        from mmengine.structures import InstanceData
        from mmpose.structures import PoseDataSample

        pose, keypoints = record['pose'], record['keypoints_2d']
        half = record['scale'] * 100
        instances = InstanceData(
            keypoints_2d=record['crop_keypoints'][None],
            keypoints_3d=record['joints'][None],
            global_orient=pose[None, :3],
            body_pose=pose[None, 3:],
            betas=record['betas'][None],
            has_body_pose=record['has_body_pose'].reshape(1),
            has_betas=record['has_betas'].reshape(1),
            keypoints=keypoints[None, :, :2],
            keypoints_visible=keypoints[None, :, 2],
            bboxes=np.concatenate([record['center'] - half, record['center'] + half])[None],
        )
        for name in ('real_body_pose', 'real_betas'):
            if name in record:
                instances.set_field(record[name][None], name)
        if 'crop_mask' in record:
            instances.set_field(record['crop_mask'][None], 'masks')

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
