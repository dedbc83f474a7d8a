"""The selective scan on CPU, step by step as in `reference`, compiled by numba.

One pass over memory a direction: the channels of a pixel fill whole vector registers, and delta,
decay and state never leave the cache. Each thread has channels of its own. Single precision; exp
and log1p are polynomials with errors of 3e-7. Compiled at the first call (some seconds), then kept
on disk by numba. The backward pass keeps the inputs alone.
"""

import numpy as np
import torch
from torch.autograd.function import once_differentiable

from ..cpu.simd import (
    LANES,
    bounds,
    compiled,
    exp,
    f32,
    in_parallel,
    inlined,
    multiply,
    sigmoid,
    softplus,
    team,
)
from .parallel import CACHED, exactly


def selective_scan(u, delta, A, B, C, D=None, delta_bias=None, delta_softplus=True):
    """See `trunchier.ops.selective_scan`."""
    return _SelectiveScan.apply(u, delta, A, B, C, D, delta_bias, delta_softplus)


def selective_scan_2d(x, projection, A, D, delta_weight, delta_bias):
    """See `trunchier.ops.selective_scan_2d`."""
    return _SelectiveScan2d.apply(x, projection, A, D, delta_weight, delta_bias)


# --- maps ----------------------------------------------------------------------------------------


class _SelectiveScan2d(torch.autograd.Function):
    """The four directions one after the other over the same map."""

    @staticmethod
    def forward(ctx, x, projection, A, D, delta_weight, delta_bias):
        ctx.save_for_backward(x, projection, A, D, delta_weight, delta_bias)
        with exactly(x):
            height, width = x.shape[1:3]
            pixels, projected, A, skip, weight, bias = _flat(
                x, projection, A, D, delta_weight, delta_bias
            )
            if pixels.shape[2] < LANES:
                y = _scan_map_by_ways(pixels, projected, A, skip, weight, bias, height, width)
            else:
                y = _scan_map(pixels, projected, A, skip, weight, bias, height, width)
            return y.view(x.shape).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y):
        x, projection, *weights = ctx.saved_tensors
        with exactly(x):
            height, width = x.shape[1:3]
            pixels, projected, A, skip, weight, bias = _flat(x, projection, *weights)
            grad_y = grad_y.float().contiguous().view(pixels.shape)
            grad_x = grad_y * skip
            grad_D = torch.mul(grad_y, pixels).sum((0, 1)).expand(4, -1)
            grad_projected, grad_A, grad_weight, grad_bias = (
                torch.zeros_like(t) for t in (projected, A, weight, bias)
            )
            for some in _parts(pixels):
                arrays = _arrays(pixels[some], projected[some], A, grad_y[some])
                for way, order in enumerate(_orders(height, width)):
                    z = _before_softplus(projected[some], weight, bias, way)
                    sums = grad_projected[some, :, way], grad_A[way]
                    _scan_back(z, arrays, way, order, True, grad_x[some], *sums)
                    z = z.flatten(0, 1)  # by now its gradient
                    low, grad_low = (
                        t[some, :, way, : weight.shape[2]] for t in (projected, grad_projected)
                    )
                    grad_low += (z @ weight[way]).view(grad_low.shape)
                    grad_weight[way] += z.mT @ low.flatten(0, 1)
                    grad_bias[way] += z.sum(0)
        grads = grad_A.mT, grad_D, grad_weight, grad_bias
        return (
            grad_x.view(x.shape).to(x.dtype),
            grad_projected.view(projection.shape).to(projection.dtype),
            *(g.to(w.dtype) for g, w in zip(grads, weights, strict=True)),
        )


def _scan_map(pixels, projected, A, skip, weight, bias, height, width):
    """All directions at once, each line's delta projected when its turn comes."""
    y = torch.empty_like(pixels)
    crew = team(8 * pixels.numel() * A.shape[1])
    scratch = torch.empty(crew.threads, max(height, width) * pixels.shape[2])
    arrays = pixels, projected, A, skip, weight.mT.contiguous(), bias.contiguous(), scratch, y
    scan_map(crew, *_arrays(*arrays), tuple(_orders(height, width)))
    return y


def _scan_map_by_ways(pixels, projected, A, skip, weight, bias, height, width):
    """The same for a few channels, which do not fill a vector."""
    y = pixels * skip
    arrays = _arrays(pixels, projected, A, y)
    for way, order in enumerate(_orders(height, width)):
        z = _before_softplus(projected, weight, bias, way)
        scan_way(_crew(z, A), z.numpy(), *arrays, way, order, True)
    return y


