"""Official files in: unwrapped, converted, cut to the kept stages, or refused with reasons."""

import pytest
import torch
from golden_rule import assert_matches, golden_input, golden_state, load_golden, official_shapes
from mmengine.registry import MODELS, init_default_scope
from small_models import mesh_config, pose_config, write_weights
from torch import nn

from trunchier.models import StageAdapter, TruncatedSwin, TruncatedVMamba
from trunchier.weights import load
from trunchier.weights.find import build_model
from trunchier.weights.load import (
    CheckpointError,
    OfficialPretrained,
    load_checkpoint,
    read_weights,
)
from trunchier.zoo import model_cfg


def save(tmp_path, content, name='official.pth'):
    torch.save(content, tmp_path / name)
    return tmp_path / name


@pytest.fixture(scope='module')
def swin_state():
    return golden_state(official_shapes('swin_tiny_keys'))


# --- truncation ----------------------------------------------------------------------------------


@pytest.mark.parametrize('num_stages', [1, 2, 3, 4])
def test_truncation_keeps_its_stages_and_drops_the_rest(tmp_path, swin_state, num_stages):
    path = save(tmp_path, dict(model=swin_state))
    model = TruncatedSwin('tiny', num_stages=num_stages)
    load_checkpoint(model, path)
    last = num_stages - 1
    ours = model.stages[last].blocks[1].attn.qkv.weight
    assert torch.equal(ours, swin_state[f'layers.{last}.blocks.1.attn.qkv.weight'])
    if num_stages == 4:
        assert torch.equal(model.norm3.weight, swin_state['norm.weight'])


@pytest.mark.parametrize('wrapper', ['model', 'state_dict', 'model_ema', None])
def test_every_official_wrapper_is_opened(tmp_path, swin_state, wrapper):
    path = save(tmp_path, {wrapper: swin_state, 'epoch': 300} if wrapper else swin_state)
    model = TruncatedSwin('tiny', num_stages=1)
    load_checkpoint(model, path)
    name = 'attn.qkv.weight'
    loaded = model.stages[0].blocks[0].get_parameter(name)
    assert torch.equal(loaded, swin_state[f'layers.0.blocks.0.{name}'])


def test_weights_of_the_network_come_before_their_moving_average(tmp_path, swin_state):
    path = save(
        tmp_path, dict(model_ema={k: v * 0 for k, v in swin_state.items()}, model=swin_state)
    )
    model = TruncatedSwin('tiny', num_stages=1)
    load_checkpoint(model, path)
    assert model.stages[0].blocks[0].mlp.fc1.weight.abs().sum() > 0


# --- refusal -------------------------------------------------------------------------------------


def test_another_variant_lists_what_does_not_fit(tmp_path):
    path = save(tmp_path, dict(model=golden_state(official_shapes('swin_base_keys'))))
    model = TruncatedSwin('tiny', num_stages=2)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r'(?s)another variant.*misshapen.*file \(128'):
        load_checkpoint(model, path)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_missing_keys_are_listed(tmp_path, swin_state):
    del (state := dict(swin_state))['layers.1.blocks.0.attn.qkv.bias']
    with pytest.raises(CheckpointError, match=r'(?s)1 missing:\n  stages\.1\.blocks\.0\.attn\.qkv'):
        load_checkpoint(TruncatedSwin('tiny', num_stages=2), save(tmp_path, state))


def test_unexpected_keys_are_listed(tmp_path, swin_state):
    state = dict(swin_state, absolute_pos_embed=torch.zeros(1))
    with pytest.raises(CheckpointError, match=r'(?s)1 unexpected:\n  absolute_pos_embed'):
        load_checkpoint(TruncatedSwin('tiny', num_stages=2), save(tmp_path, state))


def test_a_family_does_not_fit_another(tmp_path, swin_state):
    with pytest.raises(CheckpointError, match='does not fit TruncatedVMamba'):
        load_checkpoint(TruncatedVMamba('tiny', num_stages=1), save(tmp_path, swin_state))


