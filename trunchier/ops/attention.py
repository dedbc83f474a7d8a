"""Attention between two linear layers: within windows (Swin) and of groups (GroupMixFormer).

Backends: `torch` for everything, `numba` (cpu/attention.py) for inference on CPU in float32,
bfloat16 or float16.
"""

import importlib
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from .backends import choose, missing
from .linear import product
from .when import inference_on_cpu, is_traced
from .windows import MASKED, Layout, to_tokens, to_windows

if TYPE_CHECKING:
    from .cpu.attention import GroupMix

BACKENDS = dict(numba=partial(missing, 'numba', '.cpu.attention'), torch=lambda: '')
DTYPES = torch.float32, torch.bfloat16, torch.float16  # of the kernels' inputs and outputs
NARROW_HEAD = 16  # channels


def cpu_kernels() -> ModuleType | None:
    """The module `ops.cpu.attention`, or None where numba is missing."""
    return None if BACKENDS['numba']() else importlib.import_module('.cpu.attention', __package__)


def window_attention(
    qkv: Tensor,
    padding: Tensor,
    bias: Tensor,
    layout: Layout,
    backend: str = 'auto',
    pooled: Layout | None = None,
) -> Tensor:
    """Multi-head attention within the windows of a map.

    Args:
        qkv: (B, H*W, 3 C).
        padding: (3 C,), q, k and v at padded positions.
        bias: (heads, P, P), added to the score of each query and key of a window.
        layout: of the map, see `windows.window_layout`.
        backend: 'auto', 'numba' or 'torch'.
        pooled: a layout of the same map; the mean key and value of each of its windows join those
            of every window of `layout`.

    Returns:
        (B, H*W, C).

    Raises:
        RuntimeError: the named backend does not support this call.
    """
    size = qkv.shape[2] // (3 * len(bias))

    def refusal(name):
        if name == 'torch':
            return ''
        if pooled is not None:
            return 'has no pooled windows'
        if not inference_on_cpu(qkv, bias, padding, dtypes=DTYPES):
            return NO_KERNEL
        kernels = cpu_kernels()
        if kernels and size < kernels.MIN_HEAD_CHANNELS:
            return f'needs heads of {kernels.MIN_HEAD_CHANNELS} channels or more, got {size}'
        return BACKENDS[name]()

    if choose(backend, BACKENDS, 'numba', refusal) == 'numba':
        region = layout.region if layout.shifted else None
        kernels = cpu_kernels()
        return kernels.attend_windows(qkv, padding, bias, layout.tokens, region, MASKED)
    positions = to_windows(qkv, padding, layout)
    positions = positions.unflatten(1, (layout.windows, bias.shape[1]))
    positions = positions.unflatten(-1, (3, len(bias), size))
    q, k, v = positions.permute(3, 0, 1, 4, 2, 5).unbind(0)  # (B, windows, heads, P, size)
    bias = bias + layout.mask[:, None] if layout.shifted else bias[None]
    if pooled is not None:
        means = _window_means(qkv[..., qkv.shape[2] // 3 :], pooled)
        means = means.unflatten(-1, (2, len(bias[0]), size)).permute(2, 0, 3, 1, 4).unsqueeze(2)
        means = means.expand(-1, -1, layout.windows, -1, -1, -1)  # one copy a window
        k, v = torch.cat((k, means[0]), 3), torch.cat((v, means[1]), 3)
        bias = F.pad(bias, (0, pooled.windows))
    mixed = _attend(q, k, v, bias)  # (B, windows, P, heads, size)
    return to_tokens(mixed.flatten(3).flatten(1, 2), layout)


NO_KERNEL = "is for inference on CPU in float32, bfloat16 or float16, outside graphs; use 'auto'"


def _window_means(tokens, layout):
    """(B, H*W, C) -> (B, windows, C), the mean over the tokens of each window, less padding."""
    padding = tokens.new_zeros(tokens.shape[2])
    positions = to_windows(tokens, padding, layout).unflatten(1, (layout.windows, -1))
    return positions.sum(2) / (layout.tokens >= 0).sum(1, keepdim=True).to(tokens.dtype)


def _attend(q, k, v, bias):
    """(B, windows, P, heads, size) of q (B, windows, heads, P, size), k, v (the same, of N keys).

    Args:
        bias: (windows or 1, heads, P, N), added to the scores.
    """
    if q.device.type == 'cpu' and q.requires_grad:
        # torch's fused kernel has no backward for a learned bias on CPU; its fallback is slower.
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(3, 4) + bias
        return (scores.softmax(-1).to(v.dtype) @ v).transpose(2, 3)
    batch, windows, heads, n, size = q.shape
    bias = bias.to(q.dtype).expand(batch, windows, heads, n, -1).flatten(0, 1)
    x = F.scaled_dot_product_attention(*(t.flatten(0, 1) for t in (q, k, v)), attn_mask=bias)
    return x.transpose(1, 2).view(batch, windows, n, heads, size)


def group_attention(
    projected: Tensor | list[Tensor],
    mix: Callable[[Tensor | list[Tensor]], Tensor],
    weights: 'GroupMix | None' = None,
    backend: str = 'auto',
) -> Tensor:
    """Group-mix attention between its two projections.

    Args:
        projected: (B, H, W, 3 C), the q, k and v of each segment, or a list of one map a segment.
        mix: the backend 'torch', from `projected` to the result.
        weights: folded weights, which the backend 'numba' needs.
        backend: 'auto', 'numba' or 'torch'.

    Returns:
        (B, H, W, C).

    Raises:
        RuntimeError: the named backend does not support this call.
    """

    def refusal(name):
        if name == 'torch':
            return ''
        if weights is None:
            return 'needs folded weights; deploy the model'
        if not inference_on_cpu(projected, dtypes=DTYPES):
            return NO_KERNEL
        return BACKENDS[name]()

    if choose(backend, BACKENDS, 'numba', refusal) == 'numba':
        return cpu_kernels().mix_groups(projected, weights)
    return mix(projected)


def linear_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float = 1.0) -> Tensor:
    """scale q (softmax(k)^T v) of each head, the softmax over all pixels; all (B, H, W, C)."""
    batch, height, width, channels = q.shape
    shape = batch, height * width, heads, channels // heads
    q, k, v = (t.view(shape).transpose(1, 2) for t in (q, k.flatten(1, 2).softmax(1), v))
    mixers = k.transpose(2, 3) @ v * scale  # (B, heads, C/heads, C/heads)
    is_narrow = channels < NARROW_HEAD * heads and not (is_traced() or q.requires_grad)
    if is_narrow and batch:
        mixed = _mix_at_once(q.transpose(1, 2).flatten(2), mixers)
    else:
        mixed = (q @ mixers).transpose(1, 2)  # (B, H*W, heads, C/heads)
    return mixed.reshape(batch, height, width, channels)


def _mix_at_once(q, mixers):
    """q (B, N, C) times all heads as one block-diagonal matrix: faster for narrow heads."""
    batch, heads, width, _ = mixers.shape
    weight = mixers.new_zeros(batch, heads, width, heads, width)  # out, in
    weight.diagonal(dim1=1, dim2=3).copy_(mixers.permute(0, 3, 2, 1))
    weight = weight.view(batch, heads * width, heads * width)
    return torch.stack([product(x, w) for x, w in zip(q, weight, strict=True)])
