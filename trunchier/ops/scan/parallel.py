"""The selective scan in plain torch, on any device: no loop over time, own backward pass.

The sequence is cut into chunks that are scanned side by side: first what each chunk makes of a
zero state, then the state that enters each chunk, then the states inside. On a map the rows (or
columns) are the chunks, so that no direction needs its sequence copied; Python loops over the
side of the map, not over its pixels. Only products of decays are formed, never quotients or
cumulative sums in the exponent: nothing overflows however strong the decay.

The backward pass keeps the inputs alone and computes the states again. Where a graph is traced
(torch.compile, export, jit) and on CUDA the scan is a tree of depth log2(L) instead.
"""

import math
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Elements of one temporary on CPU. A handful of temporaries live at a time, in the cache.
CACHED = 2**18


def selective_scan(u, delta, A, B, C, D=None, delta_bias=None, delta_softplus=True):
    """See `trunchier.ops.selective_scan`."""
    if is_traced():
        return _traced(u, delta, A, B, C, D, delta_bias, delta_softplus)
    return _SelectiveScan.apply(u, delta, A, B, C, D, delta_bias, delta_softplus)


def selective_scan_2d(x, projection, A, D, delta_weight, delta_bias):
    """See `trunchier.ops.selective_scan_2d`."""
    if is_traced():
        return _traced_2d(x, projection, A, D, delta_weight, delta_bias)
    return _SelectiveScan2d.apply(x, projection, A, D, delta_weight, delta_bias)


def is_traced():
    """Whether operations are being recorded into a graph rather than run once."""
    return torch.jit.is_tracing() or _is_compiling()


_is_compiling = getattr(torch.compiler, 'is_compiling', lambda: False)  # torch >= 2.3
_is_dynamo = getattr(torch.compiler, 'is_dynamo_compiling', lambda: False)


# --- grids of sequences: (ways, batch, X, Y, channels), consecutive steps along X or Y -----------


def _add_outputs(y, delta, x, B, C, A, time):
    """Add C_t h_t to y.

    Args:
        y, delta, x: (ways, batch, X, Y, c).
        B, C: (ways, batch, X, Y, N).
        A: (ways, c, N).
        time: 2 or 3, the axis of consecutive steps; the chunks follow each other along the other.
    """
    for n in range(A.shape[-1]):
        h = _states(delta, x, B[..., n, None], A[:, None, None, None, :, n], time)[-1]
        y.addcmul_(h, C[..., n, None])


def _states(delta, x, B, A, time):
    """(decay of each step, decay over each chunk, h) of one of the N states."""
    step = torch.mul(delta, A).exp_()
    chunk = torch.mul(delta.sum(time), A[:, :, 0]).exp_()
    return step, chunk, _scan(step, chunk, torch.mul(delta, B).mul_(x), time)


def _add_gradients(grads, grad_y, delta, x, B, C, A, time):
    """Add to `grads` = (delta, x, B, C, A) what the gradient of y = C_t h_t gives each."""
    grad_delta, grad_x, grad_B, grad_C, grad_A = grads
    for n in range(A.shape[-1]):
        A_n, B_n = A[:, None, None, None, :, n], B[..., n, None]
        step, chunk, h = _states(delta, x, B_n, A_n, time)
        grad_C[..., n] += torch.mul(grad_y, h).sum(-1)
        # With g_t = dL/dh_t = C_t dL/dy_t + a_{t+1} g_{t+1}, carry a_t g_t from the end.
        grad_h = grad_y * C[..., n, None]
        carried = _scan(step, chunk, step.mul(grad_h), time, backwards=True)
        grad_h += _neighbour(carried, time, backwards=True)
        # a_t = exp(delta_t A): dL/d(delta_t A) = a_t g_t h_{t-1}
        grad_log = carried.mul_(_neighbour(h, time))
        grad_A[..., n] += torch.mul(grad_log, delta).sum((1, 2, 3))
        grad_delta.addcmul_(grad_log, A_n)
        scaled = torch.mul(grad_h, delta)
        grad_x.addcmul_(scaled, B_n)
        grad_B[..., n] += scaled.mul_(x).sum(-1)
        grad_delta.addcmul_(grad_h.mul_(B_n), x)


