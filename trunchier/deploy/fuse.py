"""An equal model for inference: what the weights alone decide is computed once, beforehand.

    model = deploy(model)

The modules stay those that train, with other weights. Batch norms go into the layer before them,
sums with the input into the centre of a convolution, shared kernels are written out, a GELU joins
the linear layer before it, kernels lie in memory as they are read. Checkpoints are loaded before
that: a deployed model has other parameters.
"""

import copy
from functools import partial

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..models import HMR2Head, MeshEstimator, StageAdapter
from ..models.backbones import groupmixformer
from ..models.backbones.base import ResidualConv, SharedDepthwise, TruncatedBackbone
from ..ops.attention import cpu_kernels
from ..ops.linear import PackedConv2d, PackedLinear, keep_freed_memory
from .lower import PRECISIONS, lower

OURS = (TruncatedBackbone, MeshEstimator, StageAdapter, HMR2Head)
# Classes of other libraries, by name: they are imported only by who has them.
THEIRS = ('TopdownPoseEstimator', 'VisionTransformer', 'HeatmapHead')


def deploy(model, inplace=False, dtype=None):
    """An equal model for inference.

    Args:
        model: a truncated backbone, mmpretrain's VisionTransformer, mmpose's TopdownPoseEstimator,
            a MeshEstimator, or their necks and heads; with its weights, on any device.
        inplace: change `model` itself instead of a deep copy.
        dtype: torch.bfloat16 or torch.float16 converts what is multiplied, not what the model
            takes and returns; docs/deploy.md says what that costs in accuracy. None: as it is.

    Returns:
        A model of the same class with the same methods, equal up to rounding (below 1e-4 of an
        output's standard deviation in float32). It stays in eval mode and wants no gradient.

    Raises:
        TypeError: another kind of model, or another dtype.
    """
    if not _is_known(model):
        raise TypeError(
            f'cannot deploy a {type(model).__name__}; give one of '
            f'{", ".join([kind.__name__ for kind in OURS] + list(THEIRS))}'
        )
    if dtype not in (None, *PRECISIONS.values()):
        raise TypeError(f'cannot deploy in {dtype}; give torch.bfloat16, torch.float16 or None')
    if getattr(model, 'deployed', False):
        raise TypeError('the model is deployed already; deploy the one that it was made of')
    if not inplace:
        model = copy.deepcopy(model)
    model.eval()
    model.requires_grad_(False)
    with torch.no_grad():
        for kind, fold in FOLDS.items():
            for module in [module for module in model.modules() if is_a(module, kind)]:
                fold(module)
        for module in list(model.modules()):
            if is_a(module, nn.Linear):
                module.__class__ = PackedLinear
            elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                module.to(memory_format=torch.channels_last)
                if is_a(module, nn.Conv2d):
                    module.__class__ = PackedConv2d
        model.requires_grad_(False)
        lower(model, dtype or torch.float32)
    keep_freed_memory()
    model.deployed = True
    model.train = partial(_refuse_training, model)
    model._register_load_state_dict_pre_hook(_refuse_weights, with_module=True)
    return model


def _is_known(model):
    return isinstance(model, OURS) or any(
        kind.__name__ in THEIRS and kind.__module__.partition('.')[0] in ('mmpose', 'mmpretrain')
        for kind in type(model).__mro__
    )


def _refuse_training(model, mode=True):
    if mode:
        raise RuntimeError(
            f'this {type(model).__name__} is deployed and cannot train; train the model that it '
            'was made of, and deploy that again'
        )
    return model


def _refuse_weights(model, *_):
    raise RuntimeError(
        f'this {type(model).__name__} is deployed: its parameters are not those of a checkpoint; '
        'load the checkpoint into a model that is not, and deploy that'
    )


# --- folding -------------------------------------------------------------------------------------


def fold_norm(layer, norm, times=1):
    """Put a batch norm into the layer before it.

    Args:
        layer: nn.Linear, nn.Conv2d or nn.ConvTranspose2d of one group; changed.
        norm: of its output channels, or of each `times`-th part of them.

    Returns:
        What stands in the norm's place: nothing to do, or the norm where it cannot be folded.
    """
    if not isinstance(norm, _BatchNorm) or norm.running_mean is None:
        return norm
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    scale, shift = scale.repeat(times), shift.repeat(times)
    if layer.bias is not None:
        shift = shift + layer.bias.double() * scale
    axis = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
    shape = [1] * layer.weight.dim()
    shape[axis] = -1
    weight = layer.weight.double() * scale.view(shape)
    layer.weight = nn.Parameter(weight.to(layer.weight.dtype))
    layer.bias = nn.Parameter(shift.to(layer.weight.dtype))
    return nn.Identity()


def fold_sequence(modules):
    """Norms and GELUs behind the layers that they belong to."""
    for i in range(len(modules) - 1):
        first, second = modules[i], modules[i + 1]
        if isinstance(second, _BatchNorm) and _is_foldable(first):
            modules[i + 1] = fold_norm(first, second)
        elif is_a(first, nn.Linear):
            modules[i + 1] = fold_activation(first, None, second)


