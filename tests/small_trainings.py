"""Trainings of seconds, with all that is random in the recipes: configs and what they train on."""

import json
from pathlib import Path

import cv2
import numpy as np
from fork_server import ROOT
from mmengine.config import Config
from small_models import mesh_config

POSE = f"""
_base_ = '{ROOT}/configs/_base_/pose2d.py'
codec = dict(type='UDPHeatmap', input_size=(64, 64), heatmap_size=(8, 8), sigma=1)
model = dict(
    backbone=dict(
        type='TruncatedSwin',
        arch=dict(channels=(16, 32), depths=(1, 1), num_heads=(1, 2), drop_path_rate=0.5),
        num_stages=2,
    ),
    head=dict(
        in_channels=32, deconv_out_channels=None, deconv_kernel_sizes=None, decoder=codec,
    ),
)
load = [dict(type='LoadImage'), dict(type='GetBBoxCenterScale')]
augment = [
    dict(type='RandomFlip', direction='horizontal'),
    dict(type='RandomHalfBody'),
    dict(type='RandomBBoxTransform'),
    dict(type='PhotometricDistortion'),
]
affine = dict(type='TopdownAffine', input_size=(64, 64), use_udp=True)
target = [dict(type='GenerateTarget', encoder=codec), dict(type='PackPoseInputs')]
dataset = dict(data_root='', ann_file='FOLDER/people.json', data_prefix=dict(img='FOLDER/'))
train_dataloader = dict(
    batch_size=4,
    num_workers=1,
    dataset=dict(pipeline=[*load, *augment, affine, *target], **dataset),
)
val_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(pipeline=[*load, affine, dict(type='PackPoseInputs')], bbox_file=None, **dataset),
)
test_dataloader = None
test_cfg = None
test_evaluator = None
val_evaluator = dict(ann_file='FOLDER/people.json')
optim_wrapper = dict(optimizer=dict(lr=1e-3), paramwise_cfg=dict(layer_decay_rate=1.0))
param_scheduler = [dict(type='MultiStepLR', milestones=[2], gamma=0.1)]
train_cfg = dict(max_epochs=4, val_interval=1)
default_hooks = dict(checkpoint=dict(interval=1))
randomness = dict(seed=0)
"""


def pose(folder: Path) -> str:
    """Text of a config that trains on `draw_people(folder)`: 4 epochs of 2 iterations."""
    return POSE.replace('FOLDER', str(folder))


def mesh(folder: Path) -> Config:
    """A config that trains on `write_shards(folder / 'shards')`: 8 iterations."""
    cfg = mesh_config()
    cfg.model.init_cfg = None
    cfg.model.backbone.drop_path_rate = 0.5
    cfg.model.discriminator = dict(type='HMRDiscriminator')
    pipeline = [
        dict(type='AugmentPerson'),
        dict(type='CropPerson', size=64),
        dict(type='AddRealPoses'),
        dict(type='PackPerson'),
    ]
    dataset = dict(type='ShardPeople', name='noise', urls=str(folder / 'shards'))
    cfg.train_dataloader.update(batch_size=4, num_workers=1)
    cfg.train_dataloader.dataset = dict(type='MixedPeople', datasets=[dataset], pipeline=pipeline)
    cfg.optim_wrapper.optimizer = dict(type='AdamW', lr=1e-3)
    cfg.val_dataloader = cfg.val_evaluator = cfg.val_cfg = None
    cfg.test_dataloader = cfg.test_evaluator = cfg.test_cfg = None
    cfg.train_cfg.update(max_iters=8, val_interval=100)
    cfg.default_hooks.checkpoint.update(interval=2, max_keep_ckpts=1)
    cfg.randomness = dict(seed=0)
    return cfg


def draw_people(folder: Path) -> None:
    """Eight pictures of one dot each, all joints on the dot, and people.json."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(8):
        x, y = rng.integers(12, 52, 2).tolist()
        picture = rng.integers(0, 99, (64, 64, 3), np.uint8)
        cv2.circle(picture, (x, y), 6, (255, 255, 255), -1)
        cv2.imwrite(str(folder / f'{number}.png'), picture)
        images.append(dict(id=number, file_name=f'{number}.png', width=64, height=64))
        person = dict(id=number, image_id=number, category_id=1, iscrowd=0, num_keypoints=17)
        person.update(bbox=[0, 0, 64, 64], area=4096, keypoints=[x, y, 2] * 17)
        annotations.append(person)
    categories = [dict(id=1, name='person')]
    content = dict(images=images, annotations=annotations, categories=categories)
    (folder / 'people.json').write_text(json.dumps(content))
