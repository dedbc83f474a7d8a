"""Compiled attention equals that of torch, which takes over what the kernels do not support."""

import numpy as np
import pytest
import torch
from torch import nn
from versions import needs_torch

from trunchier.deploy.fuse import deploy
from trunchier.models import TruncatedGMF, TruncatedSwin
from trunchier.models.backbones.swin import WindowAttention
from trunchier.ops import attention, group_attention, window_attention
from trunchier.ops.windows import window_layout

needs_numba = pytest.mark.skipif(attention.cpu_kernels() is None, reason='numba is not installed')
HALF = pytest.param('fp16', marks=needs_torch('2.4', 'float16 convolutions on CPU'))
SWIN = dict(channels=(64, 96), depths=(2, 2), num_heads=(2, 4))
GMF = dict(channels=(80, 100), depths=(1, 1), mlp_ratios=(2, 2))


def lively(module):
    torch.manual_seed(0)
    for each in module.modules():
        if isinstance(each, nn.Linear):
            nn.init.normal_(each.weight, std=each.in_features**-0.5)
        if isinstance(each, nn.modules.batchnorm._BatchNorm):
            each.running_mean.normal_()
            each.running_var.uniform_(0.5, 2)
        for name in ('bias', 'relative_position_bias_table'):
            if getattr(each, name, None) is not None:
                nn.init.normal_(getattr(each, name))
    return module.eval().requires_grad_(False)


