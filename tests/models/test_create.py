"""Models and backbones by name: as their configs say, with the weights asked for."""

import pytest
import torch
from small_models import mesh_config, pose_config, write_weights

import trunchier
from trunchier import zoo
from trunchier.files import shipped
from trunchier.models.create import build_model
from trunchier.weights.load import CheckpointError, read_weights, unwrap

pytest.importorskip('mmpose')


def test_models_are_listed_by_pattern():
    assert len(trunchier.list_models()) == 62
    assert trunchier.list_models('vmpose-t-*') == ['VMPose-T-S4', 'VMPose-T-S3', 'VMPose-T-S2']
    assert trunchier.list_models('HMR2.0-?') == [f'HMR2.0-{size}' for size in 'HLBS']
    assert trunchier.list_models('nothing') == []


def test_a_pose_model_has_as_many_heatmaps_as_asked():
    model = trunchier.create_model('SwinPose-T-S2', num_keypoints=5)
    assert not model.training
    with torch.no_grad():
        heatmaps = model.head(model.extract_feat(torch.zeros(2, 3, 64, 48)))
    assert heatmaps.shape == (2, 5, 16, 12)


def test_options_of_the_config_can_be_changed():
    model = trunchier.create_model('VMPose-T-S2', backbone=dict(frozen_stages=1))
    assert not any(p.requires_grad for p in model.backbone.stem.parameters())
    model = trunchier.create_model('VMPose-T-S2')
    assert all(p.requires_grad for p in model.parameters())


def test_a_mesh_model_has_no_heatmaps():
    with pytest.raises(ValueError, match='VMHMR2.0-T-S2 has no heatmaps'):
        trunchier.create_model('VMHMR2.0-T-S2', num_keypoints=5)


@pytest.mark.parametrize('task', zoo.TASKS)
def test_shipped_weights_are_loaded_on_request(task):
    name = next(n for n in zoo.SHIPPED if zoo.models()[n][1] == task)
    state = unwrap(read_weights(shipped.asset(f'{name}.safetensors')))
    model = trunchier.create_model(name, weights='shipped')
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key].to(value.dtype)), key
    key = 'backbone.stages.0.blocks.0.norm1.weight'
    assert not torch.equal(trunchier.create_model(name).state_dict()[key], state[key].float())


@pytest.mark.parametrize('config', [pose_config, mesh_config])
def test_an_mmengine_checkpoint_fills_the_model(config, tmp_path):
    write_weights(config(), tmp_path / 'a.pth')
    state = torch.load(tmp_path / 'a.pth')['state_dict']
    model = trunchier.create_model(config(), weights=tmp_path / 'a.pth')
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_models_without_shipped_weights_say_so():
    with pytest.raises(FileNotFoundError, match='no weights of SwinPose-T-S2 ship'):
        trunchier.create_model('SwinPose-T-S2', weights='shipped')


def test_what_only_training_needs_is_left_out():
    cfg = mesh_config()
    cfg.model.discriminator = dict(type='HMRDiscriminator')
    assert not hasattr(build_model(cfg), 'discriminator')
    assert cfg.model.discriminator is not None


@pytest.mark.parametrize('name', ['swin-t-s3', 'gmf-t-s3', 'vm-t-s3'])
def test_a_backbone_gives_the_stages_asked_for(name):
    backbone = trunchier.create_backbone(name, out_indices=(0, 2))
    channels = zoo.encoder(name).backbone.channels
    with torch.no_grad():
        maps = backbone(torch.zeros(1, 3, 64, 64))
    assert [m.shape for m in maps] == [(1, channels[0], 16, 16), (1, channels[2], 4, 4)]


def test_a_backbone_takes_its_part_of_a_model(tmp_path):
    model = trunchier.create_model('SwinPose-T-S2')
    torch.save(model.state_dict(), tmp_path / 'a.pth')
    backbone = trunchier.create_backbone('swin-t-s2', weights=tmp_path / 'a.pth')
    weight = backbone.stages[0].blocks[0].attn.qkv.weight
    assert torch.equal(weight, model.backbone.stages[0].blocks[0].attn.qkv.weight)
    with pytest.raises(CheckpointError, match='does not fit TruncatedVMamba'):
        trunchier.create_backbone('vm-t-s2', weights=tmp_path / 'a.pth')


def test_unknown_names_are_reported():
    with pytest.raises(ValueError, match="no encoder 'swin-x-s3'"):
        trunchier.create_backbone('swin-x-s3')
    with pytest.raises(AttributeError, match="has no attribute 'create_modle'"):
        trunchier.create_modle  # noqa: B018
