"""A model's name alone takes its official weights, which are downloaded once."""

import logging

import pytest
import torch
from small_models import mesh_config, pose_config, write_weights

from trunchier import create_model
from trunchier.files import DownloadError
from trunchier.inference.mesh import MeshInferencer
from trunchier.inference.pose import PoseInferencer
from trunchier.weights import find
from trunchier.weights.load import load_checkpoint
from trunchier.zoo import releases

NAME = 'ViTPose-B'


@pytest.fixture
def offered(monkeypatch, tmp_path, web):
    """A small model takes the place of ViTPose-B, and its weights that of the official file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('TRUNCHIER_HOME', str(tmp_path / 'home'))
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.setattr(find, '_read_config', lambda path: pose_config())
    path = tmp_path / 'small.pth'
    write_weights(pose_config(), path)
    web.files['/net.pth'] = path.read_bytes()
    facts = dict(urls=(f'{web.url}/net.pth',), sha256='')
    monkeypatch.setitem(releases.RELEASES, NAME, releases.RELEASES[NAME]._replace(**facts))
    return torch.load(path, weights_only=True)


def test_create_model_takes_official_weights(offered, web, capsys):
    for _ in range(2):
        model = create_model(NAME, weights='official')
    expected = offered.get('state_dict', offered)
    torch.testing.assert_close(model.state_dict(), dict(expected))
    assert web.asked == ['/net.pth'] and 'Apache-2.0' in capsys.readouterr().err


def test_predicting_by_name_downloads_and_finding_does_not(offered, web):
    assert find.find(NAME).weights is None and web.asked == []
    infer = PoseInferencer(NAME, detector='whole_image', device='cpu')
    assert infer.weights.name == 'net.pth' and web.asked == ['/net.pth']


def test_without_the_network_the_name_says_what_to_do(offered, monkeypatch):
    monkeypatch.setenv('TRUNCHIER_OFFLINE', '1')
    with pytest.raises(DownloadError, match='put it at data/checkpoints/net.pth'):
        PoseInferencer(NAME, device='cpu')


def test_weights_by_hand_are_named(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r'TruncHierVFM.*data/checkpoints/HMR2.0-S.ckpt'):
        find.find('HMR2.0-S').required_weights()
    with pytest.raises(ValueError, match='no official weights of VMPose-T-S3 are known'):
        create_model('VMPose-T-S3', weights='official')


def test_a_model_of_smpls_body_warns_by_its_name_too(monkeypatch, tmp_path, caplog):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(find, '_read_config', lambda path: mesh_config())
    folder = tmp_path / 'data' / 'checkpoints'
    folder.mkdir(parents=True)
    write_weights(mesh_config(), folder / 'HMR2.0-H.ckpt')  # without SMPL's buffers
    with caplog.at_level(logging.WARNING, logger='trunchier'):
        MeshInferencer('HMR2.0-H', detector='whole_image', device='cpu')
    assert 'HMR2.0-H.ckpt was trained for SMPL' in caplog.text


def test_a_config_says_the_license_of_the_official_weights_that_it_starts_from(
    offered, web, capsys
):
    model = create_model(NAME)
    load_checkpoint(model, f'{web.url}/net.pth')
    assert 'license: Apache-2.0' in capsys.readouterr().err
