"""First stages of a Swin Transformer: "Swin Transformer: Hierarchical Vision Transformer using
Shifted Windows" (ICCV 2021), section 3.

Behaves as the authors' detection code (SwinTransformer/Swin-Transformer-Object-Detection): any
size works, maps are padded to whole windows, and every second block is shifted however small the
map. (Their classification code shrinks the window on small maps instead.) Differences: a
downsampling layer belongs to the stage that it leads to; padding, shift and partition run after
the qkv projection, since q, k and v of a padded token are the projection's bias.
"""

from operator import index

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from ... import zoo
from ...ops import window_attention
from ...ops.linear import linear
from ...ops.windows import window_layout
from .base import Mlp, ResidualBlock, TruncatedBackbone, new_linear

WINDOW = 7
SHIFT = WINDOW // 2
PATCH = 4
MLP_RATIO = 4


@MODELS.register_module()
class TruncatedSwin(TruncatedBackbone):
    """The first stages of a Swin Transformer; arguments in `TruncatedBackbone`.

    A dict `arch` has the keys of `ARCHS`: `channels`, `depths` and `num_heads` by stage. Any image
    size works: maps are padded with zeros on the right and bottom to a multiple of the stride or
    window, so stage i returns ceil(H / stride) x ceil(W / stride).
    """

    ARCHS = zoo.ARCHS['TruncatedSwin']

    def build_stem(self, in_channels: int) -> nn.Module:
        return PatchEmbed(in_channels, self.arch['channels'][0])

    def build_downsample(self, stage: int) -> nn.Module:
        return PatchMerging(*self.arch['channels'][stage - 1 : stage + 1])

    def build_block(self, stage: int, index: int, drop_path_rate: float) -> nn.Module:
        channels, num_heads = self.arch['channels'][stage], self.arch['num_heads'][stage]
        shift = SHIFT if index % 2 else 0
        return SwinBlock(channels, num_heads, shift, drop_path_rate)


class PatchEmbed(nn.Module):
    """One token per 4x4 patch."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, channels, PATCH, stride=PATCH)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, -x.shape[3] % PATCH, 0, -x.shape[2] % PATCH))
        x = self.proj(x.contiguous(memory_format=torch.channels_last))
        return self.norm(x.permute(0, 2, 3, 1))  # (B, H/4, W/4, C)


class PatchMerging(nn.Module):
    """One token per 2x2 tokens, concatenated column by column."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * in_channels)
        self.reduction = new_linear(4 * in_channels, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        batch, height, width, channels = x.shape
        x = x.view(batch, height // 2, 2, width // 2, 2, channels)
        x = x.permute(0, 1, 3, 4, 2, 5).flatten(3)  # (B, H/2, W/2, column row channels)
        return linear(self.norm(x), self.reduction)


class SwinBlock(ResidualBlock):
    """Attention within windows, then an MLP, each after a norm and added to its input."""

    def __init__(self, channels: int, num_heads: int, shift: int, drop_path_rate: float):
        super().__init__(drop_path_rate)
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, num_heads, shift)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, MLP_RATIO * channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.add(x, self.attn(self.norm1(x)))
        return self.add(x, self.mlp(self.norm2(x)))


class WindowAttention(nn.Module):
    """Multi-head attention within windows of 7 x 7 tokens, with a learned bias by offset.

    Windows tile the map from its top left corner or, shifted, from `shift` further right and down;
    then the map is a torus, and tokens that are neighbors only across its seam do not attend to
    each other. Padding takes part: its q, k and v are the bias of `qkv`.
    """

    def __init__(self, channels: int, num_heads: int, shift: int):
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

    def forward(self, x: Tensor) -> Tensor:
        _, height, width, _ = x.shape
        layout = window_layout(index(height), index(width), WINDOW, self.shift, x.device)
        bias = self.relative_position_bias_table.t().index_select(1, layout.offsets)
        bias = bias.unflatten(1, (WINDOW**2, WINDOW**2))  # (heads, P, P)
        qkv = linear(x, self.qkv).flatten(1, 2)  # (B, H*W, 3 C)
        mixed = window_attention(qkv, self.qkv.bias, bias, layout)
        return linear(mixed.view(x.shape), self.proj)
