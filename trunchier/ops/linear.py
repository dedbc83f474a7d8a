"""Linear layers: F.linear (MKL on CPU), or oneDNN for float32 on CPU where it is faster.

On some CPUs MKL runs float32 products at half the speed of oneDNN, which also applies a following
GELU in the same pass. oneDNN's operator has no gradient of its own and no tracer knows it: it is
used outside of graphs only, and in training its gradients are such products too. The choice is
measured once a machine, for products of few and many rows, and kept in the cache folder: all
processes then get the same results, to the last bit.
(oneDNN's sum with a residual in the same pass is slower than adding in place.)

    TRUNCHIER_CPU_LINEAR=mkl        F.linear always
    TRUNCHIER_CPU_LINEAR=onednn     oneDNN for float32
    TRUNCHIER_CPU_LINEAR=auto       the faster one; the default
"""

import functools
import os
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..files.decided import decided
from .cpu import onednn
from .when import inference_on_cpu, plain_cpu, records_gradient

VARIABLE = 'TRUNCHIER_CPU_LINEAR'
ABSENT = f'is not available in this build of torch {torch.__version__}'
BACKENDS = {'mkl': lambda: '', 'onednn': lambda: '' if onednn.available() else ABSENT}
CHOICES = ('auto', *BACKENDS)
ACTIVATIONS = {None: lambda x: x, 'gelu': F.gelu, 'hardswish': F.hardswish}

# (rows, in_features, out_features) of a typical product of each kind.
KINDS = {'few rows': (8, 768, 768), 'many rows': (192, 384, 1536)}
FEW_ROWS = 32  # below
# Below these oneDNN is never faster: its call, or reading the weights, takes longer than the rest.
MIN_ROWS = 5
MIN_MACS = 2**20
MARGIN = 0.97  # of MKL's time that oneDNN must take less than


def linear(x: Tensor, layer: nn.Linear, gelu: bool = False) -> Tensor:
    """`layer(x)`, with an exact GELU if `gelu`.

    Args:
        x: (..., in_features), any strides.
        layer: nn.Linear; PackedLinear or Int8Linear, which may have an activation of their own.

    Raises:
        ValueError: TRUNCHIER_CPU_LINEAR has an unknown value.
    """
    if not isinstance(layer, nn.Linear):  # Int8Linear
        return layer(x, gelu)
    packed = layer.packed if isinstance(layer, PackedLinear) else None
    activation = 'gelu' if gelu else layer.activation if packed else None
    return product(x, layer.weight, layer.bias, activation, packed)


def product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    packed: Callable[[], Tensor] | None = None,
) -> Tensor:
    """activation(F.linear(x, weight, bias)).

    Args:
        activation: key of ACTIVATIONS.
        packed: function that returns the weight packed for oneDNN, or None.
    """
    function = ACTIVATIONS[activation]
    if backend_for(x, weight, bias) == 'mkl':
        return function(F.linear(x, weight, bias))
    if records_gradient(x, weight, bias):
        return function(onednn.differentiable_product(x.contiguous(), weight, bias))
    return onednn.product(x.contiguous(), packed() if packed else weight, bias, activation)


