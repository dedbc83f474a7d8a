"""The selective scan in plain torch, on any device and in graphs: a tree of depth log(L).

A few consecutive steps, a group, are one step of a shorter sequence (Blelloch, 1990). At every
level the first steps of all groups lie together, then the second ones, and so on: a level is a
split, some products and a join, so graphs are small. Only products of decays are formed, never
quotients or cumulative sums in the exponent: nothing overflows however strong the decay. Decays
whose products with states would be subnormal numbers, on which CPUs are slow, are zero.

Outside of graphs the backward pass keeps the inputs alone and computes the states again.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..plans import cached_plan
from ..when import is_dynamo_compiling, is_traced, records_gradient

SMALL = 1e8  # times the least normal number: a decay below it is 0
CACHED = 2**18  # elements of a temporary that stays in the cache of a CPU
MAX_ELEMENTS = 2**20  # of a temporary on CPU: larger batches are scanned in parts


def selective_scan(*inputs: Tensor | bool | None) -> Tensor:
    """See `trunchier.ops.selective_scan`."""
    return _recomputed(_scan_sequences, *inputs)


def selective_scan_2d(
    x: Tensor, projection: Tensor, A: Tensor, D: Tensor, delta_weight: Tensor, delta_bias: Tensor
) -> Tensor:
    """See `trunchier.ops.selective_scan_2d`."""
    weights = A, D, delta_weight, delta_bias
    if is_traced() or x.is_cuda or x.numel() == 0:
        return _recomputed(_scan_maps, x, projection, *weights)
    samples = max(1, MAX_ELEMENTS // (4 * x[0].numel()))
    parts = zip(x.split(samples), projection.split(samples), strict=True)
    y = [_recomputed(_scan_maps, x_i, projected_i, *weights) for x_i, projected_i in parts]
    return torch.cat(y) if len(y) > 1 else y[0]


def _recomputed(scan, *inputs):
    """scan(*inputs); where gradients are recorded, nothing but the inputs is kept for them."""
    tensors = [t for t in inputs if isinstance(t, Tensor)]
    if is_traced() or not records_gradient(*tensors) or tensors[0].is_meta:
        return scan(*inputs)
    return checkpoint(scan, *inputs, use_reentrant=False, preserve_rng_state=False)


def _scan_sequences(u, delta, A, B, C, D, delta_bias, delta_softplus):
    """`selective_scan` in functional, differentiable operations."""
    with exactly(u):
        exact = _exact_dtype(u)
        x, delta, A = u.to(exact).mT, delta.to(exact).mT, A.to(exact)  # (batch, L, K*d)
        if delta_bias is not None:
            delta = delta + delta_bias.to(exact)
        if delta_softplus:
            delta = F.softplus(delta)
        channels = u.shape[1] // B.shape[1]  # of a group
        y = 0 if D is None else D.to(exact) * x
        for n in range(A.shape[1]):
            B_n, C_n = (t[:, :, n].to(exact).repeat_interleave(channels, 1).mT for t in (B, C))
            y = y + C_n * scan_sequence(exp_or_zero(delta * A[:, n]), delta * x * B_n)
        return y.mT.to(u.dtype)


def _scan_maps(x, projection, A, D, delta_weight, delta_bias):
    """`selective_scan_2d` in functional, differentiable operations."""
    height, width, channels = x.shape[1:]
    if height * width == 0:
        return x
    exact = _exact_dtype(x)
    rank, states = delta_weight.shape[2], A.shape[2]
    tree = plan_tree(height, width, 4, x.device)
    # Without a compiler, each operation passes over all of its memory. The t-th steps of all groups
    # are a part of a large map that stays in the cache.
    parts = 1
    if not is_dynamo_compiling() and 4 * height * width * channels > 2 * CACHED:
        parts = tree.few[0]
    with exactly(x):
        pixels, projection = x.flatten(1, 2).to(exact), projection.flatten(1, 3).to(exact)
        A, D, weight, bias = (t.to(exact) for t in (A, D, delta_weight, delta_bias))
        projection = F.pad(projection, (1, 0), value=1.0)  # ones, whose weight is the bias
        weight = torch.cat((bias.unsqueeze(2), weight), dim=2).mT
        y = []
        for n in range(states):
            a, b, C = [], [], []  # of each part: (batch, 4, steps, d or 1)
            tables = (table.chunk(parts, dim=1) for table in (tree.pixels, tree.rows))
            for pixel, row in zip(*tables, strict=True):
                projected = projection.index_select(1, row.flatten()).unflatten(1, (4, -1))
                low, *columns = projected.split((1 + rank, *[1] * 2 * states), dim=-1)
                delta = F.softplus(low @ weight)
                x_t = pixels.index_select(1, pixel.flatten()).unflatten(1, (4, -1))
                a.append(exp_or_zero(delta * A[:, None, :, n]))
                b.append(x_t * columns[n] * delta)
                C.append(columns[states + n])
            if parts == 1:
                a, b, C = (t[0].chunk(tree.few[0], dim=2) for t in (a, b, C))
            h = tree_scan(a, b, tree.few)
            y.append(torch.cat([C_t * h_t for C_t, h_t in zip(C, h, strict=True)], dim=2))
        y = sum(y).flatten(1, 2)
        y = sum((y.index_select(1, back) for back in tree.back), pixels * D.sum(0))
    return y.view(x.shape).to(x.dtype)


def scan_sequence(a: Tensor, b: Tensor) -> Tensor:
    """h_t = a_t h_{t-1} + b_t along axis 1 of (batch, L, c)."""
    if b.shape[1] == 0:
        return b
    tree = plan_tree(1, b.shape[1], 1, b.device)
    a, b = (t.index_select(1, tree.pixels[0]).chunk(tree.few[0], dim=1) for t in (a, b))
    return torch.cat(tree_scan(a, b, tree.few), dim=1).index_select(1, tree.back[0])


# --- the tree ------------------------------------------------------------------------------------


def tree_scan(a: list[Tensor], b: list[Tensor], few: tuple[int, ...]) -> list[Tensor]:
    """h_t = a_t h_{t-1} + b_t, as a list like b.

    Args:
        a, b: few[0] tensors (..., groups, c), the t-th steps of all groups; few: of the Tree.
    """
    return _follow(a, b, _entering(a, b, few))[1:]


def _follow(a, b, state):
    """`state`, and that after each step."""
    states = [state]
    for a_t, b_t in zip(a, b, strict=True):
        states.append(a_t * states[-1] + b_t)
    return states


def _entering(a, b, few):
    """(..., groups, c): the state before the first step of each group."""
    if len(few) == 1:
        return torch.zeros_like(b[0])
    decay = a[0]
    for a_t in a[1:]:
        decay = _or_zero(a_t * decay)
    end = _follow(a[1:], b[1:], b[0])[-1]
    few = few[1:]
    a, b = decay.chunk(few[0], dim=-2), end.chunk(few[0], dim=-2)
    return torch.cat(_follow(a[:-1], b[:-1], _entering(a, b, few)), dim=-2)


class Tree(NamedTuple):
    """How the steps of some directions over a map are cut into groups, and groups of groups."""

    few: tuple[int, ...]  # steps of a group, at each level
    pixels: Tensor  # (directions, few[0] * groups): the pixel of each step; beyond the end, any
    rows: Tensor  # the same as rows of (pixels * directions)
    back: tuple[Tensor, ...]  # for each direction (pixels,): the step of each pixel, of all


GROUP_SIZES = (6, 5, 4)
ROOT = 12  # this many steps or fewer are one group


@cached_plan
def plan_tree(height: int, width: int, directions: int) -> Tree:
    """Tree of the first `directions` of `selective_scan_2d` over a map.

    The decorated function takes a device as its last argument.
    """
    length = height * width
    few, groups = [], length
    while groups > ROOT:
        few.append(min(GROUP_SIZES, key=lambda n: -groups % n))  # the least padding
        groups = -(-groups // few[-1])
    few.append(groups)
    step = np.zeros(1, int)  # in the order of the lowest level
    for n in reversed(few):
        step = np.concatenate([n * step + t for t in range(n)])

    grid = np.arange(length).reshape(height, width)
    rows, columns = grid.ravel(), grid.T.ravel()
    pixel = np.stack([rows, columns, rows[::-1], columns[::-1]][:directions])
    direction = np.arange(directions)[:, None]
    read = pixel[:, np.minimum(step, length - 1)]
    back = np.argsort(step)[np.argsort(pixel)] + direction * len(step)
    return Tree(tuple(few), read, read * directions + direction, tuple(back))


def exp_or_zero(x: Tensor) -> Tensor:
    """exp(x), exactly 0 below SMALL, about 1e-30 of float32, as in the kernels; not in graphs."""
    least = math.log(SMALL * torch.finfo(x.dtype).tiny)
    return torch.exp(x if is_traced() else F.threshold(x, least, -math.inf))


def _or_zero(decay):
    """A product of decays, exactly 0 below SMALL."""
    return decay if is_traced() else F.threshold(decay, SMALL * torch.finfo(decay.dtype).tiny, 0)


# --- both ----------------------------------------------------------------------------------------


def _exact_dtype(x):
    """The dtype of the arithmetic: float32, or float64 for float64."""
    return torch.promote_types(x.dtype, torch.float32)


def exactly(x: Tensor) -> AbstractContextManager:
    """Context without autocast, whose casts would undo those to `_exact_dtype`."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)
