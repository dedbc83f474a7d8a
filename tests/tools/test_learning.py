"""Slow: models fit a few real images, through mmengine's runner and the tools."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.runner import Runner

from trunchier import zoo
from trunchier.conventions import EVAL_14_IN_44
from trunchier.inference.inferencer import Inferencer
from trunchier.synthetic.coco import write_coco

ROOT = Path(__file__).resolve().parents[2]
ITERATIONS = 150
MESH_ITERATIONS = 800
AUGMENTATIONS = ('RandomFlip', 'RandomHalfBody', 'RandomBBoxTransform')


def config(name, images, work_dir):
    """The recipe of a config, from scratch, on 12 people without augmentation."""
    cfg = Config.fromfile(ROOT / zoo.config_path(name, 'pose'))
    cfg.model.backbone.update(init_cfg=None, drop_path_rate=0.0)
    cfg.model.test_cfg.flip_test = False
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.update(num_workers=0, persistent_workers=False, batch_size=12)
        loader.dataset.update(
            data_root=str(images), ann_file='test_coco.json', data_prefix=dict(img='')
        )
        loader.dataset.pipeline = [
            step for step in loader.dataset.pipeline if step.type not in AUGMENTATIONS
        ]
    cfg.val_dataloader.dataset.pop('bbox_file')
    cfg.val_evaluator.ann_file = str(images / 'test_coco.json')
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
def test_a_family_learns_the_people_of_real_images(name, shared, tmp_path):
    runner = Runner.from_cfg(config(name, shared / 'data' / 'coco_tiny', tmp_path))
    runner.train()
    assert runner.val_loop.run()['coco/AP'] >= 0.9


# --- bodies --------------------------------------------------------------------------------------

# name -> npz and folder of images in shared/data, layout
FRAMES = {
    'h36m': ('h36m_tiny/test_h36m_body3d.npz', 'h36m_tiny', 'h36m'),
    'mpi-inf-train': ('mpi_inf_3dhp_tiny/test_3dhp_train.npz', 'mpi_inf_3dhp_tiny', 'mpi-inf'),
    'mpi-inf-test': ('mpi_inf_3dhp_tiny/test_3dhp_test.npz', 'mpi_inf_3dhp_tiny', 'mpi-inf'),
}


def tool(name, *arguments, cwd):
    done = subprocess.run(
        [sys.executable, str(ROOT / 'tools' / name), *map(str, arguments)],
        cwd=cwd,
        env=dict(os.environ, OMP_NUM_THREADS='1'),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]


def convert(data, folder):
    """Shards and npz of each of FRAMES, with joints only: their bodies are SMPL's, not ours."""
    for name, (file, images, layout) in FRAMES.items():
        source = data / file, '--images', data / images, '--layout', layout, '--joints-only'
        tool('make_shards.py', *source, '--out', folder / name, cwd=folder)
        npz = folder / f'{name}.npz'
        tool('make_shards.py', *source, '--to', 'npz', '--out', npz, cwd=folder)
        keep_complete(npz)


def keep_complete(npz):
    """Keep people with all joints: the metric includes joints that are not annotated."""
    with np.load(npz) as file:
        arrays = dict(file)
    joints = np.concatenate((arrays['body_keypoints_3d'], arrays['extra_keypoints_3d']), axis=1)
    complete = (joints[:, EVAL_14_IN_44, 3] > 0).all(1)
    np.savez(npz, **{name: values[complete] for name, values in arrays.items()})


def mesh_config(data, folder):
    """A config, from scratch on losses of joints, without augmentation and discriminator."""
    cfg = Config.fromfile(ROOT / zoo.config_path('vm-t-s2', 'mesh'))
    cfg.model.update(init_cfg=None, discriminator=None, loss=dict(reduction='mean'))
    cfg.model.backbone.drop_path_rate = 0.0
    pipeline = [dict(type='CropPerson', size=128, aspect=(192, 256)), dict(type='PackPerson')]
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.update(batch_size=8, num_workers=0, persistent_workers=False)
        loader.dataset.pipeline = pipeline
    cfg.train_dataloader.dataset.update(
        datasets=[dict(type='ShardPeople', name=name, urls=str(folder / name)) for name in FRAMES],
        weights=[0.5, 0.25, 0.25],
    )
    cfg.val_dataloader.dataset.datasets = [
        dict(
            type='NpzPeople',
            name=name,
            ann_file=str(folder / f'{name}.npz'),
            img_dir=str(data / images),
        )
        for name, (_, images, _) in FRAMES.items()
    ]
    cfg.test_dataloader = cfg.val_dataloader
    cfg.val_evaluator = cfg.test_evaluator = [dict(type='MeshPCK'), dict(type='MeshJointError')]
    cfg.train_cfg.update(max_iters=MESH_ITERATIONS, val_interval=MESH_ITERATIONS)
    cfg.optim_wrapper.optimizer.update(lr=5e-4, weight_decay=0.0)
    cfg.optim_wrapper.clip_grad = dict(max_norm=1.0)
    cfg.param_scheduler = [
        dict(type='LinearLR', begin=0, end=20, start_factor=0.01, by_epoch=False),
        dict(type='CosineAnnealingLR', begin=20, eta_min=1e-5, by_epoch=False),
    ]
    cfg.param_scheduler[1].update(end=MESH_ITERATIONS, T_max=MESH_ITERATIONS - 20)
    cfg.default_hooks.checkpoint.interval = MESH_ITERATIONS
    cfg.randomness = dict(seed=0)
    cfg.work_dir = str(folder / 'work')
    return cfg


