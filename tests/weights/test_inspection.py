"""Files of weights by path alone: what they are, which config made them, what is refused."""

import json
import shutil

import cv2
import pytest
import torch
from golden_rule import (
    GOLDEN,
    assert_matches,
    golden_input,
    golden_state,
    load_golden,
    official_shapes,
)
from mmengine.registry import MODELS
from safetensors.torch import save_file
from small_models import ROOT, SWIN, noise, pose_config
from test_recognize import file_of, meta, vit_shapes

from trunchier.files import shipped
from trunchier.inference import command
from trunchier.models import TruncatedSwin
from trunchier.weights.experts import split_expert
from trunchier.weights.find import build_model, find
from trunchier.weights.inspection import (
    box_padding,
    exported_metadata,
    input_size,
    inspect_file,
    stated_facts,
)
from trunchier.weights.load import CheckpointError, load_checkpoint, read_weights, save_weights
from trunchier.weights.recognize import identify, parse_renames, recognize

pytest.importorskip('mmpose')
SHIPPED_MESH = shipped.asset('VMHMR2.0-T-S2.safetensors')


def zeros(state):
    return {key: torch.zeros(value.shape) for key, value in state.items()}


# --- layouts -------------------------------------------------------------------------------------


def test_lightning_s_checkpoint_with_an_omegaconf_config_is_read_and_the_config_is_inert():
    """golden/lightning_omegaconf.ckpt: written by omegaconf 2.3 and torch, keys as Lightning's."""
    content = read_weights(GOLDEN / 'lightning_omegaconf.ckpt')
    assert torch.equal(content['state_dict']['backbone.last_norm.weight'], torch.ones(3))
    assert content['hyper_parameters']['cfg'] == {}


def test_a_backbone_without_prefix_is_one_to_train_from():
    """4D-Humans' vitpose_backbone.pth."""
    found = recognize(meta(vit_shapes(1280, 32)))
    assert identify(found).backbones == ('vit-h',)
    assert identify(found).task is None
    assert found.state['layers.31.ffn.layers.1.weight'].shape == (1280, 5120)
    assert found.state['pos_embed'].shape == (1, 192, 1280)


def experts():
    """Keys and shapes of ViTPose++-S, less the experts and heads beyond the second."""
    shapes = official_shapes('vitpose_small_keys')
    for key in [key for key in shapes if '.mlp.fc2.' in key]:
        shapes[key] = (192, *shapes[key][1:])
        for number in (0, 1):
            shapes[key.replace('fc2', f'experts.{number}')] = shapes[key]
    return shapes | {'associate_keypoint_heads.0.final_layer.weight': (14, 256, 1, 1)}


def simple():
    shapes = official_shapes('vitpose_small_keys').items()
    shapes = {key: shape for key, shape in shapes if 'keypoint_head' not in key}
    final = {'weight': (17, 384, 3, 3), 'bias': (17,)}
    return shapes | {f'keypoint_head.final_layer.{key}': shape for key, shape in final.items()}


@pytest.mark.parametrize('name, shapes', [('plus', experts), ('simple', simple)])
def test_heatmaps_of_the_file_are_the_official_ones(tmp_path, name, shapes):
    golden = load_golden('vitpose_decoders')[name]
    path = tmp_path / 'vitpose.pth'
    torch.save(dict(state_dict=golden_state(shapes())), path)
    found = find(None, path)
    assert (found.name, found.task) == ('ViTPose-S', 'pose')
    model = build_model(found.cfg)
    load_checkpoint(model, path)
    images = golden_input(**golden['input'])[: golden['heatmap']['shape'][0]]
    with torch.no_grad():
        heatmaps = model.head(model.extract_feat(images))
    assert_matches(heatmaps, golden['heatmap'])


def test_a_file_split_for_one_data_set_has_its_expert_in_place():
    whole = golden_state({k: s for k, s in experts().items() if '.0.' in k or 'head' in k})
    split = dict(whole)
    for key in [key for key in whole if '.mlp.fc2.' in key]:
        split[key] = torch.cat([whole[key], whole[key.replace('fc2', 'experts.1')]])
    key = 'backbone.layers.0.ffn.layers.1.weight'
    ours = recognize(split).state[key]
    assert torch.equal(ours, split['backbone.blocks.0.mlp.fc2.weight'])
    assert not torch.equal(recognize(whole).state[key], ours)