def _scan(step, chunk, b, time, backwards=False):
    """h_t = step_t h_{t-1} + b_t, written over b; backwards: from the last step to the first.

    Args:
        step, b: (ways, batch, X, Y, c).
        chunk: (ways, batch, chunks, c), product of step along `time`.
    """
    steps, chunks = b.shape[time], chunk.shape[2]
    # Launches cost more than arithmetic on CUDA, and steps + chunks of them more than the
    # arithmetic of a very long and narrow map.
    if b.is_cuda or (steps + chunks) ** 2 > 64 * steps * chunks:
        return _scan_long(step, b, time, backwards)

    # The Python loops below run over one side of a map each, not over the sequence.
    step, b_t, chunk = step.unbind(time), b.unbind(time), chunk.unbind(2)
    if backwards:
        step, b_t, chunk = step[::-1], b_t[::-1], chunk[::-1]
    end = b_t[0].clone()  # (ways, batch, chunks, c): last state of each chunk, begun from zero
    for t in range(1, steps):
        torch.addcmul(b_t[t], step[t], end, out=end)
    state = torch.zeros_like(end)  # the state that enters each chunk
    enters, end = state.unbind(2), end.unbind(2)
    if backwards:
        enters, end = enters[::-1], end[::-1]
    for i in range(1, chunks):
        torch.addcmul(end[i - 1], chunk[i - 1], enters[i - 1], out=enters[i])
    for t in range(steps):
        state = torch.addcmul(b_t[t], step[t], state, out=b_t[t])
    return b


def _scan_long(step, b, time, backwards):
    """`_scan` as a tree over the whole sequence."""
    order = (0, 1, 5 - time, time, 4)  # chunks before steps, there and back again
    shape = b.permute(order).shape
    step, sequence = (t.permute(order).flatten(2, 3).flatten(0, 1) for t in (step, b))
    h = scan_sequence(step, sequence, 2 if backwards else 0)
    return b.copy_(h.view(shape).permute(order))


def _neighbour(h, time, backwards=False):
    """h_{t-1}, or backwards h_{t+1}; 0 where there is none."""
    steps, chunks = h.shape[time], h.shape[5 - time]
    here, there = (0, 1) if backwards else (1, 0)
    first, last = (steps - 1, 0) if backwards else (0, steps - 1)
    out = torch.zeros_like(h)
    out.narrow(time, here, steps - 1).copy_(h.narrow(time, there, steps - 1))
    across = h.select(time, last).narrow(2, there, chunks - 1)
    out.select(time, first).narrow(2, here, chunks - 1).copy_(across)
    return out


# --- the whole sequence as a tree ----------------------------------------------------------------
#
# A few steps, a group, are one step of a shorter sequence (Blelloch, 1990). At every level the
# first steps of all groups lie together, then the second ones, and so on: a level is a split, some
# products and a join, which makes graphs small.


class Tree(NamedTuple):
    """How sequences over one map are cut into groups, and groups of groups."""

    few: tuple  # steps of a group, at each level
    pixels: torch.Tensor  # (ways, few[0] * groups): where steps are read; beyond the end, anywhere
    places: torch.Tensor  # the same in a map of pixels that have ways
    back: tuple  # for each way (pixels,): where they are among all ways * steps


