"""Ways into the package that begin with a script, a config or an API of another package."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import run
import torch
from mmengine.analysis import FlopAnalyzer, get_model_complexity_info
from mmengine.config import Config
from mmengine.hub import get_config, get_model
from mmengine.infer.infer import BaseInferencer
from mmengine.logging import HistoryBuffer
from mmengine.registry import DATASETS, MODELS, TRANSFORMS, DefaultScope
from mmengine.runner import Runner
from mmengine.runner.checkpoint import load_checkpoint
from people import write_shards
from safetensors.torch import load_file
from small_trainings import draw_people
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import trunchier
from trunchier import zoo
from trunchier.weights.load import CheckpointError
from trunchier.zoo.releases import SHIPPED

ROOT = Path(__file__).resolve().parents[1]
POSE = zoo.config_path('swin-t-s2', 'pose')
MESH = zoo.config_path('swin-t-s2', 'mesh')
CALLED_BY_PACKAGE = POSE.replace('configs/', 'trunchier::')


def python(*arguments, **variables):
    """Run Python in a process of its own, which finds this checkout; returns what it printed."""
    environment = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1', **variables)
    run = subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, env=environment
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


# --- APIs and tools ------------------------------------------------------------------------------


@pytest.mark.parametrize('config', [POSE, MESH])
def test_init_model_of_mmpose_builds_the_models_of_both_tasks(config):
    from mmpose.apis import init_model

    model = init_model(
        str(ROOT / config),
        cfg_options={'model.backbone.init_cfg': None, 'model.init_cfg': None},
        device='cpu',
    )
    assert isinstance(model, nn.Module) and not model.training


@pytest.mark.parametrize('name', ['swin-t-s2', 'gmf-t-s2', 'vm-t-s2', 'vit-s'])
def test_mmengine_counts_the_flops_of_a_backbone_with_gradients_on(name):
    backbone = trunchier.create_backbone(name)
    counted = get_model_complexity_info(backbone, (3, 256, 192), show_table=False)['flops']
    assert counted > 5e8


FAST = ('VMPose-T-S2', 'SwinHMR2.0-T-S2')


@pytest.mark.parametrize(
    'name',
    [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in zoo.models()],
)
def test_mmengine_counts_what_we_count(name):
    model = trunchier.create_model(name)
    model.forward = model._forward  # as mmpose's get_flops does
    inputs = torch.zeros(1, 3, 256, 192)
    counted = FlopAnalyzer(model, (inputs,)).by_operator()
    products = sum(counted[kind] for kind in ('conv', 'linear', 'matmul', 'einsum'))
    model.to('meta')
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(inputs.to('meta'))
    ours = counter.get_total_flops() / 2
    if hasattr(model.backbone, 'layers'):  # mmengine does not count the attention of a plain ViT
        ours -= 2 * len(model.backbone.layers) * model.backbone.embed_dims * (16 * 12) ** 2
    assert products == pytest.approx(ours, rel=0.02)


@pytest.mark.parametrize('config', [pytest.param(POSE, marks=pytest.mark.slow), MESH])
def test_get_flops_of_mmpose_runs_on_a_config(config, tmp_path):
    arguments = ('mmpose::analysis_tools/get_flops.py', ROOT / config, '--input-shape', 256, 192)
    printed = python('-m', 'trunchier', 'run', *arguments)
    assert 'Flops: ' in printed


def test_tracing_a_backbone_first_in_a_process_passes_its_sanity_check():
    script = (
        'import torch, trunchier\n'
        "for name in ('swin-t-s2', 'gmf-t-s2'):\n"
        '    backbone = trunchier.create_backbone(name).eval()\n'
        '    with torch.no_grad():\n'
        '        torch.jit.trace(backbone, torch.randn(1, 3, 64, 64))\n'
        '    print(name)\n'
    )
    assert python('-W', 'ignore', '-c', script).split() == ['swin-t-s2', 'gmf-t-s2']


# --- trunchier:: and scope -----------------------------------------------------------------------


def test_a_config_inherits_from_ours_by_the_name_of_the_package(tmp_path):
    (tmp_path / 'mine.py').write_text(f'_base_ = {CALLED_BY_PACKAGE!r}\n')
    cfg = Config.fromfile(tmp_path / 'mine.py')
    cfg.model.backbone.init_cfg = None
    model = MODELS.build(cfg.model)
    assert type(model).__name__ == 'TopdownPoseEstimator'
    assert isinstance(model.backbone, trunchier.models.TruncatedSwin)


# A training of one step on eight pictures or some shards, without weights from elsewhere.
OF_POSE = """
model = dict(backbone=dict(init_cfg=None))
train_cfg = dict(max_epochs=1)
pipeline = _base_.train_pipeline
pipeline.pop(3)  # half of a body that is one point has no size
data = dict(data_root='', ann_file='FOLDER/people.json', data_prefix=dict(img='FOLDER/'))
train_dataloader = dict(
    batch_size=8, num_workers=0, persistent_workers=False, dataset=dict(pipeline=pipeline, **data)
)
val_dataloader = dict(
    num_workers=0, persistent_workers=False, dataset=dict(bbox_file=None, **data)
)
test_dataloader = test_cfg = test_evaluator = None
val_evaluator = dict(ann_file='FOLDER/people.json')
"""
OF_MESH = """
model = dict(backbone=dict(init_cfg=None), init_cfg=None)
train_cfg = dict(max_iters=1)
pipeline = _base_.train_pipeline
pipeline[2].pop('path')
shards = dict(type='ShardPeople', name='noise', urls='FOLDER/shards')
train_dataloader = dict(
    batch_size=2, num_workers=0, persistent_workers=False,
    dataset=dict(datasets=[shards], weights=[1], pipeline=pipeline),
)
val_dataloader = dict(num_workers=0, persistent_workers=False)
test_dataloader = test_cfg = test_evaluator = None
"""


@pytest.mark.parametrize(('config', 'changes'), [(POSE, OF_POSE), (MESH, OF_MESH)])
def test_a_config_that_inherits_from_ours_by_the_name_of_the_package_trains(
    config, changes, tmp_path
):
    draw_people(tmp_path)
    write_shards(tmp_path / 'shards')
    text = f'_base_ = {config.replace("configs/", "trunchier::")!r}\n{changes}'
    (tmp_path / 'mine.py').write_text(text.replace('FOLDER', str(tmp_path)))
    cfg = Config.fromfile(tmp_path / 'mine.py')
    cfg.work_dir = str(tmp_path / 'work')
    assert cfg.train_dataloader.dataset['_scope_'] == 'trunchier'
    validation = DATASETS.build(cfg.val_dataloader.dataset)
    assert len(validation.pipeline.transforms) == len(cfg.val_pipeline)
    cfg.val_dataloader = cfg.val_evaluator = cfg.val_cfg = None
    runner = Runner.from_cfg(cfg)
    before = {name: value.clone() for name, value in runner.model.named_parameters()}
    runner.train()
    after = dict(runner.model.named_parameters())
    assert all(value.isfinite().all() for value in after.values())
    assert any((value != before[name]).any() for name, value in after.items())
    (kept,) = [hook for hook in runner.hooks if 'CheckpointHook' in type(hook).__name__]
    assert type(kept) is trunchier.engine.SafeCheckpointHook


@pytest.mark.parametrize('suffix', ['', '.py'])
def test_get_config_finds_ours(suffix):
    cfg = get_config(CALLED_BY_PACKAGE.removesuffix('.py') + suffix)
    assert Path(cfg.filename) == ROOT / POSE


def test_get_model_builds_ours():
    model = get_model(MESH.replace('configs/', 'trunchier::'))
    assert type(model).__name__ == 'MeshEstimator'


def test_the_index_states_the_weights_that_come_with_the_package():
    for model, config in SHIPPED.items():
        cfg = get_config(config.replace('configs/', 'trunchier::'), pretrained=True)
        assert Path(cfg.model_path) == ROOT / 'trunchier' / 'assets' / f'{model}.safetensors'
        assert Path(cfg.model_path).is_file()


def by_alias(name):
    """Config and weights that mmpose's inferencers load for a name."""
    return BaseInferencer._load_model_from_metafile(SimpleNamespace(scope='mmpose'), name)


