"""Plain ViT with the choices of ViTPose ("ViTPose: Simple Vision Transformer Baselines for Human
Pose Estimation", sections 3.1 to 3.3) and ViTPose++ ("ViTPose++: Vision Transformer for Generic
Body Pose Estimation", section 3.2).

mmpretrain's VisionTransformer with other attention, stride and FFN: its keys stay, so published
checkpoints load. ViTPose's windowed attention was never released; the multiply-accumulates equal
those of its Table 5. Own choices: pooled tokens come from windows that are not shifted; windows of
every second windowed block are shifted by half, except in a direction that one window covers.
"""

import difflib
import math
from collections.abc import Sequence
from operator import index as whole
from typing import Any

import torch
from mmengine.model import BaseModule
from mmpretrain.models import VisionTransformer
from mmpretrain.models.backbones.vision_transformer import TransformerEncoderLayer
from mmpretrain.models.utils import MultiheadAttention
from torch import Tensor, nn

from ... import zoo
from ...ops import window_attention
from ...ops.windows import window_layout
from .base import modules_of_kinds

ATTENTION = ('full', 'window', 'shift', 'pool', 'shift+pool')
STRIDES = {16: 2, 8: 4}  # padding of the 16 x 16 patches
# The official lists: freezing FFNs freezes the embeddings too, freezing attention does not.
KINDS = {'attn': ('attn', 'ln1'), 'ffn': ('ffn', 'ln2')}