def test_an_unknown_layout_shows_its_keys(tmp_path):
    path = save(tmp_path, {'conv1.weight': torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r'(?s)known layouts.*Swin.*conv1\.weight'):
        load_checkpoint(TruncatedSwin('tiny', num_stages=1), path)


@pytest.mark.parametrize('content', [[torch.zeros(1)], {'epoch': 3}])
def test_a_file_without_tensors_says_so(tmp_path, content):
    with pytest.raises(CheckpointError, match='not a state_dict|no tensors'):
        load_checkpoint(TruncatedSwin('tiny', num_stages=1), save(tmp_path, content))


def test_a_cut_file_is_named(tmp_path, swin_state):
    path = save(tmp_path, swin_state)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r'official\.pth cannot be read.*cut off'):
        load_checkpoint(TruncatedSwin('tiny', num_stages=1), path)


@pytest.mark.parametrize('name', ['picture.pth', 'picture.safetensors'])
def test_a_file_that_is_no_checkpoint_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(b'\x89PNG\r\n' + bytes(200))
    with pytest.raises(CheckpointError, match=name):
        read_weights(tmp_path / name)


class Forbidden:
    def __reduce__(self):
        return print, ('code of the file ran',)


def test_a_forbidden_global_is_named_and_not_run(tmp_path, capsys):
    path = save(tmp_path, dict(model={}, config=Forbidden()))
    with pytest.raises(CheckpointError, match='print'):
        read_weights(path)
    assert 'ran' not in capsys.readouterr().out


def test_an_absent_file_says_where_it_may_come_from():
    with pytest.raises(
        FileNotFoundError, match=r'(?s)no checkpoint .*absent\.pth.*README.*init_cfg'
    ):
        load_checkpoint(nn.Linear(1, 1), 'absent.pth')


def test_a_training_script_s_own_config_is_read_as_an_inert_dict(tmp_path):
    """VMamba's checkpoints carry a yacs config beside the weights; yacs is not needed."""
    import sys
    import types

    module = types.ModuleType('yacs.config')
    module.CfgNode = type('CfgNode', (dict,), {'__module__': 'yacs.config'})
    sys.modules.update({'yacs': types.ModuleType('yacs'), 'yacs.config': module})
    try:
        path = save(tmp_path, dict(model={'w': torch.ones(1)}, config=module.CfgNode(a=1)))
    finally:
        del sys.modules['yacs'], sys.modules['yacs.config']
    content = read_weights(path)
    assert torch.equal(content['model']['w'], torch.ones(1))
    assert type(content['config']).__module__ == 'collections'


# --- whole models --------------------------------------------------------------------------------


@pytest.fixture
def vitpose():
    pytest.importorskip('mmpose')
    init_default_scope('mmpose')
    cfg = model_cfg('vit-s')
    codec = dict(type='UDPHeatmap', input_size=(192, 256), heatmap_size=(48, 64), sigma=2)
    head = dict(
        type='HeatmapHead',
        out_channels=17,
        deconv_out_channels=(256, 256),
        deconv_kernel_sizes=(4, 4),
        decoder=codec,
    )
    return dict(type='TopdownPoseEstimator', backbone=cfg['backbone'], head=head | cfg['head'])


def test_official_vitpose_is_the_official_function(tmp_path, vitpose):
    path = save(tmp_path, dict(state_dict=golden_state(official_shapes('vitpose_small_keys'))))
    vitpose['init_cfg'] = dict(type='OfficialPretrained', checkpoint=str(path))
    vitpose['backbone'].pop('init_cfg')
    model = MODELS.build(vitpose)
    model.init_weights()
    model.eval()
    golden = load_golden('vitpose_small')
    with torch.no_grad():
        (features,) = model.backbone(golden_input(**golden['input']))
        assert_matches(features, golden['backbone'])
        assert_matches(model.head((features,)), golden['heatmap'])


def test_vitpose_weights_alone_survive_the_backbone_s_own_initialisation(tmp_path, vitpose):
    state = golden_state(official_shapes('vitpose_small_keys'))
    path = save(tmp_path, dict(state_dict=state))
    backbone = vitpose['backbone']
    backbone['init_cfg'] = dict(type='OfficialPretrained', checkpoint=str(path))
    model = MODELS.build(backbone)
    model.init_weights()
    embed = state['backbone.pos_embed']
    assert torch.equal(model.pos_embed, embed[:, 1:] + embed[:, :1])
    assert torch.equal(
        model.layers[3].ffn.layers[1].weight, state['backbone.blocks.3.mlp.fc2.weight']
    )