def test_the_command_takes_the_expert_that_is_named(tmp_path, monkeypatch, capsys):
    """The same as with the file that the command `split` writes for it."""
    torch.manual_seed(0)
    names = official_shapes('vitpose_small_keys')
    others = {k: (14, *s[1:]) if 'final' in k else s for k, s in names.items() if 'keyp' in k}
    others = {k.replace('keypoint_head', 'associate_keypoint_heads.0'): others[k] for k in others}
    shapes = experts() | others
    whole = {key: torch.rand(shape) / 10 for key, shape in shapes.items()}
    torch.save(dict(state_dict=whole), tmp_path / 'plus.pth')
    torch.save(dict(state_dict=split_expert(whole, 'aic')), tmp_path / 'aic.pth')
    cv2.imwrite(str(tmp_path / 'photo.png'), noise(96, 80, seed=0))
    monkeypatch.chdir(tmp_path)
    printed = []
    for given in (['plus.pth', '--expert', 'aic'], ['aic.pth'], ['plus.pth']):
        given = ['photo.png', '--detector', 'whole_image', '--json', '-', '--weights', *given]
        assert command.main([*given, '--device', 'cpu']) == 0
        printed.append(json.loads(capsys.readouterr().out))
    assert printed[0] == printed[1] != printed[2]
    assert printed[0]['meta_info']['keypoint_names'][-1] == 'neck'  # of AI Challenger
    with pytest.raises(ValueError, match=r"no expert 'mpii' in the file; it has 0 \(coco\), 1"):
        find(None, tmp_path / 'plus.pth', expert='mpii')
    file = inspect_file(tmp_path / 'plus.pth', expert='aic')
    assert file.identity.decoder == 'classic, 2 deconvolutions, 14 keypoints'


@pytest.mark.parametrize('expert, metainfo', [('ap10k', 'ap10k'), ('coco', 'coco'), (None, 'coco')])
def test_an_expert_of_animals_has_their_keypoints(tmp_path, expert, metainfo):
    shapes = experts()
    shapes |= {key.replace('experts.1', 'experts.3'): shape for key, shape in shapes.items()}
    for key in [key for key in shapes if key.startswith('keypoint_head.')]:
        shapes[key.replace('keypoint_head', 'associate_keypoint_heads.2')] = shapes[key]
    path = tmp_path / 'plus.pth'
    torch.save(zeros(meta(shapes)), path)
    found = find(None, path, expert=expert)
    given = found.cfg.train_dataloader.dataset.get('metainfo', dict(from_file='coco.py'))
    assert given['from_file'].endswith(f'{metainfo}.py')


TO_TRANSFORMERS = [
    ('patch_embed.proj', 'embeddings.patch_embeddings.projection'),
    ('pos_embed', 'embeddings.position_embeddings'),
    ('blocks', 'encoder.layer'),
    ('attn.proj', 'attention.output.dense'),
    ('attn', 'attention.attention'),
    ('norm1', 'layernorm_before'),
    ('norm2', 'layernorm_after'),
    ('last_norm', 'layernorm'),
    ('keypoint_head', 'head'),
    ('deconv_layers.0', 'deconv1'),
    ('deconv_layers.1', 'batchnorm1'),
    ('deconv_layers.3', 'deconv2'),
    ('deconv_layers.4', 'batchnorm2'),
    ('final_layer', 'conv'),
]


@pytest.mark.parametrize('shapes', [official_shapes('vitpose_small_keys'), experts(), simple()])
def test_vitpose_of_transformers_is_the_same_model(shapes):
    official = golden_state({k: s for k, s in shapes.items() if 'blocks' not in k or '.0.' in k})
    official = {key: value for key, value in official.items() if 'associate' not in key}
    theirs = {}
    for key, value in official.items():
        for old, new in TO_TRANSFORMERS:
            key = key.replace(old, new)
        if '.qkv.' not in key:
            theirs[key] = value
            continue
        for part, rows in zip(('query', 'key', 'value'), value.chunk(3), strict=True):
            theirs[key.replace('qkv', part)] = rows
    expected, found = recognize(official), recognize(theirs)
    assert found.layout.name == 'transformers'
    assert found.state.keys() == expected.state.keys()
    assert all(torch.equal(found.state[key], value) for key, value in expected.state.items())