@pytest.mark.slow
def test_a_mesh_model_learns_the_joints_of_real_frames(shared, tmp_path):
    data = shared / 'data'
    convert(data, tmp_path)
    cfg = mesh_config(data, tmp_path)
    cfg.dump(tmp_path / 'config.py')
    tool('train.py', 'config.py', cwd=tmp_path)
    weights = tmp_path / 'work' / f'iter_{MESH_ITERATIONS}.pth'
    tool('test.py', 'config.py', weights, '--out', 'metrics.json', cwd=tmp_path)
    metrics = json.loads((tmp_path / 'metrics.json').read_text())
    errors = {name: metrics[f'{name}/PA-MPJPE'] for name in FRAMES}
    print(errors)
    assert max(errors.values()) < 40


@pytest.mark.slow
def test_a_bottom_up_model_learns_to_find_the_people_of_crowds(tmp_path):
    """From the pose weights that ship, on four crowds, without augmentation; then `predict`."""
    write_coco(tmp_path / 'crowds', 4, size=128, min_people=2, max_people=3)
    cfg = Config.fromfile(ROOT / 'configs/bottomup/ae_vm-t-s2_synthetic-192x192.py')
    size = dict(input_size=(128, 128), heatmap_size=(32, 32))
    cfg.model.head.decoder.update(size)
    dataset = cfg.train_dataloader.dataset
    dataset.update(data_root=str(tmp_path / 'crowds'), ann_file='annotations.json')
    dataset.data_prefix = dict(img='images/')
    never = dict.fromkeys(('shift_prob', 'scale_prob', 'rotate_prob', 'shear_prob'), 0.0)
    dataset.pipeline = [step for step in dataset.pipeline if step.type != 'RandomFlip']
    dataset.pipeline[1].update(never, input_size=size['input_size'])
    dataset.pipeline[2].encoder.update(size)
    cfg.test_dataloader.dataset.pipeline[1].input_size = size['input_size']
    cfg.train_dataloader.update(batch_size=4, num_workers=0, persistent_workers=False)
    cfg.train_dataloader.sampler = dict(type='InfiniteSampler', shuffle=True)
    cfg.train_cfg = dict(by_epoch=False, max_iters=ITERATIONS)
    cfg.param_scheduler = [
        dict(type='LinearLR', begin=0, end=20, start_factor=0.01, by_epoch=False)
    ]
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.test_cfg = cfg.test_evaluator = None
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', by_epoch=False, interval=ITERATIONS)
    cfg.log_processor.by_epoch = False
    cfg.work_dir = str(tmp_path / 'run')
    Runner.from_cfg(Config(dict(cfg.to_dict(), test_dataloader=None))).train()

    infer = Inferencer(cfg, tmp_path / f'run/iter_{ITERATIONS}.pth', device='cpu')
    content = json.loads((tmp_path / 'crowds/annotations.json').read_text())
    found = total = predicted = 0
    for image in content['images']:
        (result,) = infer(tmp_path / 'crowds/images' / image['file_name'])
        people = result.pred_instances
        predicted += len(people)
        for each in content['annotations']:
            points = np.reshape(each['keypoints'], (17, 3))
            seen = points[:, 2] > 0
            if each['image_id'] == image['id'] and seen.sum() >= 8:
                errors = np.linalg.norm(people.keypoints[:, seen] - points[seen, :2], axis=-1)
                total += 1
                found += (errors.mean(1) < 0.1 * max(each['bbox'][2:])).any()
    assert found >= 0.8 * total > 3
    assert predicted <= total + 2
