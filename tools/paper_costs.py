"""Parameters and multiply-accumulates (MACs) by the convention of the paper's tables.

Tables 3 and 4 report fvcore's counts of the official code: 1 per multiply-accumulate of
convolutions, linear layers and matrix products, 5 per element of a layer norm, 2 of a batch norm,
0 for activations, softmax and sums, and 9 B L D N + B L D for VMamba's selective scan. Our modules
execute less (no QKV for padded tokens, no keys for a single token), so these formulas follow the
official structure; `tools/model_table.py` lists where the printed tables differ.
"""

import math

from torch import nn

LAYER_NORM = 5
BATCH_NORM = 2


def parameters(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in module.parameters())


def model_costs(model: nn.Module, size: tuple[int, int] = (256, 192)) -> dict[str, tuple[int, int]]:
    """Costs of the parts of a model at batch size 1.

    Args:
        model: an estimator with `backbone`, `head` and optionally `neck`, or a backbone.
        size: (H, W) of the image, pixels.

    Returns:
        {'backbone', 'adapter', 'decoder': (parameters, MACs)}; (0, 0) for an absent part.

    Raises:
        TypeError: there is no formula for the backbone or head.
    """
    backbone, neck = getattr(model, 'backbone', model), getattr(model, 'neck', None)
    name = type(backbone).__name__
    if name == 'PlainViT' and (backbone.attention, *backbone.strides) == ('full', 16):
        name = 'VisionTransformer'
    if name not in BACKBONES:
        raise TypeError(f'no cost formula for the backbone {name}; there are {list(BACKBONES)}')
    stride = 16 if name == 'VisionTransformer' else backbone.strides[-1]
    costs = dict(backbone=(parameters(backbone), BACKBONES[name](backbone, size)))
    costs |= dict(adapter=(0, 0), decoder=(0, 0))
    is_simple = getattr(neck, 'simple', False) or type(neck).__name__ == 'FeatureMapProcessor'
    if hasattr(neck, 'num_stages'):
        costs['adapter'] = parameters(neck), adapter_macs(neck, size, stride)
    if backbone is not model:
        head = type(model.head).__name__
        if head not in HEADS:
            raise TypeError(f'no cost formula for the head {head}; there are {list(HEADS)}')
        cell = 4 if is_simple else 16
        cells = size[0] // cell, size[1] // cell
        costs['decoder'] = parameters(model.head), HEADS[head](model.head, cells)
    return costs


def _cells(size, stride, multiple=1):
    """Positions of a map of this stride, padded to a multiple per side."""
    return math.prod(math.ceil(math.ceil(n / stride) / multiple) * multiple for n in size)