class PlainViT(VisionTransformer):
    """A plain ViT; further arguments are mmpretrain's.

    Args:
        arch: 'small', 'base', 'large', 'huge' (ViTPose's) or a dict as mmpretrain's.
        img_size: (height, width), pixels, of the position embedding. Those of other images and of
            checkpoints of other sizes are resized (bicubic); a class token's entry is added to all.
        stride: 16 or 8, pixels, of the 16 x 16 patches.
        attention: 'full'; 'window': within windows, with a learned bias by offset; 'shift': as in
            Swin; 'pool': with the mean token of every window as further keys and values;
            'shift+pool'. Apart from the bias tables all have the same parameters.
        window_size: (height, width), tokens; a number means a square.
        full_blocks: blocks (from 0) with full attention in any case, or how many: 4 of 12 are the
            last of every 3, as in ViTDet.
        freeze: kinds of layers that are not trained and stay in eval mode: 'attn' (attention and
            the norms before), 'ffn' (FFNs, the norms before, patch and position embedding).
        experts: dict(num, width): the last `width` channels of each FFN's output come from one of
            `num` linear layers, by the data set of the sample; None: no experts.

    Raises:
        ValueError: unknown names, or values that do not fit each other.
    """

    def __init__(
        self,
        arch: str | dict = 'base',
        img_size: int | tuple[int, int] = (256, 192),
        stride: int = 16,
        attention: str = 'full',
        window_size: int | tuple[int, int] = (8, 8),
        full_blocks: int | Sequence[int] = (),
        freeze: Sequence[str] = (),
        experts: dict[str, int] | None = None,
        with_cls_token: bool = False,
        out_type: str = 'featmap',
        patch_cfg: dict | None = None,
        **options: Any,
    ):
        if isinstance(arch, str):
            arch = zoo.plain_arch(arch)
        if attention not in ATTENTION:
            near = difflib.get_close_matches(str(attention), ATTENTION, 1, 0)
            raise ValueError(f'attention={attention!r}; give {near[0]!r} or one of {ATTENTION}')
        if stride not in STRIDES:
            raise ValueError(f'stride={stride}; give 16 (maps of 1/16) or 8 (maps of 1/8)')
        if attention != 'full' and with_cls_token:
            raise ValueError(
                f'attention={attention!r} has no place for a class token; leave it out'
            )
        super().__init__(
            arch,
            tuple(img_size) if isinstance(img_size, (list, tuple)) else img_size,
            with_cls_token=with_cls_token,
            out_type=out_type,
            patch_cfg=dict(patch_cfg or {}, stride=stride, padding=STRIDES[stride]),
            **options,
        )
        self.strides, self.channels = (stride,), (self.embed_dims,)
        self.attention, self.window_size = attention, _window(window_size)
        self.full_blocks = _full_blocks(full_blocks, self.num_layers)
        self.experts = dict(experts) if experts else None
        windowed = [i for i in range(self.num_layers) if i not in self.full_blocks]
        for i, layer in enumerate(self.layers):
            if attention != 'full' and i in windowed:
                shifted = attention.startswith('shift') and windowed.index(i) % 2 == 1
                pool = attention.endswith('pool')
                layer.attn = WindowAttention(layer.attn, self.window_size, shifted, pool)
            if experts:
                layer.ffn = ExpertFFN(layer.ffn, **experts)
            self.layers[i] = Block(layer)
        self.freeze = tuple(freeze)
        self._frozen = modules_of_kinds(self, KINDS, self.freeze)
        if 'ffn' in self.freeze:
            self._frozen.append('patch_embed')
            self.pos_embed.requires_grad_(False)
        for name in self._frozen:
            self.get_submodule(name).requires_grad_(False)
        self._freeze_stages()
        self.train(self.training)

    def _freeze_stages(self):
        """mmpretrain calls it before layers are replaced, and not in `train`."""
        if self.frozen_stages > 0:
            super()._freeze_stages()

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        self._freeze_stages()
        for name in self._frozen:
            self.get_submodule(name).eval()
        return self

    def forward(self, x: Tensor, dataset: int | Tensor = 0) -> tuple[Tensor, ...]:
        """(B, 3, H, W) -> tuple of (B, C, H / stride, W / stride), one for each out index.

        Args:
            dataset: expert of all samples, or of each, (B,) integers; unused without experts.
        """
        x, grid = self.patch_embed(x)
        if self.cls_token is not None:
            x = torch.cat((self.cls_token.expand(len(x), -1, -1), x), dim=1)
        x = x + self.resize_pos_embed(
            self.pos_embed,
            self.patch_resolution,
            grid,
            self.interpolate_mode,
            self.num_extra_tokens,
        )
        x = self.pre_norm(self.drop_after_pos(x))
        outputs = []
        for i, layer in enumerate(self.layers):
            x = layer(x, grid, dataset)
            if i == self.num_layers - 1 and self.final_norm:
                x = self.ln1(x)
            if i in self.out_indices:
                outputs.append(self._format_output(x, grid))
        return tuple(outputs)

    def adapt_state(self, state: dict[str, Tensor], prefix: str = '') -> None:
        """Fit a published state_dict to this model, in place; an entry that fits is not changed.

        The position embedding is resized. Absent bias tables keep their initial zeros. Of an FFN
        without experts, each expert becomes a copy of the last rows, as in the official code.

        Raises:
            ValueError: a position embedding of an unknown grid.
        """
        name = f'{prefix}pos_embed'
        if name in state and state[name].shape[1] != self.pos_embed.shape[1]:
            embed = state[name]
            grid = _grid_of(embed.shape[1], self.patch_resolution)
            if grid is None:
                grid = _grid_of(embed.shape[1] - 1, self.patch_resolution)
                embed = embed[:, 1:] + embed[:, :1]
            if grid is None:
                raise ValueError(
                    f'{name} has {state[name].shape[1]} entries, neither of a 4:3 nor of a square '
                    f'image; resize it to {self.patch_resolution} or give another img_size'
                )
            tokens = self.resize_pos_embed(
                embed, grid, self.patch_resolution, self.interpolate_mode, 0
            )
            if self.num_extra_tokens:
                tokens = torch.cat((tokens.new_zeros(1, 1, tokens.shape[2]), tokens), 1)
            state[name] = tokens
        for i, layer in enumerate(self.layers):
            start = f'{prefix}layers.{i}.'
            table = f'{start}attn.relative_position_bias_table'
            if isinstance(layer.attn, WindowAttention) and f'{start}attn.qkv.weight' in state:
                state.setdefault(table, layer.attn.relative_position_bias_table.detach())
            if self.experts:
                self._split_rows(state, f'{start}ffn.')

    def _split_rows(self, state, start):
        num, width = self.experts['num'], self.experts['width']
        for leaf in ('weight', 'bias'):
            rows = state.get(f'{start}layers.1.{leaf}')
            if rows is None or len(rows) != self.embed_dims:
                continue
            state[f'{start}layers.1.{leaf}'] = rows[:-width]
            for k in range(num):
                state.setdefault(f'{start}experts.{k}.{leaf}', rows[-width:])

    def _prepare_pos_embed(self, state_dict, prefix, *args, **kwargs):
        """mmpretrain calls it before it loads; its own knows square grids alone."""
        self.adapt_state(state_dict, prefix)


class Block(TransformerEncoderLayer):
    """The parts of mmpretrain's block, told the grid of its tokens and the data set of samples."""

    def __init__(self, layer: TransformerEncoderLayer):
        BaseModule.__init__(self)
        self.embed_dims = layer.embed_dims
        self.ln1, self.attn, self.ln2, self.ffn = layer.ln1, layer.attn, layer.ln2, layer.ffn

    def forward(self, x: Tensor, grid: tuple[int, int], dataset: int | Tensor = 0) -> Tensor:
        where = (grid,) if isinstance(self.attn, WindowAttention) else ()
        x = x + self.attn(self.ln1(x), *where)
        which = (dataset,) if isinstance(self.ffn, ExpertFFN) else ()
        return self.ffn(self.ln2(x), x, *which)


