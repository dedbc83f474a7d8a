"""The one place where token maps meet a weight matrix, and who multiplies them on a CPU.

`F.linear` is MKL's product, which some CPUs run at half their speed. oneDNN has the same product,
in the same float32, with the GELU that follows it in the same pass; but it has no gradient of its
own and no tracer knows it. So it is taken in float32 outside of graphs, where it was measured to be
faster on this machine: once a process, for products of few and of many rows. In training its
gradients are such products too, once differentiable. (Its sum with a residual in the same pass is
slower than adding in place.)

    set_cpu_linear('mkl'), or TRUNCHIER_CPU_LINEAR=mkl      F.linear always
    set_cpu_linear('onednn'), or ...=onednn                 oneDNN for float32
    set_cpu_linear('auto')                                  the faster one; the default
"""

import functools
import os
import time

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable

from .scan.parallel import is_traced

CHOICES = ('auto', 'mkl', 'onednn')
VARIABLE = 'TRUNCHIER_CPU_LINEAR'

# (rows, in_features, out_features) that stand for a kind of product, and how many rows are few.
KINDS = {'few rows': (8, 768, 768), 'many rows': (256, 256, 256)}
FEW_ROWS = 32
# Below these oneDNN is never faster: its call, or reading the weights, takes longer than the rest.
LEAST_ROWS = 5
LEAST_MACS = 2**20
MARGIN = 0.9  # of MKL's time: where they are alike, every process chooses MKL

OPERATIONS = ('linear_pointwise', 'reorder_linear_weight', 'convolution_pointwise')
# What may follow a product: arguments of oneDNN's, and the same by itself.
AFTER = {
    None: (('none', [], ''), lambda x: x),
    'gelu': (('gelu', [], 'none'), F.gelu),
    'hardswish': (('hardswish', [], ''), F.hardswish),
}

KERNEL_TYPES = torch.float32, torch.bfloat16, torch.float16  # in and out; float32 within

PLAIN = {torch.Tensor, nn.Parameter}  # no stand-in for a tensor

_choice = None  # None: what VARIABLE says, when it is first asked


def linear(x, layer, gelu=False):
    """`layer(x)` for an nn.Linear, with a GELU behind it or not.

    Args:
        x: (..., in_features), any strides.
        layer: nn.Linear, or a PackedLinear, which may know better what is behind it.
        gelu: apply the exact GELU to the result.

    Raises:
        ValueError: TRUNCHIER_CPU_LINEAR is set to something unknown.
    """
    packed = layer.packed if isinstance(layer, PackedLinear) else None
    after = 'gelu' if gelu else layer.after if packed else None
    return product(x, layer.weight, layer.bias, after, packed)


def product(x, weight, bias=None, after=None, packed=None):
    """F.linear(x, weight, bias), and `after` (key of AFTER); `packed()` is oneDNN's weight."""
    arguments, function = AFTER[after]
    if not _takes_onednn(x, weight, bias):
        return function(F.linear(x, weight, bias))
    if _records_gradient(x, weight, bias):
        return function(_Product.apply(x.contiguous(), weight, bias))
    weight = packed() if packed else weight
    return torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, *arguments)


class _Product(torch.autograd.Function):
    """F.linear and its gradients by oneDNN."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = _onednn(grad.contiguous(), weight.t())
        rows, x = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        if ctx.needs_input_grad[1]:  # twice as fast with the wider factor last
            wide = len(weight) > weight.shape[1]
            grad_weight = _onednn(x.t(), rows.t()).t() if wide else _onednn(rows.t(), x.t())
        if ctx.needs_input_grad[2]:
            grad_bias = rows.sum(0)
        return grad_x, grad_weight, grad_bias


def _onednn(x, weight, bias=None):
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, *AFTER[None][0])


class Packed:
    """A layer that keeps its weight once more, in the order in which oneDNN reads it.

    That copy is made when it is first used; it takes as much memory as the weight.
    """

    _kept = None  # what the copy was made of, the copy

    def packed(self, *how):
        """The weight for oneDNN's product; the copy follows changes of the weight."""
        weight = self.weight
        if weight.is_inference():  # does not say whether it was changed
            return weight
        made_of = weight.data_ptr(), weight._version
        if self._kept is None or self._kept[0] != made_of:
            with torch.inference_mode(False), torch.no_grad():
                self._kept = made_of, self.pack(weight.detach(), *how)
        return self._kept[1]

    def __getstate__(self):
        return {name: value for name, value in self.__dict__.items() if name != '_kept'}


