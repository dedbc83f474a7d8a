"""Files as the authors of mesh models release them, by path alone: their numbers come out.

Weights are drawn by the rule of golden_rule.py from the official keys; outputs were recorded from
the official code (4D-Humans' head, each family's backbone).
"""

import cv2
import pytest
import torch
from golden_rule import (
    assert_matches,
    golden_input,
    golden_state,
    golden_tensor,
    load_golden,
    official_shapes,
)
from small_models import noise
from test_recognize import NAMINGS, adapter_shapes, backbone_shapes, file_of

from trunchier import zoo
from trunchier.inference import command
from trunchier.weights.find import build_model, find
from trunchier.weights.inspection import input_size, inspect_file
from trunchier.weights.load import load_checkpoint, save_weights

pytest.importorskip('mmpose')
HEAD = load_golden('hmr2_head_S')
BODY = ('smpl.faces_tensor', 'smpl.v_template', 'smpl.parents', 'smpl.joint_map')


def lightning(state):
    """As Lightning writes it, with buffers of the body and the discriminator of 4D-Humans."""
    shapes = official_shapes('hmr2_full_keys')
    others = {k: s for k, s in shapes.items() if k.startswith('discriminator.') or k in BODY}
    state = {'initialized': torch.tensor(True), **state, **golden_state(others)}
    return dict(epoch=35, global_step=10**6, state_dict=state, hyper_parameters={})


def assert_head_is_official(head):
    with torch.no_grad():
        pred = head(golden_input(HEAD['input']['seed'], HEAD['input']['shape']))
    for ours, theirs in {'camera': 'cam', 'betas': 'betas', 'body_pose': 'body_pose'}.items():
        expected = golden_tensor(HEAD['outputs'][theirs])
        assert (pred[ours] - expected).abs().max() < 1e-4, ours


def loaded(path):
    found = find(None, path)
    model = build_model(found.cfg)
    load_checkpoint(model, path)
    return found, model


def test_hmr2_of_the_paper_by_path_alone(tmp_path, capsys):
    """The layout of TruncHierVFM's ViT-S: 4D-Humans' keys with 3 layers, 4 heads of 16, MLP 128."""
    backbone = official_shapes('vitpose_small_keys')
    backbone = {key: shape for key, shape in backbone.items() if key.startswith('backbone.')}
    path = tmp_path / 'last.ckpt'
    torch.save(lightning(golden_state(backbone) | golden_state(HEAD['keys'])), path)
    file = inspect_file(path)
    assert (file.name, file.identity.task, file.smpl) == ('HMR2.0-S', 'mesh', True)
    assert file.identity.decoder == 'HMR2.0, 3 layers, 4 heads of 16, MLP of 128'
    assert file.guesses == [] and 'a body model' in file.recognized.left_out

    _, model = loaded(path)
    golden = load_golden('vitpose_small')
    with torch.no_grad():
        assert_matches(model.backbone(golden_input(**golden['input']))[0], golden['backbone'])
    assert_head_is_official(model.head)

    # The command gives the same bodies as the model, saved with our keys.
    ours = tmp_path / 'HMR2.0-S.safetensors'
    save_weights(model.state_dict(), ours)
    cv2.imwrite(str(tmp_path / 'photo.png'), noise(96, 80, seed=0))
    printed = []
    for weights in (path, ours):
        given = [tmp_path / 'photo.png', '--weights', weights, '--detector', 'whole_image']
        assert command.main([*map(str, given), '--device', 'cpu', '--json', '-']) == 0
        printed.append(capsys.readouterr())
    assert printed[0].out == printed[1].out and '"transl"' in printed[0].out
    assert f'{path} is HMR2.0-S' in printed[0].err


@pytest.mark.parametrize(
    'name, naming, golden',
    [
        ('VMHMR2.0-T-S2', 'in the backbone', 'vmamba_tiny'),
        pytest.param('SwinHMR2.0-T-S4', 'Lightning', 'swin_tiny_det', marks=pytest.mark.slow),
    ],
)
def test_hierarchical_models_under_unknown_names(tmp_path, name, naming, golden):
    """Prefixes of backbone and decoder and the name of the adapter are made up: see `NAMINGS`."""
    encoder, _ = zoo.models()[name]
    stages = zoo.encoder(encoder).num_stages
    torch.manual_seed(0)
    adapter = {key: torch.randn(shape) / 30 for key, shape in adapter_shapes(encoder).items()}
    head = {k.removeprefix('smpl_head.'): v for k, v in golden_state(HEAD['keys']).items()}
    parts = golden_state(backbone_shapes(encoder)), adapter, head
    prefixes = NAMINGS[naming]
    state = {
        prefix + key: value
        for prefix, part in zip(prefixes, parts, strict=True)
        for key, value in part.items()
    }
    path = tmp_path / f'{name}.ckpt'
    torch.save(lightning(state), path)
    found, model = loaded(path)
    assert (found.name, found.smpl) == (name, True)
    assert any(f'the adapter is {prefixes[1]}*' in note for note in found.notes)

    setattr(model.backbone, f'norm{stages - 1}', torch.nn.Identity())  # raw outputs are recorded
    golden = load_golden(golden)
    with torch.no_grad():
        (raw,) = model.backbone(golden_input(**golden['input']))
        assert_matches(raw, golden[f'stage{stages}_raw'])
        resample = torch.conv2d if stages == 2 else torch.conv_transpose2d
        expected = resample(raw, adapter['weight'], adapter['bias'], stride=2)
        assert torch.allclose(model.neck((raw,))[0], expected, atol=1e-5)
    assert_head_is_official(model.head)


def test_a_pose_file_of_larger_crops_by_path_alone(tmp_path):
    """ViTPose-S for 384 x 288: the position embedding tells; the decoder has unknown names."""
    golden = load_golden('vitpose_grids')['384x288']
    shapes = official_shapes('vitpose_small_keys') | {'backbone.pos_embed': (1, 24 * 18 + 1, 384)}
    state = golden_state(shapes)
    for old, new in (('deconv_layers.', 'up.'), ('final_layer.', 'heat.')):
        state = {key.replace(old, new): value for key, value in state.items()}
    path = tmp_path / 'vitpose.pth'
    torch.save(dict(state_dict=state), path)
    assert '288 x 384 (width x height)' in inspect_file(path).report()
    found, model = loaded(path)
    assert (found.name, input_size(found.cfg)) == ('ViTPose-S', (288, 384))
    assert found.cfg.model.head.decoder.heatmap_size == (72, 96)
    assert any('heatmaps is keypoint_head.heat.*' in note for note in found.notes)
    with torch.no_grad():
        features = model.backbone(golden_input(**golden['input']))
        assert_matches(features[0], golden['backbone'])
        assert model.head(features).shape == (1, 17, 96, 72)
    head = model.head.state_dict()
    for key, value in golden_state(shapes).items():
        if key.startswith('keypoint_head.') and 'num_batches' not in key:
            assert torch.equal(head[key.removeprefix('keypoint_head.')], value)


def test_the_name_of_a_file_tells_the_crops_that_its_weights_do_not(tmp_path):
    state = {k: torch.zeros(v.shape) for k, v in file_of('VMPose-T-S2', 'mmpose 0.x').items()}
    path = tmp_path / 'td-hm_vm-t-s2_coco-384x288.pth'
    torch.save(dict(state_dict=state), path)
    found = find(None, path)
    assert input_size(found.cfg) == (288, 384)
    assert any('crops is that in the name' in note for note in found.notes)
