"""Fold constant parts of trained layers into their weights: for the `fuse` methods of modules."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from .linear import PackedConv2d, PackedLinear

PACKED = {nn.Linear: PackedLinear, nn.Conv2d: PackedConv2d}


def fold(*modules: nn.Module) -> list[nn.Module]:
    """Fold norms and activations of consecutive modules into the layers before them.

        self.pointwise, self.norm, self.act = fold(self.pointwise, self.norm, self.act)

    A linear layer, a convolution or a transposed convolution takes the batch norm that follows it;
    a norm of fewer channels applies to each equal part of the layer's. A linear layer also takes an
    exact GELU or a hardswish.

    Returns:
        As many modules, the layers packed, `nn.Identity` in the place of each folded module.
    """
    folded, layer = [], None
    for module in map(pack, modules):
        activation = _activation(module)
        if layer is not None and isinstance(module, _BatchNorm) and module.running_mean is not None:
            _fold_norm(layer, module)
            module = nn.Identity()
        elif activation and isinstance(layer, PackedLinear):
            layer.activation, layer = activation, None
            module = nn.Identity()
        elif type(module) is not nn.Identity:
            layer = module if _is_foldable(module) else None
        folded.append(module)
    return folded


def pack(layer: nn.Module) -> nn.Module:
    """The layer as PackedLinear or PackedConv2d, with the same parameters; others as they are.

    The weights of convolutions are converted to channels_last.
    """
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        layer.to(memory_format=torch.channels_last)
    for kind, packed in PACKED.items():
        if is_a(layer, kind):
            new = packed.__new__(packed)
            new.__dict__.update(layer.__dict__)
            return new
    return layer


def is_a(module: nn.Module, kind: type) -> bool:
    """Whether `module` is of exactly this kind, or of an equivalent subclass of mmcv or mmengine.

    mmcv's wrappers handle empty maps, as torch does by now; mmengine's add initialization.
    """
    same = type(module).__module__ in ('mmcv.cnn.bricks.wrappers', 'mmengine.model.base_module')
    return type(module) is kind or (same and isinstance(module, kind))


def _is_foldable(layer):
    if is_a(layer, nn.ConvTranspose2d):
        return layer.groups == 1
    return type(layer) is PackedConv2d or (type(layer) is PackedLinear and not layer.activation)


def _activation(module):
    """Name of an activation that linear layers can apply, else None."""
    if is_a(module, nn.GELU) and module.approximate == 'none':
        return 'gelu'
    return 'hardswish' if is_a(module, nn.Hardswish) else None


def _fold_norm(layer, norm):
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    axis = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
    parts = layer.weight.shape[axis] // len(scale)
    scale, shift = scale.repeat(parts), shift.repeat(parts)
    if layer.bias is not None:
        shift = shift + layer.bias.double() * scale
    shape = [1] * layer.weight.dim()
    shape[axis] = -1
    weight = layer.weight.double() * scale.view(shape)
    layer.weight = nn.Parameter(weight.to(layer.weight.dtype))
    layer.bias = nn.Parameter(shift.to(layer.weight.dtype))


def merge_linear(layers: list[nn.Linear]) -> nn.Linear:
    """Linear layers of the same input as one layer, whose outputs are concatenated."""
    weight = torch.cat([layer.weight for layer in layers])
    merged = PackedLinear(weight.shape[1], len(weight), device=weight.device, dtype=weight.dtype)
    merged.weight.data, merged.bias.data = weight, torch.cat([layer.bias for layer in layers])
    return merged


def merge_depthwise(convs: list[nn.Conv2d]) -> nn.Conv2d:
    """Depthwise convolutions of consecutive channels as one, of the largest kernel's size."""
    side = max(conv.kernel_size[0] for conv in convs)
    margins = [(side - conv.kernel_size[0]) // 2 for conv in convs]
    weights = [F.pad(c.weight, (margin,) * 4) for c, margin in zip(convs, margins, strict=True)]
    return depthwise_conv(torch.cat(weights), torch.cat([conv.bias for conv in convs]))


def depthwise_conv(weight: Tensor, bias: Tensor | None = None) -> nn.Conv2d:
    """Depthwise convolution of stride 1 with a weight (C, 1, k, k), k odd; keeps the size."""
    channels, _, side, _ = weight.shape
    conv = PackedConv2d(
        channels, channels, side, padding=side // 2, groups=channels, bias=bias is not None,
        device=weight.device, dtype=weight.dtype,
    )  # fmt: skip
    conv.weight.data = weight.detach()
    if bias is not None:
        conv.bias.data = bias.detach()
    return conv
