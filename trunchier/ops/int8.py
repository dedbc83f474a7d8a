"""Linear layers and convolutions on 8-bit integers, on CPU, by oneDNN.

Weights are int8, with a scale for each output channel. The input of a layer is rounded to 256 steps
between its least and its greatest number at each call (dynamic quantization), so that nothing
needs calibration, or between those of earlier inputs (`fix_scales`); sums are exact, and results
float32.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .folding import is_a
from .linear import ACTIVATIONS, Packed, PackedConv2d, PackedLinear

MIN_CHANNELS = 32  # of fewer, rounding the input takes longer than float32's product
ABSENT = (
    f'torch {torch.__version__} has no 8-bit products for this CPU; take precision "fp32", or a '
    'newer torch on an x86 CPU'
)


@functools.lru_cache
def available() -> bool:
    """Whether this build of torch multiplies 8-bit integers on this machine."""
    try:
        layer = PackedLinear(32, 32)
        Int8Linear(layer)(torch.ones(1, 32))
        Int8Conv2d(PackedConv2d(32, 32, 1))(torch.ones(1, 32, 1, 1))
    except (AttributeError, RuntimeError, TypeError):
        return False
    return True


def as_int8(layer: nn.Module) -> nn.Module:
    """A deployed layer on 8-bit integers; the layer itself where that is not faster or possible."""
    weight = getattr(layer, 'weight', None)
    if not isinstance(weight, Tensor) or weight.dim() < 2 or min(weight.shape[:2]) < MIN_CHANNELS:
        return layer  # the last convolution of a decoder is one of these
    if type(layer) is PackedLinear:
        return Int8Linear(layer)
    if type(layer) is PackedConv2d and layer.groups == 1 and type(layer.padding) is tuple:
        return Int8Conv2d(layer) if layer.padding_mode == 'zeros' else layer
    return Int8Deconv2d(layer) if has_phases(layer) else layer


def quantize(x: Tensor, fixed: tuple[float, int] | None = None) -> tuple[Tensor, float, int]:
    """Round to 8 bits: x is about (result - zero) * scale.

    Args:
        x: float32, any shape, not empty. Numbers that are not finite make the scale nan.
        fixed: scale and zero; what they do not reach is cut off. None: those of x.

    Returns:
        uint8 tensor of the same shape and strides; scale; zero, the integer that means 0.
    """
    scale, zero = fixed or scale_of(*bounds(x))
    if not math.isfinite(scale):
        return torch.zeros_like(x, dtype=torch.uint8), math.nan, 0
    # The cast cuts the fraction off; numbers stay within 0.5 and 255.5 but for rounding.
    steps = torch.add(torch.tensor(zero + 0.5), x, alpha=1 / scale).clamp_(0, 255)
    return steps.to(torch.uint8), scale, zero


def bounds(x: Tensor) -> tuple[float, float]:
    """The least and the greatest number, not above and not below 0."""
    low, high = (bound.item() for bound in torch.aminmax(x))
    return min(low, 0.0), max(high, 0.0)


def scale_of(low: float, high: float) -> tuple[float, int]:
    """Scale and zero of `quantize`, from bounds."""
    scale = (high - low) / 255 or 1.0
    return scale, round(-low / scale) if math.isfinite(scale) else 0


def fix_scales(model: nn.Module, run: Callable[[], Any]) -> None:
    """Fix the scales of inputs to what occurs while `run` calls the model's layers.

    A layer that is not called, or gets numbers that are not finite, goes on with scales of its own.
    """
    layers = [each for each in model.modules() if isinstance(each, _Int8)]
    for layer in layers:
        layer.seen, layer.fixed = (0.0, 0.0), None
    run()
    for layer in layers:
        low, high = layer.seen
        layer.seen = None
        layer.fixed = scale_of(low, high) if low < high < math.inf and low > -math.inf else None


class _Int8(Packed, nn.Module):
    """Int8 weight, scale and zero (0) of each output channel, and bias.

    Attributes:
        seen: bounds of inputs so far, while scales are sought.
        fixed: scale and zero of inputs; None: of each input its own.
    """

    takes_plain = False
    seen: tuple[float, float] | None = None
    fixed: tuple[float, int] | None = None

    @torch.inference_mode(False)  # an inference weight would be packed at each call
    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        weight = weight.detach().float()
        scale = weight.flatten(1).abs().amax(1) / 127
        scale[scale == 0] = 1
        steps = (weight / scale.view(-1, *[1] * (weight.dim() - 1))).round_()
        self.register_buffer('weight', steps.to(torch.int8))
        self.register_buffer('scale', scale)
        self.register_buffer('zero', torch.zeros(len(scale), dtype=torch.int32))
        self.register_buffer('bias', None if bias is None else bias.detach().float())

    def _multiply(self, operator, x, *geometry):
        if x.device.type != 'cpu':
            raise RuntimeError(
                f'this model was deployed in int8, for CPU; the input is on {x.device}. Deploy the '
                'original model in "fp16" for a GPU'
            )
        x = x.float()
        if self.seen is not None:
            low, high = bounds(x)
            self.seen = min(low, self.seen[0]), max(high, self.seen[1])
        steps, scale, zero = quantize(x, self.fixed)
        if math.isnan(scale):  # as float32 would
            scale = 1.0
            bias = torch.full_like(self.scale, math.nan)
        else:
            bias = self.bias
        weight = self.packed(x.shape)
        factors = self.scale, self.zero
        end = 1.0, 0, torch.float32, 'none', [], ''
        return operator(steps, scale, zero, weight, *factors, bias, *geometry, *end)


class Int8Linear(_Int8):
    """`layer(x)` on 8-bit integers, with the activation of a PackedLinear."""

    def __init__(self, layer: PackedLinear):
        super().__init__(layer.weight, layer.bias)
        self.activation = layer.activation

    def pack(self, weight: Tensor, shape: torch.Size) -> Tensor:
        """The weight in the order in which oneDNN reads it."""
        return torch.ops.onednn.qlinear_prepack(weight, None)

    def forward(self, x: Tensor, gelu: bool = False) -> Tensor:
        """(..., in_features) -> (..., out_features), float32."""
        if not x.numel():
            return x.new_zeros(*x.shape[:-1], len(self.weight))
        y = self._multiply(torch.ops.onednn.qlinear_pointwise, x.contiguous())
        # As a function of its own: that of oneDNN's 8-bit product is five times slower.
        return ACTIVATIONS['gelu' if gelu else self.activation](y)


class Int8Conv2d(_Int8):
    """A convolution on 8-bit integers, (B, C, H, W) float32 to float32."""

    def __init__(self, layer: nn.Conv2d):
        super().__init__(layer.weight, layer.bias)
        self.geometry = [list(each) for each in (layer.stride, layer.padding, layer.dilation)]

    def pack(self, weight: Tensor, shape: torch.Size) -> Tensor:
        """The weight in the order in which oneDNN reads it, for inputs of this shape."""
        stride, padding, dilation = self.geometry
        prepack = torch.ops.onednn.qconv_prepack
        return prepack(weight, self.scale, 1.0, 0, stride, padding, dilation, 1, list(shape))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W'), float32, channels last."""
        x = x.contiguous(memory_format=torch.channels_last)
        return self._multiply(torch.ops.onednn.qconv2d_pointwise, x, *self.geometry, 1)