def tree_scan(a, b, few):
    """h_t = a_t h_{t-1} + b_t in functional, differentiable operations, log(L) deep.

    Args:
        a, b: lists of few[0] tensors (..., groups, c), the t-th steps of all groups.
        few: of the Tree.

    Returns:
        list like b.
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
        decay = a_t * decay
    end = _follow(a[1:], b[1:], b[0])[-1]
    few = few[1:]
    a, b = decay.chunk(few[0], dim=-2), end.chunk(few[0], dim=-2)
    return torch.cat(_follow(a[:-1], b[:-1], _entering(a, b, few)), dim=-2)


def scan_sequence(a, b, way=0):
    """`tree_scan` of a, b (batch, L, c), to the same; `way` 2 is from the end."""
    if b.shape[1] == 0:
        return b
    tree = plan_tree(1, b.shape[1], (way,), b.device)
    a, b = (t.index_select(1, tree.pixels[0]).chunk(tree.few[0], dim=1) for t in (a, b))
    return torch.cat(tree_scan(a, b, tree.few), dim=1).index_select(1, tree.back[0])


_trees = {}
MOST_TREES = 64
FEW = (6, 5, 4)  # steps of a group
ROOT = 12  # steps that are few enough for one group


@torch.compiler.assume_constant_result
def plan_tree(height, width, ways, device):
    """The `Tree` of a map read in some of the four directions, made once for each size."""
    height, width = int(height), int(width)  # torch.jit.trace has tensors for sizes
    key = (height, width, ways, device)
    if key in _trees:
        return _trees[key]

    def constant(array):
        # As a parameter: torch.compile takes its shape for constant, whatever is dynamic.
        with torch.inference_mode(False):
            return nn.Parameter(torch.from_numpy(array).to(device), requires_grad=False)

    few, pixels, places, back = lay_out_tree(height, width, ways)
    tree = Tree(few, constant(pixels), constant(places), tuple(map(constant, back)))
    # Not a tracer's stand-in, nor made by operations that jit.trace records.
    if type(tree.back[0]) is nn.Parameter and not torch.jit.is_tracing():
        if len(_trees) == MOST_TREES:
            del _trees[next(iter(_trees))]
        _trees[key] = tree
    return tree


def lay_out_tree(height, width, ways):
    """few, pixels, places and back of a `Tree`, as arrays."""
    length = height * width
    few, groups = [], length
    while groups > ROOT:
        few.append(min(FEW, key=lambda n: -groups % n))  # that fills up least
        groups = -(-groups // few[-1])
    few.append(groups)
    step = np.zeros(1, int)  # the step at each place
    for n in reversed(few):
        step = np.concatenate([n * step + t for t in range(n)])

    grid = np.arange(length).reshape(height, width)
    rows, columns = grid.ravel(), grid.T.ravel()
    pixel = np.stack([(rows, columns, rows[::-1], columns[::-1])[way] for way in ways])
    way = np.arange(len(ways))[:, None]
    read = pixel[:, np.minimum(step, length - 1)]

    back = np.argsort(step)[np.argsort(pixel)] + way * len(step)
    return tuple(few), read, read * len(ways) + way, list(back)


# --- sequences -----------------------------------------------------------------------------------


class _SelectiveScan(torch.autograd.Function):
    """The K groups are the ways, cuts of about sqrt(L) steps the chunks."""

    @staticmethod
    def forward(ctx, u, delta, A, B, C, D, delta_bias, delta_softplus):
        ctx.save_for_backward(u, delta, A, B, C, D, delta_bias)
        ctx.delta_softplus = delta_softplus
        with exactly(u):
            delta, x, B, C, A = _on_grid(u, delta, A, B, C, delta_bias, delta_softplus)
            y = torch.zeros_like(x) if D is None else x * _per_channel(D, x)
            _add_outputs(y, delta, x, B, C, A, time=3)
            return _off_grid(y, u.shape[-1]).flatten(1, 2).to(u.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y):
        u, delta, A, B, C, D, delta_bias = ctx.saved_tensors
        groups, length = B.shape[1], u.shape[2]
        with exactly(u):
            grid = _on_grid(u, delta, A, B, C, delta_bias, ctx.delta_softplus)
            gy = _to_grid(grad_y.unflatten(1, (groups, -1)), length, grid[1].dtype)
            grads = [torch.zeros_like(t) for t in grid]
            _add_gradients(grads, gy, *grid, time=3)
            grad_delta, grad_u, grad_B, grad_C, grad_A = grads
            grad_D = None
            if D is not None:
                grad_D = torch.mul(gy, grid[1]).sum((1, 2, 3)).flatten().to(D.dtype)
                grad_u.addcmul_(gy, _per_channel(D, gy))
            if ctx.delta_softplus:
                grad_delta.mul_(_softplus_slope(grid[0]))
            grad_bias = None
            if delta_bias is not None:
                grad_bias = grad_delta.sum((1, 2, 3)).flatten().to(delta_bias.dtype)
        return (
            _off_grid(grad_u, length).flatten(1, 2).to(u.dtype),
            _off_grid(grad_delta, length).flatten(1, 2).to(delta.dtype),
            grad_A.flatten(0, 1).to(A.dtype),
            _off_grid(grad_B, length).to(B.dtype),
            _off_grid(grad_C, length).to(C.dtype),
            grad_D,
            grad_bias,
            None,
        )


def _on_grid(u, delta, A, B, C, delta_bias, delta_softplus):
    """delta (done), x, B, C, A as `_add_outputs` takes them."""
    groups, length = B.shape[1], B.shape[3]
    exact = _exact_dtype(u)
    delta = delta.to(exact)
    if delta_bias is not None:
        delta = delta + delta_bias.to(exact)[:, None]
    if delta_softplus:
        delta = F.softplus(delta)
    delta, u = (t.unflatten(1, (groups, -1)) for t in (delta, u))
    grids = [_to_grid(t, length, exact) for t in (delta, u, B, C)]
    return *grids, A.to(exact).unflatten(0, (groups, -1))


def _to_grid(x, length, dtype):
    """(batch, K, c, L) -> (K, batch, chunks, steps, c); added steps are 0 and change no state."""
    steps = max(1, math.isqrt(length))
    chunks = max(1, -(-length // steps))
    batch, groups, channels, _ = x.shape
    grid = x.new_zeros((groups, batch, chunks * steps, channels), dtype=dtype)
    grid[:, :, :length] = x.permute(1, 0, 3, 2)
    return grid.unflatten(2, (chunks, steps))


def _off_grid(grid, length):
    """(K, batch, chunks, steps, c) -> (batch, K, c, L)."""
    return grid.flatten(2, 3)[:, :, :length].permute(1, 0, 3, 2)


def _per_channel(D, x):
    """(K*c,) -> (K, 1, 1, 1, c)."""
    return D.to(x.dtype).view(x.shape[0], 1, 1, 1, -1)


def _traced(u, delta, A, B, C, D, delta_bias, delta_softplus):
    """`selective_scan` of functional, differentiable operations only."""
    exact = _exact_dtype(u)
    x, delta, A = u.to(exact).mT, delta.to(exact).mT, A.to(exact)  # (batch, L, K*d)
    if delta_bias is not None:
        delta = delta + delta_bias.to(exact)
    if delta_softplus:
        delta = F.softplus(delta)
    each = u.shape[1] // B.shape[1]
    y = 0 if D is None else D.to(exact) * x
    for n in range(A.shape[1]):
        B_n, C_n = (t[:, :, n].to(exact).repeat_interleave(each, 1).mT for t in (B, C))
        y = y + C_n * scan_sequence(torch.exp(delta * A[:, n]), delta * x * B_n)
    return y.mT.to(u.dtype)


# --- maps ----------------------------------------------------------------------------------------


class _SelectiveScan2d(torch.autograd.Function):
    """The map and the map turned by half a turn are two ways, side by side.

    Read forwards, the rows (and columns) of the second are those of the first read from the end.
    Samples and channels go in parts that fit the cache.
    """

    @staticmethod
    def forward(ctx, x, projection, A, D, delta_weight, delta_bias):
        ctx.save_for_backward(x, projection, A, D, delta_weight, delta_bias)
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        with exactly(x):
            A, D, weight, bias = _by_axis(x, A, D, delta_weight, delta_bias)
            for samples, pieces in _parts(x):
                projected = _project_two_ways(projection[samples], x)
                low, B, C = _split(projected, weight, A)
                for some in pieces:
                    two = _two_ways(x[samples, ..., some])
                    out = torch.zeros_like(two)
                    for axis, time in AXES:
                        delta = _delta(low[axis], weight[axis, :, some], bias[axis, :, some])
                        delta = delta.view_as(two)
                        _add_outputs(out, delta, two, B[axis], C[axis], A[axis, :, some], time)
                    out = _merge(out)
                    y[samples, ..., some] = out.addcmul_(two[0], D[some])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y):
        x, projection, *weights = ctx.saved_tensors
        grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        grad_projection = torch.empty(projection.shape, dtype=projection.dtype, device=x.device)
        with exactly(x):
            A, D, weight, bias = _by_axis(x, *weights)
            grad_A, grad_D, grad_weight, grad_bias = (
                torch.zeros_like(t) for t in (A, D, weight, bias)
            )
            for samples, pieces in _parts(x):
                projected = _project_two_ways(projection[samples], x)
                grad_projected = torch.zeros_like(projected)
                low, B, C = _split(projected, weight, A)
                grad_low, grad_B, grad_C = _split(grad_projected, weight, A)
                for some in pieces:
                    two = _two_ways(x[samples, ..., some])
                    grad_out = _two_ways(grad_y[samples, ..., some])
                    grad_two = torch.zeros_like(two)
                    for axis, time in AXES:
                        W = weight[axis, :, some]
                        delta = _delta(low[axis], W, bias[axis, :, some]).view_as(two)
                        grad_delta = torch.zeros_like(delta)
                        grads = (
                            grad_delta, grad_two, grad_B[axis], grad_C[axis], grad_A[axis, :, some]
                        )  # fmt: skip
                        _add_gradients(
                            grads, grad_out, delta, two, B[axis], C[axis], A[axis, :, some], time
                        )
                        grad_delta = grad_delta.mul_(_softplus_slope(delta)).flatten(1, 3)
                        grad_low[axis] += grad_delta @ W
                        grad_weight[axis, :, some] += grad_delta.mT @ low[axis]
                        grad_bias[axis, :, some] += grad_delta.sum(1)
                    grad_D[some] += torch.mul(grad_out[0], two[0]).sum((0, 1, 2))
                    grad_x[samples, ..., some] = _merge(grad_two).addcmul_(grad_out[0], D[some])
                first, second = grad_projected.unbind(1)
                both = torch.cat((first, second.flip(2, 3)))
                grad_projection[samples] = both.permute(1, 2, 3, 0, 4)
        grad_A, grad_weight, grad_bias = (
            t.transpose(0, 1).flatten(0, 1) for t in (grad_A, grad_weight, grad_bias)
        )
        grads = grad_A, grad_D.expand(4, -1), grad_weight, grad_bias
        grads = (g.to(w.dtype) for g, w in zip(grads, weights, strict=True))
        return grad_x, grad_projection, *grads


AXES = (0, 3), (1, 2)  # axis of the map to read along, and where its steps lie in a grid


def _by_axis(x, A, D, delta_weight, delta_bias):
    """(axes, ways, ...) of the four directions' A, weight and bias; D summed over them."""
    A, D, weight, bias = (t.to(_exact_dtype(x)) for t in (A, D, delta_weight, delta_bias))
    A, weight, bias = (t.unflatten(0, (2, 2)).transpose(0, 1) for t in (A, weight, bias))
    return A, D.sum(0), weight, bias


