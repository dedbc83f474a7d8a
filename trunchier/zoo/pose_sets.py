"""The data sets that ViTPose and ViTPose++ train one encoder on. Data only."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .configs import model_cfg


class PoseSet(NamedTuple):
    """A data set of poses: class, keypoints, and training files below `data/`."""

    type: str
    keypoints: int
    folder: str
    annotations: str
    images: str = ''
    half_body: bool = True  # whether its recipe crops half bodies


# By `dataset_name` of the data set's metainfo, in the order of ViTPose++'s experts.
POSE_SETS = {
    'coco': PoseSet(
        'CocoDataset', 17, 'coco', 'annotations/person_keypoints_train2017.json', 'train2017/'
    ),
    'aic': PoseSet(
        'AicDataset', 14, 'aic', 'annotations/aic_train.json',
        'ai_challenger_keypoint_train_20170902/keypoint_train_images_20170902/',
    ),
    'mpii': PoseSet(
        'MpiiDataset', 16, 'mpii', 'annotations/mpii_train.json', 'images/', half_body=False
    ),
    'ap10k': PoseSet(
        'AP10KDataset', 17, 'ap10k', 'annotations/ap10k-train-split1.json', 'data/'
    ),
    'apt36k': PoseSet('APT36KDataset', 17, 'apt36k', 'annotations/train_annotations_1.json'),
    'coco_wholebody': PoseSet(
        'CocoWholeBodyDataset', 133, 'coco', 'annotations/coco_wholebody_train_v1.0.json',
        'train2017/',
    ),
}  # fmt: skip
# Width of ViTPose++'s experts by encoder.
EXPERT_WIDTHS = {'vit-s': 192, 'vit-b': 192, 'vit-l': 256, 'vit-h': 320}


def mixed_data_cfg(
    names: Sequence[str], pipeline: Sequence[Mapping[str, Any]], root: str = 'data/'
) -> dict[str, Any]:
    """Config of mmpose's CombinedDataset of several of `POSE_SETS`.

    Args:
        names: keys of `POSE_SETS`; ValueError if unknown.
        pipeline: of training, the last step of which packs.
        root: folder of the data sets.
    """
    *steps, pack = pipeline
    datasets = []
    for name in names:
        row = pose_set(name)
        own = [step for step in steps if row.half_body or step['type'] != 'RandomHalfBody']
        datasets.append(
            dict(
                type=row.type,
                data_root=f'{root}{row.folder}/',
                data_mode='topdown',
                ann_file=row.annotations,
                data_prefix=dict(img=row.images),
                pipeline=own,
            )
        )
    metainfo = dict(from_file='configs/_base_/datasets/coco.py')  # each sample keeps its own
    return dict(type='CombinedDataset', metainfo=metainfo, datasets=datasets, pipeline=[pack])


def mixed_model_cfg(
    name: str,
    names: Sequence[str],
    head: Mapping[str, Any],
    experts: bool = False,
    decoder: str = 'classic',
) -> dict[str, Any]:
    """The part of a model's config that an encoder and several data sets decide.

    Args:
        name: of the encoder.
        names: keys of `POSE_SETS`; ValueError if unknown.
        head: config of mmpose's HeatmapHead, without channels.
        experts: one for each data set in each FFN, as in ViTPose++; ValueError if the encoder is
            no plain ViT.
        decoder: of each data set, see `model_cfg`.
    """
    cfg = model_cfg(name, decoder=decoder)
    head = dict(head, **cfg['head'])
    heads = {each: dict(head, out_channels=pose_set(each).keypoints) for each in names}
    cfg['head'] = dict(type='MultiDatasetHead', heads=heads, _delete_=True)
    if not experts:
        return cfg
    if name not in EXPERT_WIDTHS:
        plain = ', '.join(EXPERT_WIDTHS)
        raise ValueError(f'{name} has no experts; only plain ViTs have: {plain}')
    cfg['backbone'].update(type='PlainViT', experts=dict(num=len(heads), width=EXPERT_WIDTHS[name]))
    return dict(cfg, type='MultiDatasetEstimator')


def pose_set(name: str) -> PoseSet:
    """Row of the data set `name`; ValueError if unknown."""
    if name not in POSE_SETS:
        raise ValueError(f'no data set {name!r}; choose from {", ".join(POSE_SETS)}')
    return POSE_SETS[name]