class PackedLinear(Packed, nn.Linear):
    after = None  # key of AFTER

    def forward(self, x):
        return linear(x, self)

    def pack(self, weight):
        return torch.ops.mkldnn._reorder_linear_weight(weight)


class PackedConv2d(Packed, nn.Conv2d):
    def forward(self, x):
        how = self.padding, self.stride, self.dilation, self.groups
        is_usual = self.padding_mode == 'zeros' and type(self.padding) is tuple and x.dim() == 4
        if not (is_usual and only_computes(x, self.weight, self.bias) and _onednn_is_on()):
            return super().forward(x)
        weight = self.packed(x.shape, *how)
        arguments, _ = AFTER[None]
        return torch.ops.mkldnn._convolution_pointwise(x, weight, self.bias, *how, *arguments)

    def pack(self, weight, shape, *how):
        weight = weight.contiguous().to_mkldnn()
        return torch._C._nn.mkldnn_reorder_conv2d_weight(weight, *how, list(shape))


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
    """Whether `product` is one of oneDNN: it can be, and is the faster one or asked for."""
    if not _is_plain_work(x, weight, bias) or not _onednn_is_on():
        return False
    if x.shape[-1] != weight.shape[1]:
        return False  # F.linear has the better message for a wrong shape
    choice = _chosen()
    if choice == 'auto':
        rows = x.numel() // x.shape[-1]
        if rows < LEAST_ROWS or rows * weight.numel() < LEAST_MACS:
            return False
        choice = _faster('few rows' if rows < FEW_ROWS else 'many rows', _threads())
    return choice == 'onednn' and weight.is_contiguous()


def _onednn_is_on():
    return _has_onednn() and torch._C._get_mkldnn_enabled()


def only_computes(*tensors, types=(torch.float32,)):
    """Whether nothing but a result on the CPU is wanted of an operation on `tensors` of `types`.

    False where a graph is traced, a gradient is recorded, autocast or a mode of torch's changes
    what operations do, or there is nothing to compute. Some may be None.
    """
    return _is_plain_work(*tensors, types=types) and not _records_gradient(*tensors)


def _records_gradient(*tensors):
    return torch.is_grad_enabled() and any(
        tensor.requires_grad for tensor in tensors if tensor is not None
    )


def _is_plain_work(*tensors, types=(torch.float32,)):
    """As `only_computes`, gradients or not."""
    return not (
        is_traced()
        or not _TELLS_TRACING
        or _autocasts()
        or forward_ad._current_level >= 0
        or not all(_is_plain(tensor, types) for tensor in tensors if tensor is not None)
        or tensors[0].numel() == 0
        or torch._C._len_torch_dispatch_stack() > 0  # such as a counter of operations
        or torch._C._functorch.peek_interpreter_stack() is not None  # such as vmap
    )


def _is_plain(tensor, types):
    """A tensor of one of `types` in the CPU's memory."""
    return (
        type(tensor) in PLAIN
        and tensor.dtype in types
        and tensor.layout is torch.strided
        and tensor.is_cpu
    )


@functools.lru_cache
def _has_onednn():
    """Whether torch has the product."""
    return torch.backends.mkldnn.is_available() and all(
        hasattr(torch.ops.mkldnn, f'_{name}') for name in OPERATIONS
    )


def _autocasts():
    if _OLD_AUTOCAST:
        return torch.is_autocast_cpu_enabled()
    return torch.is_autocast_enabled('cpu')


_TELLS_TRACING = hasattr(torch.compiler, 'is_compiling')  # torch >= 2.3
_OLD_AUTOCAST = not hasattr(torch.amp, 'is_autocast_available')  # torch < 2.4
_threads = torch.get_num_threads


@functools.lru_cache
def _faster(kind, threads):
    """'mkl' or 'onednn', whichever computes a product of this kind sooner."""
    if not _has_onednn():
        return 'mkl'
    keep_freed_memory()
    seconds = _measure(kind)
    return 'onednn' if seconds['onednn'] < MARGIN * seconds['mkl'] else 'mkl'


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


def keep_freed_memory():
    """Let glibc keep what a network frees from one layer to the next.

    It gives freed memory back to the system unless something as large was freed before; getting
    it again for every layer took 20 % of a small GroupMixFormer's time. So something is: 31 MiB.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8, device='cpu')