def test_the_inferencers_of_mmpose_find_the_weights_that_come_with_the_package():
    cfg, weights = by_alias('VMPose-T-S2')
    assert Path(weights) == ROOT / 'trunchier' / 'assets' / 'VMPose-T-S2.safetensors'
    assert Path(cfg.filename) == ROOT / zoo.config_path('vm-t-s2', 'pose')
    cfg, weights = by_alias('SwinPose-T-S2')
    assert Path(cfg.filename) == ROOT / POSE and weights is None


def test_a_name_of_mmpose_remains_a_model_of_mmpose():
    cfg, weights = by_alias('ViTPose-S')
    assert cfg.model.backbone.type == 'mmpretrain.VisionTransformer'
    assert Path(cfg.filename).parts[-4:-1] == ('body_2d_keypoint', 'topdown_heatmap', 'coco')
    assert weights.startswith('https://download.openmmlab.com/')


@pytest.mark.slow  # docs/openmmlab.md runs the same without comparing weights
def test_pose2d_inferencer_predicts_by_the_name_of_a_model(tmp_path):
    cv2.imwrite(str(tmp_path / 'a.png'), np.zeros((64, 48, 3), np.uint8))
    from mmpose.apis import Pose2DInferencer

    with DefaultScope.overwrite_default_scope('mmpose'):
        infer = Pose2DInferencer('VMPose-T-S2', device='cpu', det_model='whole_image')
        (result,) = infer(str(tmp_path / 'a.png'))
    assert len(result['predictions'][0][0]['keypoints']) == 17
    shipped = load_file(ROOT / 'trunchier' / 'assets' / 'VMPose-T-S2.safetensors')
    for name, tensor in infer.model.head.state_dict().items():
        assert torch.equal(tensor, shipped[f'head.{name}']), name


