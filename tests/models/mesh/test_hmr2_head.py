import numpy as np
import pytest
import torch
from golden_rule import (
    golden_input,
    golden_state,
    golden_tensor,
    load_golden,
    max_error_in_std,
    official_shapes,
)
from versions import needs_torch

from trunchier.geometry import matrix_to_rotation_6d
from trunchier.models import MeshEstimator
from trunchier.models.mesh.hmr2_head import EMBEDDED_MEAN_PARAMS, HMR2Head, read_mean_params
from trunchier.weights.families import from_hmr2
from trunchier.weights.recognize import recognize
from trunchier.zoo import MESH_DECODERS, model_cfg

SMALL = dict(in_channels=24, depth=2, num_heads=2, head_dim=8, mlp_dim=32)


def official(name):
    """The golden head: official weights by the rule, through the converter, into ours."""
    golden = load_golden(f'hmr2_head_{name}')
    config = golden['config']
    head = HMR2Head(
        in_channels=config['context_dim'],
        depth=config['depth'],
        num_heads=config['heads'],
        head_dim=config['dim_head'],
        mlp_dim=config['mlp_dim'],
    )
    state = from_hmr2(golden_state(golden['keys']))
    head.load_state_dict({key.removeprefix('head.'): value for key, value in state.items()})
    features = golden_input(golden['input']['seed'], golden['input']['shape'])
    return head.eval(), features, golden['outputs']


@pytest.mark.parametrize('name', ['H', 'S'])
def test_head_is_the_official_one(name):
    head, features, outputs = official(name)
    with torch.no_grad():
        token = head.read(features)
        pred = head(features)
        assert max_error_in_std(token[:, None], outputs['token_out']) < 1e-5
        assert max_error_in_std(head.pose_out(token), outputs['decpose_out']) < 1e-5
    for ours, theirs in {'camera': 'cam', 'betas': 'betas'}.items():
        assert (pred[ours] - golden_tensor(outputs[theirs])).abs().max() < 1e-5
    for part in ('global_orient', 'body_pose'):
        assert (pred[part] - golden_tensor(outputs[part])).abs().max() < 1e-4


def slow_attention(layer, token, cells):
    """As on the page: keys and values of every cell, one head and one sample after the other."""
    inner = layer.to_q.out_features
    size = inner // layer.num_heads
    rows = []
    for sample, query in zip(cells, layer.to_q(token), strict=True):
        keys, values = layer.to_kv(sample.T).split(inner, dim=1)
        parts = []
        for i in range(0, inner, size):
            scores = keys[:, i : i + size] @ query[i : i + size] / size**0.5
            parts.append(scores.softmax(0) @ values[:, i : i + size])
        rows.append(torch.cat(parts))
    return torch.stack(rows)


def test_attention_equals_keys_and_values_of_every_cell():
    layer = HMR2Head(**SMALL).layers[0].double()
    token = torch.randn(3, 1024, dtype=torch.float64)
    cells = torch.randn(3, 24, 12, dtype=torch.float64)
    expected = slow_attention(layer, token, cells)
    assert torch.allclose(layer.attend(token, cells), expected, atol=1e-12)


def test_samples_of_a_batch_are_independent():
    head = HMR2Head(**SMALL)
    features = torch.randn(3, 24, 4, 3)
    together = head(features)
    for i in range(3):
        alone = head(features[i : i + 1])
        for name, value in alone.items():
            assert torch.allclose(together[name][i], value[0], atol=1e-5)


def test_memory_layout_of_the_features_does_not_matter():
    head = HMR2Head(**SMALL)
    features = torch.randn(2, 24, 4, 3)
    strided = head(features.contiguous(memory_format=torch.channels_last))
    for name, value in head(features).items():
        assert torch.allclose(strided[name], value, atol=1e-5)


def test_an_untrained_residual_of_zero_predicts_the_mean():
    head = HMR2Head(**SMALL)
    for layer in (head.pose_out, head.betas_out, head.camera_out):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    pred = head(torch.randn(2, 24, 4, 3))
    mean = read_mean_params(EMBEDDED_MEAN_PARAMS)
    pose = torch.cat((pred['global_orient'], pred['body_pose']), dim=1)
    assert torch.allclose(
        matrix_to_rotation_6d(pose).flatten(1), mean['pose'].expand(2, -1), atol=1e-5
    )
    assert pred['camera'].tolist() == [mean['cam'][0].tolist()] * 2


