"""First stages of a GroupMixFormer: "Advancing Vision Transformers with Group-Mix Attention"
(2023), section 3.

Behaves as AILab-CVC/GroupMixFormer. Differences: plain batch norms, which `sync_bn` of mmengine
converts to synchronized ones; odd maps work (each halving rounds up, where the authors' code
fails); the first patch embedding belongs to the stem, the others to the stage that they lead to;
the channels of q, k and v are ordered by segment, so that each segment is projected, aggregated and
normalized as one map.
"""

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from ... import zoo
from ...ops import group_attention, linear_attention
from ...ops.attention import cpu_kernels
from ...ops.folding import depthwise_conv, fold, merge_depthwise, merge_linear
from ...ops.linear import linear
from .base import Mlp, ResidualBlock, TruncatedBackbone, convolve, new_linear

SEGMENTS = 5  # of the channels: four take part in the attention, one bypasses it
KERNELS = (1, 3, 5, 7)  # aggregators of the four
HEADS = 8
POSITION_KERNELS = {3: 2, 5: 3, 7: 3}  # kernel: number of heads
BLOCK_EPS = 1e-6


@MODELS.register_module()
class TruncatedGMF(TruncatedBackbone):
    """The first stages of a GroupMixFormer; arguments in `TruncatedBackbone`.

    A dict `arch` has the keys of `ARCHS`: `channels` (multiples of 10), `depths` and `mlp_ratios`
    by stage. Any image size works: stage i returns ceil(H / stride) x ceil(W / stride).
    """

    ARCHS = zoo.ARCHS['TruncatedGMF']
    KINDS = {'attn': ('att', 'norm1'), 'ffn': ('mlp', 'norm2')}

    def build_stem(self, in_channels: int) -> nn.Module:
        return Stem(in_channels, self.arch['channels'][0])

    def build_downsample(self, stage: int) -> nn.Module:
        return PatchEmbed(*self.arch['channels'][stage - 1 : stage + 1], stride=2)

    def build_block(self, stage: int, index: int, drop_path_rate: float) -> nn.Module:
        channels = self.arch['channels'][stage]
        if channels % (2 * SEGMENTS):
            raise ValueError(f'channels={channels} in stage {stage}; give a multiple of 10')
        return GroupMixBlock(channels, self.arch['mlp_ratios'][stage], drop_path_rate)

    def build_norm(self, channels: int) -> nn.Module:
        return nn.BatchNorm2d(channels)

    def output(self, x: Tensor, stage: int) -> Tensor:
        x = x.permute(0, 3, 1, 2)
        return getattr(self, f'norm{stage}')(x) if self.out_norm else x


class Stem(nn.Module):
    """Two convolutions of stride 2, then a patch embedding of stride 1."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.proj1 = nn.Conv2d(in_channels, channels // 2, 3, stride=2, padding=1)
        self.norm1 = nn.BatchNorm2d(channels // 2)
        self.proj2 = nn.Conv2d(channels // 2, channels, 3, stride=2, padding=1)
        self.norm2 = nn.BatchNorm2d(channels)
        self.embed = PatchEmbed(channels, channels, stride=1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        x = F.hardswish(self.norm1(self.proj1(x)))
        x = F.hardswish(self.norm2(self.proj2(x)))
        return self.embed(x.permute(0, 2, 3, 1))  # (B, H/4, W/4, C)

    def fuse(self) -> None:
        self.proj1, self.norm1 = fold(self.proj1, self.norm1)
        self.proj2, self.norm2 = fold(self.proj2, self.norm2)


class PatchEmbed(nn.Module):
    """A depthwise 3x3 convolution and a linear layer."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.conv = depthwise(in_channels, 3, stride)
        self.pointwise = nn.Linear(in_channels, channels, bias=False)
        self.norm = nn.BatchNorm1d(channels)
        self.act = nn.Hardswish()

    def forward(self, x: Tensor) -> Tensor:
        x = linear(convolve(x, self.conv), self.pointwise)
        return self.act(norm_rows(x, self.norm))

    def fuse(self) -> None:
        self.pointwise, self.norm, self.act = fold(self.pointwise, self.norm, self.act)