def test_swin_of_mmpretrain_is_the_same_function():
    pytest.importorskip('mmpretrain')
    torch.manual_seed(0)
    arch = dict(embed_dims=16, depths=[2, 1, 1, 1], num_heads=[1, 2, 4, 8])
    options = dict(arch=arch, img_size=224, pad_small_map=True, out_indices=(0, 1, 2, 3))
    theirs = MODELS.build(dict(type='mmpretrain.SwinTransformer', **options))
    theirs.eval()
    for parameter in theirs.parameters():
        parameter.data.normal_(0, 0.2)
    state = {f'backbone.{key}': value for key, value in theirs.state_dict().items()}
    found = recognize(state)
    assert found.layout.name == 'mmpretrain or mmdet'
    arch = dict(SWIN, channels=(16, 32, 64, 128), num_heads=(1, 2, 4, 8), depths=(2, 1, 1, 1))
    ours = TruncatedSwin(arch, out_indices=(3,), drop_path_rate=0.0).eval()
    ours.load_state_dict({key: found.state[f'backbone.{key}'] for key in ours.state_dict()})
    image = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(image)[-1], theirs(image)[-1], rtol=1e-3, atol=1e-4)


def test_a_safetensors_file_and_a_pth_are_recognized_alike(tmp_path):
    state = zeros(file_of('VMPose-T-S2', '4D-Humans'))
    save_file(state, tmp_path / 'a.safetensors')
    torch.save(dict(model=state), tmp_path / 'a.pth')
    for name, wrapper in (('a.safetensors', ''), ('a.pth', 'model')):
        file = inspect_file(tmp_path / name)
        assert (file.name, file.wrapper) == ('VMPose-T-S2', wrapper)
        assert file.identity.decoder == 'classic, 2 deconvolutions, 17 keypoints'


# --- guesses -------------------------------------------------------------------------------------


def test_the_absence_of_an_output_norm_is_taken_from_the_file(tmp_path):
    state = file_of('VMPose-T-S2', '4D-Humans')
    state = zeros({k: v for k, v in state.items() if not k.startswith('backbone.classifier')})
    path = tmp_path / 'a.pth'
    torch.save(state, path)
    found = find(None, path)
    assert found.cfg.model.backbone.out_norm is False
    assert any('no norm' in note for note in found.notes)
    load_checkpoint(build_model(found.cfg), path)


def test_stages_that_the_adapter_does_not_use_are_left_behind():
    backbone = official_shapes('swin_tiny_keys')
    state = {f'backbone.{key}': torch.empty(s, device='meta') for key, s in backbone.items()}
    rest = file_of('SwinPose-T-S2', '4D-Humans').items()
    found = recognize(state | {k: v for k, v in rest if not k.startswith('backbone.')})
    assert identify(found).names == ('SwinPose-S-S2', 'SwinPose-T-S2')  # equal so far
    assert any('stage 3, 4 is in the file, unused' in guess for guess in found.guesses)


def test_two_candidates_are_an_error_that_a_rename_decides():
    state = file_of('SwinPose-T-S2', '4D-Humans')
    twice = state | {'other.weight': state['adapter.weight']}
    with pytest.raises(
        CheckpointError, match=r'2 layers that could be the adapter: adapter.*other'
    ):
        recognize(twice)
    found = recognize(twice, renames=parse_renames(['adapter.=neck.proj.', 'other.=-']))
    assert identify(found).names[-1] == 'SwinPose-T-S2'
    assert not any('adapter' in guess for guess in found.guesses)

    teachers = {
        f'{who}.{key}': value for who in ('student', 'teacher') for key, value in state.items()
    }
    with pytest.raises(CheckpointError, match=r'2 backbones: student\.backbone\.\*, teacher'):
        recognize(teachers)
    found = recognize(teachers, renames=parse_renames(['teacher.=-']))
    assert identify(found).names[-1] == 'SwinPose-T-S2'
    with pytest.raises(CheckpointError, match="no key begins with 'pupil'"):
        recognize(teachers, renames=[('pupil', '-')])
    with pytest.raises(ValueError, match='expected OLD=NEW'):
        parse_renames(['teacher'])


# --- refusals ------------------------------------------------------------------------------------


def test_a_file_of_no_known_kind_says_what_its_keys_look_like(tmp_path):
    state = {f'layer1.{i}.conv1.weight': torch.zeros(64, 64, 3, 3) for i in range(3)}
    torch.save(dict(state_dict=state), tmp_path / 'resnet.pth')
    with pytest.raises(
        CheckpointError, match=r'3 keys look like layer1\.\*\.conv1\.weight \(64, 64'
    ):
        find(None, tmp_path / 'resnet.pth')
    (tmp_path / 'text.jpg').write_text('no weights')
    with pytest.raises(
        CheckpointError, match=r"no file of torch\.save or safetensors.*b'no weights'"
    ):
        find(None, tmp_path / 'text.jpg')


