"""The selective scan: what it computes, what it is given, and which backend does it.

    delta_t = softplus(delta_t + delta_bias)
    h_t = exp(delta_t A) h_{t-1} + delta_t u_t B_t,    h_{-1} = 0
    y_t = C_t h_t + D u_t

Mamba (Gu and Dao, 2023), in the form and with the arguments of `selective_scan_fn` in
MzeroMiko/VMamba. `reference` is that equation, step by step; `torch` the same without a loop over
time, for any device and for export; `numba` is the fast one on CPU, `triton` on CUDA.
"""

import functools
import importlib
import importlib.util
import os

from torch import Tensor, float64
from torch.nn import Parameter

from .linear import KERNEL_TYPES, only_computes
from .scan import parallel, reference

__all__ = ['BACKENDS', 'available_backends', 'selective_scan', 'selective_scan_2d']

BACKENDS = ('reference', 'torch', 'numba', 'triton')


def selective_scan(u, delta, A, B, C, D=None, delta_bias=None, delta_softplus=True, backend='auto'):
    """Scan along the last axis.

    K groups of d channels have their own B and C. Gradients flow to all seven tensors, once: the
    backward pass is not differentiable itself.

    Args:
        u: (batch, K*d, L), any strides, L may be 0.
        delta: (batch, K*d, L), before bias and softplus.
        A: (K*d, N), negative.
        B, C: (batch, K, N, L).
        D: (K*d,) or None.
        delta_bias: (K*d,) or None.
        delta_softplus: False takes delta as it is.
        backend: 'auto', 'reference', 'torch', 'numba' or 'triton'. 'auto' takes the fastest that
            can: triton on CUDA, numba on CPU where these packages are, else torch; torch also for
            float64 and while a graph is traced.

    Returns:
        (batch, K*d, L) in u's dtype; the arithmetic is float32, or float64 where u is.

    Raises:
        ValueError: shapes or devices that do not belong together.
        TypeError: u is not floating point.
        RuntimeError: the backend named cannot take these tensors here.
    """
    if u.dim() != 3 or B.dim() != 4:
        raise ValueError(
            f'u has shape {tuple(u.shape)}, B {tuple(B.shape)}; '
            'give u (batch, K*d, L) and B (batch, K, N, L)'
        )
    batch, channels, length = u.shape
    groups, states = B.shape[1:3]
    if groups == 0 or channels % groups:
        raise ValueError(f'u has {channels} channels in {groups} groups; give a multiple')
    _check(
        u,
        delta=(delta, (batch, channels, length)),
        A=(A, (channels, states)),
        B=(B, (batch, groups, states, length)),
        C=(C, (batch, groups, states, length)),
        D=(D, (channels,)),
        delta_bias=(delta_bias, (channels,)),
    )
    scan = _backend(backend, u).selective_scan
    return scan(u, delta, A, B, C, D, delta_bias, delta_softplus)


def selective_scan_2d(x, projection, A, D, delta_weight, delta_bias, backend='auto'):
    """VMamba's SS2D: scan a map by rows, by columns and both from the end, and add up the four.

    Direction 0 reads by rows, 1 by columns, 2 and 3 are 0 and 1 from the end. What a direction
    sees of a pixel is a projection of that pixel alone, so nothing is copied four times. VMamba
    (Liu et al., NeurIPS 2024), section 4.2; MzeroMiko/VMamba, `forward_corev2` with v05.

    Args:
        x: (batch, H, W, d), any strides.
        projection: (batch, H, W, 4, R + 2 N): for each direction low-rank delta, B, C.
        A: (4, d, N), negative.
        D: (4, d).
        delta_weight: (4, d, R), from low-rank delta to delta.
        delta_bias: (4, d), added before the softplus.
        backend: as in `selective_scan`.

    Returns:
        (batch, H, W, d) in x's dtype.

    Raises:
        ValueError, TypeError, RuntimeError: as `selective_scan`.
    """
    if x.dim() != 4 or A.dim() != 3 or delta_weight.dim() != 3:
        raise ValueError(
            f'x has shape {tuple(x.shape)}, A {tuple(A.shape)}, delta_weight '
            f'{tuple(delta_weight.shape)}; give (batch, H, W, d), (4, d, N), (4, d, R)'
        )
    channels, states, rank = x.shape[3], A.shape[2], delta_weight.shape[2]
    _check(
        x,
        projection=(projection, (*x.shape[:3], 4, rank + 2 * states)),
        A=(A, (4, channels, states)),
        D=(D, (4, channels)),
        delta_weight=(delta_weight, (4, channels, rank)),
        delta_bias=(delta_bias, (4, channels)),
    )
    scan = _backend(backend, x).selective_scan_2d
    return scan(x, projection, A, D, delta_weight, delta_bias)


