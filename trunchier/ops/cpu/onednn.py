"""oneDNN's linear layer and convolution in float32, through private operators of torch.

Where this build of torch lacks one of them, `available` tells so and nothing here is used.
"""

import torch
from torch import Tensor

try:
    _linear = torch.ops.mkldnn._linear_pointwise
    _convolution = torch.ops.mkldnn._convolution_pointwise
    _reorder_linear = torch.ops.mkldnn._reorder_linear_weight
    _reorder_convolution = torch._C._nn.mkldnn_reorder_conv2d_weight
    _is_enabled = torch._C._get_mkldnn_enabled
    _IS_COMPLETE = torch.backends.mkldnn.is_available()
except AttributeError:
    _IS_COMPLETE = False

# Arguments of the operators for the function applied to the result.
EPILOGUES = {
    None: ('none', [], ''),
    'gelu': ('gelu', [], 'none'),
    'hardswish': ('hardswish', [], ''),
}


def available() -> bool:
    """Whether this build of torch has the operators."""
    return _IS_COMPLETE


def enabled() -> bool:
    """Whether they are available and not switched off (`torch.backends.mkldnn.flags`)."""
    return available() and _is_enabled()


def product(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None
) -> Tensor:
    """activation(F.linear(x, weight, bias)) of contiguous x, without a gradient.

    Args:
        weight: plain, or from `pack_linear`. activation: key of EPILOGUES.
    """
    return _linear(x, weight, bias, *EPILOGUES[activation])


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, *geometry: object) -> Tensor:
    """F.conv2d with a weight from `pack_convolution` and the same geometry, without a gradient."""
    return _convolution(x, weight, bias, *geometry, *EPILOGUES[None])


def pack_linear(weight: Tensor) -> Tensor:
    """A copy of the weight in the order in which `product` reads it."""
    return _reorder_linear(weight)


def pack_convolution(weight: Tensor, input_shape: tuple, *geometry: object) -> Tensor:
    """The same for `convolve`; `geometry` is padding, stride, dilation, groups."""
    return _reorder_convolution(weight.contiguous().to_mkldnn(), *geometry, list(input_shape))


def differentiable_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`product` of contiguous x, with gradients, which are such products, too."""
    return _Product.apply(x, weight, bias)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx, grad):
        multiply = differentiable_product if torch.is_grad_enabled() else product
        x, weight = ctx.saved_tensors
        grad = grad.contiguous()  # that of a sum has strides of 0, of which products are slow
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = multiply(grad, weight.t())
        rows, x = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        if ctx.needs_input_grad[1]:  # twice as fast with the wider factor last
            wide = len(weight) > weight.shape[1]
            grad_weight = multiply(x.t(), rows.t()).t() if wide else multiply(rows.t(), x.t())
        if ctx.needs_input_grad[2]:
            grad_bias = rows.sum(0)
        return grad_x, grad_weight, grad_bias
