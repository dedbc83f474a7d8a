"""tools/train.py, test.py and their distributed scripts, on eight small pictures and two processes.

The config imports nothing of ours: the tools do that. Single processes run in this one, which saves
the imports; the distributed scripts run as from a shell.
"""

import contextlib
import importlib
import json
import os
import pickle
import random
import re
import socket
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.utils import ManagerMixin
from pose_sets import write_pose_sets

from trunchier.weights.experts import split_expert
from trunchier.weights.load import read_weights
from trunchier.zoo import POSE_SETS

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
default_scope = 'mmpose'
codec = dict(type='UDPHeatmap', input_size=(64, 64), heatmap_size=(8, 8), sigma=1)
model = dict(
    type='TopdownPoseEstimator',
    data_preprocessor=dict(type='PoseDataPreprocessor', mean=[127.0] * 3, std=[64.0] * 3),
    backbone=dict(
        type='TruncatedSwin',
        arch=dict(channels=(16, 32), depths=(1, 1), num_heads=(1, 2), drop_path_rate=0.0),
        num_stages=2,
    ),
    head=dict(
        type='HeatmapHead',
        in_channels=32,
        out_channels=17,
        deconv_out_channels=None,
        loss=dict(type='KeypointMSELoss', use_target_weight=True),
        decoder=codec,
    ),
    test_cfg=dict(flip_test=True, flip_mode='heatmap', shift_heatmap=False),
)
load = [
    dict(type='LoadImage'),
    dict(type='GetBBoxCenterScale'),
    dict(type='TopdownAffine', input_size=(64, 64), use_udp=True),
]
dataset = dict(
    type='CocoDataset',
    data_mode='topdown',
    ann_file='FOLDER/people.json',
    data_prefix=dict(img='FOLDER/'),
)
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        **dataset,
        pipeline=load + [dict(type='GenerateTarget', encoder=codec), dict(type='PackPoseInputs')],
    ),
)
val_dataloader = dict(
    batch_size=4,
    num_workers=0,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False, round_up=False),
    dataset=dict(**dataset, test_mode=True, pipeline=load + [dict(type='PackPoseInputs')]),
)
test_dataloader = val_dataloader
val_evaluator = test_evaluator = dict(type='CocoMetric', ann_file='FOLDER/people.json')
train_cfg = dict(by_epoch=True, max_epochs=2, val_interval=1)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='SGD', lr=3.0, momentum=0.9))
param_scheduler = [dict(type='MultiStepLR', milestones=[1], gamma=0.1)]
auto_scale_lr = dict(base_batch_size=8)
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=1),
    checkpoint=dict(type='CheckpointHook', interval=1, save_best='coco/AP', rule='greater'),
    visualization=dict(type='PoseVisualizationHook', enable=False),
    badcase=dict(
        type='BadCaseAnalysisHook', enable=False, out_dir='worst', metric_type='loss', badcase_thr=0
    ),
)
custom_hooks = [dict(type='SyncBuffersHook')]
env_cfg = dict(mp_cfg=dict(mp_start_method='fork'), dist_cfg=dict(backend='nccl'))
visualizer = dict(type='PoseLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
randomness = dict(seed=0)
"""

pytestmark = pytest.mark.xdist_group('tools')  # one worker: they share what `trained` made


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Eight pictures of one dot each, all joints on the dot, and the config that trains on them."""
    folder = tmp_path_factory.mktemp('toy')
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(8):
        x, y = rng.integers(12, 52, 2).tolist()
        picture = np.zeros((64, 64, 3), np.uint8)
        cv2.circle(picture, (x, y), 6, (255, 255, 255), -1)
        cv2.imwrite(str(folder / f'{number}.png'), picture)
        images.append(dict(id=number, file_name=f'{number}.png', width=64, height=64))
        annotations.append(
            dict(
                id=number,
                image_id=number,
                category_id=1,
                bbox=[0, 0, 64, 64],
                area=4096,
                iscrowd=0,
                num_keypoints=17,
                keypoints=[x, y, 2] * 17,
            )
        )
    categories = [dict(id=1, name='person')]
    content = dict(images=images, annotations=annotations, categories=categories)
    (folder / 'people.json').write_text(json.dumps(content))
    (folder / 'toy.py').write_text(CONFIG.replace('FOLDER', str(folder)))
    return folder


def run(*command, cwd, **environment):
    environment = dict(os.environ, OMP_NUM_THREADS='1', PYTHON=sys.executable, **environment)
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout + done.stderr


def subclasses(parent):
    for child in parent.__subclasses__():
        yield child
        yield from subclasses(child)


@contextlib.contextmanager
def command(name, *arguments, cwd, tools=ROOT / 'tools'):
    """The module of a tool, about to run with these arguments in that folder."""
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(cwd)
        patched.setenv('LOCAL_RANK', '0')
        patched.setattr(sys, 'argv', [name, *map(str, arguments)])
        patched.syspath_prepend(str(tools))
        for manager in subclasses(ManagerMixin):  # runs of one second would share their log folder
            patched.setattr(manager, '_instance_dict', OrderedDict())
        spec = importlib.util.spec_from_file_location(f'tools_{name}', tools / f'{name}.py')
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module


def run_tool(name, *arguments, cwd, **options):
    with command(name, *arguments, cwd=cwd, **options) as module:
        module.main()


@pytest.fixture(scope='module')
def trained(folder):
    """The work dir of two epochs of two steps of four pictures."""
    run_tool('train', 'toy.py', cwd=folder)
    return folder / 'work_dirs' / 'toy'


def weights(path):
    return read_weights(path)['state_dict']


def assert_same(found, wanted, **tolerance):
    assert found.keys() == wanted.keys()
    close = {key: torch.allclose(found[key], wanted[key], **tolerance) for key in wanted}
    assert all(close.values()), [key for key, value in close.items() if not value]


def keypoints(path):
    """(N, 17, 2) pixels, by the id of the picture, from a file of --dump."""
    with open(path, 'rb') as file:
        samples = {sample['img_id']: sample for sample in pickle.load(file)}
    return np.concatenate([samples[i]['pred_instances']['keypoints'] for i in sorted(samples)])


# --- training ------------------------------------------------------------------------------------


DISTILL = """
_base_ = './toy.py'
model = dict(
    _delete_=True,
    type='HeatmapDistiller',
    student=_base_.model,
    teacher=_base_.model,
    teacher_weights='work_dirs/toy/epoch_2.pth',
    label_weight=0,
)
optim_wrapper = dict(optimizer=dict(lr=0.01))
"""


def test_a_student_learns_from_its_teacher_resumes_and_is_tested_by_the_plain_config(
    folder, trained
):
    (folder / 'distill.py').write_text(DISTILL)
    run_tool('train', 'distill.py', cwd=folder)
    first = folder / 'work_dirs/distill/epoch_1.pth'
    run_tool('train', 'distill.py', '--work-dir', 'halves', '--resume', first, cwd=folder)
    student = weights(folder / 'work_dirs/distill/epoch_2.pth')
    assert_same(weights(folder / 'halves/epoch_2.pth'), student, rtol=0, atol=0)
    assert student.keys() == weights(trained / 'epoch_2.pth').keys()
    dumps = []
    for config in ('toy.py', 'distill.py'):
        dumps.append(folder / f'{config}.pkl')
        options = ['work_dirs/distill/epoch_2.pth', '--dump', dumps[-1]]
        run_tool('test', config, *options, cwd=folder)
    assert np.array_equal(*map(keypoints, dumps))


def test_errors_of_motion_are_a_table_of_the_test_tool(folder, trained):
    text = (
        "_base_ = './toy.py'\ntest_evaluator = dict(_delete_=True, type='TrackErrors', kind='2d')\n"
    )
    (folder / 'tracks.py').write_text(text)
    run_tool('test', 'tracks.py', trained / 'epoch_2.pth', '--out', 'tracks.json', cwd=folder)
    table = json.loads((folder / 'tracks.json').read_text())
    content = json.loads((folder / 'people.json').read_text())
    dots = np.array([person['keypoints'][:2] for person in content['annotations']], float)
    jitter = np.linalg.norm(np.diff(dots, 3, axis=0), axis=-1).mean()
    assert table['track_2d/jitter of truth'] == pytest.approx(jitter)
    assert table['track_2d/EPE'] > 0 and table['track_2d/ACC-ERR'] > 0


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.device_count() == 1, reason='two processes need two GPUs or none')
def test_two_processes_distill_as_one(folder, trained):
    (folder / 'distill.py').write_text(DISTILL)
    options = ('--no-validate', '--cfg-options', 'train_cfg.max_epochs=1')
    run_tool('train', 'distill.py', '--work-dir', 'taught', *options, cwd=folder)
    run(
        ROOT / 'tools/dist_train.sh',
        *('distill.py', 2, '--work-dir', 'taught-2', '--total-batch', 4, *options),
        cwd=folder,
        PORT=free_port(),
    )
    one, two = (weights(folder / name / 'epoch_1.pth') for name in ('taught', 'taught-2'))
    assert_same(two, one, rtol=1e-5, atol=1e-6)