def backend_for(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> str:
    """'onednn' if `product` of these tensors runs on oneDNN, else 'mkl' (F.linear)."""
    if not plain_cpu(x, weight, bias) or not onednn.enabled():
        return 'mkl'
    if x.shape[-1] != weight.shape[1] or not weight.is_contiguous():
        return 'mkl'  # whose message for a wrong shape is the better one
    choice = _choice()
    if choice == 'auto':
        rows = x.numel() // x.shape[-1]
        if rows < MIN_ROWS or rows * weight.numel() < MIN_MACS:
            return 'mkl'
        choice = faster('few rows' if rows < FEW_ROWS else 'many rows', torch.get_num_threads())
    return choice


class Packed:
    """A layer that keeps a copy of its weight in the memory order of oneDNN.

    The copy is made when first used, follows changes of the weight, and takes as much memory.

    Attributes:
        takes_plain: whether the product takes the weight itself, too.
    """

    takes_plain = True
    _kept = None  # (what the copy was made of, the copy)

    def packed(self, *geometry: object) -> Tensor:
        """The weight for oneDNN."""
        weight = self.weight
        if weight.is_inference():  # has no version, which would tell of changes: nothing is kept
            return weight if self.takes_plain else self.pack(weight, *geometry)
        made_of = weight.data_ptr(), weight._version
        if self._kept is None or self._kept[0] != made_of:
            with torch.inference_mode(False), torch.no_grad():
                self._kept = made_of, self.pack(weight.detach(), *geometry)
        return self._kept[1]

    def __getstate__(self):
        return {name: value for name, value in self.__dict__.items() if name != '_kept'}


class PackedLinear(Packed, nn.Linear):
    activation = None  # key of ACTIVATIONS, applied to the result
    pack = staticmethod(onednn.pack_linear)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self)


class PackedConv2d(Packed, nn.Conv2d):
    pack = staticmethod(onednn.pack_convolution)

    def forward(self, x: Tensor) -> Tensor:
        geometry = self.padding, self.stride, self.dilation, self.groups
        is_usual = self.padding_mode == 'zeros' and type(self.padding) is tuple and x.dim() == 4
        if not (is_usual and inference_on_cpu(x, self.weight, self.bias) and onednn.enabled()):
            return super().forward(x)
        return onednn.convolve(x, self.packed(x.shape, *geometry), self.bias, *geometry)


def cpu_linear() -> dict[str, str]:
    """Backend of float32 linear layers on CPU: {'few rows': name, 'many rows': name}.

    Names are 'mkl' (F.linear) and 'onednn'; measured now unless chosen before.
    """
    choice, threads = _choice(), torch.get_num_threads()
    return {kind: choice if choice != 'auto' else faster(kind, threads) for kind in KINDS}


@functools.lru_cache
def _choice():
    name = os.environ.get(VARIABLE) or 'auto'
    if name not in CHOICES:
        raise ValueError(f'{VARIABLE} is {name!r}; give one of {", ".join(CHOICES)}')
    if name != 'auto' and (reason := BACKENDS[name]()):
        raise RuntimeError(f"{VARIABLE} is {name!r}, which {reason}; give 'auto'")
    return name


@functools.lru_cache
def faster(kind: str, threads: int) -> str:
    """'mkl' or 'onednn', whichever is faster for products of this kind on so many threads."""
    if not onednn.available():
        return 'mkl'
    keep_freed_memory()
    question = (
        f'product of {KINDS[kind]}, {threads} threads, below {MARGIN} of the time of MKL, '
        f'torch {torch.__version__}'
    )
    return decided(question, BACKENDS, functools.partial(_measured, kind))


def _measured(kind):
    seconds = measure(kind)
    return 'onednn' if seconds['onednn'] < MARGIN * seconds['mkl'] else 'mkl'


@torch.no_grad()
def measure(kind: str) -> dict[str, float]:
    """{'mkl': seconds, 'onednn': seconds} of a product: the minimum of several, taken in turn."""
    rows, in_features, out_features = KINDS[kind]
    x, weight = (
        torch.ones(n, in_features, device='cpu', dtype=torch.float32) for n in (rows, out_features)
    )
    seconds = {'mkl': float('inf'), 'onednn': float('inf')}
    for _ in range(12):
        for name, multiply in (('mkl', F.linear), ('onednn', onednn.product)):
            start = time.perf_counter()
            multiply(x, weight)
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    return seconds


def keep_freed_memory() -> None:
    """Let glibc keep the memory that a network frees from one layer to the next.

    glibc returns freed memory to the system unless a block as large was freed before, and getting
    it back for every layer took 20 % of a small GroupMixFormer's time. This frees 31 MiB.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8, device='cpu')
