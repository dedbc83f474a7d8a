"""Compiled attention is what the models say in torch, and is left alone where torch is needed."""

import numpy as np
import pytest
import torch
from torch import nn

from trunchier import ops
from trunchier.deploy.fuse import deploy
from trunchier.models import TruncatedGMF, TruncatedSwin
from trunchier.models.backbones.swin import WindowAttention

needs_numba = pytest.mark.skipif(ops.cpu_kernels() is None, reason='numba is not installed')
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


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def in_torch(function, *args):
    """The same without kernels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, '_missing', lambda name: 'not here')
        return function(*args)


def count_calls(monkeypatch, name):
    kernels, calls = ops.cpu_kernels(), []
    kernel = getattr(kernels, name)
    monkeypatch.setattr(kernels, name, lambda *args: calls.append(name) or kernel(*args))
    return calls


# --- equal ---------------------------------------------------------------------------------------


@needs_numba
@pytest.mark.parametrize('shift', [0, 3])
@pytest.mark.parametrize('channels, heads', [(32, 1), (96, 3), (72, 3)])
@pytest.mark.parametrize('size', [(1, 1), (7, 7), (16, 12), (9, 20)])
def test_window_attention_is_that_of_torch(shift, channels, heads, size, threads, monkeypatch):
    attention = lively(WindowAttention(channels, heads, shift))
    x = torch.randn(2, *size, channels)
    wanted = in_torch(attention, x)
    calls = count_calls(monkeypatch, 'attend_windows')
    torch.testing.assert_close(attention(x), wanted, rtol=0, atol=1e-5 * float(wanted.std()))
    assert calls == ['attend_windows']


@needs_numba
@pytest.mark.parametrize('channels', [80, 100, 200, 240])
@pytest.mark.parametrize('size', [(32, 24), (4, 28), (44, 36)])
def test_group_attention_is_that_of_torch(channels, size, threads, monkeypatch):
    model = lively(TruncatedGMF(dict(GMF, channels=(channels,), depths=(1,), mlp_ratios=(1,)), 1))
    deployed, images = deploy(model), torch.randn(2, 3, *size)
    (wanted,) = in_torch(model, images)
    calls = count_calls(monkeypatch, 'mix_groups')
    (found,) = deployed(images)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * float(wanted.std()))
    assert calls == ['mix_groups']


@needs_numba
def test_scores_of_windows_may_be_huge():
    attention = lively(WindowAttention(32, 1, 0))
    attention.qkv.weight *= 100
    x = torch.randn(1, 7, 7, 32)
    found, wanted = attention(x), in_torch(attention, x)
    assert found.isfinite().all()
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4 * float(wanted.std()))


@needs_numba
def test_a_nan_stays_one_in_its_window_and_in_its_sample():
    attention = lively(WindowAttention(32, 1, 0))
    x = torch.randn(1, 7, 14, 32)
    x[0, 3, 4] = np.nan
    torch.testing.assert_close(
        attention(x), in_torch(attention, x), equal_nan=True, rtol=0, atol=1e-5
    )
    model = deploy(lively(TruncatedGMF(GMF, 2)))
    images = torch.randn(2, 3, 64, 48)
    images[0, :, 9, 9] = np.nan
    (found,) = model(images)
    assert found[0].isnan().all() and found[1].isfinite().all()


# --- left alone ----------------------------------------------------------------------------------


@needs_numba
@pytest.mark.parametrize('family', ['swin', 'gmf'])
def test_batches_of_any_strides_and_of_none_are_taken(family):
    model = TruncatedSwin(SWIN, 2) if family == 'swin' else TruncatedGMF(GMF, 2)
    model = deploy(lively(model))
    images = torch.randn(64, 48, 2, 3).permute(2, 3, 0, 1)
    torch.testing.assert_close(model(images)[0], model(images.contiguous())[0])
    assert model(images[:0])[0].shape[0] == 0


@needs_numba
@pytest.mark.parametrize('family', ['swin', 'gmf'])
def test_what_kernels_cannot_do_goes_through_torch(family, monkeypatch):
    kind, arch, name = dict(
        swin=(TruncatedSwin, SWIN, 'attend_windows'), gmf=(TruncatedGMF, GMF, 'mix_groups')
    )[family]
    model, images = lively(kind(arch, 2)), torch.randn(1, 3, 64, 48)
    deployed, calls = deploy(model), count_calls(monkeypatch, name)
    (wanted,) = in_torch(model, images)

    (exact,) = kind.double(deploy(model))(images.double())
    torch.testing.assert_close(exact.float(), wanted, rtol=0, atol=1e-5 * float(wanted.std()))
    with torch.autocast('cpu', torch.bfloat16):
        (rough,) = deployed(images)
    torch.testing.assert_close(rough.float(), wanted, rtol=0, atol=0.5 * float(wanted.std()))
    deployed(images.requires_grad_())[0].sum().backward()
    assert images.grad.abs().sum() > 0
    assert not calls
    with torch.no_grad():
        deployed(images)
    assert calls


@needs_numba
@pytest.mark.parametrize('family', ['swin', 'gmf'])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_low_precision_goes_in_and_out(family, dtype, monkeypatch):
    kind, arch, name = dict(
        swin=(TruncatedSwin, SWIN, 'attend_windows'), gmf=(TruncatedGMF, GMF, 'mix_groups')
    )[family]
    model, images = lively(kind(arch, 2)), torch.randn(1, 3, 64, 48)
    calls = count_calls(monkeypatch, name)
    rough = deploy(model, dtype=dtype)
    errors = [
        float((y[0] - model(images)[0]).abs().max())
        for y in (rough(images), in_torch(rough, images))
    ]
    assert calls and 0 < errors[0] < 1.5 * errors[1]


@needs_numba
def test_narrow_heads_and_segments_go_through_torch(monkeypatch):
    swin = lively(TruncatedSwin(dict(SWIN, num_heads=(8, 12)), 2))
    gmf = deploy(lively(TruncatedGMF(dict(GMF, channels=(20, 70)), 2)))
    monkeypatch.setattr(ops.cpu_kernels(), 'attend_windows', None)
    monkeypatch.setattr(ops.cpu_kernels(), 'mix_groups', None)
    for model in (swin, gmf):
        assert model(torch.randn(1, 3, 32, 32))[0].isfinite().all()


def test_without_numba_models_run_and_deploy():
    images = torch.randn(1, 3, 32, 32)
    for model in (TruncatedSwin(SWIN, 2), TruncatedGMF(GMF, 2)):
        (wanted,) = in_torch(lively(model), images)
        (found,) = in_torch(lambda model: deploy(model)(images), model)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * float(wanted.std()))