def test_training_moves_every_parameter_and_keeps_the_best(trained):
    first, second = weights(trained / 'epoch_1.pth'), weights(trained / 'epoch_2.pth')
    assert all((first[key] != second[key]).any() for key in first)
    assert len(list(trained.glob('best_coco_AP_epoch_*.pth'))) == 1


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(trained, folder):
    run_tool('train', 'toy.py', '--work-dir', 'on', '--resume', trained / 'epoch_1.pth', cwd=folder)
    assert not (folder / 'on/epoch_1.pth').exists()
    wanted = read_weights(trained / 'epoch_2.pth')
    found = read_weights(folder / 'on/epoch_2.pth')
    assert_same(found['state_dict'], wanted['state_dict'], rtol=0, atol=0)
    assert found['optimizer']['param_groups'] == wanted['optimizer']['param_groups']


def test_amp_auto_scale_lr_no_validate_and_cfg_options_together(folder):
    run_tool(
        'train',
        *('toy.py', '--amp', '--auto-scale-lr', '--no-validate', '--work-dir', 'switches'),
        *('--cfg-options', 'train_cfg.max_epochs=1'),
        cwd=folder,
    )
    (log,) = folder.glob('switches/*/vis_data/scalars.json')
    assert len(log.read_text().splitlines()) == 2  # steps, and nothing of a validation
    saved = read_weights(folder / 'switches/epoch_1.pth')
    assert saved['optimizer']['param_groups'][0]['initial_lr'] == 3.0 * 4 / 8
    assert not (folder / 'switches/epoch_2.pth').exists()
    mixed = 'AmpOptimWrapper' if torch.cuda.is_available() else 'AutocastOptimWrapper'
    assert Config.fromfile(folder / 'switches/toy.py').optim_wrapper.type == mixed


