"""Swin Transformer, its first stages: "Swin Transformer: Hierarchical Vision Transformer using
Shifted Windows" (ICCV 2021), section 3.

Behaves as the authors' detection code (SwinTransformer/Swin-Transformer-Object-Detection): any
size works, maps are padded to whole windows and every second block is shifted, however small the
map. (Their classification code shrinks the window on small maps instead.) Differences: a
downsampling layer belongs to the stage that it leads to, and less work for the same result:
padding, shift and partition are one gather, which runs after the qkv projection, as a padded
token's q, k and v are the projection's bias.
"""

from operator import index
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import nn

from ...ops import kernels_for
from ...ops.linear import linear
from ...ops.scan.parallel import is_traced
from .base import Mlp, TruncatedBackbone, add_branch, new_linear

# fmt: off
ARCHS = {
    'tiny':  dict(channels=( 96, 192, 384,  768), depths=(2, 2,  6, 2), num_heads=(3, 6, 12, 24),
                  drop_path_rate=0.2),
    'small': dict(channels=( 96, 192, 384,  768), depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24),
                  drop_path_rate=0.3),
    'base':  dict(channels=(128, 256, 512, 1024), depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32),
                  drop_path_rate=0.5),
}
# fmt: on
WINDOW = 7
SHIFT = WINDOW // 2
PLACES = WINDOW**2
PATCH = 4
MLP_RATIO = 4
MASKED = -100.0


@MODELS.register_module()
class TruncatedSwin(TruncatedBackbone):
    """The first stages of a Swin Transformer; arguments in `TruncatedBackbone`.

    A dict `arch` has the keys of `ARCHS`: `channels`, `depths` and `num_heads` by stage. Any image
    size works: it is padded with zeros on the right and bottom to multiples of what each stage
    needs, so stage i gives ceil(H / stride) x ceil(W / stride).
    """

    ARCHS = ARCHS

    def build_stem(self, in_channels):
        return PatchEmbed(in_channels, self.arch['channels'][0])

    def build_downsample(self, stage):
        return PatchMerging(*self.arch['channels'][stage - 1 : stage + 1])

    def build_block(self, stage, index, drop_path_rate):
        channels, num_heads = self.arch['channels'][stage], self.arch['num_heads'][stage]
        shift = SHIFT if index % 2 else 0
        return SwinBlock(channels, num_heads, shift, drop_path_rate)

    def build_norm(self, channels):
        return nn.LayerNorm(channels)


class PatchEmbed(nn.Module):
    """Each 4x4 patch to one token."""

    def __init__(self, in_channels, channels):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, channels, PATCH, stride=PATCH)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x):
        x = F.pad(x, (0, -x.shape[3] % PATCH, 0, -x.shape[2] % PATCH))
        x = self.proj(x.contiguous(memory_format=torch.channels_last))
        return self.norm(x.permute(0, 2, 3, 1))  # (B, H/4, W/4, C)


class PatchMerging(nn.Module):
    """Each 2x2 tokens, column after column, to one."""

    def __init__(self, in_channels, channels):
        super().__init__()
        self.norm = nn.LayerNorm(4 * in_channels)
        self.reduction = new_linear(4 * in_channels, channels, bias=False)

    def forward(self, x):
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        batch, height, width, channels = x.shape
        x = x.view(batch, height // 2, 2, width // 2, 2, channels)
        x = x.permute(0, 1, 3, 4, 2, 5).flatten(3)  # (B, H/2, W/2, column row channels)
        return linear(self.norm(x), self.reduction)


class SwinBlock(nn.Module):
    """Attention within windows, then an MLP, each behind a norm and added to its input."""

    def __init__(self, channels, num_heads, shift, drop_path_rate):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, num_heads, shift)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, MLP_RATIO * channels)
        self.drop_path_rate = drop_path_rate

    def forward(self, x):
        x = self._add(x, self.attn(self.norm1(x)))
        return self._add(x, self.mlp(self.norm2(x)))

    def _add(self, x, y):
        return add_branch(x, y, self.drop_path_rate, self.training)