def test_three_iterations_add_the_residual_three_times():
    once, thrice = HMR2Head(**SMALL), HMR2Head(**SMALL, ief_iters=3)
    thrice.load_state_dict(once.state_dict())
    features = torch.randn(2, 24, 4, 3)
    step = once(features)['camera'] - once.mean_camera
    assert torch.allclose(thrice(features)['camera'], once.mean_camera + 3 * step)


def test_every_parameter_learns():
    head = HMR2Head(**SMALL)
    pred = head(torch.randn(2, 24, 4, 3))
    sum((value * torch.randn_like(value)).sum() for value in pred.values()).backward()
    assert all((p.grad != 0).any() for p in head.parameters())


def test_gradients_are_those_of_the_outputs():
    head = HMR2Head(**SMALL).double()
    features = torch.randn(2, 24, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: tuple(head(x).values()), features)


@pytest.mark.parametrize(('size', 'millions'), [('h', 39.5), ('l', 19.1), ('b', 7.0), ('s', 2.3)])
def test_the_decoder_has_the_parameters_of_the_paper(size, millions):
    channels = {'h': 1280, 'l': 1024, 'b': 768, 's': 384}[size]
    with torch.device('meta'):
        head = HMR2Head(channels, **MESH_DECODERS[size])
    assert round(sum(p.numel() for p in head.parameters()) / 1e6, 1) == millions


@pytest.mark.parametrize(
    'dtype',
    [
        torch.bfloat16,
        pytest.param(torch.float16, marks=needs_torch('2.4', 'autocast to float16 on CPU')),
    ],
)
def test_outputs_stay_in_float32_under_autocast(dtype):
    head = HMR2Head(**SMALL)
    features = torch.randn(2, 24, 4, 3)
    with torch.autocast('cpu', dtype=dtype):
        rounded = head(features)
    for name, value in head(features).items():
        assert rounded[name].dtype == torch.float32
        assert (rounded[name] - value).abs().max() < 0.1
    pose = rounded['body_pose']
    assert torch.allclose(pose.mT @ pose, torch.eye(3).expand_as(pose), atol=1e-5)


# mean parameters


def write(path, **changes):
    arrays = {'pose': np.zeros(144), 'shape': np.zeros(10), 'cam': np.ones(3), **changes}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def test_mean_parameters_may_be_a_file_of_the_user(tmp_path):
    path = write(tmp_path / 'mean.npz', cam=np.array([0.5, 0.25, -0.25]))
    assert HMR2Head(**SMALL, mean_params=path).mean_camera.tolist() == [[0.5, 0.25, -0.25]]


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'pose': np.zeros(72)}, r'pose of .* has shape \(72,\), expected 144'),
        ({'shape': np.zeros(300)}, r'shape of .*, expected 10'),
        ({'cam': None}, "no array 'cam'"),
        ({'cam': np.array([1, np.nan, 0])}, 'cam of .* not finite numbers'),
        ({'shape': np.array(['x'] * 10)}, 'shape of .* not finite numbers'),
        ({'cam': np.array([None] * 3)}, 'mean.npz .* holds objects'),
    ],
)
def test_mean_parameters_of_another_size_or_kind_are_refused(tmp_path, changes, message):
    path = write(tmp_path / 'mean.npz', **changes)
    with pytest.raises(ValueError, match=message):
        HMR2Head(**SMALL, mean_params=path)


def test_missing_mean_parameters_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'no mean parameters .*absent.npz'):
        HMR2Head(**SMALL, mean_params=tmp_path / 'absent.npz')


# the whole checkpoint


def test_released_checkpoint_fits_the_whole_model_key_by_key():
    """The layout of 4D-Humans' checkpoint (ViT-H) against HMR2.0-H, on the meta device."""
    pytest.importorskip('mmpretrain')
    pytest.importorskip('smplx')
    with torch.device('meta'):
        state = {k: torch.empty(s) for k, s in official_shapes('hmr2_full_keys').items()}
        cfg = model_cfg('vit-h', 'mesh')
        cfg['backbone'].pop('init_cfg')
        cfg['head']['type'] = 'HMR2Head'
        model = MeshEstimator(**cfg, discriminator=dict(type='HMRDiscriminator'))
        ours = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        converted = {key: tuple(value.shape) for key, value in recognize(state).state.items()}
    assert converted == ours
