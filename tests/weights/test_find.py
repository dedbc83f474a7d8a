"""Find a model by any of its names, with its own weights and no others."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from small_models import ROOT, pose_config

from trunchier import zoo
from trunchier.files import shipped
from trunchier.weights import find as module
from trunchier.weights.find import find, find_config, shipped_model
from trunchier.weights.load import save_weights


@pytest.mark.parametrize('task', zoo.TASKS)
@pytest.mark.parametrize('encoder', ['swin-t-s2', 'vit-b'])
def test_every_name_of_a_model_finds_its_config(encoder, task):
    paper = zoo.paper_name(encoder, task)
    path = ROOT / zoo.config_path(encoder, task)
    expected = Config.fromfile(path).model.to_dict()
    for name in (paper, paper.lower(), path.stem, str(path), path):
        found = find_config(name)
        assert (found.name, found.task) == (paper, task)
        assert found.cfg.model.to_dict() == expected
    assert find_config(encoder, task).name == paper


def test_a_config_is_copied_not_changed():
    given = pose_config()
    found = find_config(given)
    found.cfg.model.head.out_channels = 3
    assert given.model.head.out_channels == 17 and found.task == 'pose'


@pytest.mark.parametrize(
    'name, task, message',
    [
        ('VMPose-T-S5', None, r"no model 'VMPose-T-S5'; did you mean VMPose-T-S\d"),
        ('SwinHMR-T-S3', None, 'did you mean SwinHMR2.0-T-S'),
        ('qqqq', None, 'choose from SwinPose-B-S4, '),
        ('VMHMR2.0-T-S2', 'pose', 'is a mesh model, not pose; use MeshInferencer'),
        ('vmpose-t-s2', 'mesh', 'VMPose-T-S2 is a pose model, not mesh; use PoseInferencer'),
        ('vm-t-s2', None, "'vm-t-s2' is an encoder; name a model, VMPose-T-S2 or VMHMR2.0-T-S2"),
        ('vm-t-s2', 'depth', "no task 'depth'; choose from pose, mesh"),
    ],
)
def test_a_wrong_name_is_reported_with_the_nearest(name, task, message):
    with pytest.raises(ValueError, match=message):
        find_config(name, task)


def test_an_absent_config_is_named():
    with pytest.raises(FileNotFoundError, match='no config nowhere.py'):
        find('nowhere.py')


def test_a_config_of_an_unknown_estimator_needs_a_task():
    cfg = Config(dict(model=dict(type='Reader')))
    with pytest.raises(ValueError, match='is a Reader, whose task is unknown'):
        find_config(cfg)
    assert find_config(cfg, 'pose').task == 'pose'


@pytest.mark.parametrize('task', zoo.TASKS)
def test_a_task_has_a_model_that_ships_with_weights(task):
    found = find(shipped_model(task))
    assert found.task == task and found.weights == shipped.asset(f'{found.name}.safetensors')
    assert Path(found.cfg.filename).samefile(ROOT / zoo.SHIPPED[found.name])


def test_the_name_of_a_task_is_its_best_model_here():
    assert find('pose')[:2] == find('VMPose-T-S2')[:2]
    assert find('mesh').name == find('lift').name == 'VMPose-T-S2+lift'


def test_shipped_weights_of_a_config_keep_that_config():
    path = ROOT / zoo.config_path('vm-t-s2', 'mesh')
    assert Path(find(path).cfg.filename).samefile(path)
    assert find(path).weights is not None
    assert find_config('VMHMR2.0-T-S2').weights is None


def test_a_model_without_weights_says_where_to_get_some(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, 'asset', lambda name: tmp_path / name)
    found = find('VMPose-T-S3')
    with pytest.raises(FileNotFoundError, match=r'no weights of VMPose-T-S3 .*give weights=FILE'):
        found.required_weights()
    with pytest.raises(FileNotFoundError, match='no pose model ships with weights'):
        find('pose')
    (tmp_path / 'VMPose-T-S2.safetensors').touch()
    with pytest.raises(FileNotFoundError, match='or take VMPose-T-S2, which comes with weights'):
        found.required_weights()


def test_absent_weights_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='nothing.pth'):
        find('VMPose-T-S3', tmp_path / 'nothing.pth')


def test_a_note_is_stored_with_the_weights(tmp_path):
    state = dict(a=torch.zeros(2))
    save_weights(state, tmp_path / 'noted.safetensors', 'of synthetic people')
    save_weights(state, tmp_path / 'plain.safetensors')
    save_weights(state, tmp_path / 'plain.pth')
    assert module.weights_note(tmp_path / 'noted.safetensors') == 'of synthetic people'
    assert module.weights_note(tmp_path / 'plain.safetensors') is None
    assert module.weights_note(tmp_path / 'plain.pth') is None


@pytest.mark.parametrize(
    'device, message', [('gpu', "no device 'gpu'"), ('cuda', 'requires a GPU')]
)
def test_an_absent_device_is_named(device, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(ValueError, match=message):
        module.pick_device(device)
    assert module.pick_device('auto') == torch.device('cpu')


def test_a_model_of_ours_for_normalized_images_does_not_import_mmpose(monkeypatch):
    def refuse():
        raise AssertionError('mmpose is imported')

    registry = pytest.importorskip('mmpose.registry').MODELS
    cfg = find_config('SwinHMR2.0-T-S2').cfg
    before = list(module.build_model(cfg, preprocesses=True).state_dict())
    monkeypatch.setattr(registry, 'import_from_location', refuse)
    assert list(module.build_model(cfg, preprocesses=False).state_dict()) == before
    with pytest.raises(AssertionError, match='mmpose is imported'):
        module.build_model(cfg, preprocesses=True)