def test_a_wrong_name_is_answered_by_similar_ones():
    with pytest.raises(FileNotFoundError, match='no config trunchier::pose2d/td-hm_swim.*swin-t'):
        get_config('trunchier::pose2d/td-hm_swim-t-s2_8xb64-210e_coco-256x192')


@pytest.mark.parametrize('prefix', ['', 'trunchier.'])
def test_a_backbone_is_found_with_and_without_a_scope(prefix):
    backbone = MODELS.build(dict(type=f'{prefix}TruncatedSwin', arch='tiny', num_stages=2))
    assert isinstance(backbone, trunchier.models.TruncatedSwin)


def test_the_default_scope_may_be_ours():
    with DefaultScope.overwrite_default_scope('trunchier'):
        backbone = MODELS.build(dict(type='TruncatedGMF', arch='tiny', num_stages=2))
        head = MODELS.build(dict(type='HeatmapHead', in_channels=8, out_channels=17))
        pack = TRANSFORMS.build(dict(type='PackPoseInputs'))
    assert isinstance(backbone, trunchier.models.TruncatedGMF)
    assert type(head).__name__ == 'HeatmapHead'
    assert type(pack).__module__.startswith('mmpose')


def test_an_unknown_type_of_our_scope_is_an_error_that_names_it():
    with pytest.raises(KeyError, match='trunchier.TruncatedSwim'):
        MODELS.build(dict(type='trunchier.TruncatedSwim'))


def test_the_scope_chooses_between_classes_of_one_name_of_two_packages():
    from mmpose.registry import MODELS as OF_MMPOSE

    class StageAdapter(nn.Identity):
        pass

    OF_MMPOSE.register_module(module=StageAdapter)
    try:
        options = dict(in_channels=8, out_channels=8, num_stages=3)
        theirs = OF_MMPOSE.build(dict(type='StageAdapter'))
        ours = OF_MMPOSE.build(dict(type='trunchier.StageAdapter', **options))
    finally:
        del OF_MMPOSE.module_dict['StageAdapter']
    assert type(theirs) is StageAdapter
    assert type(ours) is trunchier.models.StageAdapter


def test_our_scope_and_full_names_import_us_and_a_bare_name_says_what_to_import():
    script = (
        'from mmengine.registry import MODELS\n'
        'try:\n'
        "    MODELS.build(dict(type='TruncatedSwin'))\n"
        'except KeyError as error:\n'
        "    print('custom_imports' in str(error) or 'import' in str(error))\n"
        "backbone = dict(type='trunchier.TruncatedSwin', arch='tiny', num_stages=2)\n"
        'print(MODELS.build(backbone).num_stages)\n'
        "print(MODELS.get('trunchier.models.TruncatedGMF').__name__)\n"
    )
    assert python('-W', 'ignore', '-c', script).split() == ['True', '2', 'TruncatedGMF']


class OfAnotherPackage:
    """A class that only the program that wrote a checkpoint has."""


def test_a_checkpoint_with_a_foreign_class_is_refused_by_its_name_and_with_a_remedy(tmp_path):
    path = tmp_path / 'theirs.pth'
    torch.save(dict(state_dict=dict(weight=torch.ones(1), state=OfAnotherPackage())), path)
    with pytest.raises(CheckpointError, match='OfAnotherPackage.*save the weights alone'):
        load_checkpoint(nn.Linear(1, 1), str(path))


# --- new-style configs ---------------------------------------------------------------------------

MODULES = {
    f'trunchier.configs.{row.folder}.{name.replace("-", "_")}': (name, task)
    for task, row in zoo.TASKS.items()
    for name in zoo.ENCODERS
}
EVERY = [
    pytest.param(name, marks=() if name.endswith('vm_t_s2') else pytest.mark.slow)
    for name in MODULES
]


def lazy(folder, *lines):
    """A new-style config of these lines, read as `train.py` reads it."""
    path = folder / 'lazy.py'
    path.write_text('\n'.join(('from mmengine.config import read_base', *lines)) + '\n')
    return Config.fromfile(path)


@pytest.mark.parametrize('module', EVERY)
def test_a_new_style_config_is_its_text_config(module, tmp_path):
    cfg = lazy(tmp_path, 'with read_base():', f'    from {module} import *')
    text = Config.fromfile(ROOT / zoo.config_path(*MODULES[module])).to_dict()
    assert {key: value for key, value in cfg.to_dict().items() if key != 'read_base'} == text