def _parts(x):
    """(samples, [channels]) as slices: everything once, in parts of about CACHED elements."""
    batch, height, width, channels = x.shape
    pixels = 2 * height * width
    if x.numel() == 0:
        return
    if x.is_cuda:
        yield slice(None), [slice(None)]
        return
    together = max(1, CACHED // (pixels * channels))
    pieces = -(-pixels * channels // CACHED)
    each = -(-channels // (16 * pieces)) * 16  # whole vectors
    for i in range(0, batch, together):
        yield slice(i, i + together), [slice(c, c + each) for c in range(0, channels, each)]


def _two_ways(x):
    """(S, H, W, c) -> (2, S, H, W, c), the second turned by half a turn."""
    return torch.stack((x, x.flip(1, 2))).to(_exact_dtype(x))


def _merge(two):
    """The transpose of `_two_ways`, in place."""
    return two[0].add_(two[1].flip(1, 2))


def _project_two_ways(projection, x):
    """(S, H, W, 4, R + 2 N) -> (axes, ways, S, H, W, R + 2 N), laid out like `_two_ways`."""
    first, second = projection.to(_exact_dtype(x)).permute(3, 0, 1, 2, 4).split(2)
    return torch.stack((first, second.flip(2, 3)), dim=1)


def _split(projected, weight, A):
    """Views: low-rank delta (axes, ways, S*H*W, R), B and C (axes, ways, S, H, W, N)."""
    rank, states = weight.shape[-1], A.shape[-1]
    low, B, C = projected.split((rank, states, states), dim=-1)
    return low.flatten(2, 4), B, C


def _delta(low, weight, bias):
    """(ways, pixels, c): softplus of the projected low-rank delta."""
    return F.softplus(torch.baddbmm(bias[:, None], low, weight.mT))


def _traced_2d(x, projection, A, D, delta_weight, delta_bias):
    """`selective_scan_2d` of functional, differentiable operations only."""
    height, width, channels = x.shape[1:]
    if height * width == 0:
        return x
    exact = _exact_dtype(x)
    rank, states = delta_weight.shape[2], A.shape[2]
    tree = plan_tree(height, width, (0, 1, 2, 3), x.device)
    # A runtime without a compiler passes over its memory at every step of the arithmetic: a part
    # of a large map at a time, the t-th steps of all groups, stays in the cache.
    parts = 1
    if not _is_dynamo() and 4 * height * width * channels > 2 * CACHED:
        parts = tree.few[0]
    with exactly(x):
        pixels, projection = x.flatten(1, 2).to(exact), projection.flatten(1, 3).to(exact)
        A, D, weight, bias = (t.to(exact) for t in (A, D, delta_weight, delta_bias))
        projection = F.pad(projection, (1, 0), value=1.0)  # the bias is the weight of these ones
        weight = torch.cat((bias.unsqueeze(2), weight), dim=2).mT
        y = []
        for n in range(states):
            a, b, C = [], [], []  # of each part: (batch, ways, places, d or 1)
            tables = (table.chunk(parts, dim=1) for table in (tree.pixels, tree.places))
            for pixel, place in zip(*tables, strict=True):
                projected = projection.index_select(1, place.flatten()).unflatten(1, (4, -1))
                low, *columns = projected.split((1 + rank, *[1] * 2 * states), dim=-1)
                delta = F.softplus(low @ weight)
                x_t = pixels.index_select(1, pixel.flatten()).unflatten(1, (4, -1))
                a.append(torch.exp(delta * A[:, None, :, n]))
                b.append(x_t * columns[n] * delta)
                C.append(columns[states + n])
            if parts == 1:
                a, b, C = (t[0].chunk(tree.few[0], dim=2) for t in (a, b, C))
            h = tree_scan(a, b, tree.few)
            y.append(torch.cat([C_t * h_t for C_t, h_t in zip(C, h, strict=True)], dim=2))
        y = sum(y).flatten(1, 2)
        y = sum((y.index_select(1, back) for back in tree.back), pixels * D.sum(0))
    return y.view(x.shape).to(x.dtype)


# --- both ----------------------------------------------------------------------------------------


def _exact_dtype(x):
    """What is computed in: float32, or float64 for float64."""
    return torch.promote_types(x.dtype, torch.float32)


def exactly(x):
    """Autocast off: its casts would undo `_exact_dtype`."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def _softplus_slope(y):
    """Derivative of softplus where it has the value y."""
    return -torch.expm1(-y)