def test_a_classifier_is_no_model_to_predict_with(tmp_path):
    torch.save(zeros(meta(official_shapes('swin_tiny_keys'))), tmp_path / 'swin.pth')
    with pytest.raises(ValueError, match=r'(?s)no model to predict with.*Swin: swin-t, 4 stages'):
        find(None, tmp_path / 'swin.pth')


def test_a_larger_swin_does_not_load_into_the_equal_stages_of_a_smaller(tmp_path):
    torch.save(zeros(meta(official_shapes('swin_small_keys'))), tmp_path / 'small.pth')
    with pytest.raises(CheckpointError, match=r'stage 3: file 18 blocks, model 6'):
        load_checkpoint(TruncatedSwin('tiny', num_stages=2), tmp_path / 'small.pth')


def test_weights_of_another_model_are_named(tmp_path):
    torch.save(zeros(file_of('VMPose-T-S2', '4D-Humans')), tmp_path / 'a.pth')
    model = build_model(find('SwinPose-T-S2').cfg)
    with pytest.raises(CheckpointError, match='does not fit .* It looks like VMPose-T-S2'):
        load_checkpoint(model, tmp_path / 'a.pth')


# --- the config that made them -------------------------------------------------------------------


@pytest.mark.parametrize('model', ['VMHMR2.0-T-S2', 'mesh', None])
def test_shipped_weights_named_by_path_keep_their_config(tmp_path, model):
    path = shutil.copy(SHIPPED_MESH, tmp_path / 'mine.safetensors')
    found = find(model, path)
    assert input_size(found.cfg) == (192, 256)
    assert found.cfg.model.to_dict() == find('VMHMR2.0-T-S2').cfg.model.to_dict()


def test_another_config_than_that_of_the_weights_is_an_error():
    path = ROOT / 'configs/embedded/hmr2_vm-t-s2_synthetic-128.py'
    with pytest.raises(ValueError, match='trained on crops of 192 x 256 .* takes 96 x 128'):
        find(path, SHIPPED_MESH)


def test_a_checkpoint_of_training_states_its_crops_by_its_config(tmp_path):
    cfg = pose_config()
    cfg.model.head.decoder.update(input_size=(96, 128), heatmap_size=(24, 32))
    torch.save(dict(state_dict={}, meta=dict(cfg=cfg.pretty_text)), tmp_path / 'a.pth')
    assert stated_facts(tmp_path / 'a.pth') == dict(input_size=(96, 128), box_padding=1.25)
    with pytest.raises(ValueError, match='trained on crops of 96 x 128'):
        find(pose_config(), tmp_path / 'a.pth')


def test_facts_are_written_with_weights_and_nonsense_is_not_believed(tmp_path):
    facts = dict(model='VMPose-T-S2', config='configs/a.py', input_size=[96, 128])
    for name in ('a.safetensors', 'a.pth'):
        save_weights(dict(a=torch.zeros(1)), tmp_path / name, stated=facts)
        assert stated_facts(tmp_path / name) == facts
    for nonsense in (
        '[',
        json.dumps(dict(input_size='big', model='a\nb', config=3, box_padding=-1)),
    ):
        save_file(dict(a=torch.zeros(1)), tmp_path / 'b.safetensors', dict(trunchier=nonsense))
        assert stated_facts(tmp_path / 'b.safetensors') == {}


def test_metadata_of_an_onnx_file_is_read_without_a_runtime(tmp_path):
    def field(number, content):
        return bytes([number << 3 | 2, len(content)]) + content

    props = dict(task='"mesh"', model='"VMHMR2.0-T-S2"', input_size='[96, 128]', box_padding='1.5')
    entries = [field(1, k.encode()) + field(2, v.encode()) for k, v in props.items()]
    graph = b'\x08\x07' + field(7, b'graph')  # ir_version, graph
    path = tmp_path / 'mesh.onnx'
    path.write_bytes(graph + b''.join(field(14, entry) for entry in entries))
    facts = dict(task='mesh', model='VMHMR2.0-T-S2', input_size=[96, 128], box_padding=1.5)
    assert exported_metadata(path) == facts
    cfg = find(None, path).cfg
    assert (input_size(cfg), box_padding(cfg)) == ((96, 128), 1.5)
    path.write_bytes(b'\xff' * 40)
    assert exported_metadata(path) is None
    with pytest.raises(CheckpointError, match='not written by trunchier'):
        find(None, path)