class WindowAttention(nn.Module):
    """The projections of an attention layer, with attention within windows.

    Args:
        attn: whose projections are taken.
        window: (height, width), tokens.
        shifted: move windows by half.
        pool: the mean tokens of all windows are keys and values of each.
    """

    def __init__(
        self, attn: MultiheadAttention, window: tuple[int, int], shifted: bool, pool: bool
    ):
        super().__init__()
        self.window, self.shifted, self.pool = window, shifted, pool
        self.num_heads = attn.num_heads
        offsets = (2 * window[0] - 1) * (2 * window[1] - 1)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(offsets, attn.num_heads))
        self.qkv, self.proj = attn.qkv, attn.proj
        self.proj_drop, self.out_drop, self.gamma1 = attn.proj_drop, attn.out_drop, attn.gamma1

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, H*W, C) -> the same; `grid` is (H, W)."""
        grid = tuple(map(whole, grid))
        positions = math.prod(self.window)
        shift = tuple(
            n // 2 if self.shifted and n < side else 0
            for n, side in zip(self.window, grid, strict=True)
        )
        layout = window_layout(*grid, self.window, shift, x.device)
        pooled = window_layout(*grid, self.window, 0, x.device) if self.pool else None
        bias = self.relative_position_bias_table.t().index_select(1, layout.offsets)
        bias = bias.unflatten(1, (positions, positions))  # (heads, P, P)
        padding = self.qkv.bias
        if padding is None:
            padding = x.new_zeros(3 * x.shape[2])
        mixed = window_attention(self.qkv(x), padding, bias, layout, pooled=pooled)
        return self.out_drop(self.gamma1(self.proj_drop(self.proj(mixed))))


class ExpertFFN(nn.Module):
    """An FFN whose last `width` output channels come from one of `num` experts, by data set.

    In training every expert runs on every sample, so that all have gradients under
    DistributedDataParallel; with one data set for all samples in eval mode only its expert runs.

    Args:
        ffn: mmcv's FFN, whose parts are taken.

    Raises:
        ValueError: no experts, or a width that leaves no shared channels.
    """

    def __init__(self, ffn: nn.Module, num: int, width: int):
        super().__init__()
        if num < 1 or not 0 < width < ffn.embed_dims:
            raise ValueError(
                f'experts=dict(num={num}, width={width}); give num of 1 or more and a width below '
                f'{ffn.embed_dims}'
            )
        hidden = ffn.feedforward_channels
        self.layers, self.gamma2, self.dropout_layer = ffn.layers, ffn.gamma2, ffn.dropout_layer
        self.layers[1] = nn.Linear(hidden, ffn.embed_dims - width)
        self.experts = nn.ModuleList(nn.Linear(hidden, width) for _ in range(num))

    def forward(self, x: Tensor, identity: Tensor, dataset: int | Tensor = 0) -> Tensor:
        """(B, N, C) -> the same. `dataset` as in `PlainViT.forward`; IndexError if out of range."""
        hidden = self.layers[0](x)
        if isinstance(dataset, int) and not self.training:
            self._check(dataset)
            y = self._merged(hidden, dataset)
        else:
            chosen = torch.as_tensor(dataset, device=x.device).expand(len(x))
            self._check(int(chosen.max()))
            masks = [(chosen == k).to(x.dtype)[:, None, None] for k in range(len(self.experts))]
            own = sum(m * e(hidden) for m, e in zip(masks, self.experts, strict=True))
            y = torch.cat((self.layers[1](hidden), own), dim=-1)
        return identity + self.dropout_layer(self.gamma2(self.layers[2](y)))

    def _merged(self, hidden, dataset):
        """The shared and the expert's rows in one product, as in a split model."""
        pair = self.layers[1], self.experts[dataset]
        if not all(type(layer) is nn.Linear for layer in pair):  # deployed
            return torch.cat([layer(hidden) for layer in pair], dim=-1)
        weight, bias = (torch.cat([getattr(each, n) for each in pair]) for n in ('weight', 'bias'))
        return nn.functional.linear(hidden, weight, bias)

    def _check(self, dataset):
        if dataset not in range(len(self.experts)):
            raise IndexError(f'dataset {dataset}; experts are 0 to {len(self.experts) - 1}')


def _window(size):
    """(height, width) of windows."""
    sides = tuple(size) if isinstance(size, Sequence) else (size, size)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(f'window_size={size}; give (height, width) in tokens, or a number')
    return sides


def _full_blocks(blocks, depth):
    """Indices of the blocks with full attention."""
    if isinstance(blocks, int):
        if blocks and (blocks < 0 or depth % blocks):
            raise ValueError(f'full_blocks={blocks} does not divide {depth} blocks; give indices')
        return tuple(range(depth // blocks - 1, depth, depth // blocks)) if blocks else ()
    if not all(isinstance(i, int) and 0 <= i < depth for i in blocks):
        raise ValueError(f'full_blocks={blocks}; give a number or indices from 0 to {depth - 1}')
    return tuple(blocks)


def _grid_of(tokens, wanted):
    """(height, width) of so many tokens: in the ratio of `wanted`, else 4:3, else 1:1; or None."""
    for height, width in (wanted, (4, 3), (1, 1)):
        factor = math.sqrt(tokens / (height * width))
        grid = round(height * factor), round(width * factor)
        if math.prod(grid) == tokens and grid[0] * width == grid[1] * height:
            return grid
    return None
