"""The one place where token maps meet a weight matrix, and who multiplies them on a CPU.

`F.linear` is MKL's product, which some CPUs run at half their speed. oneDNN has the same product,
in the same float32, with the GELU that follows it in the same pass; but no gradient flows through
it and no tracer knows it. So it is taken where only a result is wanted, and where it was measured
to be faster on this machine: once a process, for products of few and of many rows. (Its sum with a
residual in the same pass is slower than adding in place.)

    set_cpu_linear('mkl'), or TRUNCHIER_CPU_LINEAR=mkl      F.linear always
    set_cpu_linear('onednn'), or ...=onednn                 oneDNN for float32 without gradients
    set_cpu_linear('auto')                                  the faster one; the default
"""

import functools
import os
import time

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad

from .torch import CACHED, is_traced

CHOICES = ('auto', 'mkl', 'onednn')
VARIABLE = 'TRUNCHIER_CPU_LINEAR'

# (rows, in_features, out_features) that stand for a kind of product, and how many rows are few.
KINDS = {'few rows': (8, 768, 768), 'many rows': (256, 256, 256)}
FEW_ROWS = 32
# Below these oneDNN is never faster: its call, or reading the weights, takes longer than the rest.
OPERATIONS = ('linear_pointwise', 'reorder_linear_weight')
LEAST_ROWS = 5
LEAST_MACS = 2**20

_choice = None  # None: what VARIABLE says, when it is first asked


def linear(x, layer, gelu=False):
    """`layer(x)` for an nn.Linear, with a GELU behind it or not.

    Args:
        x: (..., in_features), any strides.
        layer: nn.Linear.
        gelu: apply the exact GELU to the result.

    Raises:
        ValueError: TRUNCHIER_CPU_LINEAR is set to something unknown.
    """
    weight, bias = layer.weight, layer.bias
    if _takes_onednn(x, weight, bias):
        after = ('gelu', [], 'none') if gelu else ('none', [], '')
        if isinstance(layer, PackedLinear):
            weight = layer.packed()
        return torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, *after)
    y = F.linear(x, weight, bias)
    return F.gelu(y) if gelu else y