def test_the_tools_of_mmpose_need_one_line_in_the_config(trained, folder):
    tools = Path(importlib.util.find_spec('mmpose').origin).parent / '.mim/tools'
    config = folder / 'stock.py'
    config.write_text(
        "custom_imports = dict(imports=['trunchier'], allow_failed_imports=False)\n"
        + (folder / 'toy.py').read_text()
    )
    run_tool('train', config, '--work-dir', 'stock', '--no-validate', cwd=folder, tools=tools)
    assert_same(
        weights(folder / 'stock/epoch_2.pth'), weights(trained / 'epoch_2.pth'), rtol=0, atol=0
    )
    arguments = config, folder / 'stock/epoch_2.pth', '--dump', 'stock.pkl'
    run_tool('test', *arguments, '--work-dir', 'stock', cwd=folder, tools=tools)
    assert keypoints(folder / 'stock.pkl').shape == (8, 17, 2)


def test_weights_of_another_variant_may_start_a_training(trained, folder, tmp_path):
    of_another_variant(tmp_path / 'more.pth', trained / 'epoch_2.pth')
    run_tool(
        'train',
        *('toy.py', '--no-validate', '--work-dir', tmp_path / 'work'),
        *('--cfg-options', f'load_from={tmp_path / "more.pth"}', 'train_cfg.max_epochs=1'),
        *('optim_wrapper.optimizer.lr=0.0',),
        cwd=folder,
    )
    started = weights(tmp_path / 'work/epoch_1.pth')
    assert_same(started, weights(trained / 'epoch_2.pth'), rtol=0, atol=0)


def free_port():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return str(probe.getsockname()[1])


