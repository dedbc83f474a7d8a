"""The scan of a map on CPU, step by step as in `reference`, compiled by numba.

One pass over memory per direction: the channels of a pixel fill whole vector registers, and delta,
decay and state never leave the cache. Each thread scans its own channels. Single precision; exp and
log1p are polynomials with errors of 3e-7. Compiled at the first call (some seconds), then cached on
disk. The backward pass keeps the inputs alone.
"""

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ..cpu.compile import compiled, f32, inlined
from ..cpu.functions import exp_or_zero, sigmoid, softplus
from ..cpu.simd import LANES, multiply
from ..cpu.threads import in_parallel, thread_pool, thread_range
from .parallel import CACHED, exactly


def selective_scan_2d(*inputs: Tensor) -> Tensor:
    """See `trunchier.ops.selective_scan_2d`."""
    return _SelectiveScan2d.apply(*inputs)


class _SelectiveScan2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, projection, A, D, delta_weight, delta_bias):
        ctx.save_for_backward(x, projection, A, D, delta_weight, delta_bias)
        with exactly(x):
            tensors = _flat(x, projection, A, D, delta_weight, delta_bias)
            y = _scan_map(*tensors, *x.shape[1:3])
            return y.view(x.shape).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y):
        x, projection, *weights = ctx.saved_tensors
        with exactly(x):
            pixels, projected, A, skip, weight, bias = _flat(x, projection, *weights)
            grad_y = grad_y.float().contiguous().view(pixels.shape)
            grad_x = grad_y * skip
            grad_D = torch.mul(grad_y, pixels).sum((0, 1)).expand(4, -1)
            grad_projected, grad_A, grad_weight, grad_bias = (
                torch.zeros_like(t) for t in (projected, A, weight, bias)
            )
            for part in _parts(pixels):
                arrays = _arrays(pixels[part], projected[part], A, grad_y[part])
                for direction, path in enumerate(_paths(*x.shape[1:3])):
                    low = projected[part, :, direction, : weight.shape[2]].flatten(0, 1)
                    z = torch.addmm(bias[direction], low, weight[direction].mT)
                    z = z.view(pixels[part].shape)
                    sums = grad_projected[part, :, direction], grad_A[direction]
                    _scan_back(z, arrays, direction, path, grad_x[part], *sums)
                    z = z.flatten(0, 1)  # by now its gradient
                    grad_low = grad_projected[part, :, direction, : weight.shape[2]]
                    grad_low += (z @ weight[direction]).view(grad_low.shape)
                    grad_weight[direction] += z.mT @ low
                    grad_bias[direction] += z.sum(0)
        grads = grad_A.mT, grad_D, grad_weight, grad_bias
        return (
            grad_x.view(x.shape).to(x.dtype),
            grad_projected.view(projection.shape).to(projection.dtype),
            *(g.to(w.dtype) for g, w in zip(grads, weights, strict=True)),
        )


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


def _scan_map(pixels, projected, A, skip, weight, bias, height, width):
    """y (S, P, d)."""
    channels, weight = pixels.shape[2], weight.mT
    if channels < LANES:  # kernels need a whole vector
        pixels, A, skip, weight, bias = (
            F.pad(t, (0, LANES - channels)) for t in (pixels, A, skip, weight, bias)
        )
    y = torch.empty_like(pixels)
    pool = thread_pool(8 * pixels.numel() * A.shape[1])
    scratch = torch.empty(pool.threads, max(height, width) * pixels.shape[2])
    arrays = pixels, projected, A, skip, weight.contiguous(), bias.contiguous(), scratch, y
    _scan_all(pool, *_arrays(*arrays), tuple(_paths(height, width)))
    return y[..., :channels]