def test_every_model_has_a_new_style_config_of_its_name():
    folder = ROOT / 'trunchier' / 'configs'
    calls = {}
    for path in folder.glob('*/[!_]*.py'):
        name = '.'.join(path.relative_to(ROOT).with_suffix('').parts)
        calls[name] = re.search(r"variables\('(\S+)', '(\w+)'\)", path.read_text()).groups()
    assert calls == MODULES


@pytest.fixture(scope='module')
def inherited(tmp_path_factory):
    """A new-style config that inherits from ours, and names one more class by import."""
    return lazy(
        tmp_path_factory.mktemp('lazy'),
        'from trunchier.models import TruncatedGMF',
        'with read_base():',
        '    from trunchier.configs.pose2d.vm_t_s2 import *',
        'train_dataloader.batch_size = 2',
        "model.backbone = dict(type=TruncatedGMF, arch='tiny', num_stages=2)",
        'model.neck.in_channels = 160',
    )


def test_a_new_style_config_changes_what_it_inherits(inherited):
    assert inherited.train_dataloader.batch_size == 2
    assert inherited.train_dataloader.num_workers == 4
    with DefaultScope.overwrite_default_scope('mmpose'):
        model = MODELS.build(inherited.model)
    assert isinstance(model.backbone, trunchier.models.TruncatedGMF)
    assert type(model).__name__ == 'TopdownPoseEstimator'


def test_a_dumped_new_style_config_is_read_as_text(inherited, tmp_path):
    inherited.dump(tmp_path / 'dumped.py')
    cfg = Config.fromfile(tmp_path / 'dumped.py')
    assert cfg.model.backbone.type == 'trunchier.models.TruncatedGMF'
    assert cfg.custom_imports.imports == ['trunchier']
    with DefaultScope.overwrite_default_scope('mmpose'):
        model = MODELS.build(cfg.model)
    assert isinstance(model.backbone, trunchier.models.TruncatedGMF)


# --- scripts and hook ----------------------------------------------------------------------------


def test_run_gives_a_script_its_arguments_and_our_modules(tmp_path):
    script = tmp_path / 'script.py'
    script.write_text(
        'import sys\nfrom mmengine.registry import MODELS\n'
        "print(sys.argv[1:], MODELS.get('TruncatedSwin').__name__, __name__)\n"
    )
    assert python('-m', 'trunchier', 'run', script, '--help', 'x') == (
        "['--help', 'x'] TruncatedSwin __main__\n"
    )


def test_run_lets_a_script_read_what_mmengine_saved(tmp_path):
    script, path = tmp_path / 'publish.py', tmp_path / 'epoch_1.pth'
    hub = dict(log_scalars=dict(loss=HistoryBuffer([0.5], [1])), best=np.float64(0.5))
    torch.save(dict(state_dict=dict(weight=torch.ones(2)), message_hub=hub), path)
    script.write_text(
        'import sys, torch\n'
        "content = torch.load(sys.argv[1], map_location='cpu')\n"
        "print(content['state_dict']['weight'].tolist(), content['message_hub']['best'])\n"
    )
    assert python('-m', 'trunchier', 'run', script, path) == '[1.0, 1.0] 0.5\n'


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('absent.py', 'no script absent.py'),
        ('no_such::tool.py', 'running no_such::tool.py needs no_such'),
        ('mmpose::tran.py', 'train.py'),
    ],
)
def test_run_says_what_it_did_not_find(name, message):
    with pytest.raises(SystemExit, match=f'^error: .*{message}'):
        run.main([name])


IMPORTED = 'import sys; print("trunchier" in sys.modules)'


def test_the_hook_imports_us_with_mmpose_alone_and_can_be_removed(tmp_path):
    tool = ROOT / 'tools' / 'install_hook.py'
    read = f'import site; site.addsitedir({str(tmp_path)!r})'  # as Python does when it starts
    python(tool, '--folder', tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        '_trunchier_hook.py',
        'trunchier_hook.pth',
    ]
    assert python('-c', f'{read}; import json; {IMPORTED}') == 'False\n'
    assert python('-c', f'{read}; import mmpose.registry; {IMPORTED}') == 'True\n'
    python(tool, '--folder', tmp_path, '--remove')
    assert not list(tmp_path.iterdir())


def test_a_broken_installation_does_not_break_mmpose_through_the_hook(tmp_path):
    python(ROOT / 'tools' / 'install_hook.py', '--folder', tmp_path)
    script = (
        f'import site, sys; site.addsitedir({str(tmp_path)!r})\n'
        "sys.modules['trunchier'] = None\n"
        'import mmpose.version\n'
        'print(mmpose.version.__version__)\n'
    )
    assert python('-W', 'ignore', '-c', script).strip()