class WindowAttention(nn.Module):
    """Multi-head attention among the 49 places of each window, with a learned bias by offset.

    Windows tile the map from its top left corner, or, shifted, from `shift` further right and
    down; then the map is a torus, and places that are neighbours only across its seam do not see
    each other. Padded places are seen: their q, k and v are the bias of `qkv`.
    """

    def __init__(self, channels, num_heads, shift):
        super().__init__()
        if channels % num_heads:
            raise ValueError(f'{channels} channels in {num_heads} heads; give a multiple of heads')
        self.num_heads = num_heads
        self.shift = shift
        self.relative_position_bias_table = nn.Parameter(
            torch.empty((2 * WINDOW - 1) ** 2, num_heads)
        )
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.qkv = new_linear(channels, 3 * channels)
        self.proj = new_linear(channels, channels)

    def forward(self, x):
        batch, height, width, channels = x.shape
        heads, size = self.num_heads, channels // self.num_heads
        layout = window_layout(index(height), index(width), self.shift, x.device)
        windows = layout.windows
        qkv = linear(x, self.qkv).view(batch, height * width, 3 * channels)
        bias = self.relative_position_bias_table.t().index_select(1, layout.offsets)
        bias = bias.view(heads, PLACES, PLACES)

        kernels = kernels_for(qkv, bias, self.qkv.bias)
        if kernels and kernels.fits_windows(size):
            region = layout.region if self.shift else None
            x = kernels.attend_windows(qkv, self.qkv.bias, bias, layout.tokens, region, MASKED)
        else:
            places = to_windows(qkv, self.qkv.bias, layout)
            places = places.view(batch, windows, PLACES, 3, heads, size)
            q, k, v = places.permute(3, 0, 1, 4, 2, 5).unbind(0)  # (B, windows, heads, PLACES, d)
            bias = bias + layout.mask[:, None] if self.shift else bias[None]
            x = attend(q, k, v, bias).reshape(batch, windows * PLACES, channels)
            x = to_tokens(x, layout)
        return linear(x.view(batch, height, width, channels), self.proj)


def attend(q, k, v, bias):
    """Scaled dot-product attention within windows.

    Args:
        q, k, v: (B, windows, heads, N, d).
        bias: (windows or 1, heads, N, N), added to the scores.

    Returns:
        (B, windows, N, heads, d).
    """
    if q.device.type == 'cpu' and q.requires_grad:
        # The fused kernel has no backward for a learned bias on CPU, and its fallback is slower.
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(3, 4) + bias
        return (scores.softmax(-1).to(v.dtype) @ v).transpose(2, 3)
    batch, windows, heads, n, size = q.shape
    bias = bias.to(q.dtype).expand(batch, windows, heads, n, n).flatten(0, 1)
    x = F.scaled_dot_product_attention(*(t.flatten(0, 1) for t in (q, k, v)), attn_mask=bias)
    return x.transpose(1, 2).view(batch, windows, n, heads, size)


class Layout(NamedTuple):
    """Where the tokens of a map lie in windows."""

    windows: int
    num_padded: int
    into: torch.Tensor  # (windows * PLACES,) the token of each place; any token at padded places
    joined: torch.Tensor  # the same; at padded places one beyond the last token
    padded: torch.Tensor  # the places that no token fills
    back: torch.Tensor  # (tokens,) the place of each token
    tokens: torch.Tensor  # (windows, PLACES) int32, the token of each place, or -1
    region: torch.Tensor  # (windows, PLACES) int32, places of one see each other
    mask: torch.Tensor  # (windows, PLACES, PLACES) 0, or MASKED across the seam
    offsets: torch.Tensor  # (PLACES * PLACES,) row of the bias table, by query and key


def to_windows(tokens, padding, layout):
    """(B, tokens, C) -> (B, places, C), with `padding` (C,) at the padded places."""
    padding = padding.to(tokens.dtype)
    if tokens.requires_grad:
        return ToWindows.apply(tokens, padding, layout)
    return _to_windows(tokens, padding, layout)


def to_tokens(places, layout):
    """(B, places, C) -> (B, tokens, C): the way back."""
    if places.requires_grad:
        return ToTokens.apply(places, layout)
    return _to_tokens(places, layout)