def _stem(backbone, size):
    """MACs and normed elements of two 3x3 convolutions of stride 2: to half the width, to all."""
    width = backbone.arch['channels'][0]
    half, full = _cells(size, 2) * (width // 2), _cells(size, 4) * width
    return 9 * (half * backbone.in_channels + full * (width // 2)), half + full


def _mlp(tokens, width, ratio):
    return 2 * tokens * width * int(width * ratio)


def swin_macs(backbone: nn.Module, size: tuple[int, int]) -> int:
    """Swin with zero-padded windows (detection code): padded tokens go through attention too."""
    arch, window = backbone.arch, backbone.arch.get('window_size', 7)
    macs, norms = 0, 0
    for stage in range(backbone.num_stages):
        width, stride = arch['channels'][stage], 4 << stage
        tokens, padded = _cells(size, stride), _cells(size, stride, window)
        patch = 4 * arch['channels'][stage - 1] if stage else 16 * backbone.in_channels
        macs += tokens * patch * width
        norms += tokens * (patch if stage else width)
        attention = padded * 4 * width**2 + 2 * padded * window**2 * width
        block = attention + _mlp(tokens, width, arch.get('mlp_ratio', 4))
        macs += arch['depths'][stage] * block
        norms += arch['depths'][stage] * 2 * tokens * width
    return macs + LAYER_NORM * (norms + tokens * width * backbone.out_norm)


def groupmixformer_macs(backbone: nn.Module, size: tuple[int, int]) -> int:
    """GroupMixFormer: stem, and per block position convolution, aggregators, attention, MLP."""
    arch, layer_norms = backbone.arch, 0
    macs, batch_norms = _stem(backbone, size)
    before = arch['channels'][0]
    for stage in range(backbone.num_stages):
        width = arch['channels'][stage]
        n, segment = _cells(size, 4 << stage), width // 5
        macs += n * (before * 9 + before * width)  # patch embedding: depthwise 3x3, pointwise
        batch_norms += n * width
        head = 4 * segment // 8
        block = n * width * 9  # cpe
        block += n * width * 3 * width  # qkv
        block += 3 * sum(n * (segment * k * k + segment**2) for k in (3, 5, 7))
        block += n * (3 * segment * 9 + 3 * segment * segment)
        block += 2 * n * 8 * head * head  # k^T v and q (k^T v)
        block += n * head * (2 * 9 + 3 * 25 + 3 * 49)  # crpe
        block += n * width**2  # proj
        block += _mlp(n, width, arch['mlp_ratios'][stage])
        macs += arch['depths'][stage] * block
        layer_norms += arch['depths'][stage] * n * (2 * width + segment)
        batch_norms += arch['depths'][stage] * 3 * 4 * n * segment
        before = width
    batch_norms += n * width * backbone.out_norm
    return macs + LAYER_NORM * layer_norms + BATCH_NORM * batch_norms


def vmamba_macs(backbone: nn.Module, size: tuple[int, int]) -> int:
    """VMamba v2 (v05_noz): the selective scan of four directions at 9 L D N + L D."""
    arch, states = backbone.arch, backbone.arch.get('d_state', 1)
    macs, norms = _stem(backbone, size)
    for stage in range(backbone.num_stages):
        n, width = _cells(size, 4 << stage), arch['channels'][stage]
        if stage:
            macs += n * width * arch['channels'][stage - 1] * 9
            norms += n * width
        inner, rank = int(width * arch['ssm_ratio']), math.ceil(width / 16)
        block = n * 2 * width * inner + n * inner * 9
        block += 4 * n * inner * (rank + 2 * states) + 4 * n * inner * rank
        block += n * 4 * inner * (9 * states + 1)
        block += _mlp(n, width, arch.get('mlp_ratio', 4))
        macs += arch['depths'][stage] * block
        norms += arch['depths'][stage] * n * (2 * width + inner)
    return macs + LAYER_NORM * (norms + n * width * backbone.out_norm)


def vit_macs(backbone: nn.Module, size: tuple[int, int]) -> int:
    """A plain ViT with 16x16 patches."""
    n, width, depth = (size[0] // 16) * (size[1] // 16), backbone.embed_dims, backbone.num_layers
    hidden = backbone.arch_settings['feedforward_channels']
    block = n * 4 * width**2 + 2 * n**2 * width + 2 * n * width * hidden
    norms = n * width * (2 * depth + 1)
    return n * width * 3 * 256 + depth * block + LAYER_NORM * norms


def adapter_macs(neck: nn.Module, size: tuple[int, int], stride: int) -> int:
    """2x2 convolution or deconvolution of stride 2, or no layer."""
    cells = (size[0] // stride) * (size[1] // stride)
    weights = sum(p.numel() for p in neck.parameters() if p.dim() == 4)
    return cells * weights if neck.num_stages == 4 else cells // 4 * weights


def heatmap_head_macs(head: nn.Module, cells: tuple[int, int]) -> int:
    """Deconvolutions with batch norm and a final convolution, on a map of `cells` (H, W)."""
    h, w = cells
    macs = 0
    for layer in head.deconv_layers.children():
        if hasattr(layer, 'kernel_size'):
            macs += h * w * layer.weight.numel()
            h, w = h * layer.stride[0], w * layer.stride[1]
        elif hasattr(layer, 'running_mean'):
            macs += BATCH_NORM * h * w * layer.num_features
    return macs + h * w * head.final_layer.weight.numel()


def mesh_head_macs(head: nn.Module, cells: tuple[int, int]) -> int:
    """HMR2.0's decoder: one query token of 1024 channels over H x W context tokens."""
    n, width = cells[0] * cells[1], 1024
    inner, context = head.num_heads * head.head_dim, head.in_channels
    attend_self = width * 3 * inner + 2 * inner + inner * width
    attend_cross = width * inner + 2 * n * context * inner + 2 * n * inner + inner * width
    layer = attend_self + attend_cross + 2 * width * head.mlp_dim + LAYER_NORM * 3 * width
    outputs = width * (24 * 6 + 10 + 3)
    return head.ief_iters * (width + head.depth * layer + outputs)


BACKBONES = dict(
    TruncatedSwin=swin_macs,
    TruncatedGMF=groupmixformer_macs,
    TruncatedVMamba=vmamba_macs,
    VisionTransformer=vit_macs,
)
HEADS = dict(HeatmapHead=heatmap_head_macs, HMR2Head=mesh_head_macs)
