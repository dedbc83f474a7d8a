"""Teachers by official names; what they write trains; errors of the commands name the remedy."""

import json
import sys

import cv2
import numpy as np
import pytest
import torch
from golden_rule import official_shapes
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.utils import ManagerMixin
from small_models import mesh_config, noise, pose_config, write_weights

from trunchier.annotation import command
from trunchier.deploy.runtime import ModuleNetwork
from trunchier.inference import predictor, runtimes
from trunchier.weights import find
from trunchier.zoo.releases import BY_HAND, RELEASES

pytest.importorskip('mmpose')
ANYTHING = (
    '--agreement=0', '--keypoint-score=-9', '--keypoints=0', '--overlap=0', '--excess=999',
    '--duplicate=-1', '--quiet',
)  # fmt: skip


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Two photos, in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('TRUNCHIER_HOME', str(tmp_path / 'home'))
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.setenv('TRUNCHIER_OFFLINE', '1')
    (tmp_path / 'photos').mkdir()
    for index in range(2):
        cv2.imwrite(f'photos/{index}.png', noise(120, 90, seed=index))
    (tmp_path / BY_HAND).mkdir(parents=True)
    return tmp_path / 'photos'


def annotate(*arguments):
    given = ('photos', '--detector', 'whole_image', '--out', 'labels', '--device', 'cpu')
    return command.main([*given, *ANYTHING, *arguments])


def first_batch(cfg, options):
    """Two samples of the training data of a config, changed as by --cfg-options."""
    cfg = Config(cfg.to_dict())
    cfg.merge_from_dict(options)
    init_default_scope('mmpose')
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    return pseudo_collate([dataset[index] for index in (0, 1)])


def loss_of(cfg, batch):
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).train()
    data = model.data_preprocessor(batch, True)
    losses = model.loss(data['inputs'], data['data_samples'])
    losses = losses[0] if isinstance(losses, tuple) else losses  # of meshes, with the predictions
    total = sum(value for name, value in losses.items() if name.startswith('loss'))
    total.backward()
    return float(total)


@pytest.mark.slow
def test_vitpose_annotates_by_its_name(photos, capsys):
    torch.manual_seed(0)
    shapes = official_shapes('vitpose_small_keys')
    state = {
        key: torch.rand(shape) * 0.02 for key, shape in shapes.items()
    }  # variances are positive
    torch.save(dict(state_dict=state), BY_HAND + RELEASES['ViTPose-S'].filename)
    assert annotate('--model', 'ViTPose-S', '--no-scaled') == 0, capsys.readouterr().err
    people = json.loads((photos.parent / 'labels/person_keypoints.json').read_text())['annotations']
    assert [person['num_keypoints'] for person in people] == [17, 17]


def test_a_pose_model_trains_on_what_another_one_wrote(photos):
    cfg = pose_config()
    cfg.dump('teacher.py')
    write_weights(cfg, 'teacher.pth')
    assert annotate('--model', 'teacher.py', '--weights', 'teacher.pth') == 0
    options = {
        'train_dataloader.dataset.data_root': 'labels',
        'train_dataloader.dataset.ann_file': 'person_keypoints.json',
        'train_dataloader.dataset.data_prefix.img': '.',
    }
    assert 0 < loss_of(cfg, first_batch(cfg, options)) < np.inf


def test_hmr2_annotates_by_its_name_and_a_mesh_model_trains_on_it(photos, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(find, '_read_config', lambda path: mesh_config())
        write_weights(mesh_config(), BY_HAND + 'HMR2.0-H.ckpt')
        assert annotate('--model', 'HMR2.0-H') == 0
    with np.load('labels/people.npz') as file:
        assert file['imgname'].tolist() == ['../photos/0.png', '../photos/1.png']
        assert file['body_pose'].shape == (2, 72) and file['focal_length'].shape == (2, 2)
    cfg = mesh_config()
    people = dict(type='NpzPeople', ann_file='labels/people.npz', img_dir='labels', filters={})
    steps = [dict(step) for step in cfg.train_dataloader.dataset.pipeline]
    for step in steps:
        if step['type'] == 'AddRealPoses':
            step.pop('path')  # those that ship
    cfg.train_dataloader.dataset = dict(type='MixedPeople', datasets=[people], pipeline=steps)
    assert 0 < loss_of(cfg, first_batch(cfg, {})) < np.inf


def test_the_same_command_continues_and_another_model_is_refused(photos, capsys):
    for task, cfg in dict(one=pose_config(), two=pose_config()).items():
        cfg.dump(f'{task}.py')
        write_weights(cfg, f'{task}.pth')
    assert annotate('--model', 'one.py', '--weights', 'one.pth') == 0
    state = torch.load('two.pth', weights_only=True)
    state['state_dict']['head.final_layer.bias'] += 1
    torch.save(state, 'two.pth')
    assert annotate('--model', 'one.py', '--weights', 'two.pth') == command.EXIT_ERROR
    assert 'holds annotations by one (weights of digest' in capsys.readouterr().err
    (photos.parent / 'labels/person_keypoints.json').unlink()
    assert command.main_of_merge(['labels', *ANYTHING]) == 0
    assert (photos.parent / 'labels/person_keypoints.json').is_file()


class Network(ModuleNetwork):
    runtime = 'onnxruntime'


def test_teacher_and_check_run_where_it_is_said_and_any_machine_continues(photos, monkeypatch):
    cfg, asked = pose_config(), []
    cfg.dump('teacher.py')
    write_weights(cfg, 'teacher.pth')

    def network_on_cpu(found, model, precision, runtime, meta):
        asked.append(runtime)
        return None if runtime == 'torch' else Network(model)

    monkeypatch.setattr(predictor, 'network_on_cpu', network_on_cpu)
    given = ('--model', 'teacher.py', '--weights', 'teacher.pth', '--check-pose', 'teacher.py')
    given += ('--check-weights', 'teacher.pth', '--deviation=99')
    assert annotate(*given, '--runtime', 'auto') == 0
    assert asked == ['auto', 'auto']
    assert annotate(*given, '--runtime', 'torch') == 0  # not refused as another run
    assert asked[2:] == ['torch', 'torch']
    monkeypatch.setattr(runtimes, 'SOME', 2)
    assert annotate(*given) == 0
    assert asked[4:] == ['measured', 'measured']


def test_a_runtime_that_is_absent_or_unknown_is_named(photos, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'openvino', None)
    assert annotate('--runtime', 'openvino', '--model', 'pose') == command.EXIT_ERROR
    assert 'runtime openvino needs openvino: pip install openvino' in capsys.readouterr().err
    with pytest.raises(SystemExit, match='2'):
        annotate('--runtime', 'tflite')
    assert "invalid choice: 'tflite'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ('arguments', 'says'),
    [
        (('--model', 'ViTPose-H'), 'put it at data/checkpoints/td-hm_ViTPose-huge'),
        (('--model', 'VMPose-T-S3'), 'no weights of VMPose-T-S3'),
        (('--boxes', 'none.json'), 'no file none.json'),
    ],
)
def test_errors_name_the_remedy(photos, capsys, arguments, says):
    assert annotate(*arguments) == command.EXIT_ERROR
    error = capsys.readouterr().err
    assert error.startswith('error: ') and says in error and error.count('\n') == 1


@pytest.fixture(autouse=True)
def fresh():
    yield
    ManagerMixin._instance_dict = {}