def mlp(x, first, second):
    """Two nn.Linear with a GELU between, in parts whose hidden map stays in the cache.

    Args:
        x: (..., in_features of first).

    Returns:
        (..., out_features of second).
    """
    parts = 1
    if _takes_onednn(x, first.weight, first.bias):
        rows = x.shape[:-1].numel()
        parts = round(rows * first.out_features / CACHED)
    if parts < 2:
        return linear(linear(x, first, gelu=True), second)
    some = x.reshape(rows, -1).split(-(-rows // parts))
    y = torch.cat([linear(linear(rows, first, gelu=True), second) for rows in some])
    return y.view(*x.shape[:-1], -1)


class PackedLinear(nn.Linear):
    """A linear layer that keeps its weight once more, in the order in which oneDNN reads it.

    That copy is made when it is first used; it takes as much memory as the weight.
    """

    gelu = False  # apply the exact GELU to the result
    _kept = None  # what the copy was made of, the copy

    def forward(self, x):
        return linear(x, self, self.gelu)

    def packed(self):
        """The weight for oneDNN's product; the copy follows changes of the weight."""
        if self.weight.is_inference():  # does not say whether it was changed
            return self.weight
        made_of = self.weight.data_ptr(), self.weight._version
        if self._kept is None or self._kept[0] != made_of:
            self._kept = made_of, torch.ops.mkldnn._reorder_linear_weight(self.weight.detach())
        return self._kept[1]

    def __getstate__(self):
        return {name: value for name, value in self.__dict__.items() if name != '_kept'}


def cpu_linear():
    """Who multiplies float32 maps on this CPU when no gradient is wanted.

    Returns:
        {'few rows': name, 'many rows': name}, each 'mkl' (`F.linear`) or 'onednn'; measured now if
        no one has set it.
    """
    choice = _chosen()
    return {kind: choice if choice != 'auto' else _faster(kind, _threads()) for kind in KINDS}


def set_cpu_linear(name):
    """Choose who multiplies: one of CHOICES.

    Raises:
        ValueError: another name.
        RuntimeError: 'onednn', which this build of torch has not got.
    """
    global _choice
    _choice = _checked(name, 'set_cpu_linear')


def _chosen():
    global _choice
    if _choice is None:
        _choice = _checked(os.environ.get(VARIABLE) or 'auto', VARIABLE)
    return _choice


def _checked(name, where):
    if name not in CHOICES:
        raise ValueError(f'{where} got {name!r}; give one of {", ".join(CHOICES)}')
    if name == 'onednn' and not _has_onednn():
        raise RuntimeError(
            f"{where} got 'onednn', which torch {torch.__version__} has not got here; give 'auto'"
        )
    return name


def _takes_onednn(x, weight, bias):
    """Whether `linear` is a product of oneDNN: it can be, and is the faster one or asked for."""
    if (
        is_traced()
        or not _has_onednn()
        or _autocasts()
        or forward_ad._current_level >= 0
        or not (_is_plain(x) and _is_plain(weight) and (bias is None or _is_plain(bias)))
        or torch.is_grad_enabled()
        and (x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad))
        or x.numel() == 0
        or x.shape[-1] != weight.shape[1]  # F.linear has the better message
        or not weight.is_contiguous()
        or not torch._C._get_mkldnn_enabled()
        or torch._C._len_torch_dispatch_stack() > 0  # such as a counter of operations
    ):
        return False
    choice = _chosen()
    if choice == 'auto':
        rows = x.numel() // x.shape[-1]
        if rows < LEAST_ROWS or rows * weight.numel() < LEAST_MACS:
            return False
        choice = _faster('few rows' if rows < FEW_ROWS else 'many rows', _threads())
    return choice == 'onednn'


def _is_plain(tensor):
    """A float32 tensor in the CPU's memory, and no stand-in for one."""
    return (
        type(tensor) in (torch.Tensor, nn.Parameter)
        and tensor.dtype is torch.float32
        and tensor.layout is torch.strided
        and tensor.device.type == 'cpu'
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    )


@functools.lru_cache
def _has_onednn():
    """Whether torch has the product, and says when it is traced (torch >= 2.3)."""
    return (
        torch.backends.mkldnn.is_available()
        and all(hasattr(torch.ops.mkldnn, f'_{name}') for name in OPERATIONS)
        and hasattr(torch.compiler, 'is_compiling')
    )


def _autocasts():
    if _OLD_AUTOCAST:
        return torch.is_autocast_cpu_enabled()
    return torch.is_autocast_enabled('cpu')


_OLD_AUTOCAST = not hasattr(torch.amp, 'is_autocast_available')  # torch < 2.4
_threads = torch.get_num_threads


@functools.lru_cache
def _faster(kind, threads):
    """'mkl' or 'onednn', whichever computes a product of this kind sooner."""
    if not _has_onednn():
        return 'mkl'
    seconds = _measure(kind)
    return 'onednn' if seconds['onednn'] < seconds['mkl'] else 'mkl'


@torch.no_grad()
def _measure(kind):
    """{'mkl': seconds, 'onednn': seconds} of a product: the least of some, taken in turn."""
    rows, before, after = KINDS[kind]
    x, weight = (torch.ones(shape, device='cpu') for shape in ((rows, before), (after, before)))
    x, weight = x.float(), weight.float()
    tasks = {
        'mkl': lambda: F.linear(x, weight),
        'onednn': lambda: torch.ops.mkldnn._linear_pointwise(x, weight, None, 'none', [], ''),
    }
    seconds = dict.fromkeys(tasks, float('inf'))
    for _ in range(12):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    return seconds