class Whole(nn.Module):
    def __init__(self, neck_channels=384):
        super().__init__()
        self.backbone = TruncatedSwin('tiny', num_stages=2)
        self.neck = StageAdapter(192, neck_channels, 2)
        self.head = nn.Linear(3, 3)


def test_our_own_checkpoint_gives_its_backbone_and_adapter_to_another_task(tmp_path):
    pose, mesh = Whole(), Whole()
    mesh.head = nn.Linear(5, 5)
    path = save(tmp_path, dict(state_dict=pose.state_dict(), meta={}))
    head = mesh.head.weight.clone()
    load_checkpoint(mesh, path, parts=['backbone', 'neck'])
    assert torch.equal(mesh.head.weight, head)
    for part in ('backbone', 'neck'):
        ours = getattr(mesh, part).state_dict()
        assert all(torch.equal(v, ours[k]) for k, v in getattr(pose, part).state_dict().items())
    with pytest.raises(CheckpointError, match=r'(?s)misshapen:\n  head\.weight'):
        load_checkpoint(mesh, path)


def test_an_unknown_part_is_named(tmp_path):
    path = save(tmp_path, Whole().state_dict())
    with pytest.raises(CheckpointError, match=r"no part \['decoder'\].*'backbone', 'neck', 'head'"):
        OfficialPretrained(path, parts=['decoder'])(Whole())


def test_a_checkpoint_of_ours_reads_back_from_either_format(tmp_path):
    model = TruncatedSwin('tiny', num_stages=1)
    for name in ('ours.pth', 'ours.safetensors'):
        load.save_weights(model.state_dict(), tmp_path / name)
        again = TruncatedSwin('tiny', num_stages=1)
        load_checkpoint(again, tmp_path / name)
        assert torch.equal(again.stem.proj.weight, model.stem.proj.weight)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['ours.pth', 'ours.safetensors']


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r'\.safetensors or \.pth'):
        load.save_weights({}, tmp_path / 'ours.onnx')


# --- models of configs ---------------------------------------------------------------------------


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
    model = build_model(config())
    assert load_checkpoint(model, path) is None
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key].to(value.dtype)), key


def test_a_safetensors_file_is_loaded_beside_a_moving_average(tmp_path):
    from mmengine.runner.checkpoint import CheckpointLoader
    from safetensors.torch import save_file

    state = dict(weight=torch.ones(2))
    save_file(state, tmp_path / 'a.safetensors')
    content = CheckpointLoader.load_checkpoint(str(tmp_path / 'a.safetensors'))
    assert torch.equal(content['state_dict']['weight'], state['weight'])  # EMAHook reads this key


def test_the_metainfo_of_the_training_set_comes_along(tmp_path):
    write_weights(pose_config(), tmp_path / 'a.pth')
    content = torch.load(tmp_path / 'a.pth')
    content['meta'] = {'dataset_meta': {'dataset_name': 'coco', 'num_keypoints': 17}}
    torch.save(content, tmp_path / 'a.pth')
    assert load_checkpoint(build_model(pose_config()), tmp_path / 'a.pth')['num_keypoints'] == 17


def test_the_discriminator_of_a_training_checkpoint_is_left_out(tmp_path):
    write_weights(mesh_config(), tmp_path / 'a.pth')
    content = torch.load(tmp_path / 'a.pth')
    content['state_dict']['discriminator.joint_out.weight'] = torch.zeros(3)
    torch.save(content, tmp_path / 'a.pth')
    load_checkpoint(build_model(mesh_config()), tmp_path / 'a.pth')


@pytest.mark.parametrize('config, other', [(pose_config, mesh_config), (mesh_config, pose_config)])
def test_weights_of_another_model_are_refused(tmp_path, config, other):
    write_weights(other(), tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match=r'does not fit [^\n]*\n\d+ missing:'):
        load_checkpoint(build_model(config()), tmp_path / 'a.pth')
