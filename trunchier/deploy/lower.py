"""Convert a network to bfloat16, float16 or int8; its inputs and outputs stay float32.

A module names the parameters and buffers that lose too much by rounding in `float32_tensors`, as
the scan of VMamba does: these stay float32 in any precision. In int8, layers of a module with
`float32_layers = True` stay float32 as well.
"""

from functools import partial

import torch
from torch import nn

from ..ops import int8

PRECISIONS = {'fp32': torch.float32, 'fp16': torch.float16, 'bf16': torch.bfloat16}


def lower(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Convert weights and activations to `dtype`, in place.

    Of an estimator only `backbone`, `neck` and `head` are converted. Nothing changes for float32.
    """
    if dtype == torch.float32:
        return model
    parts = [getattr(model, name, None) for name in ('backbone', 'neck', 'head')]
    parts = [part for part in parts if part is not None] or [model]
    for part in parts:
        exact = [
            (module, name, getattr(module, name).data)
            for module in part.modules()
            for name in getattr(module, 'float32_tensors', ())
        ]
        part.to(dtype)
        for module, name, tensor in exact:
            getattr(module, name).data = tensor
    parts[0].register_forward_pre_hook(partial(_cast_inputs, dtype))
    # mmpose's head calls its `forward` without hooks, but not the layer in it.
    last = getattr(parts[-1], 'final_layer', parts[-1])
    last.register_forward_hook(_cast_outputs)
    return model


def to_int8(model: nn.Module) -> nn.Module:
    """Replace the layers of a deployed float32 model by those of `ops.int8`, in place.

    Raises:
        RuntimeError: this torch or CPU has no 8-bit products.
    """
    if not int8.available():
        raise RuntimeError(int8.ABSENT)
    for name, child in model.named_children():
        if getattr(child, 'float32_layers', False):
            continue
        replaced = int8.as_int8(child)
        model._modules[name] = to_int8(child) if replaced is child else replaced
    return model


def _cast_inputs(dtype, module, inputs):
    return _cast(inputs, dtype)


def _cast_outputs(module, inputs, output):
    return _cast(output, torch.float32)


def _cast(value, dtype):
    if torch.is_tensor(value):
        return value.to(dtype)
    if isinstance(value, dict):
        return {name: _cast(each, dtype) for name, each in value.items()}
    return type(value)(_cast(each, dtype) for each in value)
