"""Slow: a model of each family learns real photos by heart, through mmengine's runner."""

from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.runner import Runner

from trunchier import zoo

ROOT = Path(__file__).resolve().parents[1]
ITERATIONS = 150
AUGMENTATIONS = ('RandomFlip', 'RandomHalfBody', 'RandomBBoxTransform')


def config(name, photos, work_dir):
    """The recipe of a leaf, from scratch, on 12 people without augmentation."""
    cfg = Config.fromfile(ROOT / zoo.config_path(name, 'pose'))
    cfg.model.backbone.update(init_cfg=None, drop_path_rate=0.0)
    cfg.model.test_cfg.flip_test = False
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.update(num_workers=0, persistent_workers=False, batch_size=12)
        loader.dataset.update(
            data_root=str(photos), ann_file='test_coco.json', data_prefix=dict(img='')
        )
        loader.dataset.pipeline = [
            step for step in loader.dataset.pipeline if step.type not in AUGMENTATIONS
        ]
    cfg.val_dataloader.dataset.pop('bbox_file')
    cfg.val_evaluator.ann_file = str(photos / 'test_coco.json')
    cfg.train_dataloader.sampler = dict(type='InfiniteSampler', shuffle=True)
    cfg.test_dataloader = cfg.test_evaluator = cfg.test_cfg = None
    cfg.train_cfg = dict(by_epoch=False, max_iters=ITERATIONS, val_interval=ITERATIONS)
    cfg.optim_wrapper.optimizer.update(lr=1e-3, weight_decay=0.0)
    cfg.optim_wrapper.paramwise_cfg.layer_decay_rate = 1.0
    cfg.param_scheduler = [
        dict(type='LinearLR', begin=0, end=20, start_factor=0.01, by_epoch=False),
        dict(type='CosineAnnealingLR', begin=20, eta_min=2e-5, by_epoch=False),
    ]
    cfg.param_scheduler[1].update(end=ITERATIONS, T_max=ITERATIONS - 20)
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', by_epoch=False, interval=ITERATIONS)
    cfg.log_processor.by_epoch = False
    cfg.randomness = dict(seed=0)
    cfg.work_dir = str(work_dir)
    return cfg


@pytest.mark.slow
@pytest.mark.parametrize('name', ['swin-t-s2', 'gmf-t-s2', 'vm-t-s2'])
def test_a_family_learns_the_people_of_real_photos(name, shared, tmp_path):
    runner = Runner.from_cfg(config(name, shared / 'data' / 'coco_tiny', tmp_path))
    runner.train()
    assert runner.val_loop.run()['coco/AP'] >= 0.9