def in_torch(function, *args):
    """The function's result where numba is missing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(attention.BACKENDS, 'numba', lambda: 'is missing')
        return function(*args)


def count_calls(monkeypatch, name):
    kernels, calls = attention.cpu_kernels(), []
    kernel = getattr(kernels, name)
    monkeypatch.setattr(kernels, name, lambda *args: calls.append(name) or kernel(*args))
    return calls


# --- exactly zero --------------------------------------------------------------------------------


@pytest.mark.parametrize('recorded', [False, True])
@pytest.mark.parametrize('backend', ['torch', pytest.param('numba', marks=needs_numba)])
def test_keys_across_the_seam_have_a_probability_of_exactly_zero(backend, recorded):
    layout = window_layout(14, 14, 7, 3, torch.device('cpu'))
    qkv = torch.randn(1, 14, 14, 3, 32, generator=torch.Generator().manual_seed(0))
    large = qkv.clone()
    large[:, 0, :, 2] = 1e38  # times the least subnormal number: 1e-7
    if recorded and backend == 'numba':
        backend = 'auto'  # training is torch's
    outputs = []
    for each in (qkv, large):
        each = each.flatten(3).flatten(1, 2).requires_grad_(recorded)
        y = window_attention(each, torch.zeros(96), torch.zeros(1, 49, 49), layout, backend)
        outputs.append(y.unflatten(1, (14, 14))[:, 10:])  # in the windows of rows 0 to 2
    assert torch.equal(*outputs)


# --- equal ---------------------------------------------------------------------------------------


@needs_numba
@pytest.mark.parametrize('shift', [0, 3])
@pytest.mark.parametrize('channels, heads', [(32, 1), (96, 3), (72, 3)])
@pytest.mark.parametrize('size', [(1, 1), (7, 7), (16, 12), (9, 20)])
@pytest.mark.parametrize('threads', [1, 3], indirect=True)
def test_window_attention_equals_that_of_torch(shift, channels, heads, size, threads, monkeypatch):
    layer = lively(WindowAttention(channels, heads, shift))
    x = torch.randn(2, *size, channels)
    expected = in_torch(layer, x)
    calls = count_calls(monkeypatch, 'attend_windows')
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-5 * float(expected.std()))
    assert calls == ['attend_windows']


@needs_numba
@pytest.mark.parametrize('channels', [80, 100, 200, 240])
@pytest.mark.parametrize('size', [(32, 24), (4, 28), (44, 36)])
@pytest.mark.parametrize('threads', [1, 3], indirect=True)
def test_group_attention_equals_that_of_torch(channels, size, threads, monkeypatch):
    model = lively(TruncatedGMF(dict(GMF, channels=(channels,), depths=(1,), mlp_ratios=(1,)), 1))
    deployed, images = deploy(model), torch.randn(2, 3, *size)
    (expected,) = in_torch(model, images)
    calls = count_calls(monkeypatch, 'mix_groups')
    (found,) = deployed(images)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.std()))
    assert calls == ['mix_groups']


@needs_numba
def test_huge_scores_do_not_overflow():
    layer = lively(WindowAttention(32, 1, 0))
    layer.qkv.weight *= 100
    x = torch.randn(1, 7, 7, 32)
    found, expected = layer(x), in_torch(layer, x)
    assert found.isfinite().all()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.std()))


@needs_numba
def test_nan_does_not_leak_between_windows_or_samples():
    layer = lively(WindowAttention(32, 1, 0))
    x = torch.randn(1, 7, 14, 32)
    x[0, 3, 4] = np.nan
    torch.testing.assert_close(layer(x), in_torch(layer, x), equal_nan=True, rtol=0, atol=1e-5)
    model = deploy(lively(TruncatedGMF(GMF, 2)))
    images = torch.randn(2, 3, 64, 48)
    images[0, :, 9, 9] = np.nan
    (found,) = model(images)
    assert found[0].isnan().all() and found[1].isfinite().all()


# --- torch's part --------------------------------------------------------------------------------


@needs_numba
@pytest.mark.parametrize('family', ['swin', 'gmf'])
def test_batches_of_any_strides_and_empty_ones_are_supported(family):
    model = TruncatedSwin(SWIN, 2) if family == 'swin' else TruncatedGMF(GMF, 2)
    model = deploy(lively(model))
    images = torch.randn(64, 48, 2, 3).permute(2, 3, 0, 1)
    torch.testing.assert_close(model(images)[0], model(images.contiguous())[0])
    assert model(images[:0])[0].shape[0] == 0


@needs_numba
@pytest.mark.parametrize('family', ['swin', 'gmf'])
def test_torch_computes_what_kernels_do_not_support(family, monkeypatch):
    kind, arch, name = dict(
        swin=(TruncatedSwin, SWIN, 'attend_windows'), gmf=(TruncatedGMF, GMF, 'mix_groups')
    )[family]
    model, images = lively(kind(arch, 2)), torch.randn(1, 3, 64, 48)
    deployed, calls = deploy(model), count_calls(monkeypatch, name)
    (expected,) = in_torch(model, images)

    (exact,) = kind.double(deploy(model))(images.double())
    torch.testing.assert_close(exact.float(), expected, rtol=0, atol=1e-5 * float(expected.std()))
    with torch.autocast('cpu', torch.bfloat16):
        (rough,) = deployed(images)
    torch.testing.assert_close(rough.float(), expected, rtol=0, atol=0.5 * float(expected.std()))
    deployed(images.requires_grad_())[0].sum().backward()
    assert images.grad.abs().sum() > 0
    assert not calls
    with torch.no_grad():
        deployed(images)
    assert calls


@needs_numba
@pytest.mark.parametrize('family', ['swin', 'gmf'])
@pytest.mark.parametrize('precision', ['bf16', HALF])
def test_kernels_take_and_return_low_precision(family, precision, monkeypatch):
    kind, arch, name = dict(
        swin=(TruncatedSwin, SWIN, 'attend_windows'), gmf=(TruncatedGMF, GMF, 'mix_groups')
    )[family]
    model, images = lively(kind(arch, 2)), torch.randn(1, 3, 64, 48)
    calls = count_calls(monkeypatch, name)
    rough = deploy(model, precision=precision)
    errors = [
        float((y[0] - model(images)[0]).abs().max())
        for y in (rough(images), in_torch(rough, images))
    ]
    assert calls and 0 < errors[0] < 1.5 * errors[1]


@needs_numba
def test_torch_computes_narrow_heads_and_segments(monkeypatch):
    swin = lively(TruncatedSwin(dict(SWIN, num_heads=(8, 12)), 2))
    gmf = deploy(lively(TruncatedGMF(dict(GMF, channels=(20, 70)), 2)))
    monkeypatch.setattr(attention.cpu_kernels(), 'attend_windows', None)
    monkeypatch.setattr(attention.cpu_kernels(), 'mix_groups', None)
    for model in (swin, gmf):
        assert model(torch.randn(1, 3, 32, 32))[0].isfinite().all()


def test_without_numba_models_run_and_deploy():
    images = torch.randn(1, 3, 32, 32)
    for model in (TruncatedSwin(SWIN, 2), TruncatedGMF(GMF, 2)):
        (expected,) = in_torch(lively(model), images)
        (found,) = in_torch(lambda model: deploy(model)(images), model)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.std()))


@needs_numba
def test_a_named_backend_never_falls_back():
    layer = lively(WindowAttention(16, 2, 0))
    layout = window_layout(7, 7, 7, 0, torch.device('cpu'))
    qkv, bias = torch.randn(1, 49, 48), torch.zeros(2, 49, 49)

    def attend(backend, bias=bias):
        return window_attention(qkv, layer.qkv.bias, bias, layout, backend)

    with pytest.raises(RuntimeError, match="'numba' needs heads of 16 channels or more, got 8"):
        attend('numba')
    with pytest.raises(RuntimeError, match="'numba' is for inference on CPU"):
        attend('numba', bias.requires_grad_())
    with pytest.raises(RuntimeError, match="no backend 'cpu'; give 'auto' or one of numba, torch"):
        attend('cpu')
    assert attend('torch').shape == (1, 49, 16)
    with pytest.raises(RuntimeError, match='needs folded weights; deploy the model'):
        group_attention(qkv, None, None, 'numba')
