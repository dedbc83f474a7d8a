"""The part of a model that goes into an exported file, and its description.

A graph takes normalized float32 crops and returns a tuple of float32 tensors; steps before and
after it are described by the file's metadata (docs/export.md).
"""

import copy
import warnings

import numpy as np
from mmengine.config import Config
from torch import Tensor, nn

from ..conventions import (
    COCO_17,
    COCO_17_FLIP,
    COCO_17_SIGMAS,
    COCO_17_SKELETON,
    FOCAL_LENGTH,
    HEAD_FIELDS,
    IMAGE_SIZE,
    JOINTS_44,
    POSED_FIELDS,
    SMPL_24,
    SMPL_PARENTS,
    person,
)
from ..files.version import PRODUCER
from ..weights.find import Found, row_of
from ..weights.inspection import box_padding

NO_BODY = 'the model has no body to export; leave --with-body and --body-model out'
LAYOUTS = {'heatmaps': '(batch, keypoints, height, width)'} | {
    name: f'(batch, {", ".join(map(str, shape))}) {unit}'.strip()
    for name, (shape, unit) in person().items()
}


class PoseGraph(nn.Module):
    """Heatmaps of a top-down pose model."""

    body_outputs = ()
    outputs = ('heatmaps',)

    def __init__(self, model: nn.Module, with_body: bool):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return (self.model.head(self.model.extract_feat(images)),)

    @staticmethod
    def describe(cfg: Config, dataset_meta: dict | None) -> dict:
        """Crop, codec and keypoints; the data set of `cfg` names them if nothing else does."""
        meta = keypoint_meta(cfg) if dataset_meta is None else dataset_meta
        steps = pipeline_steps(cfg)
        affine = steps.get('TopdownAffine', {})
        codec = {key: value for key, value in cfg.model.head.decoder.items() if key != 'type'}
        names, channels = meta['keypoint_id2name'], cfg.model.head.out_channels
        if len(names) != channels:
            raise ValueError(f'the model has {channels} keypoints, its data set {len(names)}')
        return dict(
            input_size=list(affine.get('input_size', codec['input_size'])),
            box_padding=box_padding(cfg),
            udp=bool(affine.get('use_udp')),
            codec=dict(type=cfg.model.head.decoder.type, **codec),
            keypoint_names=[names[index] for index in range(channels)],
            flip_indices=list(meta['flip_indices']),
            skeleton=[list(link) for link in meta['skeleton_links']],
        )


BLUE, GREEN, ORANGE = (51, 153, 255), (0, 255, 0), (255, 128, 0)  # head and trunk, left, right
TRUNK, COCO_TYPES = {'shoulder', 'hip'}, ('CocoDataset', 'CheckedCocoDataset')
LIMBS = ('shoulder', 'elbow', 'wrist', 'hip', 'knee', 'ankle')


def coco_meta() -> dict:
    """mmpose's metainfo of COCO's 17 keypoints, as far as prediction needs it."""

    def color(*names):
        limbs = [name for name in names if name.endswith(LIMBS)]
        sides = {name.partition('_')[0] for name in limbs}
        own = len(limbs) == len(names) and len(sides) == 1
        trunk = len(names) == 2 and {each.partition('_')[2] for each in names} == TRUNK
        return (GREEN if 'left' in sides else ORANGE) if own and not trunk else BLUE

    links = [(COCO_17[a], COCO_17[b]) for a, b in COCO_17_SKELETON]
    return dict(
        dataset_name='coco',
        num_keypoints=len(COCO_17),
        keypoint_id2name=dict(enumerate(COCO_17)),
        keypoint_name2id={name: index for index, name in enumerate(COCO_17)},
        flip_indices=list(COCO_17_FLIP),
        num_skeleton_links=len(links),
        skeleton_links=list(COCO_17_SKELETON),
        keypoint_colors=np.array([color(name) for name in COCO_17]),
        skeleton_link_colors=np.array([color(*link) for link in links]),
        sigmas=np.array(COCO_17_SIGMAS, np.float32),
    )


def keypoint_meta(cfg: Config) -> dict:
    """mmpose's metainfo of the keypoints of the data set that a config names, else COCO's."""
    dataset = cfg.get('train_dataloader', {}).get('dataset', {})
    if dataset.get('type') in COCO_TYPES and not dataset.get('metainfo'):
        return coco_meta()
    from mmpose.apis.inference import dataset_meta_from_config
    from mmpose.datasets.datasets.utils import parse_pose_metainfo

    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # the file of keypoints is mmpose's own
        meta = dataset_meta_from_config(cfg, 'train')
        return meta or parse_pose_metainfo(dict(from_file='configs/_base_/datasets/coco.py'))


def pipeline_steps(cfg: Config) -> dict[str, dict]:
    """Steps of a config's test pipeline, by type."""
    return {step['type']: step for step in cfg.test_dataloader.dataset.pipeline}


class MeshGraph(nn.Module):
    """SMPL parameters and the crop's camera of a MeshEstimator, and the posed body on request."""

    body_outputs = POSED_FIELDS

    def __init__(self, model: nn.Module, with_body: bool):
        super().__init__()
        self.with_body = with_body
        self.outputs = HEAD_FIELDS + (self.body_outputs if with_body else ())
        self.model = model if with_body else _without_body(model)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        if self.with_body:
            pred = self.model.regress(images)
        else:
            pred = self.model.head(self.model.extract_feat(images)[-1])
        return tuple(pred[name] for name in self.outputs)

    @staticmethod
    def describe(cfg: Config, dataset_meta: dict | None) -> dict:
        """Crop, camera, and names of rotations and joints."""
        side = pipeline_steps(cfg).get('CropPerson', {}).get('size', IMAGE_SIZE)
        return dict(
            input_size=[side - 2 * (side // 8), side],  # see `geometry.seen_columns`
            box_padding=box_padding(cfg),
            box_aspect=[3, 4],
            crop_size=side,
            focal_length=FOCAL_LENGTH * side / IMAGE_SIZE,
            rotation_names=list(SMPL_24),
            parents=list(SMPL_PARENTS),
            joint_names=list(JOINTS_44),
        )


def _without_body(model):
    """The same model without its body: SMPL's license does not allow passing it on."""
    bare = copy.copy(model)
    bare._modules = {name: part for name, part in model._modules.items() if name != 'body'}
    return bare


def make_graph(model: nn.Module, with_body: bool = False) -> nn.Module:
    """Graph of an estimator: its `forward` returns a tuple, `outputs` names the elements.

    Raises:
        ValueError: an estimator of another kind, or a body is requested of a model without one.
    """
    graph = row_of(model).load('graph')
    if with_body and not graph.body_outputs:
        raise ValueError(NO_BODY)
    return graph(model, with_body).eval()


def describe(found: Found, dataset_meta: dict | None = None) -> dict:
    """Metadata of an exported model: plain data, see docs/export.md.

    Args:
        found: the model; without weights they are called random.
        dataset_meta: mmpose's metainfo of the keypoints; None: see `keypoint_meta`.

    Raises:
        ValueError: the model has other keypoints than its data set.
    """
    normalize = found.cfg.model.data_preprocessor
    return dict(
        producer=PRODUCER,
        model=found.name,
        task=found.task,
        weights='random' if found.weights is None else found.weights.name,
        mean=list(normalize['mean']),
        std=list(normalize['std']),
        channels='RGB' if normalize.get('bgr_to_rgb') else 'BGR',
        **found.row.load('graph').describe(found.cfg, dataset_meta),
    )