def fold_activation(layer, norm, act):
    """Let a linear layer apply the activation that follows it, and a norm that is folded.

    Returns:
        What stands in the activation's place.
    """
    is_exact_gelu = is_a(act, nn.GELU) and act.approximate == 'none'
    after = 'gelu' if is_exact_gelu else 'hardswish' if is_a(act, nn.Hardswish) else None
    if after is None or not isinstance(norm, (nn.Identity, type(None))):
        return act
    layer.__class__, layer.activation = PackedLinear, after
    return nn.Identity()


def _is_foldable(layer):
    if is_a(layer, nn.ConvTranspose2d):
        return layer.groups == 1
    return is_a(layer, nn.Conv2d) or is_a(layer, nn.Linear)


def is_a(module, kind):
    """Whether a module is of `kind`, and no class derived from it but those that say nothing new.

    mmcv's own do for empty maps what torch does by now, mmengine's can initialise themselves.
    """
    same = type(module).__module__ in ('mmcv.cnn.bricks.wrappers', 'mmengine.model.base_module')
    return type(module) is kind or (same and isinstance(module, kind))


def fold_stem(stem):
    stem.norm1 = fold_norm(stem.proj1, stem.norm1)
    stem.norm2 = fold_norm(stem.proj2, stem.norm2)


def fold_embedding(embed):
    embed.norm = fold_norm(embed.pointwise, embed.norm)
    embed.act = fold_activation(embed.pointwise, embed.norm, embed.act)


def fold_block(block):
    """x + conv(x) is a convolution with 1 more in the centre of each kernel."""
    assert type(block.cpe) is ResidualConv
    conv = like(block.cpe, block.cpe.weight.clone(), block.cpe.bias)
    conv.weight[:, 0, 1, 1] += 1
    block.cpe = conv


def fold_aggregator(group):
    if group.conv is None:
        group.norm = fold_norm(group.qkv, group.norm, times=3)
    else:
        group.norm = fold_norm(group.pointwise, group.norm)
        group.act = fold_activation(group.pointwise, group.norm, group.act)
        assert type(group.conv) is SharedDepthwise
        group.conv = like(group.conv, group.conv.weight.repeat(3, 1, 1, 1), None)


def fold_attention(att):
    """One projection for all segments, one convolution for all positions; or all by one kernel."""
    parts = [*att.groups, att.local]
    att.weights = pack_attention(att)
    att.qkv = merge_linears([part.qkv for part in parts])
    for part in parts:
        del part.qkv
    att.positions = nn.ModuleList([merge_depthwise(att.positions)])


def pack_attention(att):
    """Weights of `ops.cpu.attention.mix_groups`; None where it cannot do this attention."""
    kernels, segment = cpu_kernels(), att.groups[0].segment
    norms = [group.norm for group in att.groups]
    if not kernels or not kernels.fits_groups(segment) or not _all_identities(norms):
        return None

    def taps(convs):
        return torch.cat([conv.weight.flatten(1).t().flatten() for conv in convs])

    convolved = att.groups[1:]
    pointwise = [group.pointwise for group in convolved]
    weights = dict(
        taps=taps([*(group.conv for group in convolved), att.local.conv]),
        pointwise=torch.stack([layer.weight.t() for layer in pointwise]),
        bias=torch.cat([layer.bias for layer in pointwise]),
        local=att.local.pointwise.weight.t(),
        norm=torch.stack([att.local.norm.weight, att.local.norm.bias]),
        position_taps=taps(att.positions),
        position_bias=torch.cat([conv.bias for conv in att.positions]),
    )
    arrays = {name: w.cpu().float().contiguous().numpy() for name, w in weights.items()}
    return kernels.GroupMix(segment=segment, eps=att.local.norm.eps, scale=att.scale, **arrays)


def _all_identities(modules):
    return all(isinstance(module, nn.Identity) for module in modules)


def merge_linears(layers):
    """Linear layers of the same input as one; their outputs follow each other."""
    with torch.device(layers[0].weight.device):
        merged = nn.Linear(
            layers[0].in_features, sum(layer.out_features for layer in layers),
            dtype=layers[0].weight.dtype,
        )  # fmt: skip
    merged.weight.data = torch.cat([layer.weight for layer in layers])
    merged.bias.data = torch.cat([layer.bias for layer in layers])
    return merged.eval()


def merge_depthwise(convs):
    """Depthwise convolutions of channels that follow each other, by kernels of several sizes."""
    side = max(conv.kernel_size[0] for conv in convs)
    weights = []
    for conv in convs:
        margin = (side - conv.kernel_size[0]) // 2
        weights.append(nn.functional.pad(conv.weight, (margin,) * 4))
    return like(convs[0], torch.cat(weights), torch.cat([conv.bias for conv in convs]))


def like(conv, weight, bias):
    """A depthwise convolution with these weights; in type and place as `conv`."""
    channels, side = len(weight), weight.shape[-1]
    with torch.device(weight.device):
        new = nn.Conv2d(
            channels, channels, side, conv.stride, side // 2, groups=channels,
            bias=bias is not None, dtype=weight.dtype,
        )  # fmt: skip
    new.weight.data = weight.data
    if bias is not None:
        new.bias.data = bias.data
    return new.eval().requires_grad_(False)


FOLDS = {
    nn.Sequential: fold_sequence,
    groupmixformer.Stem: fold_stem,
    groupmixformer.PatchEmbed: fold_embedding,
    groupmixformer.GroupMixBlock: fold_block,
    groupmixformer.Aggregator: fold_aggregator,
    groupmixformer.GroupMixAttention: fold_attention,  # after its groups
}