@pytest.mark.skipif(torch.cuda.device_count() == 1, reason='two processes need two GPUs or none')
def test_two_processes_of_two_train_as_one_of_four(trained, folder):
    run(
        ROOT / 'tools/dist_train.sh',
        'toy.py',
        2,
        *('--work-dir', 'two', '--cfg-options'),
        *('train_dataloader.batch_size=2', 'train_cfg.max_epochs=1'),
        cwd=folder,
        PORT=free_port(),
    )
    # Every parameter has moved by 1e-4 or more: a gradient that is not the mean of both would show.
    assert_same(
        weights(folder / 'two/epoch_1.pth'),
        weights(trained / 'epoch_1.pth'),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.device_count() == 1, reason='two processes need two GPUs or none')
def test_two_processes_train_a_model_with_unused_parameters(trained, folder):
    """The head reads the last map only: the norm of the first gets no gradient."""
    options = ['model.backbone.out_indices=(0,1)', 'model.backbone.with_cp=True']
    options += ['train_dataloader.batch_size=2', 'train_cfg.max_epochs=1']
    command = [ROOT / 'tools/dist_train.sh', 'toy.py', 2, '--no-validate', '--work-dir', 'unused']
    command += ['--cfg-options', *options]
    with pytest.raises(AssertionError, match='find_unused_parameters=True'):
        run(*command, cwd=folder, PORT=free_port())
    run(*command, 'find_unused_parameters=True', cwd=folder, PORT=free_port())
    found, wanted = (weights(path / 'epoch_1.pth') for path in (folder / 'unused', trained))
    unused = {key: found.pop(key) for key in found.keys() - wanted.keys()}
    assert_same(found, wanted, rtol=1e-5, atol=1e-6)
    assert {key: value.unique().tolist() for key, value in unused.items()} == {
        'backbone.norm0.weight': [1],
        'backbone.norm0.bias': [0],
    }


# --- testing -------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def tested(trained, folder):
    """Work dir of one test with every switch; beside it metrics.json and predictions.pkl."""
    run_tool(
        'test',
        *('toy.py', trained / 'epoch_2.pth', '--work-dir', 'tested'),
        *('--out', 'metrics.json', '--dump', 'predictions.pkl'),
        *('--show-dir', 'drawn', '--badcase'),
        cwd=folder,
    )
    return folder / 'tested'


def test_testing_finds_what_validation_found(tested, trained, folder):
    (log,) = trained.glob('*/vis_data/scalars.json')
    validated = [json.loads(line) for line in log.read_text().splitlines() if 'coco/AP' in line]
    metrics = json.loads((folder / 'metrics.json').read_text())
    assert metrics.keys() >= {'coco/AP', 'coco/AR'}
    assert all(metrics[key] == pytest.approx(validated[-1][key]) for key in metrics)


def test_predictions_are_dumped_and_drawn(tested, folder):
    assert keypoints(folder / 'predictions.pkl').shape == (8, 17, 2)
    assert len(list(tested.glob('*/drawn/*'))) == 8
    assert list(tested.glob('*/worst/*.jpg')) or list(tested.glob('*/worst/*.png'))


@pytest.mark.skipif(torch.cuda.device_count() == 1, reason='two processes need two GPUs or none')
@pytest.mark.slow
def test_two_processes_predict_as_one(tested, trained, folder):
    run(
        ROOT / 'tools/dist_test.sh',
        *('toy.py', trained / 'epoch_2.pth', 2),
        *('--work-dir', 'two_tested', '--dump', 'by_two.pkl'),
        cwd=folder,
        PORT=free_port(),
    )
    found, wanted = keypoints(folder / 'by_two.pkl'), keypoints(folder / 'predictions.pkl')
    np.testing.assert_allclose(found, wanted, atol=1e-3)


# --- arguments and errors ------------------------------------------------------------------------


def merged(name, folder, *arguments, **overrides):
    """The config as the tool would run it."""
    with command(name, 'toy.py', *arguments, cwd=folder) as module:
        args = module.parse_args()
        cfg = Config.fromfile(args.config)
        cfg.merge_from_dict(overrides)
        module.merge_args(cfg, args)
    return cfg


