"""The scan of a map on CUDA, forward and backward, one kernel each.

A program scans some channels of one direction of one sample, a chunk of steps at a time, and
carries the state from chunk to chunk. It computes the pixels of its direction from the step,
projects delta, and adds the skip term, so neither four copies of the map nor delta are ever stored.
Where there are few sequences, each is cut into segments for separate programs: a first pass
computes the end of each segment from a zero state. The forward pass stores the state at the start
of each chunk; the backward pass recomputes the others. Arithmetic is float32; the gradients of B
and C are summed in no fixed order, so their last digits may vary.

Runs on CPU in Triton's interpreter (TRITON_INTERPRET=1), for tests.
"""

import os
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..polynomials import LOG1P
from .parallel import exactly

if not hasattr(tl, 'gather'):
    raise ImportError(f'triton {triton.__version__} has no gather; install triton >= 3.2')

INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'
STEPS = 16 if INTERPRETED else 64  # of a chunk
PROGRAMS = 512  # cut sequences into segments until there are about as many


def selective_scan_2d(*inputs: Tensor) -> Tensor:
    """See `trunchier.ops.selective_scan_2d`."""
    return _SelectiveScan2d.apply(*inputs)


class _SelectiveScan2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *inputs):
        x = inputs[0]
        with exactly(x):
            y, states = _scan(_problem(*inputs), keep=any(ctx.needs_input_grad))
            ctx.save_for_backward(*inputs, states)
            return y.sum(1).view(x.shape).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y):
        *inputs, states = ctx.saved_tensors
        x, projection, A, D, weight, bias = inputs
        with exactly(x):
            problem = _problem(*inputs)
            grad_y = grad_y.contiguous().flatten(1, 2)
            grad_x, grad_z, grad_B, grad_C, grad_A = _scan_back(problem, grad_y, states)
            low = problem.projection[..., : weight.shape[2]].float()  # (batch, pixels, 4, R)
            grad_low = torch.einsum('bkpd,kdr->bkpr', grad_z, weight.float())
            grad_weight = torch.einsum('bkpd,bpkr->kdr', grad_z, low)
            grad_projection = torch.cat((grad_low, grad_B, grad_C), dim=-1).transpose(1, 2)
            grad_D = torch.einsum('bpd,bpd->d', grad_y.float(), problem.x.float())
        return (
            grad_x.sum(1).view(x.shape).to(x.dtype),
            grad_projection.reshape(projection.shape).to(projection.dtype),
            grad_A.to(A.dtype),
            grad_D.expand(4, -1).to(D.dtype),
            grad_weight.to(weight.dtype),
            grad_z.sum((0, 2)).to(bias.dtype),
        )


class Problem(NamedTuple):
    """What the kernels scan, in any float dtype; contiguous, but for x."""

    x: Tensor  # (batch, pixels, d), any strides
    projection: Tensor  # (batch, pixels, 4, R + 2 N)
    A: Tensor  # (4, d, N)
    D: Tensor  # (4, d)
    weight: Tensor  # (4, d, R)
    bias: Tensor  # (4, d)
    height: int  # of the map

    def arguments(self) -> tuple:
        """The first arguments of both kernels."""
        _, pixels, channels = self.x.shape
        return self.x, *self.x.stride(), *self[1:6], pixels, self.height, channels

    def constants(self) -> dict[str, int]:
        rank, states = self.weight.shape[2], self.A.shape[2]
        width = triton.next_power_of_2(states)
        constants = dict(N=states, STATES=width, RANK=rank, STEPS=STEPS)
        return constants | dict(CHANNELS=8) if INTERPRETED else constants


def _problem(x, projection, *weights):
    weights = (tensor.contiguous() for tensor in weights)
    return Problem(x.flatten(1, 2), projection.flatten(1, 2).contiguous(), *weights, x.shape[1])


