"""The configs in configs/examples train, each for two iterations on pictures drawn here."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from small_trainings import draw_people

import trunchier
from trunchier.weights.load import read_weights

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / 'configs' / 'examples'
pytest.importorskip('mmpose')


# --- what they train on ---------------------------------------------------------------------------


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Eight pictures of 64 x 64 with a box, joints, a class and a map of classes each."""
    folder = tmp_path_factory.mktemp('pictures')
    draw_people(folder)
    for number in range(8):
        picture = cv2.imread(str(folder / f'{number}.png'))
        for name in ('classes/one', 'classes/two', 'maps'):
            (folder / name).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f'classes/{("one", "two")[number % 2]}/{number}.png'), picture)
        cv2.imwrite(str(folder / f'maps/{number}.png'), np.uint8(picture[..., 0] > 250))
    return folder


def pose_data(folder, cfg):
    codec = cfg.codec
    pipeline = [
        dict(type='LoadImage'),
        dict(type='GetBBoxCenterScale'),
        dict(type='TopdownAffine', input_size=codec.input_size),
        dict(type='GenerateTarget', encoder=codec),
        dict(type='PackPoseInputs'),
    ]
    files = dict(data_root='', ann_file=f'{folder}/people.json', data_prefix=dict(img=f'{folder}/'))
    return dict(type='CocoDataset', data_mode='topdown', pipeline=pipeline, **files)


def boxes(folder, cfg):
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True),
        dict(type='PackDetInputs'),
    ]
    for annotation in (content := json.loads((folder / 'people.json').read_text()))['annotations']:
        annotation['bbox'] = [8, 8, 40, 40]
    (folder / 'boxes.json').write_text(json.dumps(content))
    files = dict(data_root=str(folder), ann_file='boxes.json', data_prefix=dict(img=''))
    return dict(type='CocoDataset', metainfo=dict(classes=('person',)), pipeline=pipeline, **files)


def classes(folder, cfg):
    pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
    return dict(
        type='CustomDataset', data_root=str(folder / 'classes'), pipeline=pipeline,
        classes=['one', 'two'], data_prefix='', with_label=True,
    )  # fmt: skip


def maps(folder, cfg):
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations'),
        dict(type='PackSegInputs'),
    ]
    return dict(
        type='BaseSegDataset', data_root=str(folder), img_suffix='.png', pipeline=pipeline,
        data_prefix=dict(img_path='classes/one', seg_map_path='maps'),
        metainfo=dict(classes=('ground', 'dot')),
    )  # fmt: skip


# --- training -------------------------------------------------------------------------------------

slow = pytest.mark.slow
TRAININGS = {
    'retinanet_swin-t-s3_1x_coco': (boxes, 'TruncatedSwin', slow),
    'rtmdet_gmf-t-s4_300e_coco': (boxes, 'TruncatedGMF', slow),
    'classifier_gmf-t-s4_in1k': (classes, 'TruncatedGMF', slow),
    'upernet_swin-t-s3_160k_ade20k': (maps, 'TruncatedSwin', ()),
    'rtmpose_vm-t-s3_420e_coco-256x192': (pose_data, 'TruncatedVMamba', slow),
    'simcc_vm-t-s3_210e_coco-256x192': (pose_data, 'TruncatedVMamba', slow),
    'td-hm_swin-t-s3_options': (pose_data, 'TruncatedSwin', slow),
    'td-hm_swin-t-s3_wandb-offline': (pose_data, 'TruncatedSwin', slow),
}
REQUIRES = {'upernet_swin-t-s3_160k_ade20k': 'mmseg'}  # `make setup` does not install it
RECORDS = {
    'td-hm_swin-t-s3_options': ('tensorboard', 'events.out.tfevents.*'),
    'td-hm_swin-t-s3_wandb-offline': ('wandb', 'offline-run-*/*.wandb'),
}


def read(name, folder, work_dir):
    """The example, with random weights, to train for two iterations on `folder`."""
    cfg = Config.fromfile(EXAMPLES / f'{name}.py')
    cfg.model.backbone.init_cfg = None
    dataset = TRAININGS[name][0](folder, cfg)
    sampler = dict(type='DefaultSampler', shuffle=False)
    cfg.train_dataloader = dict(batch_size=2, num_workers=0, sampler=sampler, dataset=dataset)
    cfg.train_cfg = dict(by_epoch=False, max_iters=2)
    for part in ('val', 'test'):
        for key in ('cfg', 'dataloader', 'evaluator'):
            cfg[f'{part}_{key}'] = None
    cfg.param_scheduler = None
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', by_epoch=False, interval=2)
    cfg.log_processor = dict(by_epoch=False)
    cfg.default_hooks.logger.interval = 1
    cfg.work_dir = str(work_dir)
    cfg.experiment_name = f'{name}_{work_dir.name}'
    cfg.visualizer.name = cfg.experiment_name  # mmengine keeps one instance of a name
    if 'size' in cfg.model.get('data_preprocessor', ()):
        cfg.model.data_preprocessor.size = (64, 64)  # mmseg pads to it
    cfg.custom_hooks = [
        hook for hook in cfg.get('custom_hooks', ()) if 'PipelineSwitch' not in hook.type
    ]
    return cfg


@pytest.fixture
def scope():
    """The default scope after a training is that before it."""
    with DefaultScope.overwrite_default_scope('mmpose'):
        yield


def train(cfg):
    """The runner after training, and the parameters before."""
    torch.manual_seed(0)
    runner = Runner.from_cfg(cfg)
    before = {name: p.detach().clone() for name, p in runner.model.named_parameters()}
    runner.train()
    return runner, before


def test_every_example_is_trained():
    assert {path.stem for path in EXAMPLES.glob('*.py')} == set(TRAININGS)


@pytest.mark.parametrize(
    'name', [pytest.param(name, marks=marks) for name, (_, _, marks) in TRAININGS.items()]
)
def test_an_example_trains(name, folder, tmp_path, scope):
    if name in REQUIRES:
        pytest.importorskip(REQUIRES[name])
    cfg = read(name, folder, tmp_path)
    cfg.visualizer = dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')])
    runner, before = train(cfg)
    backbone = runner.model.backbone
    assert type(backbone) is getattr(trunchier.models, TRAININGS[name][1])
    (log,) = tmp_path.rglob('vis_data/scalars.json')
    losses = [json.loads(line)['loss'] for line in log.read_text().splitlines()]
    assert len(losses) == 2 and all(np.isfinite(losses))
    moved = {n for n, p in runner.model.named_parameters() if not torch.equal(p, before[n])}
    frozen = {n for n, p in runner.model.named_parameters() if not p.requires_grad}
    assert moved and not moved & frozen
    assert bool(frozen) == bool(cfg.model.backbone.get('frozen_stages'))
    content = read_weights(tmp_path / 'iter_2.pth')
    averages = any(hook.type == 'EMAHook' for hook in cfg.custom_hooks)
    assert content['state_dict'] and ('ema_state_dict' in content) == averages


@slow
@pytest.mark.parametrize('name', RECORDS)
def test_the_visualizer_of_an_example_records_the_run(name, folder, tmp_path, scope):
    package, files = RECORDS[name]
    pytest.importorskip(package)
    train(read(name, folder, tmp_path))
    assert list(tmp_path.rglob(files))