def _flat(x, projection, A, D, delta_weight, delta_bias):
    """(S, P, d), (S, P, 4, R + 2 N), (4, N, d), D summed (d,), and the weights; float32."""
    pixels = x.shape[1] * x.shape[2]
    return (
        x.float().contiguous().view(len(x), pixels, x.shape[3]),
        projection.float().contiguous().view(len(x), pixels, *projection.shape[3:]),
        A.float().mT.contiguous(),
        D.float().sum(0),
        delta_weight.float(),
        delta_bias.float(),
    )


def _parts(pixels):
    """Slices of the samples."""
    together = max(1, CACHED // max(1, pixels[0].numel())) if len(pixels) else 1
    return [slice(i, i + together) for i in range(0, len(pixels), together)]


def _orders(height, width):
    """For each direction (first pixel, outer count, outer stride, inner count, inner stride)."""
    last = height * width - 1
    yield 0, height, width, width, 1
    yield 0, width, 1, height, width
    yield last, height, -width, width, -1
    yield last, width, -1, height, -width


def _before_softplus(projected, weight, bias, way):
    """(S, P, d): delta of direction `way`, biased."""
    low = projected[:, :, way, : weight.shape[2]].flatten(0, 1)
    z = torch.addmm(bias[way], low, weight[way].mT)
    return z.view(*projected.shape[:2], z.shape[1])


def _arrays(*tensors):
    return [t.detach().numpy() for t in tensors]


# --- sequences -----------------------------------------------------------------------------------


class _SelectiveScan(torch.autograd.Function):
    """One group after the other."""

    @staticmethod
    def forward(ctx, u, delta, A, B, C, D, delta_bias, delta_softplus):
        ctx.save_for_backward(u, delta, A, B, C, D, delta_bias)
        ctx.delta_softplus = bool(delta_softplus)
        groups, length = B.shape[1], B.shape[3]
        with exactly(u):
            x, z, A, projected = _by_group(u, delta, A, B, C, delta_bias)
            y = torch.zeros_like(x) if D is None else x * _per_channel(D, x)
            for k in range(groups):
                arrays = _arrays(z[k], x[k], projected, A, y[k])
                scan_way(_crew(z, A), *arrays, k, (0, 1, 0, length, 1), ctx.delta_softplus)
            return _channels_first(y).to(u.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y):
        u, delta, A, B, C, D, delta_bias = ctx.saved_tensors
        groups, states, length = B.shape[1:]
        with exactly(u):
            x, z, A_t, projected = _by_group(u, delta, A, B, C, delta_bias)
            grad_y = _channels_last(grad_y, groups)
            grad_x = torch.zeros_like(x) if D is None else grad_y * _per_channel(D, x)
            grad_D = None if D is None else torch.mul(grad_y, x).sum((1, 2)).flatten().to(D.dtype)
            grad_A, grad_projected = torch.zeros_like(A_t), torch.zeros_like(projected)
            for k in range(groups):
                arrays = _arrays(x[k], projected, A_t, grad_y[k])
                order = 0, 1, 0, length, 1
                sums = grad_projected[:, :, k], grad_A[k]
                _scan_back(z[k], arrays, k, order, ctx.delta_softplus, grad_x[k], *sums)
            grad_B, grad_C = grad_projected.permute(0, 2, 3, 1).split(states, dim=2)
            grad_bias = None
            if delta_bias is not None:
                grad_bias = z.sum((1, 2)).flatten().to(delta_bias.dtype)
        return (
            _channels_first(grad_x).to(u.dtype),
            _channels_first(z).to(delta.dtype),
            grad_A.mT.flatten(0, 1).to(A.dtype),
            grad_B.to(B.dtype),
            grad_C.to(C.dtype),
            grad_D,
            grad_bias,
            None,
        )


def _by_group(u, delta, A, B, C, delta_bias):
    """x and z (K, S, L, d), A (K, N, d), B and C together (S, L, K, 2 N)."""
    groups = B.shape[1]
    z = _channels_last(delta, groups)
    if delta_bias is not None:
        z = z + _per_channel(delta_bias, z)
    both = torch.cat([t.float().permute(0, 3, 1, 2) for t in (B, C)], dim=-1)
    A = A.float().unflatten(0, (groups, -1)).mT.contiguous()
    return _channels_last(u, groups), z, A, both.contiguous()


def _channels_last(t, groups):
    """(S, K*d, L) -> (K, S, L, d), a copy."""
    t = t.unflatten(1, (groups, -1)).permute(1, 0, 3, 2)
    return t.to(torch.float32, copy=True, memory_format=torch.contiguous_format)


def _channels_first(t):
    """(K, S, L, d) -> (S, K*d, L)."""
    return t.permute(1, 0, 3, 2).flatten(1, 2)


def _per_channel(vector, t):
    """(K*d,) -> (K, 1, 1, d)."""
    return vector.float().view(len(t), 1, 1, -1)


# --- both ----------------------------------------------------------------------------------------


def _crew(z, A):
    return team(2 * z.numel() * A.shape[-2])


def _scan_back(z, arrays, way, order, soft, grad_x, grad_projected, grad_A):
    """`scan_way_back`, and the sum of what its threads found for B, C and A.

    Args:
        grad_projected: (S, P, ...), which ends with N entries of B and N of C.
        grad_A: (N, d).
    """
    states, crew = len(grad_A), _crew(z, grad_A)
    both = z.new_zeros(2, crew.threads, *z.shape[:2], states)
    grads_A = z.new_zeros(crew.threads, *grad_A.shape)
    grads = _arrays(grad_x, *both, grads_A)
    scan_way_back(crew, z.detach().numpy(), *arrays, way, order, soft, *grads)
    grad_projected[..., -2 * states :] += torch.cat(both.sum(1).unbind(0), dim=-1)
    grad_A += grads_A.sum(0)


# --- one direction -------------------------------------------------------------------------------
#
# Arrays, float32: z (delta before softplus), x, y (S, P, d) of S samples with P pixels or steps;
# projection (S, P, ways, ...), which ends with N entries of B and N of C; A (ways, N, d).
# Step i * count_inner + j is at pixel first + i * outer + j * inner.


@compiled
def scan_map(crew, *arguments):
    """y = D x and, added, C_t h_t of each direction.

    Args:
        crew: Team.
        arguments: x, projection, A as above, D (d,), weight (ways, R, d) and bias (ways, d) of
            delta, scratch (threads, longest line * d), y, and the order of each direction.
    """
    in_parallel(_map_share, crew, arguments)


@compiled
def _map_share(share, shares, x, projection, A, D, weight, bias, scratch, y, orders):
    states, channels = A.shape[1:]
    pixels, rank, entries = x.shape[1], weight.shape[1], projection.shape[3]
    ways, at_B = len(orders), entries - 2 * states
    z = scratch[share]
    delta = np.empty(channels, np.float32)
    h = np.empty((states, channels), np.float32)
    unit, last = bounds(share, shares, len(x) * -(-channels // LANES))
    while unit < last:
        s, some, unit = sample_and_channels(unit, last, channels)
        width = some.stop - some.start
        # What is projected may begin sooner: a product has whole vectors.
        projected = max(width, LANES)
        start = min(some.start, channels - projected)
        own = some.start - start
        D_s = D[some]
        for p in range(pixels):
            x_p, y_p = x[s, p, some], y[s, p, some]
            for c in range(width):
                y_p[c] = x_p[c] * D_s[c]
        for way in range(ways):
            first, count_outer, outer, count_inner, inner = orders[way]
            bias_w = bias[way, some]
            h[:] = 0
            for i in range(count_outer):
                line = first + i * outer
                multiply(
                    count_inner, projected, rank,
                    projection, ((s * pixels + line) * ways + way) * entries,
                    inner * ways * entries, 1,
                    weight, way * rank * channels + start, channels, z, 0, projected,
                )  # fmt: skip
                for j in range(count_inner):
                    p = line + j * inner
                    z_p = z[j * projected + own : j * projected + own + width]
                    x_p, y_p = x[s, p, some], y[s, p, some]
                    for c in range(width):
                        delta[c] = softplus(z_p[c] + bias_w[c])
                    for n in range(states):
                        A_n, h_n = A[way, n, some], h[n]
                        B = projection[s, p, way, at_B + n]
                        C = projection[s, p, way, at_B + states + n]
                        for c in range(width):
                            h_n[c] = exp(delta[c] * A_n[c]) * h_n[c] + delta[c] * x_p[c] * B
                            y_p[c] += C * h_n[c]


@compiled
def scan_way(crew, z, x, projection, A, y, way, order, soft):
    """Add C_t h_t of direction `way` to y; `soft`: z goes through a softplus."""
    in_parallel(_scan_share, crew, (z, x, projection, A, y, way, order, soft))


@compiled
def scan_way_back(
    crew, z, x, projection, A, grad_y, way, order, soft, grad_x, grad_B, grad_C, grad_A
):
    """From grad_y add to grad_x, grad_B, grad_C and grad_A; z becomes its gradient.

    Each thread has its own grad_B, grad_C (threads, S, P, N) and grad_A (threads, N, d).
    """
    grads = grad_x, grad_B, grad_C, grad_A
    in_parallel(_scan_share_back, crew, (z, x, projection, A, grad_y, way, order, soft, grads))


@inlined
def sample_and_channels(unit, end, channels):
    """What comes next of units [unit, end): a sample, its channels as a slice, and the unit then.

    A unit is LANES channels of a sample, which a thread scans together with the next ones.
    """
    blocks = -(-channels // LANES)
    sample, block = unit // blocks, unit % blocks
    more = min(blocks - block, end - unit)
    return sample, slice(block * LANES, min((block + more) * LANES, channels)), unit + more


@compiled
def _scan_share(share, shares, z, x, projection, A, y, way, order, soft):
    first, count_outer, outer, count_inner, inner = order
    states, channels = A.shape[1:]
    at_B = projection.shape[3] - 2 * states
    delta = np.empty(channels, np.float32)
    h = np.empty((states, channels), np.float32)
    unit, last = bounds(share, shares, len(z) * -(-channels // LANES))
    while unit < last:
        s, some, unit = sample_and_channels(unit, last, channels)
        width = some.stop - some.start
        h[:] = 0
        for i in range(count_outer):
            for j in range(count_inner):
                p = first + i * outer + j * inner
                z_p, x_p, y_p = z[s, p, some], x[s, p, some], y[s, p, some]
                for c in range(width):
                    delta[c] = softplus(z_p[c]) if soft else z_p[c]
                for n in range(states):
                    A_n, h_n = A[way, n, some], h[n]
                    B = projection[s, p, way, at_B + n]
                    C = projection[s, p, way, at_B + states + n]
                    for c in range(width):
                        h_n[c] = exp(delta[c] * A_n[c]) * h_n[c] + delta[c] * x_p[c] * B
                        y_p[c] += C * h_n[c]


@compiled
def _scan_share_back(share, shares, z, x, projection, A, grad_y, way, order, soft, grads):
    grad_x, grads_B, grads_C, grads_A = grads
    grad_B, grad_C, grad_A = grads_B[share], grads_C[share], grads_A[share]
    first, count_outer, outer, count_inner, inner = order
    length = count_outer * count_inner
    states, channels = A.shape[1:]
    at_B = projection.shape[3] - 2 * states
    h = np.zeros((length + 1, states, channels), np.float32)  # before the first and after each step
    delta, slope, grad_delta = np.empty((3, channels), np.float32)
    carried = np.empty((states, channels), np.float32)  # a_t dL/dh_t
    recent_A = np.empty((states, channels), np.float32)  # summed apart for a while, for accuracy
    unit, last = bounds(share, shares, len(z) * -(-channels // LANES))
    while unit < last:
        s, some, unit = sample_and_channels(unit, last, channels)
        width = some.stop - some.start
        for t in range(length):
            p = first + (t // count_inner) * outer + (t % count_inner) * inner
            z_p, x_p = z[s, p, some], x[s, p, some]
            for c in range(width):
                delta[c] = softplus(z_p[c]) if soft else z_p[c]
            for n in range(states):
                A_n, before, after = A[way, n, some], h[t, n], h[t + 1, n]
                B = projection[s, p, way, at_B + n]
                for c in range(width):
                    after[c] = exp(delta[c] * A_n[c]) * before[c] + delta[c] * x_p[c] * B

        carried[:] = 0
        recent_A[:] = 0
        for t in range(length - 1, -1, -1):
            p = first + (t // count_inner) * outer + (t % count_inner) * inner
            z_p, x_p = z[s, p, some], x[s, p, some]
            gy_p, gx_p = grad_y[s, p, some], grad_x[s, p, some]
            for c in range(width):
                delta[c] = softplus(z_p[c]) if soft else z_p[c]
                slope[c] = sigmoid(z_p[c]) if soft else f32(1)
                grad_delta[c] = 0
            for n in range(states):
                A_n, before, after = A[way, n, some], h[t, n], h[t + 1, n]
                carried_n, recent_n = carried[n], recent_A[n]
                B = projection[s, p, way, at_B + n]
                C = projection[s, p, way, at_B + states + n]
                sum_B = sum_C = f32(0)
                for c in range(width):
                    # dL/dh_t = C_t dL/dy_t + a_{t+1} dL/dh_{t+1}
                    grad_h = gy_p[c] * C + carried_n[c]
                    scaled = grad_h * delta[c]
                    carried_n[c] = exp(delta[c] * A_n[c]) * grad_h
                    grad_log = carried_n[c] * before[c]  # dL/d(delta_t A)
                    recent_n[c] += grad_log * delta[c]
                    grad_delta[c] += grad_log * A_n[c] + grad_h * B * x_p[c]
                    gx_p[c] += scaled * B
                    sum_B += scaled * x_p[c]
                    sum_C += gy_p[c] * after[c]
                grad_B[s, p, n] += sum_B
                grad_C[s, p, n] += sum_C
            for c in range(width):
                z_p[c] = grad_delta[c] * slope[c]
            if t % 64 == 0:
                for n in range(states):
                    grad_A_n, recent_n = grad_A[n, some], recent_A[n]
                    for c in range(width):
                        grad_A_n[c] += recent_n[c]
                        recent_n[c] = 0
