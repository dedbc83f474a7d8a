"""Truncated GroupMixFormer: its parts by hand."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from trunchier.models import TruncatedGMF
from trunchier.models.backbones.groupmixformer import (
    HEADS,
    POSITION_KERNELS,
    SEGMENTS,
    GroupMixAttention,
)
from trunchier.ops import linear_attention


@torch.no_grad()
def test_linear_attention_equals_a_loop_over_tokens():
    q, k, v = torch.randn(3, 1, 3, 4, 2 * HEADS, dtype=torch.float64)
    mixed = linear_attention(q, k, v, HEADS)
    heads = [t.flatten(0, 2).unflatten(1, (HEADS, 2)) for t in (q, k, v)]
    for position in range(12):
        for head in range(HEADS):
            query, keys, values = (t[:, head] for t in heads)
            expected = torch.zeros(2, dtype=torch.float64)
            for channel in range(2):
                weights = keys[:, channel].exp() / keys[:, channel].exp().sum()
                expected += query[position, channel] * (weights @ values)
            found = mixed.flatten(0, 2).unflatten(1, (HEADS, 2))[position, head]
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize('width', [8, 24])
def test_inference_equals_training_for_heads_of_any_width(width):
    q, k, v = torch.randn(3, 2, 3, 4, width * HEADS, dtype=torch.float64, requires_grad=True)
    trained = linear_attention(q, k, v, HEADS, 0.5)
    with torch.no_grad():
        torch.testing.assert_close(linear_attention(q, k, v, HEADS, 0.5), trained)
        none = torch.empty(0, 3, 4, width * HEADS)
        assert linear_attention(none, none, none, HEADS).shape == none.shape


@torch.no_grad()
def test_group_mix_attention_follows_the_paper():
    # In the paper's terms: project, cut, aggregate each of q, k, v, attend, add positions.
    channels, size = 40, (5, 6)
    segment = channels // SEGMENTS
    att = GroupMixAttention(channels).double().eval()
    x = torch.randn(2, *size, channels, dtype=torch.float64)
    proxies = {'q': [], 'k': [], 'v': []}
    for group in att.groups:
        for i, name in enumerate('qkv'):
            rows = slice(i * segment, (i + 1) * segment)
            part = F.linear(x, group.qkv.weight[rows], group.qkv.bias[rows]).permute(0, 3, 1, 2)
            if group.conv is not None:
                part = F.conv2d(group.conv(part), group.pointwise.weight[:, :, None, None])
            part = (part - group.norm.running_mean[:, None, None]) / (1 + group.norm.eps) ** 0.5
            proxies[name].append(F.hardswish(part).permute(0, 2, 3, 1))
    q, k, v = (torch.cat(proxies[name], -1) for name in 'qkv')
    position, first = torch.empty_like(v), 0
    for conv, heads in zip(att.positions, POSITION_KERNELS.values(), strict=True):
        last = first + heads * v.shape[-1] // HEADS
        convolved = conv(v[..., first:last].permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        position[..., first:last] = q[..., first:last] * convolved
        first = last
    mixed = (channels // HEADS) ** -0.5 * linear_attention(q, k, v, HEADS) + position
    past = F.linear(x, att.local.qkv.weight, att.local.qkv.bias).permute(0, 3, 1, 2)
    past = F.conv2d(att.local.conv(past), att.local.pointwise.weight[:, :, None, None])
    past = F.hardswish(att.local.norm(past.permute(0, 2, 3, 1)))
    torch.testing.assert_close(att(x), att.proj(torch.cat([mixed, past], -1)))


def test_q_k_and_v_share_batch_statistics():
    att = GroupMixAttention(40).train()
    group = att.groups[0]
    group.norm.momentum = 1.0
    x = torch.randn(2, 5, 6, 40)
    att(x)
    projected = group.qkv(x).reshape(-1, 40 // SEGMENTS)  # q, k and v of every token
    torch.testing.assert_close(group.norm.running_mean, projected.mean(0))
    torch.testing.assert_close(group.norm.running_var, projected.var(0))


def test_layer_norms_have_the_official_eps():
    eps = {
        n: m.eps for n, m in TruncatedGMF('tiny', 2).named_modules() if isinstance(m, nn.LayerNorm)
    }
    assert {value for name, value in eps.items() if '.local.' in name} == {1e-5}
    assert {value for name, value in eps.items() if '.local.' not in name} == {1e-6}


def test_batch_norms_synchronize_on_request():
    model = TruncatedGMF(dict(TruncatedGMF.ARCHS['tiny'], channels=(20, 40, 60, 80)), 2).eval()
    count = sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model)).eval()
    assert sum(isinstance(m, nn.SyncBatchNorm) for m in synchronised.modules()) == count
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(synchronised(x)[0], model(x)[0])


def test_channels_that_cannot_be_split_into_segments_are_refused():
    with pytest.raises(ValueError, match='channels=64 in stage 1; give a multiple of 10'):
        TruncatedGMF(dict(TruncatedGMF.ARCHS['tiny'], channels=(80, 64, 200, 240)))


def test_initial_weights_are_the_official_ones():
    model = TruncatedGMF('tiny', num_stages=1)
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            # PyTorch's own where the authors convolve, theirs where they have a linear layer.
            convolution = isinstance(module, nn.Conv2d) or 'pointwise' in name
            std = (3 * module.weight[0].numel()) ** -0.5 if convolution else 0.02
            assert module.weight.std().item() == pytest.approx(std, rel=0.2), name
            assert convolution or not module.bias.any(), name