def test_resume_without_a_value_asks_for_the_last_checkpoint(folder):
    cfg = merged('train', folder, '--resume', '--work-dir', 'here')
    assert (cfg.resume, cfg.load_from, cfg.work_dir) == (True, None, 'here')
    cfg = merged('train', folder, '--resume', 'epoch_1.pth')
    assert (cfg.resume, cfg.load_from) == (True, 'epoch_1.pth')


def test_the_command_of_a_run_continues_it_with_resume_whatever_it_started_from(folder):
    start = ['--cfg-options', 'load_from=start.pth']
    assert merged('train', folder, *start).load_from == 'start.pth'
    assert merged('train', folder, '--resume', *start).load_from is None
    assert merged('train', folder, '--resume', 'epoch_1.pth', *start).load_from == 'epoch_1.pth'


def test_the_work_dir_is_that_of_the_command_then_the_config_then_its_name(folder):
    assert merged('train', folder, work_dir='config').work_dir == 'config'
    assert merged('train', folder, '--work-dir', 'command', work_dir='config').work_dir == 'command'
    assert merged('train', folder).work_dir == 'work_dirs/toy'


@pytest.mark.parametrize(('name', 'given'), [('train', []), ('test', ['a.pth'])])
def test_a_model_is_trained_and_tested_by_its_name_too(tmp_path, name, given):
    with command(name, 'vm-t-s2', *given, '--task', 'mesh', cwd=tmp_path) as module:
        args = module.parse_args()
        cfg = module.read_config(args.config, args.task)
        module.merge_args(cfg, args)
    assert (cfg.model.type, cfg.work_dir) == ('MeshEstimator', 'work_dirs/vm-t-s2')


@pytest.mark.parametrize(('name', 'given'), [('train', []), ('test', ['a.pth'])])
@pytest.mark.parametrize(
    ('model', 'message'),
    [
        ('VMPose-T-S2', 'no annotations data/coco/annotations/person_keypoints_'),
        ('VMPose-T-S9', r'VMPose-T-S9.*VMPose-T-S'),
    ],
)
def test_a_name_without_data_and_an_unknown_name_are_one_line(
    tmp_path, name, given, model, message
):
    tool = command(name, model, *given, cwd=tmp_path)
    with tool as module, pytest.raises(SystemExit, match=f'^error: .*{message}'):
        module.main()


@pytest.mark.parametrize('name, loader', [('train', 'train'), ('test', 'test')])
def test_without_the_data_one_line_says_what_to_do(tmp_path, name, loader):
    """Also from a folder without configs, as those of the package are found by their path."""
    config = 'configs/pose2d/td-hm_vm-t-s2_8xb64-210e_coco-256x192.py'
    given = [config] if name == 'train' else [config, 'a.pth']
    with command(name, *given, cwd=tmp_path) as module, pytest.raises(SystemExit) as stop:
        module.main()
    says = rf'error: no annotations data/coco/annotations/\S+ .*{loader}_dataloader.*make-synthetic'
    assert re.fullmatch(says + '.*', stop.value.code)
    absent = command(name, 'nowhere.py', *given[1:], cwd=tmp_path)
    with absent as module, pytest.raises(SystemExit, match='error: no config nowhere.py'):
        module.main()
    assert list(tmp_path.iterdir()) == []


def test_cfg_options_win_over_every_switch(folder):
    cfg = merged('train', folder, '--amp', '--cfg-options', 'optim_wrapper.type=OptimWrapper')
    assert cfg.optim_wrapper.type == 'OptimWrapper'


def test_windows_are_asked_for_with_their_time(folder):
    cfg = merged('train', folder, '--show', '--wait-time', '2', '--interval', '5')
    shown = cfg.default_hooks.visualization
    assert (shown.enable, shown.show, shown.wait_time, shown.interval) == (True, True, 2.0, 5)
    cfg = merged('test', folder, 'a.pth', '--show', '--badcase')
    assert not cfg.default_hooks.visualization.show
    assert cfg.default_hooks.badcase.show


def test_bad_cases_are_judged_by_the_loss_of_the_head_or_by_the_metric(folder):
    cfg = merged('test', folder, 'a.pth', '--badcase')
    assert cfg.default_hooks.badcase.metric == cfg.model.head.loss
    by_metric = {'default_hooks.badcase.metric_type': 'accuracy'}
    cfg = merged('test', folder, 'a.pth', '--badcase', **by_metric)
    assert cfg.default_hooks.badcase.metric.type == 'CocoMetric'


