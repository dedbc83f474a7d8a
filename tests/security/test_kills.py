"""Training that is killed at any moment resumes, and ends as if nothing had happened."""

import contextlib
import json
import os
import random
import re
import signal
import time

import cv2
import numpy as np
import pytest
import torch
from fork_server import ROOT, ForkServer
from people import write_shards
from small_models import mesh_config

from trunchier.weights.load import read_weights

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
SETTINGS = {'pose': 'epoch_4.pth', 'mesh': 'iter_8.pth'}


@pytest.fixture(scope='module')
def server():
    server = ForkServer()
    yield server
    server.close()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """pose.py and mesh.py, and what they train on."""
    folder = tmp_path_factory.mktemp('kills')
    write_shards(folder / 'shards')
    mesh(folder).dump(folder / 'mesh.py')
    draw_people(folder)
    (folder / 'pose.py').write_text(POSE.replace('FOLDER', str(folder)))
    return folder


def mesh(folder):
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


def draw_people(folder):
    """Eight pictures of one dot each, all joints on the dot."""
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


@pytest.fixture(scope='module')
def whole(server, folder):
    """{task: its last checkpoint after a training that nothing disturbed}, and what is beside."""
    found = dict(seconds={}, files={})
    for task, last in SETTINGS.items():
        begin = time.monotonic()
        code = train(server, folder, task, 'whole')
        assert code == 0, (folder / f'whole_{task}.log').read_text()[-3000:]
        work = folder / f'whole_{task}'
        found[task] = read_weights(work / last)
        found['seconds'][task] = time.monotonic() - begin
        found['files'][task] = {path.name for path in work.glob('*.pth')}
    return found


def train(server, folder, task, name, **options):
    work = folder / f'{name}_{task}'
    arguments = 'train.py', folder / f'{task}.py', '--work-dir', work, '--resume'
    return server.run(work.with_suffix('.log'), *arguments, **options)


def same(a, b):
    """Equal in all tensors and numbers, to the last bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize('task', SETTINGS)
def test_a_training_killed_while_it_writes_resumes_and_ends_the_same(task, server, folder, whole):
    # The second checkpoint is written but not renamed; then it stands but nothing points to it.
    for kill_at, event in (
        (17 if task == 'pose' else 8, 'os.rename'),
        (4, 'open .last_checkpoint'),
    ):
        code = train(server, folder, task, 'killed', kill_at=kill_at)
        log = (folder / f'killed_{task}.log').read_text()
        assert code == -9 and f'killed at {event}' in log, log[-3000:]
    assert train(server, folder, task, 'killed') == 0
    assert_same_end(folder / f'killed_{task}', task, whole)


def assert_same_end(work, task, whole):
    last = work / SETTINGS[task]
    found = read_weights(last)
    assert same(found['state_dict'], whole[task]['state_dict'])
    assert same(found['optimizer'], whole[task]['optimizer'])
    assert (work / 'last_checkpoint').read_text() == str(last)
    assert {path.name for path in work.glob('*.pth')} == whole['files'][task]
    assert not list(work.glob('.*.part*'))


@pytest.mark.slow
@pytest.mark.parametrize('task', SETTINGS)
def test_forty_random_kills_lose_nothing(task, server, folder, whole):
    seed = random.randrange(1 << 30)
    print(f'{task}, seed {seed}')
    draw, seconds, killed, ended = random.Random(seed), whole['seconds'][task], 0, 0
    while killed < 40:
        work = folder / f'random{ended}_{task}'
        arguments = work.with_suffix('.log'), 'train.py', folder / f'{task}.py'
        arguments = *arguments, '--work-dir', work, '--resume'
        if draw.random() < 0.5:
            moment = draw.randint(1, 25)
            code = server.run(*arguments, kill_at=moment)
        else:
            moment = draw.uniform(0.2, 1) * seconds
            child = server.start(*arguments)
            time.sleep(moment)
            with contextlib.suppress(ProcessLookupError):  # it has ended
                os.kill(child, signal.SIGKILL)
            code = server.wait()
        log = work.with_suffix('.log').read_text()
        assert code in (0, -signal.SIGKILL), f'seed {seed}\n{log[-3000:]}'
        files = sorted(path.name for path in work.glob('*.pth'))
        event = re.findall(r'killed at (.*)', log) or [f'{moment:.1f} s']
        print(f'{killed:2} {task} {"ended" if code == 0 else event[0]}: {files}', flush=True)
        if code == 0:
            ended += 1
            assert_same_end(work, task, whole)
        killed += code != 0
    assert train(server, folder, task, f'random{ended}') == 0
    assert_same_end(folder / f'random{ended}_{task}', task, whole)
