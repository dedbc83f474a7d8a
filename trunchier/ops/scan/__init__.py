"""The selective scan: contract, checks and choice of a backend.

    delta_t = softplus(delta_t + delta_bias)
    h_t = exp(delta_t A) h_{t-1} + delta_t u_t B_t,    h_{-1} = 0
    y_t = C_t h_t + D u_t

Mamba (Gu and Dao, 2023), in the form and with the arguments of `selective_scan_fn` in
MzeroMiko/VMamba. `reference` is that equation, step by step; `torch` (parallel.py) has no loop over
time, for any device and for export; `numba` (cpu.py) and `triton` (cuda.py) are the fast ones on
CPU and on CUDA.
"""

import functools
import importlib
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import Tensor, float64
from torch.nn import Parameter

from ..backends import choose, missing
from ..when import is_traced
from . import parallel, reference

# {backend: why it cannot be used here, '' if it can}, by operation.
SEQUENCE_BACKENDS = dict(torch=lambda: '', reference=lambda: '')
MAP_BACKENDS = dict(
    triton=partial(missing, 'triton', '.scan.cuda'),
    numba=partial(missing, 'numba', '.scan.cpu'),
    **SEQUENCE_BACKENDS,
)
MODULES = dict(torch=parallel, reference=reference)
# Elements of maps on CPU that 'auto' scans by torch first: importing numba and loading its kernels
# takes as long (1.7 s) as torch takes longer for so many. Set by `begin_with_torch`.
NUMBA_LATER = 3_000_000
first_by_torch = 0


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = True,
    backend: str = 'auto',
) -> Tensor:
    """Scan along the last axis.

    K groups of d channels have their own B and C. Gradients flow to all seven tensors; the backward
    pass itself is not differentiable.

    Args:
        u: (batch, K*d, L), any strides, L may be 0.
        delta: (batch, K*d, L), before bias and softplus.
        A: (K*d, N), negative.
        B, C: (batch, K, N, L).
        D, delta_bias: (K*d,).
        delta_softplus: False takes delta as it is.
        backend: 'auto' (torch), 'torch' or 'reference'.

    Returns:
        (batch, K*d, L) in u's dtype; arithmetic is float32, or float64 for float64.

    Raises:
        ValueError: shapes or devices that do not match.
        TypeError: u is not floating point.
        RuntimeError: the named backend does not support this call.
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
    if backend in MAP_BACKENDS and backend not in SEQUENCE_BACKENDS:
        raise RuntimeError(
            f"backend {backend!r} scans maps only; use selective_scan_2d or backend='torch'"
        )
    scan = _module(choose(backend, SEQUENCE_BACKENDS, 'torch', lambda name: '')).selective_scan
    return scan(u, delta, A, B, C, D, delta_bias, delta_softplus)


def selective_scan_2d(
    x: Tensor,
    projection: Tensor,
    A: Tensor,
    D: Tensor,
    delta_weight: Tensor,
    delta_bias: Tensor,
    backend: str = 'auto',
) -> Tensor:
    """VMamba's SS2D: scan a map by rows, by columns and both reversed, and sum the results.

    Direction 0 reads by rows, 1 by columns, 2 and 3 are 0 and 1 reversed. All directions read the
    same map, and each has its own projection of every pixel, so nothing is copied four times.
    VMamba (Liu et al., NeurIPS 2024), section 4.2; MzeroMiko/VMamba, `forward_corev2` with v05.

    Args:
        x: (batch, H, W, d), any strides.
        projection: (batch, H, W, 4, R + 2 N): low-rank delta, B and C of each direction.
        A: (4, d, N), negative.
        D: (4, d).
        delta_weight: (4, d, R), from low-rank delta to delta.
        delta_bias: (4, d), added before the softplus.
        backend: 'auto', 'triton' (CUDA), 'numba' (CPU), 'torch' or 'reference'. 'auto' takes the
            fast one of x's device where that is installed, torch for float64 and while a graph is
            traced.

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
    scan = _module(map_backend(x, backend)).selective_scan_2d
    return scan(x, projection, A, D, delta_weight, delta_bias)


@contextmanager
def begin_with_torch(elements: int = NUMBA_LATER) -> Iterator[None]:
    """Let 'auto' scan so many elements of maps on CPU by torch, meanwhile, before it loads numba.

    For a process that may end after one photo. Results differ by rounding alone.
    """
    global first_by_torch
    first_by_torch = elements
    try:
        yield
    finally:
        first_by_torch = 0


def map_backend(x: Tensor, backend: str = 'auto') -> str:
    """Name of the backend that `selective_scan_2d` takes for a map like x."""
    global first_by_torch
    if backend == 'auto' and first_by_torch and not x.is_cuda:
        first_by_torch = max(0, first_by_torch - x.numel())
        if first_by_torch:
            return 'torch'
    fastest = 'triton' if x.is_cuda else 'numba'
    if backend == 'auto' and not is_traced() and (reason := MAP_BACKENDS[fastest]()):
        _warn_of_slow_scan(fastest, reason)
    return choose(backend, MAP_BACKENDS, fastest, lambda name: _refusal(x, name))


@functools.lru_cache
def _warn_of_slow_scan(backend, reason):
    """Once a process: 'auto' falls back to torch because a package is missing or too old."""
    warnings.warn(
        f"VMamba's scan falls back to torch, which is several times slower: backend {backend!r} "
        f"{reason}. backend='torch' silences this warning",
        stacklevel=4,
    )


def _refusal(x, name):
    """Why backend `name` does not support maps like x; '' if it does."""
    if name == 'numba' and x.device.type != 'cpu':
        return f"needs CPU tensors, got {x.device.type}; use 'triton'"
    traced = is_traced() or type(x) not in (Tensor, Parameter)  # such as a FakeTensor
    if name in ('numba', 'triton') and traced:
        return "cannot be traced into a graph; use 'auto'"
    if name == 'triton' and not (x.is_cuda or os.environ.get('TRITON_INTERPRET') == '1'):
        return f'needs CUDA tensors, got {x.device.type}; move the model and its input'
    if name in ('numba', 'triton') and x.dtype == float64:
        return f'computes in float32, got {x.dtype}; convert the tensors'
    return MAP_BACKENDS[name]()


def _module(backend):
    """The module of a backend; those of other packages are imported when first used."""
    name = dict(numba='cpu', triton='cuda')
    return MODULES.get(backend) or importlib.import_module(f'{__name__}.{name[backend]}')


def _check(u, **tensors):
    """ValueError or TypeError unless each tensor has its shape and lies on u's device."""
    if not u.is_floating_point():
        raise TypeError(f'the scanned tensor is {u.dtype}; give a floating-point tensor')
    for name, (tensor, shape) in tensors.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) != tuple(shape):
            raise ValueError(f'{name} has shape {tuple(tensor.shape)}, expected {tuple(shape)}')
        if tensor.device != u.device:
            raise ValueError(f'{name} is on {tensor.device}, the scanned tensor on {u.device}')