@pytest.mark.parametrize('arguments', [('a.onnx',), ('a.pth', '--precision', 'int8')])
def test_weights_of_a_deployed_or_exported_model_are_not_averaged_again(folder, arguments):
    hooks = [dict(type='EMAHook'), dict(type='WorkerHook')]
    found = merged('test', folder, *arguments, custom_hooks=hooks).custom_hooks
    assert [each['type'] for each in found] == ['WorkerHook']
    found = merged('test', folder, 'a.pth', custom_hooks=hooks).custom_hooks
    assert [each['type'] for each in found] == ['EMAHook', 'WorkerHook']


@pytest.mark.parametrize(
    'name, arguments, overrides, message',
    [
        ('train', ['--amp'], {'optim_wrapper.type': 'ApexOptimWrapper'}, 'config has ApexOptim'),
        (
            'test',
            ['a.pth', '--dump', 'a.json'],
            {},
            'got a.json, expected a name that ends in .pkl',
        ),
        ('train', ['--launcher', 'slurm'], {}, 'requires GPUs, but none is visible; on CPU use'),
        ('test', ['a.onnx', '--precision', 'int8'], {}, 'that it was exported in; leave out'),
        ('test', ['a.pth', '--fixed-scales'], {}, '--fixed-scales is for --precision int8'),
        ('test', ['a.pth', '--runtime', 'openvino'], {}, '--runtime is for .onnx files, not a.pth'),
        (
            'test',
            ['a.pth', '--badcase'],
            {'default_hooks.badcase.metric_type': 'size'},
            "metric_type is 'size'; expected",
        ),
    ],
)
def test_what_cannot_be_done_is_said(folder, name, arguments, overrides, message):
    if 'slurm' in arguments and torch.cuda.is_available():
        pytest.skip('there is a GPU')
    with pytest.raises(ValueError, match=message):
        merged(name, folder, *arguments, **overrides)


@pytest.mark.parametrize(
    'key, argument', [('default_hooks', '--show-dir=d'), ('auto_scale_lr', '--auto-scale-lr')]
)
def test_a_config_without_what_a_switch_needs_says_how_to_add_it(folder, tmp_path, key, argument):
    text = (folder / 'toy.py').read_text()
    (tmp_path / 'toy.py').write_text(text + f'\ndel {key}\n')
    with pytest.raises(ValueError, match=rf'{key} = dict\('):
        merged('train', tmp_path, argument)


def forbidden(path, source):
    content = read_weights(source)
    content['meta']['tool'] = random.Random
    torch.save(content, path)


def cut_off(path, source):
    path.write_bytes(source.read_bytes()[:-1000])


def of_another_variant(path, source):
    content = read_weights(source)
    state = content['state_dict']
    state['backbone.stages.2.blocks.0.norm1.weight'] = torch.ones(64)
    torch.save(content, path)


def no_checkpoint(path, source):
    path.write_text('404: Not Found')


@pytest.mark.parametrize(
    'spoil, message',
    [
        (of_another_variant, r'does not fit the model of this config; is it of another variant'),
        (cut_off, r'cannot be read as weights'),
        (no_checkpoint, r'cannot be read as weights'),
        (forbidden, r'cannot be read as weights: .*random.Random'),
        (None, r'no checkpoint .*spoilt.pth'),
    ],
)
def test_a_checkpoint_that_cannot_be_right_is_refused(trained, folder, tmp_path, spoil, message):
    path = tmp_path / 'spoilt.pth'
    if spoil:
        spoil(path, trained / 'epoch_1.pth')
    with pytest.raises((RuntimeError, FileNotFoundError), match=message):
        run_tool('test', folder / 'toy.py', path, '--work-dir', tmp_path, cwd=tmp_path)