class Int8Deconv2d(Int8Conv2d):
    """A transposed convolution of stride 2 on 8-bit integers, see `phases_of`."""

    def __init__(self, layer: nn.ConvTranspose2d):
        conv = phases_of(layer)
        super().__init__(conv)
        self.shift = conv.padding[0]

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', 2H, 2W), float32, channels last."""
        batch, _, height, width = x.shape
        phases = super().forward(x).unflatten(1, (2, 2, -1))
        size = batch, len(self.weight) // 4, 2 * height, 2 * width
        y = torch.empty(size, memory_format=torch.channels_last)
        for a in range(2):
            for b in range(2):
                phase = phases[:, a, b, :, a * self.shift :, b * self.shift :]
                y[:, :, a::2, b::2] = phase[..., :height, :width]
        return y


# (kernel, stride, padding, output padding, dilation) that `phases_of` takes, in both directions
GEOMETRIES = {
    ((4, 4), (2, 2), (1, 1), (0, 0), (1, 1)),
    ((2, 2), (2, 2), (0, 0), (0, 0), (1, 1)),
}


def has_phases(layer: nn.Module) -> bool:
    """Whether a layer is a transposed convolution that `phases_of` takes."""
    if not is_a(layer, nn.ConvTranspose2d) or layer.groups != 1:
        return False
    geometry = layer.kernel_size, layer.stride, layer.padding, layer.output_padding
    return (*geometry, layer.dilation) in GEOMETRIES


def phases_of(layer: nn.ConvTranspose2d) -> nn.Conv2d:
    """A transposed convolution of stride 2, as one convolution to its four phases.

    Output 2i + a is the sum over j of input j times kernel element 2(i - j) + a + padding. In each
    direction phase a therefore meets the `taps` inputs from i - shift + a * shift, where shift is
    taps - 1 and equals the padding, of the layer and of the convolution. Channels of the result:
    (vertical phase, horizontal phase, channel).
    """
    weight = layer.weight.detach().transpose(0, 1)  # (C', C, kernel, kernel)
    taps = layer.kernel_size[0] // 2
    shift = taps - 1
    elements = [[(3 - 2 * a) * shift - 2 * t + a for t in range(taps)] for a in range(2)]
    phases = [weight[:, :, rows][..., columns] for rows in elements for columns in elements]
    conv = nn.Conv2d(weight.shape[1], 4 * len(weight), taps, padding=shift, bias=False)
    conv.weight = nn.Parameter(torch.cat(phases))
    if layer.bias is not None:
        conv.bias = nn.Parameter(layer.bias.detach().repeat(4))
    return conv


class PhasedDeconv2d(nn.Module):
    """A transposed convolution, for runtimes that multiply 8-bit integers in convolutions only."""

    def __init__(self, layer: nn.ConvTranspose2d):
        super().__init__()
        self.conv = phases_of(layer)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', 2H, 2W)."""
        height, width = x.shape[2:]
        shift, phases = self.conv.padding[0], self.conv(x).chunk(4, 1)
        parts = [
            phases[2 * a + b][..., a * shift : a * shift + height, b * shift : b * shift + width]
            for a in range(2)
            for b in range(2)
        ]
        return F.pixel_shuffle(torch.stack(parts, 2).flatten(1, 2), 2)
