"""Base of the truncated backbones: a stem, the first stages, a norm for each output.

Maps are (B, H, W, C) from the stem to the outputs in all families: linear layers and layer norms
take them without a copy, convolutions as channels_last.
"""

import contextlib
import re
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from ...ops.linear import linear
from ...ops.when import is_traced, records_gradient

# Elements of a map that pass through the blocks at a time on a CPU. Activations, up to four times
# as large, then stay below the 32 MB from which on glibc returns freed memory to the system.
PART_ELEMENTS = 2**20


class TruncatedBackbone(BaseModule):
    """The first `num_stages` stages of a hierarchical backbone. Later stages are never built.

    A family defines `ARCHS` and builds its parts: `build_stem`, `build_downsample`, `build_block`,
    and `build_norm` unless it is a layer norm.

    Args:
        arch: name in `ARCHS`, or a dict with the same keys as its rows.
        num_stages: number of stages to keep.
        out_indices: stages (from 0) to return, increasing; the last kept one by default.
        out_norm: norm each output (`norm0`, `norm1`, ...). False returns the raw stage output,
            after its last block and before the next stage's downsampling.
        drop_path_rate: rate of the *full* network's last block; it grows linearly from 0, so a
            kept block has the same rate for any truncation. By default that of the ImageNet recipe.
        frozen_stages: -1 freezes nothing, 0 the stem, n the stem and the first n stages with their
            output norms. Frozen modules stay in eval mode.
        with_cp: recompute each block in the backward pass instead of storing its activations.
        in_channels: channels of the input image.
        init_cfg: of mmengine; the default is the official random initialization.
        freeze: kinds of layers, keys of `KINDS`, that are not trained in any block and stay in
            eval mode with the norm before them. The stem and the other layers are trained.

    Raises:
        ValueError: an unknown arch, or stages and rates out of range.
    """

    ARCHS = {}
    # Modules of a block by kind, each with the norm before it; see `freeze`.
    KINDS = {'attn': ('attn', 'norm1'), 'ffn': ('mlp', 'norm2')}

    def __init__(
        self,
        arch: str | dict = 'tiny',
        num_stages: int = 4,
        out_indices: Sequence[int] | None = None,
        out_norm: bool = True,
        drop_path_rate: float | None = None,
        frozen_stages: int = -1,
        with_cp: bool = False,
        in_channels: int = 3,
        init_cfg: dict | None = None,
        freeze: Sequence[str] = (),
    ):
        super().__init__(init_cfg)
        self.arch = self._arch_row(arch)
        depths = self.arch['depths']
        if num_stages not in range(1, len(depths) + 1):
            raise ValueError(f'num_stages={num_stages}; this arch has stages 1 to {len(depths)}')
        out_indices = (num_stages - 1,) if out_indices is None else tuple(out_indices)
        kept = sorted(set(out_indices) & set(range(num_stages)))
        if not out_indices or list(out_indices) != kept:
            raise ValueError(
                f'out_indices={out_indices} with num_stages={num_stages}; give increasing stage '
                f'indices from 0 to {num_stages - 1}, or keep more stages'
            )
        if frozen_stages not in range(-1, num_stages + 1):
            raise ValueError(
                f'frozen_stages={frozen_stages}; give -1 (none), 0 (stem) or 1 to {num_stages}'
            )
        if drop_path_rate is None:
            drop_path_rate = self.arch.get('drop_path_rate', 0.0)
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f'drop_path_rate={drop_path_rate}; give a probability below 1')

        self.num_stages = num_stages
        self.out_indices = out_indices
        self.channels = tuple(self.arch['channels'][i] for i in out_indices)
        self.strides = tuple(4 * 2**i for i in out_indices)
        self.in_channels = in_channels

        steps = max(sum(depths) - 1, 1)
        self.stem = self.build_stem(in_channels)
        self.stages = nn.ModuleList(
            Stage(
                self.build_downsample(i) if i else None,
                [
                    self.build_block(i, j, drop_path_rate * (sum(depths[:i]) + j) / steps)
                    for j in range(depths[i])
                ],
                with_cp,
            )
            for i in range(num_stages)
        )
        if out_norm:
            for i, width in zip(out_indices, self.channels, strict=True):
                self.add_module(f'norm{i}', self.build_norm(width))
        self.out_norm = out_norm

        self._frozen = ['stem'] if frozen_stages >= 0 else []
        self._frozen += [f'stages.{i}' for i in range(frozen_stages)]
        self._frozen += [f'norm{i}' for i in out_indices if out_norm and i < frozen_stages]
        self._frozen += modules_of_kinds(self, self.KINDS, freeze)
        for name in self._frozen:
            self.get_submodule(name).requires_grad_(False).eval()

    def _arch_row(self, arch):
        if isinstance(arch, str):
            if arch not in self.ARCHS:
                raise ValueError(f'arch={arch!r}; give one of {list(self.ARCHS)} or a dict')
            return self.ARCHS[arch]
        keys = set(next(iter(self.ARCHS.values())))
        if keys - set(arch) - {'drop_path_rate'} or set(arch) - keys:
            raise ValueError(f'arch has the keys {sorted(arch)}; give {sorted(keys)}')
        lengths = {key: len(row) for key, row in arch.items() if isinstance(row, (list, tuple))}
        if len(set(lengths.values())) > 1:
            raise ValueError(f'arch has rows of unequal length {lengths}; give one value a stage')
        return dict(arch)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, in_channels, H, W) -> tuple of (B, C_i, h_i, w_i), one for each out index."""
        if x.dim() != 4 or x.shape[1] != self.in_channels or 0 in x.shape[2:]:
            raise ValueError(
                f'{type(self).__name__} got {tuple(x.shape)}; give (B, {self.in_channels}, H, W)'
            )
        x = self.stem(x)
        outputs = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in self.out_indices:
                outputs.append(self.output(x, i))
        return tuple(outputs)

    def output(self, x: Tensor, stage: int) -> Tensor:
        """(B, h, w, C) -> (B, C, h, w), normalized unless `out_norm` is False."""
        if self.out_norm:
            x = getattr(self, f'norm{stage}')(x)
        return x.permute(0, 3, 1, 2)

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        for name in self._frozen:
            self.get_submodule(name).eval()
        return self

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """(layer, num_layers) of a parameter for layer-wise decay, as mmpretrain's backbones do.

        The stem is layer 0, each kept block one layer with the downsampling before it, the output
        norms and everything outside the backbone the last.
        """
        depths = self.arch['depths'][: self.num_stages]
        last = sum(depths) + 1
        if not param_name.startswith(prefix):
            return last, last + 1
        part, *rest = param_name[len(prefix) :].split('.')
        if part == 'stem':
            return 0, last + 1
        if part != 'stages':
            return last, last + 1
        stage, child, index = int(rest[0]), rest[1], rest[2]
        block = int(index) if child == 'blocks' else 0
        return sum(depths[:stage]) + block + 1, last + 1

    def build_stem(self, in_channels: int) -> nn.Module:
        """Module from (B, in_channels, H, W) to (B, h, w, C_0)."""
        raise NotImplementedError

    def build_downsample(self, stage: int) -> nn.Module:
        """Module from (B, h, w, C_{stage-1}) to (B, h/2, w/2, C_stage)."""
        raise NotImplementedError

    def build_block(self, stage: int, index: int, drop_path_rate: float) -> nn.Module:
        """Module from (B, h, w, C_stage) to the same."""
        raise NotImplementedError

    def build_norm(self, channels: int) -> nn.Module:
        """Norm of an output (B, h, w, C)."""
        return nn.LayerNorm(channels)


def modules_of_kinds(
    backbone: nn.Module, kinds: Mapping[str, Sequence[str]], freeze: Sequence[str]
) -> list[str]:
    """Names of the modules in the blocks of a backbone that belong to the kinds to freeze.

    Args:
        kinds: {kind: names of its modules in a block}.
        freeze: keys of `kinds`.

    Raises:
        ValueError: an unknown kind.
    """
    if isinstance(freeze, str) or (unknown := [kind for kind in freeze if kind not in kinds]):
        wrong = freeze if isinstance(freeze, str) else unknown[0]
        raise ValueError(f'freeze={wrong!r}; give a tuple of {", ".join(map(repr, kinds))}')
    leaves = {leaf for kind in freeze for leaf in kinds[kind]}
    return [
        name
        for name, _ in backbone.named_modules()
        if name.rpartition('.')[2] in leaves and BLOCK.fullmatch(name.rpartition('.')[0])
    ]


BLOCK = re.compile(r'(stages\.\d+\.blocks|layers)\.\d+')


class Stage(nn.Module):
    """Downsampling (None in the first stage), then blocks."""

    def __init__(self, downsample: nn.Module | None, blocks: list[nn.Module], with_cp: bool):
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.ModuleList(blocks)
        self.with_cp = with_cp

    def forward(self, x: Tensor) -> Tensor:
        if self.downsample is not None:
            x = self.downsample(x)
        if self._in_parts(x):
            samples = max(1, PART_ELEMENTS // x[0].numel())
            return torch.cat([self._run(part) for part in x.split(samples)])
        return self._run(x)

    def _in_parts(self, x):
        """Whether a few samples at a time pass through the blocks."""
        return (
            x.device.type == 'cpu'
            and not is_traced()
            and not self.training
            and x.numel() > PART_ELEMENTS
            and len(x) > 1
            and not records_gradient(x, *self.parameters())
        )

    def _run(self, x):
        for block in self.blocks:
            if self.with_cp and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False, context_fn=partial(_contexts, block))
            else:
                x = block(x)
        return x


def _contexts(block):
    """Contexts of `checkpoint` for the first pass through `block` and for its recomputation."""
    return contextlib.nullcontext(), _kept_statistics(block)


@contextlib.contextmanager
def _kept_statistics(block):
    """Keep the running statistics of batch norms, which have counted this batch already."""
    norms = [m for m in block.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(batches)


class ResidualBlock(nn.Module):
    """A block of branches that are added to their input.

    Attributes:
        in_place: write the sum over the branch's result, which saves 1 % of the time, in deployed
            models: in others a forward hook may have kept that result.
    """

    in_place = False

    def __init__(self, drop_path_rate: float):
        super().__init__()
        self.drop_path_rate = drop_path_rate

    def fuse(self) -> None:
        self.in_place = True

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """x + y, the result of a branch, with drop path in training."""
        y = drop_path(y, self.drop_path_rate, self.training)
        learns = x.requires_grad or y.requires_grad
        if not self.in_place or is_traced() or learns or x.dtype != y.dtype:
            return x + y
        return y.add_(x)


class Mlp(nn.Module):
    """Two linear layers with a GELU in between."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.fc1 = new_linear(channels, hidden)
        self.fc2 = new_linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        return linear(linear(x, self.fc1, gelu=True), self.fc2)


def new_linear(in_features: int, out_features: int, bias: bool = True) -> nn.Linear:
    """A linear layer with the initialization of all three families."""
    layer = nn.Linear(in_features, out_features, bias)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def convolve(x: Tensor, conv: nn.Module) -> Tensor:
    """`conv` of a map (B, H, W, C), without a copy."""
    return conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def drop_path(x: Tensor, rate: float, training: bool) -> Tensor:
    """Zero whole samples with probability `rate` and scale the others, in training only."""
    if not training or rate == 0:
        return x
    keep = x.new_empty((x.shape[0],) + (1,) * (x.dim() - 1)).bernoulli_(1 - rate)
    return x * keep.div_(1 - rate)