def _scan_back(z, arrays, direction, path, grad_x, grad_projected, grad_A):
    """`_scan_direction_back`, with the threads' gradients of B, C and A summed.

    Args:
        grad_projected: (S, P, ...), ends with N entries of B and N of C.
        grad_A: (N, d).
    """
    states = len(grad_A)
    pool = thread_pool(2 * z.numel() * states)
    both = z.new_zeros(2, pool.threads, *z.shape[:2], states)
    grads_A = z.new_zeros(pool.threads, *grad_A.shape)
    grads = _arrays(grad_x, *both, grads_A)
    _scan_direction_back(pool, z.detach().numpy(), *arrays, direction, path, *grads)
    grad_projected[..., -2 * states :] += torch.cat(both.sum(1).unbind(0), dim=-1)
    grad_A += grads_A.sum(0)


def _parts(pixels):
    """Slices of the samples, each of about CACHED elements."""
    samples = max(1, CACHED // max(1, pixels[0].numel())) if len(pixels) else 1
    return [slice(i, i + samples) for i in range(0, len(pixels), samples)]


def _paths(height, width):
    """For each direction (first pixel, outer count, outer stride, inner count, inner stride)."""
    last = height * width - 1
    yield 0, height, width, width, 1
    yield 0, width, 1, height, width
    yield last, height, -width, width, -1
    yield last, width, -1, height, -width


def _arrays(*tensors):
    return [t.detach().numpy() for t in tensors]


# --- kernels -------------------------------------------------------------------------------------
#
# Arrays, float32: x, y (S, P, d) of S samples with P pixels; z (S, P, d), delta before the
# softplus; projection (S, P, 4, ...), ends with N entries of B and N of C; A (4, N, d).
# Step i * count_inner + j of a path is at pixel first + i * outer + j * inner.


@compiled
def _scan_all(pool, *arguments):
    """y = D x + sum of C_t h_t over the directions.

    Args:
        pool: ThreadPool.
        arguments: x, projection, A as above, D (d,), weight (4, R, d) and bias (4, d) of delta,
            scratch (threads, longest line * d), y, and the path of each direction.
    """
    in_parallel(_scan_map_part, pool, arguments)


@compiled
def _scan_map_part(thread, num_threads, x, projection, A, D, weight, bias, scratch, y, paths):
    states, channels = A.shape[1:]
    pixels, rank, entries = x.shape[1], weight.shape[1], projection.shape[3]
    directions, at_B = len(paths), entries - 2 * states
    z = scratch[thread]
    delta = np.empty(channels, np.float32)
    h = np.empty((states, channels), np.float32)
    unit, last = thread_range(thread, num_threads, len(x) * -(-channels // LANES))
    while unit < last:
        s, own, unit = sample_and_channels(unit, last, channels)
        width = own.stop - own.start
        # A product has whole vectors: what is projected may begin before `own`.
        projected = max(width, LANES)
        start = min(own.start, channels - projected)
        offset = own.start - start
        D_s = D[own]
        for p in range(pixels):
            x_p, y_p = x[s, p, own], y[s, p, own]
            for c in range(width):
                y_p[c] = x_p[c] * D_s[c]
        for direction in range(directions):
            first, count_outer, outer, count_inner, inner = paths[direction]
            bias_d = bias[direction, own]
            h[:] = 0
            for i in range(count_outer):
                line = first + i * outer
                multiply(
                    count_inner, projected, rank,
                    projection, ((s * pixels + line) * directions + direction) * entries,
                    inner * directions * entries, 1,
                    weight, direction * rank * channels + start, channels, z, 0, projected,
                )  # fmt: skip
                for j in range(count_inner):
                    p = line + j * inner
                    z_p = z[j * projected + offset : j * projected + offset + width]
                    x_p, y_p = x[s, p, own], y[s, p, own]
                    for c in range(width):
                        delta[c] = softplus(z_p[c] + bias_d[c])
                    for n in range(states):
                        A_n, h_n = A[direction, n, own], h[n]
                        B = projection[s, p, direction, at_B + n]
                        C = projection[s, p, direction, at_B + states + n]
                        for c in range(width):
                            h_n[c] = exp_or_zero(delta[c] * A_n[c]) * h_n[c] + delta[c] * x_p[c] * B
                            y_p[c] += C * h_n[c]


@compiled
def _scan_direction_back(pool, *arguments):
    """From grad_y add to grad_x, grads_B, grads_C and grads_A; z becomes its gradient.

    Each thread has its own grad_B, grad_C (threads, S, P, N) and grad_A (threads, N, d).
    """
    in_parallel(_scan_back_part, pool, arguments)


@inlined
def sample_and_channels(unit: int, end: int, channels: int) -> tuple[int, slice, int]:
    """The next sample and channels of units [unit, end), and the unit after them.

    A unit is LANES channels of a sample; a thread scans consecutive units of a sample together.
    """
    blocks = -(-channels // LANES)
    sample, block = unit // blocks, unit % blocks
    more = min(blocks - block, end - unit)
    return sample, slice(block * LANES, min((block + more) * LANES, channels)), unit + more


@compiled
def _scan_back_part(
    thread, num_threads, z, x, projection, A, grad_y, direction, path,
    grad_x, grads_B, grads_C, grads_A,
):  # fmt: skip
    grad_B, grad_C, grad_A = grads_B[thread], grads_C[thread], grads_A[thread]
    first, count_outer, outer, count_inner, inner = path
    length = count_outer * count_inner
    states, channels = A.shape[1:]
    at_B = projection.shape[3] - 2 * states
    h = np.zeros((length + 1, states, channels), np.float32)  # before the first and after each step
    delta, slope, grad_delta = np.empty((3, channels), np.float32)
    carried = np.empty((states, channels), np.float32)  # a_t dL/dh_t
    recent_A = np.empty((states, channels), np.float32)  # partial sums, for accuracy
    unit, last = thread_range(thread, num_threads, len(z) * -(-channels // LANES))
    while unit < last:
        s, own, unit = sample_and_channels(unit, last, channels)
        width = own.stop - own.start
        for t in range(length):
            p = first + (t // count_inner) * outer + (t % count_inner) * inner
            z_p, x_p = z[s, p, own], x[s, p, own]
            for c in range(width):
                delta[c] = softplus(z_p[c])
            for n in range(states):
                A_n, before, after = A[direction, n, own], h[t, n], h[t + 1, n]
                B = projection[s, p, direction, at_B + n]
                for c in range(width):
                    after[c] = exp_or_zero(delta[c] * A_n[c]) * before[c] + delta[c] * x_p[c] * B

        carried[:] = 0
        recent_A[:] = 0
        for t in range(length - 1, -1, -1):
            p = first + (t // count_inner) * outer + (t % count_inner) * inner
            z_p, x_p = z[s, p, own], x[s, p, own]
            gy_p, gx_p = grad_y[s, p, own], grad_x[s, p, own]
            for c in range(width):
                delta[c] = softplus(z_p[c])
                slope[c] = sigmoid(z_p[c])
                grad_delta[c] = 0
            for n in range(states):
                A_n, before, after = A[direction, n, own], h[t, n], h[t + 1, n]
                carried_n, recent_n = carried[n], recent_A[n]
                B = projection[s, p, direction, at_B + n]
                C = projection[s, p, direction, at_B + states + n]
                sum_B = sum_C = f32(0)
                for c in range(width):
                    # dL/dh_t = C_t dL/dy_t + a_{t+1} dL/dh_{t+1}
                    grad_h = gy_p[c] * C + carried_n[c]
                    scaled = grad_h * delta[c]
                    carried_n[c] = exp_or_zero(delta[c] * A_n[c]) * grad_h
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
                    grad_A_n, recent_n = grad_A[n, own], recent_A[n]
                    for c in range(width):
                        grad_A_n[c] += recent_n[c]
                        recent_n[c] = 0