def test_a_checkpoint_in_another_layout_is_tested(trained, folder, tmp_path, capfd):
    content = read_weights(trained / 'epoch_1.pth')
    names = ('backbone.stem.', 'student.patch_embed.'), ('neck.proj.', 'student.reduce.')
    state = content['state_dict']
    for old, new in (*names, ('backbone.', 'student.'), ('head.', 'keypoint_head.')):
        state = {re.sub(f'^{re.escape(old)}', new, key): value for key, value in state.items()}
    state = {
        re.sub(r'\.stages\.(\d)\.blocks', r'.layers.\1.blocks', k): v for k, v in state.items()
    }
    down = '.stages.1.downsample.', '.layers.0.downsample.'
    state = {key.replace(*down): value for key, value in state.items()}
    torch.save(dict(model=state), tmp_path / 'theirs.pth')
    scores = []
    for path in (trained / 'epoch_1.pth', tmp_path / 'theirs.pth'):
        out = tmp_path / f'{path.stem}.json'
        run_tool(
            'test', folder / 'toy.py', path, '--work-dir', tmp_path, '--out', out, cwd=tmp_path
        )
        scores.append(out.read_text())
    assert scores[0] == scores[1]


# --- Slurm ---------------------------------------------------------------------------------------


@pytest.mark.parametrize('name, last', [('train', 'work'), ('test', 'epoch_1.pth')])
def test_slurm_scripts_ask_srun_for_what_the_environment_says(tmp_path, name, last):
    srun = tmp_path / 'srun'
    srun.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    srun.chmod(0o755)
    environment = dict(
        GPUS='4',
        GPUS_PER_NODE='2',
        SRUN_ARGS='--quotatype=auto --mem=8G',
        PATH=f'{tmp_path}{os.pathsep}{os.environ["PATH"]}',
    )
    command = ROOT / f'tools/slurm_{name}.sh', 'gpus', 'job', 'toy.py', last, '--show-dir', 'a b'
    lines = run(*command, cwd=tmp_path, **environment).splitlines()
    assert {'gpus', '--job-name=job', '--ntasks=4', '--ntasks-per-node=2', '--gres=gpu:2'} <= {
        *lines
    }
    assert {'--quotatype=auto', '--mem=8G', str(ROOT / f'tools/{name}.py'), 'a b'} <= {*lines}


# --- several data sets ----------------------------------------------------------------------------


def test_six_data_sets_train_one_encoder_whose_parts_are_split(tmp_path):
    """ViTPose++ by the ordinary tool, small, on drawn pictures in the formats of the six sets."""
    pytest.importorskip('mmpretrain')
    write_pose_sets(tmp_path / 'data')
    cfg = Config.fromfile(ROOT / 'configs/pose2d_sets/td-hm_vit-s_8xb128-210e_six-256x192.py')
    codec = dict(input_size=(48, 64), heatmap_size=(12, 16))
    arch = dict(embed_dims=24, num_layers=2, num_heads=2, feedforward_channels=48)
    cfg.model.backbone.update(arch=arch, img_size=(64, 48), init_cfg=None)
    cfg.model.backbone.experts.width = 8
    for head in cfg.model.head.heads.values():
        head.update(in_channels=24, deconv_out_channels=(8, 8))
        head.decoder.update(codec)
    for each in cfg.train_dataloader.dataset.datasets:
        for step in each.pipeline:
            if step.type == 'TopdownAffine':
                step.input_size = codec['input_size']
            elif step.type == 'GenerateTarget':
                step.encoder.update(codec)
    cfg.train_dataloader.update(batch_size=6, num_workers=0, persistent_workers=False)
    cfg.train_cfg.max_epochs = 1
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=1)
    cfg.default_hooks.logger.interval = 1
    cfg.dump(tmp_path / 'six.py')
    run_tool('train', 'six.py', cwd=tmp_path)

    (log,) = (tmp_path / 'work_dirs' / 'six').rglob('vis_data/scalars.json')
    steps = [json.loads(line) for line in log.read_text().splitlines()]
    losses = {f'loss_{name}' for name in cfg.sets}
    assert len(steps) == 2 and all(losses < step.keys() for step in steps)
    assert all(np.isfinite(step['loss']) for step in steps)
    state = read_weights(tmp_path / 'work_dirs/six/epoch_1.pth')['state_dict']
    for name, row in POSE_SETS.items():
        plain = split_expert(state, name.removeprefix('coco_'))
        assert plain['head.final_layer.weight'].shape[0] == row.keypoints
        assert not any('experts' in key or 'heads' in key for key in plain)
