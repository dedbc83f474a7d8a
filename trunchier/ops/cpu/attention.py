"""Window attention and group-mix attention on CPU, compiled by numba, for inference.

The kernels cover everything between two linear layers. Intermediate results stay in the cache,
where torch would pass whole maps through a dozen small operations. Arithmetic is float32; inputs
and outputs may be bfloat16 or float16. Reference implementations: the backend 'torch' of
`ops.attention` and `GroupMixAttention.mix`.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .compile import compiled, f32
from .functions import exp_or_zero, hardswish
from .simd import LANES, convolve, multiply, scale_copy, transpose_tile
from .threads import in_parallel, thread_pool, thread_range

# --- windows -------------------------------------------------------------------------------------

MIN_HEAD_CHANNELS = 16  # of `attend_windows`


def attend_windows(
    qkv: Tensor, padding: Tensor, bias: Tensor, tokens: Tensor, region: Tensor | None, masked: float
) -> Tensor:
    """Multi-head attention within each window, see `ops.window_attention`.

    Args:
        tokens, region: (windows, P) int32, of the layout; None: no shift.
        masked: added to scores of positions of different regions.
    """
    batch, num_tokens, channels = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    heads, positions, _ = bias.shape
    size = channels // heads
    width = -(-positions // LANES) * LANES
    out = torch.empty(batch, num_tokens, channels)
    pairs = batch * len(tokens) * heads
    pool = thread_pool(pairs * positions * width * 6)
    scratch = torch.empty(pool.threads, 4 * size * width + (positions + 2) * width)
    bias = F.pad(bias.float().transpose(1, 2), (0, width - positions))
    regions = tokens[:0] if region is None else F.pad(region, (0, width - positions))
    arrays = qkv.float().reshape(-1), padding.float(), bias, tokens, regions, scratch, out.view(-1)
    arrays = (array.detach().numpy() for array in arrays)
    _attend_windows(pool, batch, channels, *arrays, f32(masked))
    return out.to(qkv.dtype)


@compiled
def _attend_windows(pool, *arguments):
    in_parallel(_window_part, pool, arguments)


@compiled
def _window_part(
    thread, num_threads, batch, channels, qkv, padding, bias, tokens, region, scratch, out, masked
):
    """Some pairs of a window and a head. Scores are (keys, queries): a vector holds queries."""
    heads, positions, width = bias.shape
    windows, size, num_tokens = len(tokens), channels // heads, len(out) // (batch * channels)
    own, n = scratch[thread], size * width
    q, k, v, o = own[:n], own[n : 2 * n], own[2 * n : 3 * n], own[3 * n : 4 * n]
    score, top, total = own[4 * n : -2 * width], own[-2 * width : -width], own[-width:]
    scale = f32(1 / np.sqrt(size))
    first, end = thread_range(thread, num_threads, batch * windows * heads)
    for pair in range(first, end):
        head, window = pair % heads, pair // heads % windows
        start = pair // (heads * windows) * num_tokens
        at = head * size
        for p in range(positions):
            token = tokens[window, p]
            for c in range(0, size, LANES):
                c = min(c, size - LANES)
                to = p * size + c
                if token >= 0:
                    x_at = (start + token) * 3 * channels + at + c
                    scale_copy(qkv, x_at, scale, o, to)
                    scale_copy(qkv, x_at + channels, f32(1), k, to)
                    scale_copy(qkv, x_at + 2 * channels, f32(1), v, to)
                else:
                    scale_copy(padding, at + c, scale, o, to)
                    scale_copy(padding, at + c + channels, f32(1), k, to)
                    scale_copy(padding, at + c + 2 * channels, f32(1), v, to)
        for p in range(0, positions, LANES):
            for c in range(0, size, LANES):
                c = min(c, size - LANES)
                transpose_tile(o, p * size + c, size, q, c * width + p, width)

        multiply(positions, width, size, k, 0, size, 1, q, 0, width, score, 0, width)
        for i in range(width):
            top[i] = f32(-np.inf)
            total[i] = 0
        for p in range(positions):
            score_p, bias_p = score[p * width : (p + 1) * width], bias[head, p]
            for i in range(width):
                score_p[i] += bias_p[i]
            if len(region):
                regions, region_p = region[window], region[window, p]
                for i in range(width):
                    score_p[i] += f32(0) if regions[i] == region_p else masked
            for i in range(width):
                top[i] = score_p[i] if score_p[i] > top[i] else top[i]
        for p in range(positions):
            score_p = score[p * width : (p + 1) * width]
            for i in range(width):
                e = exp_or_zero(score_p[i] - top[i])
                score_p[i] = e
                total[i] += e
        multiply(positions, size, positions, score, 0, 1, width, v, 0, size, o, 0, size)
        for p in range(positions):
            token = tokens[window, p]
            if token >= 0:
                to = (start + token) * channels + at
                for c in range(0, size, LANES):
                    c = min(c, size - LANES)
                    scale_copy(o, p * size + c, f32(1) / total[p], out, to + c)


# --- groups --------------------------------------------------------------------------------------

KERNEL_SIZES = (3, 5, 7)  # of the groups that are convolved
POSITION_HEADS = (2, 3, 3)  # heads whose v is convolved with each of KERNEL_SIZES
NUM_HEADS = sum(POSITION_HEADS)
BLOCK_PIXELS = 48  # rows of one matrix product


class GroupMix(NamedTuple):
    """Float32 weights of group-mix attention, batch norms folded; see `mix_groups`.

    A segment has S channels, a head S / 2. Convolution kernels are (taps, channels), those of
    KERNEL_SIZES concatenated.
    """

    segment: int
    taps: np.ndarray  # of q, k, v of the three convolved groups, and of the local one (3x3)
    pointwise: np.ndarray  # (3, S, S), shared by q, k and v: in, out
    bias: np.ndarray  # (3, S)
    local: np.ndarray  # (3 S, S)
    norm: np.ndarray  # (2, S), weight and bias of the local layer norm
    eps: float
    position_taps: np.ndarray
    position_bias: np.ndarray  # (4 S,)
    scale: float


def fits_groups(segment: int) -> bool:
    """Whether `mix_groups` supports segments of `segment` channels."""
    return segment >= 16 and segment % 4 == 0


def mix_groups(x: Tensor, weights: GroupMix) -> Tensor:
    """Group-mix attention between its two projections.

    Args:
        x: (B, H, W, 15 S): q, k and v of the plain segment, of the three convolved ones, and of
            the local one.

    Returns:
        (B, H, W, 5 S).
    """
    batch, height, width = x.shape[:3]
    pixels, segment = height * width, weights.segment
    mixed = 4 * segment
    pool = thread_pool(batch * pixels * segment * 100)
    convolved = torch.empty(batch * pixels * 12 * segment)
    qkv = torch.empty(3, batch * pixels * mixed)
    mixers = torch.zeros(batch * mixed * mixed)
    total = torch.empty(batch, mixed)
    size, padded = segment // 2, (height + 6) * (width + 6)
    scratch = torch.empty(pool.threads, max((padded + 2 * pixels) * LANES, size * max(size, LANES)))
    out = torch.empty(batch, height, width, 5 * segment)
    arrays = x.detach().float().reshape(-1), convolved, *qkv, mixers, total, scratch, out.view(-1)
    arrays = tuple(array.numpy() for array in arrays)
    _mix_groups(pool, (batch, height, width, segment), arrays, tuple(weights))
    return out.to(x.dtype)


@compiled
def _mix_groups(pool, shape, arrays, weights):
    in_parallel(_convolve_part, pool, (shape, arrays, weights))
    in_parallel(_pointwise_part, pool, (shape, arrays, weights))
    in_parallel(_softmax_part, pool, (shape, arrays))
    in_parallel(_mixers_part, pool, (shape, arrays, weights))
    in_parallel(_mix_part, pool, (shape, arrays, weights))


@compiled
def _convolve_part(thread, num_threads, shape, arrays, weights):
    """Depthwise convolutions of the three convolved groups and the local one."""
    batch, height, width, segment = shape
    x, convolved, scratch = arrays[0], arrays[1], arrays[7]
    taps = weights[1]
    padded, pixels, channels = scratch[thread], height * width, 3 * segment
    blocks = -(-channels // LANES)
    first, end = thread_range(thread, num_threads, batch * blocks * 4)
    for unit in range(first, end):
        group, block, sample = unit % 4, unit // 4 % blocks, unit // (4 * blocks)
        kernel_size = KERNEL_SIZES[group] if group < 3 else 3
        before = 0
        for i in range(group):
            before += KERNEL_SIZES[i] ** 2
        c = min(block * LANES, channels - LANES)
        x_at = sample * pixels * 15 * segment + (group + 1) * channels + c
        to = sample * pixels * 12 * segment + group * channels + c
        convolve(
            kernel_size, height, width, x, x_at, 15 * segment, padded,
            taps, before * channels + c, channels, convolved, to, 12 * segment,
        )  # fmt: skip


@compiled
def _pointwise_part(thread, num_threads, shape, arrays, weights):
    """Pointwise layers and activations after the convolutions, to q, k and v (B, P, 4 S)."""
    batch, height, width, segment = shape
    x, convolved, q, k, v, _, _, _, out = arrays
    _, _, pointwise, bias, local, norm, eps, _, _, _ = weights
    pixels = height * width
    runs = -(-pixels // BLOCK_PIXELS)
    first, end = thread_range(thread, num_threads, batch * runs)
    for unit in range(first, end):
        sample, run = unit // runs, unit % runs
        start = sample * pixels + run * BLOCK_PIXELS
        rows = min(BLOCK_PIXELS, pixels - run * BLOCK_PIXELS)
        for t, y in enumerate((q, k, v)):
            for group in range(3):
                multiply(
                    rows, segment, segment,
                    convolved, start * 12 * segment + (3 * group + t) * segment, 12 * segment, 1,
                    pointwise, group * segment * segment, segment,
                    y, (start * 4 + group + 1) * segment, 4 * segment,
                )  # fmt: skip
            for p in range(start, start + rows):
                x_p = x[(p * 15 + t) * segment : (p * 15 + t + 1) * segment]
                y_p = y[p * 4 * segment : (p + 1) * 4 * segment]
                for c in range(segment):
                    y_p[c] = hardswish(x_p[c])
                y_p, bias_p = y_p[segment:], bias
                for c in range(3 * segment):
                    y_p[c] = hardswish(y_p[c] + bias_p[c])
        multiply(
            rows, segment, 3 * segment, convolved, (start * 12 + 9) * segment, 12 * segment, 1,
            local, 0, segment, out, (start * 5 + 4) * segment, 5 * segment,
        )  # fmt: skip
        for p in range(start, start + rows):
            y_p = out[(p * 5 + 4) * segment : (p + 1) * 5 * segment]
            mean = f32(0)
            for c in range(segment):
                mean += y_p[c]
            mean /= f32(segment)
            square = f32(0)
            for c in range(segment):
                square += (y_p[c] - mean) ** 2
            scale = f32(1) / np.sqrt(square / f32(segment) + f32(eps))
            weight, shift = norm[0], norm[1]
            for c in range(segment):
                y_p[c] = hardswish((y_p[c] - mean) * scale * weight[c] + shift[c])


@compiled
def _softmax_part(thread, num_threads, shape, arrays):
    """exp(k - max) of each channel over all pixels, and their sums."""
    batch, height, width, segment = shape
    k, total = arrays[3], arrays[6]
    pixels, channels = height * width, 4 * segment
    top = np.empty(LANES, np.float32)
    blocks = channels // LANES
    first, end = thread_range(thread, num_threads, batch * blocks)
    for unit in range(first, end):
        sample, block = unit // blocks, unit % blocks
        total_b = total[sample, block * LANES : (block + 1) * LANES]
        for c in range(LANES):
            top[c] = f32(-np.inf)
            total_b[c] = 0
        for p in range(pixels):
            at = (sample * pixels + p) * channels + block * LANES
            k_p = k[at : at + LANES]
            for c in range(LANES):
                top[c] = k_p[c] if k_p[c] > top[c] else top[c]
        for p in range(pixels):
            at = (sample * pixels + p) * channels + block * LANES
            k_p = k[at : at + LANES]
            for c in range(LANES):
                e = exp_or_zero(k_p[c] - top[c])
                k_p[c] = e
                total_b[c] += e


@compiled
def _mixers_part(thread, num_threads, shape, arrays, weights):
    """scale softmax(k)^T v of each head, blocks on the diagonal of (B, 4 S, 4 S)."""
    batch, height, width, segment = shape
    _, _, _, k, v, mixers, total, scratch, _ = arrays
    pixels, channels, size = height * width, 4 * segment, segment // 2
    scale, products = f32(weights[9]), scratch[thread]
    columns = max(size, LANES)
    first, end = thread_range(thread, num_threads, batch * NUM_HEADS)
    for unit in range(first, end):
        sample, head = unit // NUM_HEADS, unit % NUM_HEADS
        at = sample * pixels * channels
        start = min(head * size, channels - columns)
        multiply(
            size, columns, pixels, k, at + head * size, 1, channels, v, at + start, channels,
            products, 0, columns,
        )  # fmt: skip
        for i in range(size):
            channel = head * size + i
            factor = scale / total[sample, channel]
            to = (sample * channels + channel) * channels + head * size
            for j in range(size):
                mixers[to + j] = products[i * columns + head * size - start + j] * factor


@compiled
def _mix_part(thread, num_threads, shape, arrays, weights):
    """q times its head's mixer, plus q times the convolved v."""
    batch, height, width, segment = shape
    _, _, q, _, v, mixers, _, scratch, out = arrays
    taps, bias = weights[7], weights[8]
    pixels, channels, size = height * width, 4 * segment, segment // 2
    products = scratch[thread, : pixels * LANES]
    positions = scratch[thread, pixels * LANES : 2 * pixels * LANES]
    padded = scratch[thread, 2 * pixels * LANES :]
    blocks = 0
    for heads in POSITION_HEADS:
        blocks += -(-heads * size // LANES)
    first, end = thread_range(thread, num_threads, batch * blocks)
    for unit in range(first, end):
        sample, block = unit // blocks, unit % blocks
        # This kernel size has the channels [low, low + own); `before` taps precede its taps.
        low, own, kernel_size, before = 0, 0, 0, 0
        for i in range(3):
            own, kernel_size = POSITION_HEADS[i] * size, KERNEL_SIZES[i]
            if block < -(-own // LANES):
                break
            block -= -(-own // LANES)
            low += own
            before += own * kernel_size * kernel_size
        inside = min(block * LANES, own - LANES)
        c = low + inside
        convolve(
            kernel_size, height, width, v, sample * pixels * channels + c, channels, padded,
            taps, before + inside, own, positions, 0, LANES,
        )  # fmt: skip
        head = c // size
        depth = ((c + LANES - 1) // size + 1 - head) * size
        multiply(
            pixels, LANES, depth, q, sample * pixels * channels + head * size, channels, 1,
            mixers, (sample * channels + head * size) * channels + c, channels,
            products, 0, LANES,
        )  # fmt: skip
        bias_c = bias[c : c + LANES]
        for p in range(pixels):
            at = sample * pixels + p
            q_p = q[at * channels + c : at * channels + c + LANES]
            y_p = out[at * 5 * segment + c : at * 5 * segment + c + LANES]
            mixed = products[p * LANES : (p + 1) * LANES]
            position = positions[p * LANES : (p + 1) * LANES]
            for i in range(LANES):
                y_p[i] = mixed[i] + q_p[i] * (position[i] + bias_c[i])
