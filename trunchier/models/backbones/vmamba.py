"""First stages of a VMamba: "VMamba: Visual State Space Model" (NeurIPS 2024), section 4.

Behaves as the authors' classification code (MzeroMiko/VMamba, classification/models/vmamba.py)
for their second release: vssm1_tiny_0230s, vssm_small_0229, vssm_base_0229, forward type v05_noz.
Differences: a downsampling layer belongs to the stage that it leads to; the four directions of the
scan share one copy of the map (`selective_scan_2d`).
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from ... import zoo
from ...ops import selective_scan_2d
from ...ops.linear import linear
from .base import Mlp, ResidualBlock, TruncatedBackbone, convolve, new_linear

DELTA_RANGE = (1e-3, 1e-1)  # of the initial delta, log-uniform


@MODELS.register_module()
class TruncatedVMamba(TruncatedBackbone):
    """The first stages of a VMamba; arguments in `TruncatedBackbone`.

    A dict `arch` has `channels` and `depths` by stage, and may set `ssm_ratio` (inner channels of
    the scan per channel), `d_state`, `mlp_ratio` and `drop_path_rate`, by default those of tiny.
    Any image size works: stage i returns ceil(H / stride) x ceil(W / stride).

    Args:
        scan_backend: backend of `trunchier.ops.selective_scan_2d`.
    """

    ARCHS = zoo.ARCHS['TruncatedVMamba']
    KINDS = {'ss2d': ('ss2d', 'norm1'), 'ffn': ('mlp', 'norm2')}

    def __init__(self, *args: Any, scan_backend: str = 'auto', **kwargs: Any):
        super().__init__(*args, **kwargs)
        for module in self.modules():
            if isinstance(module, SS2D):
                module.scan_backend = scan_backend

    def _arch_row(self, arch):
        if not isinstance(arch, str):
            optional = ('ssm_ratio', 'd_state', 'mlp_ratio', 'drop_path_rate')
            arch = {**{key: self.ARCHS['tiny'][key] for key in optional}, **arch}
        return super()._arch_row(arch)

    def build_stem(self, in_channels: int) -> nn.Module:
        return Stem(in_channels, self.arch['channels'][0])

    def build_downsample(self, stage: int) -> nn.Module:
        return Downsample(*self.arch['channels'][stage - 1 : stage + 1])

    def build_block(self, stage: int, index: int, drop_path_rate: float) -> nn.Module:
        return VSSBlock(self.arch['channels'][stage], self.arch, drop_path_rate)


class Stem(nn.Module):
    """Two convolutions of stride 2."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.conv1 = _halving(in_channels, channels // 2)
        self.norm1 = nn.LayerNorm(channels // 2)
        self.conv2 = _halving(channels // 2, channels)
        self.norm2 = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm1(convolve(x.permute(0, 2, 3, 1), self.conv1)))
        return self.norm2(convolve(x, self.conv2))  # (B, H/4, W/4, C)


class Downsample(nn.Module):
    """One convolution of stride 2."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.conv = _halving(in_channels, channels)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(convolve(x, self.conv))


class VSSBlock(ResidualBlock):
    """A scan over the map, then an MLP, each after a norm and added to its input."""

    def __init__(self, channels: int, arch: dict, drop_path_rate: float):
        super().__init__(drop_path_rate)
        self.norm1 = nn.LayerNorm(channels)
        self.ss2d = SS2D(channels, int(arch['ssm_ratio'] * channels), arch['d_state'])
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, int(arch['mlp_ratio'] * channels))

    def forward(self, x: Tensor) -> Tensor:
        x = self.add(x, self.ss2d(self.norm1(x)))
        return self.add(x, self.mlp(self.norm2(x)))


class SS2D(nn.Module):
    """2D selective scan: each pixel determines how the state decays there, what it adds and reads.

    Parameters are stacked over the four directions of `selective_scan_2d` under their official
    names; `x_proj` is the official x_proj_weight with its directions in one matrix.
    """

    float32_tensors = ('A_logs', 'Ds', 'dt_projs_bias')  # see `deploy.lower`

    def __init__(self, channels: int, inner: int, states: int):
        super().__init__()
        rank = math.ceil(channels / 16)
        self.scan_backend = 'auto'
        self.in_proj = new_linear(channels, inner, bias=False)
        self.conv2d = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False)
        self.x_proj = nn.Linear(inner, 4 * (rank + 2 * states), bias=False)
        self.dt_projs_weight = nn.Parameter(torch.empty(4, inner, rank))
        self.dt_projs_bias = nn.Parameter(torch.empty(4, inner))
        self.A_logs = nn.Parameter(torch.arange(1.0, states + 1).log().repeat(4 * inner, 1))
        self.Ds = nn.Parameter(torch.ones(4 * inner))
        self.out_norm = nn.LayerNorm(inner)
        self.out_proj = new_linear(inner, channels, bias=False)

        nn.init.uniform_(self.dt_projs_weight, -(rank**-0.5), rank**-0.5)
        with torch.no_grad():
            low, high = (math.log(delta) for delta in DELTA_RANGE)
            delta = torch.empty_like(self.dt_projs_bias).uniform_(low, high).exp()
            self.dt_projs_bias.copy_(delta + torch.log(-torch.expm1(-delta)))  # softplus^-1
        for undecayed in (self.A_logs, self.Ds, self.dt_projs_bias):
            undecayed._no_weight_decay = True

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(convolve(linear(x, self.in_proj), self.conv2d))
        exact = torch.promote_types(self.A_logs.dtype, torch.float32)
        y = selective_scan_2d(
            x,
            linear(x, self.x_proj).unflatten(-1, (4, -1)),
            -self.A_logs.to(exact).exp().unflatten(0, (4, -1)),
            self.Ds.unflatten(0, (4, -1)),
            self.dt_projs_weight,
            self.dt_projs_bias,
            self.scan_backend,
        )
        return linear(self.out_norm(y), self.out_proj)


def _halving(in_channels, channels):
    """3x3 convolution of stride 2, with a channels_last weight, so that no call converts it."""
    conv = nn.Conv2d(in_channels, channels, 3, stride=2, padding=1)
    return conv.to(memory_format=torch.channels_last)
