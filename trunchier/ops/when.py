"""What surrounds an operation: a traced graph, recorded gradients, or plain arithmetic on the CPU.

These predicates decide where compiled kernels may replace torch's operations. Where this version
of torch cannot answer them, nothing counts as plain and torch's own operations do everything.
"""

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

try:  # not public
    from torch._C import _len_torch_dispatch_stack as num_dispatch_modes
    from torch._C._functorch import peek_interpreter_stack

    forward_ad._current_level  # noqa: B018
    _IS_KNOWN = True
except (ImportError, AttributeError):
    _IS_KNOWN = False

_is_compiling = getattr(torch.compiler, 'is_compiling', torch._utils.is_compiling)  # torch < 2.3
is_dynamo_compiling = getattr(torch.compiler, 'is_dynamo_compiling', lambda: False)
_OLD_AUTOCAST = not hasattr(torch.amp, 'is_autocast_available')  # torch < 2.4

FLOAT32 = (torch.float32,)
PLAIN = {Tensor, nn.Parameter}  # no stand-in for a tensor, such as a FakeTensor


def is_traced() -> bool:
    """Whether operations are being recorded into a graph (compile, export, jit)."""
    return torch.jit.is_tracing() or _is_compiling()


def records_gradient(*tensors: Tensor | None) -> bool:
    """Whether autograd records an operation on these tensors."""
    return torch.is_grad_enabled() and any(
        tensor.requires_grad for tensor in tensors if tensor is not None
    )


def plain_cpu(*tensors: Tensor | None, dtypes: tuple[torch.dtype, ...] = FLOAT32) -> bool:
    """Whether an operation on these tensors is nothing but arithmetic in the CPU's memory.

    False where a graph is traced, autocast or a mode or transform of torch changes what operations
    do, for other `dtypes`, devices and kinds of tensors, and for an empty first tensor. Gradients
    do not matter.
    """
    return (
        _IS_KNOWN
        and not is_traced()
        and not _autocasts()
        and forward_ad._current_level < 0
        and all(_is_plain(tensor, dtypes) for tensor in tensors if tensor is not None)
        and tensors[0].numel() > 0
        and num_dispatch_modes() == 0  # one may be a counter of operations
        and peek_interpreter_stack() is None  # such as vmap's
    )


def inference_on_cpu(*tensors: Tensor | None, dtypes: tuple[torch.dtype, ...] = FLOAT32) -> bool:
    """Whether `plain_cpu`, and no gradient is recorded."""
    return plain_cpu(*tensors, dtypes=dtypes) and not records_gradient(*tensors)


def _is_plain(tensor, dtypes):
    return (
        type(tensor) in PLAIN
        and tensor.dtype in dtypes
        and tensor.layout is torch.strided
        and tensor.is_cpu
    )


def _autocasts():
    return torch.is_autocast_cpu_enabled() if _OLD_AUTOCAST else torch.is_autocast_enabled('cpu')
