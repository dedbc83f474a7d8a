"""Attention of Swin and of GroupMixFormer on CPU, compiled by numba: all that lies between two
linear layers, for inference. The arithmetic is float32, what goes in and out also lower precision.

The tokens are read where the projection left them, what is computed of them stays in the cache,
and the mixed tokens are written; torch would move whole maps through a dozen small operations. What
is computed is said in torch by `WindowAttention` in `models.swin` and `GroupMixAttention` in
`models.groupmixformer`.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from .simd import (
    LANES,
    bounds,
    compiled,
    convolve,
    exp,
    f32,
    hardswish,
    in_parallel,
    move,
    multiply,
    team,
    turn,
)

# --- windows -------------------------------------------------------------------------------------


def fits_windows(size):
    """Whether `attend_windows` can do heads of so many channels."""
    return size >= 16


def attend_windows(qkv, padding, bias, tokens, region=None, masked=0.0):
    """Multi-head attention among the places of each window.

    Args:
        qkv: (B, N, 3 C).
        padding: (3 C,), q, k and v of places without a token.
        bias: (heads, places, places), of query and key, added to their score.
        tokens: (windows, places) int32, the token of each place, or -1.
        region: (windows, places) int32, or None.
        masked: added to the score of places of different regions.

    Returns:
        (B, N, C).
    """
    batch, num_tokens, channels = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    heads, places, _ = bias.shape
    size = channels // heads
    width = -(-places // LANES) * LANES
    out = torch.empty(batch, num_tokens, channels)
    pairs = batch * len(tokens) * heads
    crew = team(pairs * places * width * 6)
    scratch = torch.empty(crew.threads, 4 * size * width + (places + 2) * width)
    bias = F.pad(bias.float().transpose(1, 2), (0, width - places))
    regions = tokens[:0] if region is None else F.pad(region, (0, width - places))
    arrays = qkv.float().reshape(-1), padding.float(), bias, tokens, regions, scratch, out.view(-1)
    arrays = (array.detach().numpy() for array in arrays)
    _attend_windows(crew, batch, channels, *arrays, f32(masked))
    return out.to(qkv.dtype)


@compiled
def _attend_windows(crew, *arguments):
    in_parallel(_window_share, crew, arguments)


@compiled
def _window_share(
    share, shares, batch, channels, qkv, padding, bias, tokens, region, scratch, out, masked
):
    """Some pairs of a window and a head. Scores lie key by key, so that a vector holds queries."""
    heads, places, width = bias.shape
    windows, size, num_tokens = len(tokens), channels // heads, len(out) // (batch * channels)
    mine, room = scratch[share], size * width
    q, k, v, o = (
        mine[:room],
        mine[room : 2 * room],
        mine[2 * room : 3 * room],
        mine[3 * room : 4 * room],
    )
    score, top, total = mine[4 * room : -2 * width], mine[-2 * width : -width], mine[-width:]
    scale = f32(1 / np.sqrt(size))
    first, end = bounds(share, shares, batch * windows * heads)
    for pair in range(first, end):
        head, window = pair % heads, pair // heads % windows
        start = pair // (heads * windows) * num_tokens
        at = head * size
        for p in range(places):
            token = tokens[window, p]
            for c in range(0, size, LANES):
                c = min(c, size - LANES)
                to = p * size + c
                if token >= 0:
                    x_at = (start + token) * 3 * channels + at + c
                    move(qkv, x_at, scale, o, to)
                    move(qkv, x_at + channels, f32(1), k, to)
                    move(qkv, x_at + 2 * channels, f32(1), v, to)
                else:
                    move(padding, at + c, scale, o, to)
                    move(padding, at + c + channels, f32(1), k, to)
                    move(padding, at + c + 2 * channels, f32(1), v, to)
        for p in range(0, places, LANES):
            for c in range(0, size, LANES):
                c = min(c, size - LANES)
                turn(o, p * size + c, size, q, c * width + p, width)

        multiply(places, width, size, k, 0, size, 1, q, 0, width, score, 0, width)
        for i in range(width):
            top[i] = f32(-np.inf)
            total[i] = 0
        for p in range(places):
            score_p, bias_p = score[p * width : (p + 1) * width], bias[head, p]
            for i in range(width):
                score_p[i] += bias_p[i]
            if len(region):
                regions, own = region[window], region[window, p]
                for i in range(width):
                    score_p[i] += f32(0) if regions[i] == own else masked
            for i in range(width):
                top[i] = score_p[i] if score_p[i] > top[i] else top[i]
        for p in range(places):
            score_p = score[p * width : (p + 1) * width]
            for i in range(width):
                e = exp(score_p[i] - top[i])
                score_p[i] = e
                total[i] += e
        multiply(places, size, places, score, 0, 1, width, v, 0, size, o, 0, size)
        for p in range(places):
            token = tokens[window, p]
            if token >= 0:
                to = (start + token) * channels + at
                for c in range(0, size, LANES):
                    c = min(c, size - LANES)
                    move(o, p * size + c, f32(1) / total[p], out, to + c)


# --- groups --------------------------------------------------------------------------------------

SIDES = (3, 5, 7)  # of the kernels of the groups that have one
POSITIONS = (2, 3, 3)  # heads whose positions are convolved by each of SIDES
HEADS = sum(POSITIONS)
ROWS = 48  # pixels that are multiplied together


class GroupMix(NamedTuple):
    """Weights of group-mix attention, without its batch norms, as float32 arrays; see `mix_groups`.

    S channels make a segment, heads have S / 2; kernels lie tap by tap, (taps, channels), those of
    SIDES after each other.
    """

    segment: int
    taps: np.ndarray  # of q, k and v of the three groups with a kernel, and of the local one (3x3)
    pointwise: np.ndarray  # (3, S, S), of q, k and v alike: in, out
    bias: np.ndarray  # (3, S)
    local: np.ndarray  # (3 S, S)
    norm: np.ndarray  # (2, S), weight and bias of the local one's layer norm
    eps: float
    position_taps: np.ndarray
    position_bias: np.ndarray  # (4 S,)
    scale: float


def fits_groups(segment):
    """Whether `mix_groups` can do segments of so many channels."""
    return segment >= 16 and segment % 4 == 0


def mix_groups(x, weights):
    """Group-mix attention, from the projection of its five segments to what is projected back.

    Args:
        x: (B, H, W, 15 S): q, k and v of the segment without a kernel, of the three with
            one, and of the local one.
        weights: GroupMix.

    Returns:
        (B, H, W, 5 S).
    """
    batch, height, width = x.shape[:3]
    pixels, segment = height * width, weights.segment
    mixed = 4 * segment
    crew = team(batch * pixels * segment * 100)
    convolved = torch.empty(batch * pixels * 12 * segment)
    qkv = torch.empty(3, batch * pixels * mixed)
    mixers = torch.zeros(batch * mixed * mixed)
    total = torch.empty(batch, mixed)
    scratch = torch.empty(
        crew.threads, (height + 6) * (width + 6) * LANES + 2 * max(pixels, segment) * LANES
    )
    out = torch.empty(batch, height, width, 5 * segment)
    arrays = x.detach().float().reshape(-1), convolved, *qkv, mixers, total, scratch, out.view(-1)
    arrays = tuple(array.numpy() for array in arrays)
    _mix_groups(crew, (batch, height, width, segment), arrays, tuple(weights))
    return out.to(x.dtype)


@compiled
def _mix_groups(crew, shape, arrays, weights):
    in_parallel(_convolve_share, crew, (shape, arrays, weights))
    in_parallel(_pointwise_share, crew, (shape, arrays, weights))
    in_parallel(_softmax_share, crew, (shape, arrays))
    in_parallel(_mixers_share, crew, (shape, arrays, weights))
    in_parallel(_mix_share, crew, (shape, arrays, weights))


@compiled
def _convolve_share(share, shares, shape, arrays, weights):
    """The depthwise convolutions of three groups and the local one."""
    batch, height, width, segment = shape
    x, convolved, scratch = arrays[0], arrays[1], arrays[7]
    taps = weights[1]
    padded, pixels, channels = scratch[share], height * width, 3 * segment
    blocks = -(-channels // LANES)
    unit, end = bounds(share, shares, batch * blocks * 4)
    while unit < end:
        group, block, sample = unit % 4, unit // 4 % blocks, unit // (4 * blocks)
        side = SIDES[group] if group < 3 else 3
        before = 0
        for i in range(group):
            before += SIDES[i] ** 2
        c = min(block * LANES, channels - LANES)
        x_at = sample * pixels * 15 * segment + (group + 1) * channels + c
        to = sample * pixels * 12 * segment + group * channels + c
        convolve(
            side, height, width, x, x_at, 15 * segment, padded,
            taps, before * channels + c, channels, convolved, to, 12 * segment,
        )  # fmt: skip
        unit += 1


@compiled
def _pointwise_share(share, shares, shape, arrays, weights):
    """The linear layers behind them, and activations; q, k and v (B, P, 4 S) then lie apart."""
    batch, height, width, segment = shape
    x, convolved, q, k, v, _, _, _, out = arrays
    _, _, pointwise, bias, local, norm, eps, _, _, _ = weights
    pixels = height * width
    runs = -(-pixels // ROWS)
    unit, end = bounds(share, shares, batch * runs)
    while unit < end:
        sample, run = unit // runs, unit % runs
        start = sample * pixels + run * ROWS
        rows = min(ROWS, pixels - run * ROWS)
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
        unit += 1


@compiled
def _softmax_share(share, shares, shape, arrays):
    """exp(k) over its largest in each channel, and their sums."""
    batch, height, width, segment = shape
    k, total = arrays[3], arrays[6]
    pixels, channels = height * width, 4 * segment
    top = np.empty(LANES, np.float32)
    blocks = channels // LANES
    first, end = bounds(share, shares, batch * blocks)
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
                e = exp(k_p[c] - top[c])
                k_p[c] = e
                total_b[c] += e


@compiled
def _mixers_share(share, shares, shape, arrays, weights):
    """scale softmax(k)^T v of each head, in its place on the diagonal of (B, 4 S, 4 S)."""
    batch, height, width, segment = shape
    _, _, _, k, v, mixers, total, scratch, _ = arrays
    pixels, channels, size = height * width, 4 * segment, segment // 2
    scale, products = f32(weights[9]), scratch[share]
    columns = max(size, LANES)
    first, end = bounds(share, shares, batch * HEADS)
    for unit in range(first, end):
        sample, head = unit // HEADS, unit % HEADS
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
def _mix_share(share, shares, shape, arrays, weights):
    """q by its head's mixer, plus q times v convolved."""
    batch, height, width, segment = shape
    _, _, q, _, v, mixers, _, scratch, out = arrays
    taps, bias = weights[7], weights[8]
    pixels, channels, size = height * width, 4 * segment, segment // 2
    products = scratch[share, : pixels * LANES]
    positions = scratch[share, pixels * LANES : 2 * pixels * LANES]
    padded = scratch[share, 2 * pixels * LANES :]
    blocks = 0
    for heads in POSITIONS:
        blocks += -(-heads * size // LANES)
    first, end = bounds(share, shares, batch * blocks)
    for unit in range(first, end):
        sample, block = unit // blocks, unit % blocks
        # The kernel's channels [low, low + own), and what lies before them.
        low, own, side, before = 0, 0, 0, 0
        for i in range(3):
            own, side = POSITIONS[i] * size, SIDES[i]
            if block < -(-own // LANES):
                break
            block -= -(-own // LANES)
            low += own
            before += own * side * side
        inside = min(block * LANES, own - LANES)
        c = low + inside
        convolve(
            side, height, width, v, sample * pixels * channels + c, channels, padded,
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