def _scan(problem, keep):
    """y (batch, 4, pixels, d), float32, and with `keep` the state that enters each chunk."""
    batch, pixels, channels = problem.x.shape
    states = problem.A.shape[2]
    y = problem.x.new_empty((batch, 4, pixels, channels), dtype=torch.float32)
    if y.numel() == 0:
        return y, None
    chunks = triton.cdiv(pixels, STEPS)
    kept = y.new_empty((batch, 4, chunks, channels, states) if keep else 0)
    segments = max(1, min(chunks // 2, PROGRAMS // (batch * 4 * triton.cdiv(channels, 16))))
    each = triton.cdiv(chunks, segments)  # chunks of a segment
    segments = triton.cdiv(chunks, each)
    ends = y.new_empty((batch, 4, segments, channels, states) if segments > 1 else 0)
    lasted = y.new_empty((batch, 4, segments, channels) if segments > 1 else 0)

    def grid(meta):
        return batch * 4, triton.cdiv(channels, meta['CHANNELS']), segments

    for summarize in (True, False) if segments > 1 else (False,):
        _forward_kernel[grid](
            *problem.arguments(), y, kept, ends, lasted, segments, each,
            **problem.constants(), KEEP=keep and not summarize, SUMMARIZE=summarize,
        )  # fmt: skip
    return y, kept if keep else None


def _scan_back(problem, grad_y, states):
    """Gradients of x, delta before bias and softplus, B, C (batch, 4, pixels, .), and A."""
    batch, pixels, channels = problem.x.shape
    sizes = channels, channels, problem.A.shape[2], problem.A.shape[2]
    like = dict(dtype=torch.float32, device=grad_y.device)
    grads = [torch.zeros(batch, 4, pixels, size, **like) for size in sizes]
    grad_A = torch.zeros(batch, *problem.A.shape, **like)
    if grads[0].numel():

        def grid(meta):
            return batch * 4, triton.cdiv(channels, meta['CHANNELS'])

        _backward_kernel[grid](
            *problem.arguments(), grad_y, states, *grads, grad_A, **problem.constants()
        )
    return *grads, grad_A.sum(0)


# --- kernels -------------------------------------------------------------------------------------
#
# Tiles are (STEPS, CHANNELS) and (STEPS, CHANNELS, STATES). Beyond the last step, channel or state
# zeros are loaded, and delta is 0, which leaves the state unchanged.


def _tuned(*accumulated):
    """Decorator: choose channels and warps of a program by measuring, once per kind of problem."""
    if INTERPRETED:
        return lambda kernel: kernel
    configs = [
        triton.Config(dict(CHANNELS=channels), num_warps=warps)
        for channels, warps in ((4, 1), (8, 2), (16, 2), (16, 4), (32, 4), (32, 8))
    ]
    key = ['pixels', 'channels', 'N', 'RANK']
    return triton.autotune(configs, key=key, reset_to_zero=list(accumulated))


@triton.jit
def _compose(decay, added, next_decay, next_added):
    """Compose two steps h -> decay h + added."""
    return decay * next_decay, next_decay * added + next_added


@triton.jit
def _pixel_of(step, direction, height, pixels):
    """The pixel that a direction reads at a step."""
    forward = tl.where(direction >= 2, pixels - 1 - step, step)
    width = pixels // height
    column_first = (forward % height) * width + forward // height
    return tl.where(direction % 2 == 0, forward, column_first)


L0, L1, L2, L3, L4, L5, L6, L7, L8 = (tl.constexpr(c) for c in LOG1P)


@triton.jit
def _softplus(x):
    """max(x, 0) + log1p(e^-|x|), with the polynomial LOG1P."""
    e = tl.exp(-tl.abs(x))
    p = (((L0 * e + L1) * e + L2) * e + L3) * e + L4
    p = (((p * e + L5) * e + L6) * e + L7) * e + L8
    return tl.where(x < 0, 0.0, x) + p * e


@triton.jit
def _load_weights(
    A, D, channels, N: tl.constexpr, STATES: tl.constexpr, CHANNELS: tl.constexpr
):  # fmt: skip
    """The sequence and the channels of a program, which of its states exist, and its A and D."""
    sequence = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    state = tl.arange(0, STATES)
    row = sequence % 4 * channels + channel
    has_channel = channel < channels
    has_both = has_channel[:, None] & (state < N)[None, :]
    A_tile = tl.load(A + row[:, None] * N + state[None, :], has_both, 0.0).to(tl.float32)
    skip = tl.load(D + row, has_channel, 0.0).to(tl.float32)
    return sequence, channel, state, has_both, A_tile, skip


@triton.jit
def _load_chunk(
    step, sequence, channel, state, x, x_b, x_p, x_c, projection, weight, bias,
    pixels, height, channels, N: tl.constexpr, RANK: tl.constexpr,
):  # fmt: skip
    """The pixels of some steps, their projections, and x, z (delta before the softplus), B, C."""
    has_step, has_channel = step < pixels, channel < channels
    inside = has_step[:, None] & has_channel[None, :]
    with_state = has_step[:, None] & (state < N)[None, :]
    sample, direction = sequence // 4, sequence % 4
    pixel = _pixel_of(step, direction, height, pixels)
    at = x + sample * x_b + pixel[:, None] * x_p + channel[None, :] * x_c
    x_tile = tl.load(at, inside, 0.0).to(tl.float32)
    at = projection + ((sample * pixels + pixel) * 4 + direction) * (RANK + 2 * N)
    row = direction * channels + channel
    z = tl.where(has_step[:, None], tl.load(bias + row, has_channel, 0.0).to(tl.float32)[None], 0.0)
    for r in range(RANK):
        low = tl.load(at + r, has_step, 0.0).to(tl.float32)
        column = tl.load(weight + row * RANK + r, has_channel, 0.0).to(tl.float32)
        z += low[:, None] * column[None, :]
    at = at[:, None] + RANK + state[None, :]
    B_tile = tl.load(at, with_state, 0.0).to(tl.float32)[:, None, :]
    C_tile = tl.load(at + N, with_state, 0.0).to(tl.float32)[:, None, :]
    return pixel, inside, with_state, x_tile, z, B_tile, C_tile


@_tuned()
@triton.jit
def _forward_kernel(
    x, x_b, x_p, x_c, projection, A, D, weight, bias, pixels, height, channels,
    y, kept, ends, lasted, segments, each,
    N: tl.constexpr, STATES: tl.constexpr, RANK: tl.constexpr, STEPS: tl.constexpr,
    CHANNELS: tl.constexpr, KEEP: tl.constexpr, SUMMARIZE: tl.constexpr,
):  # fmt: skip
    """y; or with SUMMARIZE the last state of each segment begun from zero, and its sum of delta."""
    sequence, channel, state, has_both, A_tile, skip = _load_weights(
        A, D, channels, N, STATES, CHANNELS
    )
    has_channel = channel < channels
    segment = tl.program_id(2)
    h = tl.where(has_both, 0.0, 0.0)  # (CHANNELS, STATES)
    if not SUMMARIZE:
        for earlier in range(segment):
            at = (sequence * segments + earlier) * channels + channel
            decay = tl.exp(tl.load(lasted + at, has_channel, 0.0)[:, None] * A_tile)
            h = decay * h + tl.load(ends + at[:, None] * N + state[None, :], has_both, 0.0)
    last = (tl.arange(0, STEPS) == STEPS - 1)[:, None, None]
    duration = tl.where(has_channel, 0.0, 0.0)
    chunks = tl.cdiv(pixels, STEPS)
    for chunk in range(segment * each, tl.minimum(segment * each + each, chunks)):
        pixel, inside, with_state, x_tile, z, B_tile, C_tile = _load_chunk(
            chunk * STEPS + tl.arange(0, STEPS), sequence, channel, state,
            x, x_b, x_p, x_c, projection, weight, bias, pixels, height, channels, N, RANK,
        )  # fmt: skip
        delta = tl.where(inside, _softplus(z), 0.0)
        if KEEP:
            at = (sequence * chunks + chunk) * channels + channel
            tl.store(kept + at[:, None] * N + state[None, :], h, has_both)
        decay = tl.exp(delta[:, :, None] * A_tile[None])
        added = (delta * x_tile)[:, :, None] * B_tile
        decay, local = tl.associative_scan((decay, added), 0, _compose)
        states = local + decay * h[None]
        h = tl.sum(tl.where(last, states, 0.0), 0)
        if SUMMARIZE:
            duration += tl.sum(delta, 0)
        else:
            out = tl.sum(states * C_tile, 2) + x_tile * skip[None, :]
            at = (sequence * pixels + pixel)[:, None] * channels + channel[None, :]
            tl.store(y + at, out, inside)
    if SUMMARIZE:
        at = (sequence * segments + segment) * channels + channel
        tl.store(lasted + at, duration, has_channel)
        tl.store(ends + at[:, None] * N + state[None, :], h, has_both)


@_tuned('grad_B', 'grad_C')
@triton.jit
def _backward_kernel(
    x, x_b, x_p, x_c, projection, A, D, weight, bias, pixels, height, channels,
    grad_y, kept, grad_x, grad_z, grad_B, grad_C, grad_A,
    N: tl.constexpr, STATES: tl.constexpr, RANK: tl.constexpr, STEPS: tl.constexpr,
    CHANNELS: tl.constexpr,
):  # fmt: skip
    """Gradients, from the last chunk to the first."""
    sequence, channel, state, has_both, A_tile, skip = _load_weights(
        A, D, channels, N, STATES, CHANNELS
    )
    offset = tl.arange(0, STEPS)
    first, last = (offset == 0)[:, None, None], (offset == STEPS - 1)[:, None, None]
    whole = tl.zeros((STEPS, CHANNELS, STATES), tl.int32)
    earlier = tl.maximum(offset - 1, 0)[:, None, None] + whole
    later = tl.minimum(offset + 1, STEPS - 1)[:, None, None] + whole
    carried = tl.where(has_both, 0.0, 0.0)  # a_t dL/dh_t at the first step of the chunk after
    sum_A = tl.where(has_both, 0.0, 0.0)
    chunks = tl.cdiv(pixels, STEPS)
    for i in range(chunks):
        chunk = chunks - 1 - i
        pixel, inside, with_state, x_tile, z, B_tile, C_tile = _load_chunk(
            chunk * STEPS + offset, sequence, channel, state,
            x, x_b, x_p, x_c, projection, weight, bias, pixels, height, channels, N, RANK,
        )  # fmt: skip
        delta = tl.where(inside, _softplus(z), 0.0)
        at = (sequence // 4 * pixels + pixel)[:, None] * channels + channel[None, :]
        gy = tl.load(grad_y + at, inside, 0.0).to(tl.float32)
        at = (sequence * chunks + chunk) * channels + channel
        enters = tl.load(kept + at[:, None] * N + state[None, :], has_both, 0.0)[None]

        decay = tl.exp(delta[:, :, None] * A_tile[None])
        run, local = tl.associative_scan(
            (decay, (delta * x_tile)[:, :, None] * B_tile), 0, _compose
        )
        states = local + run * enters
        before = tl.where(first, enters, tl.gather(states, earlier, 0))
        # With g_t = dL/dh_t = C_t dL/dy_t + a_{t+1} g_{t+1}, scan a_t g_t from the end.
        grad_h = gy[:, :, None] * C_tile
        run, local = tl.associative_scan((decay, decay * grad_h), 0, _compose, reverse=True)
        back = local + run * carried[None]
        grad_h += tl.where(last, carried[None], tl.gather(back, later, 0))
        carried = tl.sum(tl.where(first, back, 0.0), 0)
        grad_log = back * before  # dL/d(delta_t A)

        by_B = grad_h * B_tile
        gz = tl.sum(grad_log * A_tile[None] + by_B * x_tile[:, :, None], 2)
        gz = gz * tl.sigmoid(z)
        gx = tl.sum(by_B, 2) * delta + gy * skip[None, :]
        sum_A += tl.sum(grad_log * delta[:, :, None], 0)
        at = (sequence * pixels + pixel)[:, None] * channels + channel[None, :]
        tl.store(grad_x + at, gx, inside)
        tl.store(grad_z + at, gz, inside)
        at = (sequence * pixels + pixel)[:, None] * N + state[None, :]
        tl.atomic_add(grad_B + at, tl.sum(grad_h * (delta * x_tile)[:, :, None], 1), with_state)
        tl.atomic_add(grad_C + at, tl.sum(states * gy[:, :, None], 1), with_state)
    at = (sequence * channels + channel)[:, None] * N + state[None, :]
    tl.store(grad_A + at, sum_A, has_both)
