"""The one place where token maps meet a weight matrix."""

import torch.nn.functional as F


def linear(x, layer, gelu=False, residual=None):
    """`layer(x)` for an nn.Linear, with what usually follows it.

    Args:
        x: (..., in_features).
        layer: nn.Linear.
        gelu: apply the exact GELU to the result.
        residual: (..., out_features), added to the result.
    """
    y = F.linear(x, layer.weight, layer.bias)
    if gelu:
        y = F.gelu(y)
    return y if residual is None else residual + y