class GroupMixBlock(ResidualBlock):
    """A position convolution, group-mix attention and an MLP, each added to its input."""

    def __init__(self, channels: int, mlp_ratio: float, drop_path_rate: float):
        super().__init__(drop_path_rate)
        self.cpe = ResidualConv(channels, 3)
        self.norm1 = nn.LayerNorm(channels, eps=BLOCK_EPS)
        self.att = GroupMixAttention(channels)
        self.norm2 = nn.LayerNorm(channels, eps=BLOCK_EPS)
        self.mlp = Mlp(channels, int(mlp_ratio * channels))

    def forward(self, x: Tensor) -> Tensor:
        x = convolve(x, self.cpe)
        x = self.add(x, self.att(self.norm1(x)))
        return self.add(x, self.mlp(self.norm2(x)))


class GroupMixAttention(nn.Module):
    """Linear attention between group proxies of four sizes.

    q, k and v are split into five segments of channels. In four of them each token is aggregated to
    a proxy of its neighborhood (1, 3, 5 or 7 wide); all proxies attend to each other. The fifth
    segment bypasses the attention.
    """

    def __init__(self, channels: int):
        super().__init__()
        segment = channels // SEGMENTS
        width = len(KERNELS) * segment // HEADS
        # As in the authors' code: of heads that still include the bypassing segment.
        self.scale = (channels // HEADS) ** -0.5
        self.groups = nn.ModuleList(Aggregator(channels, segment, kernel) for kernel in KERNELS)
        self.local = LocalAggregator(channels, segment)
        self.positions = nn.ModuleList(
            depthwise(heads * width, kernel, bias=True)
            for kernel, heads in POSITION_KERNELS.items()
        )
        self.proj = new_linear(channels, channels)
        # Of a deployed model:
        self.qkv = None  # those of `groups` and `local` as one layer
        self.weights = None  # all others, for the kernel of `group_attention`

    def forward(self, x: Tensor) -> Tensor:
        return linear(group_attention(self.project(x), self.mix, self.weights), self.proj)

    def project(self, x: Tensor) -> Tensor | list[Tensor]:
        """q, k and v of each segment: five of (B, H, W, 3 * segment), or those as one map."""
        if self.qkv is not None:
            return linear(x, self.qkv)
        return [linear(x, part.qkv) for part in (*self.groups, self.local)]

    def mix(self, projected: Tensor | list[Tensor]) -> Tensor:
        """Aggregate each group, then attention between all groups' proxies (Figure 3)."""
        if self.qkv is not None:
            projected = projected.chunk(SEGMENTS, -1)
        *segments, local = projected
        groups = [group(each) for group, each in zip(self.groups, segments, strict=True)]
        q, k, v = (torch.cat([group[..., i, :] for group in groups], -1) for i in range(3))
        mixed = torch.addcmul(linear_attention(q, k, v, HEADS, self.scale), q, self.position(v))
        return torch.cat([mixed, self.local(local)], -1)

    def position(self, v: Tensor) -> Tensor:
        """v convolved, with the kernel size of its head: the relative position encoding."""
        parts = v.split([conv.in_channels for conv in self.positions], -1)
        parts = zip(parts, self.positions, strict=True)
        parts = [convolve(part.contiguous(), conv) for part, conv in parts]
        return torch.cat(parts, -1) if len(parts) > 1 else parts[0]

    def fuse(self) -> None:
        """One projection for all segments, one convolution for all heads; or a kernel for both."""
        parts = [*self.groups, self.local]
        self.weights = self._kernel_weights()
        self.qkv = merge_linear([part.qkv for part in parts])
        for part in parts:
            del part.qkv
        self.positions = nn.ModuleList([merge_depthwise(self.positions)])

    def _kernel_weights(self):
        """Weights of `ops.cpu.attention.mix_groups`; None if it does not support this attention."""
        kernels, (first, *convolved) = cpu_kernels(), self.groups
        norms_are_folded = all(isinstance(group.norm, nn.Identity) for group in self.groups)
        if not kernels or not kernels.fits_groups(first.segment) or not norms_are_folded:
            return None

        def taps(convs):
            return torch.cat([conv.weight.flatten(1).t().flatten() for conv in convs])

        pointwise = [group.pointwise for group in convolved]
        weights = dict(
            taps=taps([*(group.conv for group in convolved), self.local.conv]),
            pointwise=torch.stack([layer.weight.t() for layer in pointwise]),
            bias=torch.cat([layer.bias for layer in pointwise]),
            local=self.local.pointwise.weight.t(),
            norm=torch.stack([self.local.norm.weight, self.local.norm.bias]),
            position_taps=taps(self.positions),
            position_bias=torch.cat([conv.bias for conv in self.positions]),
        )
        arrays = {name: w.cpu().float().contiguous().numpy() for name, w in weights.items()}
        eps = self.local.norm.eps
        return kernels.GroupMix(segment=first.segment, eps=eps, scale=self.scale, **arrays)


class Aggregator(nn.Module):
    """Aggregator of one segment of q, k and v, with shared weights; no convolution for kernel 1."""

    def __init__(self, channels: int, segment: int, kernel: int):
        super().__init__()
        self.segment = segment
        self.qkv = new_linear(channels, 3 * segment)
        self.conv = SharedDepthwise(segment, kernel) if kernel > 1 else None
        self.pointwise = nn.Linear(segment, segment, bias=False) if kernel > 1 else None
        self.norm = nn.BatchNorm1d(segment)
        self.act = nn.Hardswish()

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, 3 * segment), the projection -> (B, H, W, 3, segment)."""
        if self.conv is not None:
            x = convolve(x, self.conv)
        x = x.reshape(*x.shape[:3], 3, self.segment)
        if self.pointwise is not None:
            x = linear(x, self.pointwise)
        return self.act(norm_rows(x, self.norm))

    def fuse(self) -> None:
        if self.conv is None:
            self.qkv, self.norm = fold(self.qkv, self.norm)
        else:
            self.pointwise, self.norm, self.act = fold(self.pointwise, self.norm, self.act)
            self.conv = depthwise_conv(self.conv.weight.repeat(3, 1, 1, 1))


class LocalAggregator(nn.Module):
    """The segment that bypasses the attention: q, k and v aggregated to one map."""

    def __init__(self, channels: int, segment: int):
        super().__init__()
        self.qkv = new_linear(channels, 3 * segment)
        self.conv = depthwise(3 * segment, 3)
        self.pointwise = nn.Linear(3 * segment, segment, bias=False)
        self.norm = nn.LayerNorm(segment)

    def forward(self, x: Tensor) -> Tensor:
        x = convolve(x, self.conv)
        return F.hardswish(self.norm(linear(x, self.pointwise)))


class ResidualConv(nn.Conv2d):
    """Depthwise convolution that is added to its input."""

    def __init__(self, channels: int, kernel: int):
        super().__init__(channels, channels, kernel, padding=kernel // 2, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)

    def fuse(self) -> nn.Module:
        """x + conv(x) is a convolution with 1 more in the center of each kernel."""
        weight, center = self.weight.clone(), self.kernel_size[0] // 2
        weight[:, 0, center, center] += 1
        return depthwise_conv(weight, self.bias)


class SharedDepthwise(nn.Conv2d):
    """Depthwise convolution of several groups of channels with the same weights."""

    def __init__(self, channels: int, kernel: int):
        padding = kernel // 2
        super().__init__(channels, channels, kernel, 1, padding, groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, n * channels, H, W) -> the same."""
        groups = x.shape[1]
        weight = self.weight.repeat(groups // self.in_channels, 1, 1, 1)
        return F.conv2d(x, weight, padding=self.padding, groups=groups)


def depthwise(channels: int, kernel: int, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    """Depthwise convolution that keeps the size at stride 1."""
    padding = kernel // 2
    return nn.Conv2d(channels, channels, kernel, stride, padding, groups=channels, bias=bias)


def norm_rows(x: Tensor, norm: nn.Module) -> Tensor:
    """Batch norm over all but the last dimension; identity where it is folded."""
    if isinstance(norm, nn.Identity):
        return x
    return norm(x.reshape(-1, x.shape[-1])).view(x.shape)