def available_backends():
    """{name: 'available', or why it is not and what to do}; for tensors on its own device."""
    return {name: _missing(name) or 'available' for name in BACKENDS}


def kernels_for(*tensors):
    """`ops.cpu.attention` if its kernels support these tensors, else None."""
    return cpu_kernels() if only_computes(*tensors, types=KERNEL_TYPES) else None


def cpu_kernels():
    """The module `ops.cpu.attention`, or None where numba is not."""
    return None if _missing('numba') else importlib.import_module(f'{__name__}.cpu.attention')


def _backend(name, x):
    """The module of backend `name` for tensors like x."""
    if name == 'auto':
        fast = 'triton' if x.is_cuda else 'numba'
        name = 'torch' if _refusal(fast, x) or _missing(fast) else fast
    elif name not in BACKENDS:
        raise RuntimeError(f"no backend {name!r}; give 'auto' or one of {BACKENDS}")
    elif reason := _refusal(name, x) or _missing(name):
        raise RuntimeError(f"backend {name!r} {reason}; or use backend='torch'")
    return _module(name)


MODULES = dict(reference=reference, torch=parallel)  # the others are imported when first used


def _module(name):
    places = dict(numba='cpu', triton='cuda')
    return MODULES.get(name) or importlib.import_module(f'{__name__}.scan.{places[name]}')


def _refusal(name, x):
    """Why backend `name` cannot take tensors like x; '' when it can."""
    if name == 'numba' and x.device.type != 'cpu':
        return f"needs CPU tensors, got {x.device.type}; use 'triton'"
    if name == 'numba' and x.dtype == float64:
        return f'computes in float32, got {x.dtype}; convert the tensors'
    traced = parallel.is_traced() or type(x) not in (Tensor, Parameter)  # such as a FakeTensor
    if name in ('numba', 'triton') and traced:
        return "cannot be traced into a graph; use 'auto'"
    if name == 'triton' and not (x.is_cuda or os.environ.get('TRITON_INTERPRET') == '1'):
        return f'needs CUDA tensors, got {x.device.type}; move the model and its input'
    return ''


@functools.lru_cache
def _missing(name):
    """Why backend `name` cannot be used in this environment; '' when it can."""
    if name not in ('numba', 'triton'):
        return ''
    if importlib.util.find_spec(name) is None:
        return f'needs the package {name}; pip install {name}'
    try:
        _module(name)
    except ImportError as error:  # numba refuses versions of numpy that it does not know
        return f'needs the package {name}, which cannot be imported: {error}'
    return ''


def _check(u, **tensors):
    """ValueError or TypeError unless each tensor has its shape and lies on u's device."""
    if not u.is_floating_point():
        raise TypeError(f'the scanned tensor is {u.dtype}; give a floating-point tensor')
    for name, (tensor, shape) in tensors.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) != tuple(shape):
            raise ValueError(f'{name} has shape {tuple(tensor.shape)}, wanted {tuple(shape)}')
        if tensor.device != u.device:
            raise ValueError(f'{name} is on {tensor.device}, the scanned tensor on {u.device}')