def _to_windows(tokens, padding, layout):
    if is_traced() and layout.num_padded:  # graphs do not write in place: they would copy twice
        padding = padding.expand(tokens.shape[0], 1, -1)
        return torch.cat((tokens, padding), dim=1).index_select(1, layout.joined)
    places = tokens.index_select(1, layout.into)
    if layout.num_padded:
        padding = padding.expand(places.shape[0], layout.num_padded, -1)
        places.index_copy_(1, layout.padded, padding)
    return places


def _to_tokens(places, layout):
    return places.index_select(1, layout.back)


# Each is the other's backward. Autograd's own would add up gradients row by row, though no row
# has more than one.
class ToWindows(torch.autograd.Function):
    @staticmethod
    def forward(tokens, padding, layout):
        return _to_windows(tokens, padding, layout)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.layout = inputs[2]

    @staticmethod
    def backward(ctx, grad):
        padding = grad.index_select(1, ctx.layout.padded).sum((0, 1))
        return _to_tokens(grad, ctx.layout), padding, None


class ToTokens(torch.autograd.Function):
    @staticmethod
    def forward(places, layout):
        return _to_tokens(places, layout)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.layout = inputs[1]

    @staticmethod
    def backward(ctx, grad):
        return _to_windows(grad, grad.new_zeros(grad.shape[2]), ctx.layout), None


_layouts = {}
MOST_LAYOUTS = 64


@torch.compiler.assume_constant_result
def window_layout(height, width, shift, device):
    """The `Layout` of a (height, width) map, made once for each size and device."""
    key = (height, width, shift, device)
    if key in _layouts:
        return _layouts[key]
    plan = plan_windows(height, width, shift)
    with torch.inference_mode(False):
        # As parameters: torch.compile takes their shapes for constant, whatever is dynamic.
        plan = {k: nn.Parameter(torch.from_numpy(v).to(device), False) for k, v in plan.items()}
    layout = Layout(len(plan['mask']), len(plan['padded']), **plan)
    if type(layout.mask) is nn.Parameter:  # not a tracer's stand-in
        if len(_layouts) == MOST_LAYOUTS:
            del _layouts[next(iter(_layouts))]
        _layouts[key] = layout
    return layout


def plan_windows(height, width, shift):
    """The tensors of a `Layout` by name, as numpy arrays."""
    rows, columns = (-(-n // WINDOW) * WINDOW for n in (height, width))
    tokens = np.full((rows, columns), -1)
    tokens[:height, :width] = np.arange(height * width).reshape(height, width)
    tokens = _windows(np.roll(tokens, (-shift, -shift), (0, 1)))
    into, padded = tokens.ravel().clip(0), np.flatnonzero(tokens.ravel() < 0)
    joined = np.where(tokens.ravel() < 0, height * width, into)
    back = np.empty(height * width, dtype=np.int64)
    filled = tokens.ravel() >= 0
    back[tokens.ravel()[filled]] = np.flatnonzero(filled)

    # Across a seam lie the last `shift` rows, which came from the top.
    row = np.digitize(np.arange(rows), [rows - WINDOW, rows - SHIFT])
    column = np.digitize(np.arange(columns), [columns - WINDOW, columns - SHIFT])
    region = _windows(3 * row[:, None] + column).astype(np.int32)
    mask = np.where(region[:, :, None] == region[:, None], 0, MASKED).astype(np.float32)

    y, x = np.divmod(np.arange(PLACES), WINDOW)
    apart = [axis[:, None] - axis + WINDOW - 1 for axis in (y, x)]
    offsets = (apart[0] * (2 * WINDOW - 1) + apart[1]).ravel()
    tokens = tokens.astype(np.int32)
    return dict(
        into=into, joined=joined, padded=padded, back=back, tokens=tokens, region=region,
        mask=mask, offsets=offsets,
    )  # fmt: skip


def _windows(grid):
    """(rows, columns) -> (windows, PLACES)."""
    rows, columns = grid.shape
    grid = grid.reshape(rows // WINDOW, WINDOW, columns // WINDOW, WINDOW)
    return grid.swapaxes(1, 2).reshape(-1, PLACES)
