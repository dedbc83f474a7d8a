"""A model comes by any of its names, with its own weights and no others."""

import pytest
import torch
from mmengine.config import Config
from small_models import mesh_config, pose_config, write_weights

from trunchier import zoo
from trunchier.weights import find
from trunchier.weights.load import CheckpointError, save_weights


@pytest.mark.parametrize('task', zoo.TASKS)
@pytest.mark.parametrize('encoder', ['swin-t-s2', 'vit-b'])
def test_every_name_of_a_model_finds_its_config(encoder, task):
    paper = zoo.paper_name(encoder, task)
    path = find.PACKAGE.parent / zoo.config_path(encoder, task)
    wanted = Config.fromfile(path).model.to_dict()
    for name in (paper, paper.lower(), encoder, path.stem):
        cfg, found = find.find_config(name, task)
        assert found == paper and cfg.model.to_dict() == wanted
    cfg, found = find.find_config(str(path), task)
    assert found == paper and cfg.model.to_dict() == wanted


def test_a_config_is_copied_not_changed():
    given = pose_config()
    cfg, _ = find.find_config(given, 'pose')
    cfg.model.head.out_channels = 3
    assert given.model.head.out_channels == 17


@pytest.mark.parametrize(
    'name, task, says',
    [
        ('VMPose-T-S5', 'pose', r"no pose model 'VMPose-T-S5'; did you mean VMPose-T-S\d"),
        ('SwinHMR-T-S3', 'mesh', 'did you mean SwinHMR2.0-T-S'),
        ('qqqq', 'pose', 'choose from SwinPose-B-S4, '),
        ('VMHMR2.0-T-S2', 'pose', 'is a mesh model; use MeshInferencer'),
        ('vmpose-t-s2', 'mesh', 'VMPose-T-S2 is a pose model; use PoseInferencer'),
    ],
)
def test_a_wrong_name_is_told_and_what_is_near(name, task, says):
    with pytest.raises(ValueError, match=says):
        find.find_config(name, task)


def test_an_absent_config_is_named():
    with pytest.raises(FileNotFoundError, match='no config nowhere.py'):
        find.find_config('nowhere.py', 'pose')


def test_without_published_weights_nothing_is_predicted_at_random(tmp_path, monkeypatch):
    monkeypatch.setattr(find, 'WEIGHTS', tmp_path)
    with pytest.raises(FileNotFoundError, match=r'no weights of VMPose-T-S3 .*give weights=FILE'):
        find.find_weights('VMPose-T-S3', None)
    with pytest.raises(FileNotFoundError, match='no pose model comes with weights'):
        find.embedded_model('pose')
    (tmp_path / 'SwinPose-T-S2.safetensors').touch()
    with pytest.raises(FileNotFoundError, match='or take SwinPose-T-S2, which comes with weights'):
        find.find_weights('VMPose-T-S3', None)
    assert find.find_weights('SwinPose-T-S2', None).name == 'SwinPose-T-S2.safetensors'
    assert find.embedded_model('pose') == 'SwinPose-T-S2'


def test_absent_weights_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='nothing.pth'):
        find.find_weights('VMPose-T-S3', tmp_path / 'nothing.pth')


def test_what_is_to_know_about_weights_stays_with_them(tmp_path):
    state = dict(a=torch.zeros(2))
    save_weights(state, tmp_path / 'noted.safetensors', 'of synthetic people')
    save_weights(state, tmp_path / 'plain.safetensors')
    save_weights(state, tmp_path / 'plain.pth')
    assert find.weights_note(tmp_path / 'noted.safetensors') == 'of synthetic people'
    assert find.weights_note(tmp_path / 'plain.safetensors') is None
    assert find.weights_note(tmp_path / 'plain.pth') is None


# --- weights -----------------------------------------------------------------------------------


def build(cfg):
    import mmpose.models  # noqa: F401
    from mmengine.registry import MODELS, init_default_scope

    init_default_scope('mmpose')
    return MODELS.build(cfg.model)


@pytest.mark.parametrize('config', [pose_config, mesh_config])
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_every_parameter_comes_from_the_file(tmp_path, config, suffix):
    from safetensors.torch import save_file

    path = tmp_path / f'a{suffix}'
    write_weights(config(), tmp_path / 'a.pth')
    state = torch.load(tmp_path / 'a.pth')['state_dict']
    if suffix == '.safetensors':  # half precision, as embedded weights are
        state = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
        save_file(state, path)
    torch.manual_seed(1)
    model = build(config())
    assert find.load_weights(model, path) is None
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key].to(value.dtype)), key


def test_the_metainfo_of_the_training_set_comes_along(tmp_path):
    write_weights(pose_config(), tmp_path / 'a.pth')
    content = torch.load(tmp_path / 'a.pth')
    content['meta'] = {'dataset_meta': {'dataset_name': 'coco', 'num_keypoints': 17}}
    torch.save(content, tmp_path / 'a.pth')
    assert find.load_weights(build(pose_config()), tmp_path / 'a.pth')['num_keypoints'] == 17


def test_the_discriminator_of_a_training_checkpoint_is_left_out(tmp_path):
    write_weights(mesh_config(), tmp_path / 'a.pth')
    content = torch.load(tmp_path / 'a.pth')
    content['state_dict']['discriminator.joint_out.weight'] = torch.zeros(3)
    torch.save(content, tmp_path / 'a.pth')
    find.load_weights(build(mesh_config()), tmp_path / 'a.pth')


@pytest.mark.parametrize('config, other', [(pose_config, mesh_config), (mesh_config, pose_config)])
def test_weights_of_another_model_are_refused(tmp_path, config, other):
    write_weights(other(), tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match=r'does not fit [^\n]*\n\d+ missing:'):
        find.load_weights(build(config()), tmp_path / 'a.pth')


def test_weights_of_another_size_are_refused(tmp_path):
    write_weights(pose_config(), tmp_path / 'a.pth')
    larger = pose_config()
    larger.model.head.deconv_out_channels = (32, 32)
    with pytest.raises(CheckpointError, match='misshapen'):
        find.load_weights(build(larger), tmp_path / 'a.pth')


def test_a_file_that_is_no_checkpoint_is_named(tmp_path):
    (tmp_path / 'a.pth').write_bytes(b'no weights')
    with pytest.raises(CheckpointError, match='a.pth cannot be read as weights'):
        find.load_weights(build(pose_config()), tmp_path / 'a.pth')


@pytest.mark.parametrize('device, says', [('gpu', "no device 'gpu'"), ('cuda', 'wants a GPU')])
def test_a_device_that_is_not_there_is_named(device, says, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(ValueError, match=says):
        find.pick_device(device)
    assert find.pick_device('auto') == torch.device('cpu')
