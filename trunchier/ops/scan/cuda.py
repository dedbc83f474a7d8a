"""The selective scan on CUDA, forward and backward, as one kernel each.

A program scans some channels of one direction of one sample, a chunk of steps at a time, with the
state carried from chunk to chunk. It finds the pixels of its direction by their number, projects
delta, and adds the skip term, so that neither four copies of the map nor delta are ever stored.
Where there are few sequences, each is cut into segments for programs of their own: a first pass
tells what each segment makes of a zero state. The forward pass stores the state at the beginning
of each chunk, and the backward pass computes the others again. float32 inside, whatever goes in;
the gradients of B and C are added up in no fixed order, so their last digits may vary.

Runs on CPU in Triton's interpreter (TRITON_INTERPRET=1), for tests.
"""

import os
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from .parallel import exactly

if not hasattr(tl, 'gather'):
    raise ImportError(f'triton {triton.__version__} has no gather; install triton >= 3.2')

INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'
STEPS = 16 if INTERPRETED else 64  # of a chunk
PROGRAMS = 512  # cut sequences into segments until there are about as many


def selective_scan(u, delta, A, B, C, D=None, delta_bias=None, delta_softplus=True):
    """See `trunchier.ops.selective_scan`."""
    return _SelectiveScan.apply(u, delta, A, B, C, D, delta_bias, delta_softplus)


def selective_scan_2d(x, projection, A, D, delta_weight, delta_bias):
    """See `trunchier.ops.selective_scan_2d`."""
    return _SelectiveScan2d.apply(x, projection, A, D, delta_weight, delta_bias)


class _SelectiveScan2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, projection, A, D, delta_weight, delta_bias):
        with exactly(x):
            problem = _map_problem(x, projection, A, D, delta_weight, delta_bias)
            y, states = scan(problem, keep=any(ctx.needs_input_grad))
            ctx.save_for_backward(x, projection, A, D, delta_weight, delta_bias, states)
            return y.sum(1).view(x.shape).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y):
        x, projection, A, D, weight, bias, states = ctx.saved_tensors
        with exactly(x):
            problem = _map_problem(x, projection, A, D, weight, bias)
            grad_y = grad_y.reshape(x.shape).flatten(1, 2).unsqueeze(1).expand(-1, 4, -1, -1)
            grad_x, grad_z, grad_B, grad_C, grad_A = scan_back(problem, grad_y, states)
            low = problem.low.float()  # (batch, 4, pixels, R)
            grad_low = torch.einsum('bkpd,kdr->bkpr', grad_z, weight.float())
            grad_weight = torch.einsum('bkpd,bkpr->kdr', grad_z, low)
            grad_projection = torch.cat((grad_low, grad_B, grad_C), dim=-1).transpose(1, 2)
            grad_D = torch.einsum('bkpd,bkpd->d', grad_y[:, :1].float(), problem.x[:, :1].float())
        return (
            grad_x.sum(1).view(x.shape).to(x.dtype),
            grad_projection.reshape(projection.shape).to(projection.dtype),
            grad_A.to(A.dtype),
            grad_D.expand(4, -1).to(D.dtype),
            grad_weight.to(weight.dtype),
            grad_z.sum((0, 2)).to(bias.dtype),
        )


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, delta, A, B, C, D, delta_bias, delta_softplus):
        with exactly(u):
            problem = _sequence_problem(u, delta, A, B, C, D, delta_bias, delta_softplus)
            y, states = scan(problem, keep=any(ctx.needs_input_grad))
            ctx.save_for_backward(u, delta, A, B, C, D, delta_bias, states)
            ctx.delta_softplus = delta_softplus
            return _channels_first(y).to(u.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y):
        u, delta, A, B, C, D, delta_bias, states = ctx.saved_tensors
        with exactly(u):
            problem = _sequence_problem(u, delta, A, B, C, D, delta_bias, ctx.delta_softplus)
            grad_y = grad_y.unflatten(1, (B.shape[1], -1)).mT
            grad_x, grad_z, grad_B, grad_C, grad_A = scan_back(problem, grad_y, states)
            grad_D = grad_bias = None
            if D is not None:
                grad_D = torch.einsum('bkpd,bkpd->kd', grad_y.float(), problem.x.float())
                grad_D = grad_D.flatten().to(D.dtype)
            if delta_bias is not None:
                grad_bias = grad_z.sum((0, 2)).flatten().to(delta_bias.dtype)
        return (
            _channels_first(grad_x).to(u.dtype),
            _channels_first(grad_z).to(delta.dtype),
            grad_A.flatten(0, 1).to(A.dtype),
            grad_B.mT.to(B.dtype),
            grad_C.mT.to(C.dtype),
            grad_D,
            grad_bias,
            None,
        )


class Problem(NamedTuple):
    """What the kernels scan: `ways` sequences a sample. Views; any strides, any float dtype."""

    x: torch.Tensor  # (batch, ways, pixels, d)
    delta: torch.Tensor | None  # (batch, ways, pixels, d), or projected from
    low: torch.Tensor | None  # (batch, ways, pixels, R)
    weight: torch.Tensor | None  # (ways, d, R)
    bias: torch.Tensor | None  # (ways, d)
    A: torch.Tensor  # (ways, d, N)
    B: torch.Tensor  # (batch, ways, pixels, N)
    C: torch.Tensor  # (batch, ways, pixels, N)
    D: torch.Tensor | None  # (ways, d)
    height: int  # of the map; 1 for sequences, which are read forwards whatever the way
    soft: bool  # whether delta goes through a softplus


def _map_problem(x, projection, A, D, weight, bias):
    pixels = x.flatten(1, 2).unsqueeze(1).expand(-1, 4, -1, -1)
    rank, states = weight.shape[2], A.shape[2]
    parts = projection.flatten(1, 2).transpose(1, 2).split((rank, states, states), dim=-1)
    low, B, C = parts
    return Problem(pixels, None, low, weight, bias, A, B, C, D, x.shape[1], True)


def _sequence_problem(u, delta, A, B, C, D, bias, soft):
    groups = B.shape[1]
    x, delta = (t.unflatten(1, (groups, -1)).mT for t in (u, delta))
    A, D, bias = (None if t is None else t.unflatten(0, (groups, -1)) for t in (A, D, bias))
    return Problem(x, delta, None, None, bias, A, B.mT, C.mT, D, 0, soft)


def _channels_first(t):
    """(batch, ways, pixels, d) -> (batch, ways * d, pixels)."""
    return t.mT.flatten(1, 2)


def scan(problem, keep):
    """y (batch, ways, pixels, d), float32, and with `keep` the state that enters each chunk."""
    batch, ways, pixels, channels = problem.x.shape
    states = problem.A.shape[2]
    y = torch.empty(problem.x.shape, dtype=torch.float32, device=problem.x.device)
    if y.numel() == 0:
        return y, None
    chunks = triton.cdiv(pixels, STEPS)
    kept = y.new_empty((batch, ways, chunks, channels, states) if keep else 0)
    segments = max(1, min(chunks // 2, PROGRAMS // (batch * ways * triton.cdiv(channels, 16))))
    each = triton.cdiv(chunks, segments)  # chunks of a segment
    segments = triton.cdiv(chunks, each)
    ends = y.new_empty((batch, ways, segments, channels, states) if segments > 1 else 0)
    lasted = y.new_empty((batch, ways, segments, channels) if segments > 1 else 0)

    def grid(meta):
        return batch * ways, triton.cdiv(channels, meta['CHANNELS']), segments

    for summarize in (True, False) if segments > 1 else (False,):
        forward_kernel[grid](
            *_arguments(problem), y, kept, ends, lasted, segments, each,
            **_constants(problem), KEEP=keep and not summarize, SUMMARIZE=summarize,
        )  # fmt: skip
    return y, kept if keep else None


def scan_back(problem, grad_y, states):
    """Gradients of x, delta before bias and softplus, B, C (batch, ways, pixels, .), and A."""
    batch, ways, pixels, channels = problem.x.shape

    def zeros(*shape):
        return torch.zeros(shape, dtype=torch.float32, device=grad_y.device)

    grad_x, grad_z = zeros(*problem.x.shape), zeros(*problem.x.shape)
    grad_B, grad_C = zeros(*problem.B.shape), zeros(*problem.B.shape)
    grad_A = zeros(batch, *problem.A.shape)
    if grad_x.numel():

        def grid(meta):
            return batch * ways, triton.cdiv(channels, meta['CHANNELS'])

        backward_kernel[grid](
            *_arguments(problem), grad_y, *grad_y.stride(), states,
            grad_x, grad_z, grad_B, grad_C, grad_A, **_constants(problem),
        )  # fmt: skip
    return grad_x, grad_z, grad_B, grad_C, grad_A.sum(0)


def _arguments(p):
    """Tensors and strides; what is absent is stood for by x."""
    delta = p.low if p.delta is None else p.delta
    _, ways, pixels, channels = p.x.shape
    strided = (p.x, *p.x.stride(), delta, *delta.stride(), p.B, *p.B.stride(), p.C, *p.C.stride())
    dense = [p.x if t is None else t.contiguous() for t in (p.weight, p.bias, p.A, p.D)]
    return *strided, *dense, ways, pixels, p.height, channels


def _constants(p):
    states = p.A.shape[2]
    constants = dict(
        N=states,
        STATES=triton.next_power_of_2(states),
        RANK=0 if p.weight is None else p.weight.shape[2],
        BIASED=p.bias is not None,
        SKIP=p.D is not None,
        SOFT=bool(p.soft),
        STEPS=STEPS,
    )
    if INTERPRETED:
        constants['CHANNELS'] = 8
    return constants


# --- kernels -------------------------------------------------------------------------------------
#
# Tiles are (STEPS, CHANNELS) and (STEPS, CHANNELS, STATES). What lies beyond the last step, channel
# or state is loaded as 0, and delta is 0 there, which leaves the state as it is.


def tuned(*accumulated):
    """Decorator: channels and warps of a program by trial, once for each kind of problem."""

    def tune(kernel):
        if INTERPRETED:
            return kernel
        configs = [
            triton.Config(dict(CHANNELS=channels), num_warps=warps)
            for channels, warps in ((4, 1), (8, 2), (16, 2), (16, 4), (32, 4), (32, 8))
        ]
        key = ['ways', 'pixels', 'channels', 'N', 'RANK']
        return triton.autotune(configs, key=key, reset_to_zero=list(accumulated))(kernel)

    return tune


@triton.jit
def then(decay, added, next_decay, next_added):
    """Two steps h -> decay h + added as one."""
    return decay * next_decay, next_decay * added + next_added


@triton.jit
def pixel_of(step, way, height, pixels):
    """The pixel that direction `way` reads at a step; the step itself where there is no map."""
    if height > 0:
        forth = tl.where(way >= 2, pixels - 1 - step, step)
        width = pixels // height
        pixel = tl.where(way % 2 == 0, forth, (forth % height) * width + forth // height)
    else:
        pixel = step
    return pixel


@triton.jit
def softplus(x):
    """max(x, 0) + log1p(e^-|x|), with log1p(e) / e a polynomial on [0, 1], exact to 3e-7."""
    e = tl.exp(-tl.abs(x))
    p = 0.005253457796743533 * e - 0.029588507391508756
    p = p * e + 0.07836166801601366
    p = p * e - 0.13674769705249476
    p = p * e + 0.19111431080410513
    p = p * e - 0.24844369892406562
    p = p * e + 0.33319271342488666
    p = p * e - 0.49999501516785977
    p = p * e + 0.9999999705406566
    return tl.where(x < 0, 0.0, x) + p * e


@triton.jit
def load_z(
    delta, delta_p, delta_r, weight, bias, pixel, row, channel, has_step, has_channel,
    RANK: tl.constexpr, BIASED: tl.constexpr,
):  # fmt: skip
    """(STEPS, CHANNELS): delta before the softplus, read, or projected from RANK values a pixel."""
    inside = has_step[:, None] & has_channel[None, :]
    if RANK == 0:
        at = delta + pixel[:, None] * delta_p + channel[None, :] * delta_r
        z = tl.load(at, inside, 0.0).to(tl.float32)
    else:
        z = tl.where(inside, 0.0, 0.0)
        for r in range(RANK):
            low = tl.load(delta + pixel * delta_p + r * delta_r, has_step, 0.0)
            column = tl.load(weight + row * RANK + r, has_channel, 0.0)
            z += low.to(tl.float32)[:, None] * column.to(tl.float32)[None, :]
    if BIASED:
        z += tl.load(bias + row, has_channel, 0.0).to(tl.float32)[None, :]
    return z


@tuned()
@triton.jit
def forward_kernel(
    x, x_b, x_k, x_p, x_c,
    delta, delta_b, delta_k, delta_p, delta_r,
    B, B_b, B_k, B_p, B_n,
    C, C_b, C_k, C_p, C_n,
    weight, bias, A, D, ways, pixels, height, channels,
    y, kept, ends, lasted, segments, each,
    N: tl.constexpr, STATES: tl.constexpr, RANK: tl.constexpr, BIASED: tl.constexpr,
    SKIP: tl.constexpr, SOFT: tl.constexpr, STEPS: tl.constexpr, CHANNELS: tl.constexpr,
    KEEP: tl.constexpr, SUMMARIZE: tl.constexpr,
):  # fmt: skip
    """y; or with SUMMARIZE the last state of each segment begun from zero, and its sum of delta."""
    sequence = tl.program_id(0).to(tl.int64)
    sample, way = sequence // ways, sequence % ways
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    segment = tl.program_id(2)
    state = tl.arange(0, STATES)
    has_channel, has_state = channel < channels, state < N
    has_both = has_channel[:, None] & has_state[None, :]
    row = way * channels + channel
    x += sample * x_b + way * x_k
    delta += sample * delta_b + way * delta_k
    B += sample * B_b + way * B_k
    C += sample * C_b + way * C_k
    A_tile = tl.load(A + row[:, None] * N + state[None, :], has_both, 0.0).to(tl.float32)
    if SKIP:
        skip = tl.load(D + row, has_channel, 0.0).to(tl.float32)

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
        step = chunk * STEPS + tl.arange(0, STEPS)
        has_step = step < pixels
        inside = has_step[:, None] & has_channel[None, :]
        with_state = has_step[:, None] & has_state[None, :]
        pixel = pixel_of(step, way, height, pixels)
        x_tile = tl.load(x + pixel[:, None] * x_p + channel[None, :] * x_c, inside, 0.0)
        x_tile = x_tile.to(tl.float32)
        z = load_z(
            delta, delta_p, delta_r, weight, bias, pixel, row, channel, has_step, has_channel,
            RANK, BIASED,
        )  # fmt: skip
        time = tl.where(inside, softplus(z) if SOFT else z, 0.0)
        B_tile = tl.load(B + pixel[:, None] * B_p + state[None, :] * B_n, with_state, 0.0)
        if KEEP:
            at = (sequence * chunks + chunk) * channels + channel
            tl.store(kept + at[:, None] * N + state[None, :], h, has_both)
        decay = tl.exp(time[:, :, None] * A_tile[None])
        added = (time * x_tile)[:, :, None] * B_tile.to(tl.float32)[:, None, :]
        decay, local = tl.associative_scan((decay, added), 0, then)
        states = local + decay * h[None]
        h = tl.sum(tl.where(last, states, 0.0), 0)
        if SUMMARIZE:
            duration += tl.sum(time, 0)
        else:
            C_tile = tl.load(C + pixel[:, None] * C_p + state[None, :] * C_n, with_state, 0.0)
            out = tl.sum(states * C_tile.to(tl.float32)[:, None, :], 2)
            if SKIP:
                out += x_tile * skip[None, :]
            at = (sequence * pixels + pixel)[:, None] * channels + channel[None, :]
            tl.store(y + at, out, inside)
    if SUMMARIZE:
        at = (sequence * segments + segment) * channels + channel
        tl.store(lasted + at, duration, has_channel)
        tl.store(ends + at[:, None] * N + state[None, :], h, has_both)


@tuned('grad_B', 'grad_C')
@triton.jit
def backward_kernel(
    x, x_b, x_k, x_p, x_c,
    delta, delta_b, delta_k, delta_p, delta_r,
    B, B_b, B_k, B_p, B_n,
    C, C_b, C_k, C_p, C_n,
    weight, bias, A, D, ways, pixels, height, channels,
    grad_y, grad_y_b, grad_y_k, grad_y_p, grad_y_c, kept,
    grad_x, grad_z, grad_B, grad_C, grad_A,
    N: tl.constexpr, STATES: tl.constexpr, RANK: tl.constexpr, BIASED: tl.constexpr,
    SKIP: tl.constexpr, SOFT: tl.constexpr, STEPS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Gradients, from the last chunk to the first."""
    sequence = tl.program_id(0).to(tl.int64)
    sample, way = sequence // ways, sequence % ways
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    state = tl.arange(0, STATES)
    has_channel, has_state = channel < channels, state < N
    has_both = has_channel[:, None] & has_state[None, :]
    row = way * channels + channel
    x += sample * x_b + way * x_k
    delta += sample * delta_b + way * delta_k
    B += sample * B_b + way * B_k
    C += sample * C_b + way * C_k
    grad_y += sample * grad_y_b + way * grad_y_k
    A_tile = tl.load(A + row[:, None] * N + state[None, :], has_both, 0.0).to(tl.float32)
    if SKIP:
        skip = tl.load(D + row, has_channel, 0.0).to(tl.float32)

    place = tl.arange(0, STEPS)
    first, last = (place == 0)[:, None, None], (place == STEPS - 1)[:, None, None]
    whole = tl.zeros((STEPS, CHANNELS, STATES), tl.int32)
    earlier = tl.maximum(place - 1, 0)[:, None, None] + whole
    later = tl.minimum(place + 1, STEPS - 1)[:, None, None] + whole
    carried = tl.where(has_both, 0.0, 0.0)  # a_t dL/dh_t at the first step of the chunk after
    sum_A = tl.where(has_both, 0.0, 0.0)
    chunks = tl.cdiv(pixels, STEPS)
    for i in range(chunks):
        chunk = chunks - 1 - i
        step = chunk * STEPS + place
        has_step = step < pixels
        inside = has_step[:, None] & has_channel[None, :]
        with_state = has_step[:, None] & has_state[None, :]
        pixel = pixel_of(step, way, height, pixels)
        x_tile = tl.load(x + pixel[:, None] * x_p + channel[None, :] * x_c, inside, 0.0)
        x_tile = x_tile.to(tl.float32)
        z = load_z(
            delta, delta_p, delta_r, weight, bias, pixel, row, channel, has_step, has_channel,
            RANK, BIASED,
        )  # fmt: skip
        time = tl.where(inside, softplus(z) if SOFT else z, 0.0)
        B_tile = tl.load(B + pixel[:, None] * B_p + state[None, :] * B_n, with_state, 0.0)
        B_tile = B_tile.to(tl.float32)[:, None, :]
        C_tile = tl.load(C + pixel[:, None] * C_p + state[None, :] * C_n, with_state, 0.0)
        at = grad_y + pixel[:, None] * grad_y_p + channel[None, :] * grad_y_c
        gy = tl.load(at, inside, 0.0).to(tl.float32)
        at = (sequence * chunks + chunk) * channels + channel
        enters = tl.load(kept + at[:, None] * N + state[None, :], has_both, 0.0)[None]

        decay = tl.exp(time[:, :, None] * A_tile[None])
        run, local = tl.associative_scan((decay, (time * x_tile)[:, :, None] * B_tile), 0, then)
        states = local + run * enters
        before = tl.where(first, enters, tl.gather(states, earlier, 0))
        # With g_t = dL/dh_t = C_t dL/dy_t + a_{t+1} g_{t+1}, scan a_t g_t from the end.
        grad_h = gy[:, :, None] * C_tile.to(tl.float32)[:, None, :]
        run, local = tl.associative_scan((decay, decay * grad_h), 0, then, reverse=True)
        back = local + run * carried[None]
        grad_h += tl.where(last, carried[None], tl.gather(back, later, 0))
        carried = tl.sum(tl.where(first, back, 0.0), 0)
        grad_log = back * before  # dL/d(delta_t A)

        by_B = grad_h * B_tile
        gz = tl.sum(grad_log * A_tile[None] + by_B * x_tile[:, :, None], 2)
        if SOFT:
            gz = gz * tl.sigmoid(z)
        gx = tl.sum(by_B, 2) * time
        if SKIP:
            gx += gy * skip[None, :]
        sum_A += tl.sum(grad_log * time[:, :, None], 0)
        at = (sequence * pixels + pixel)[:, None] * channels + channel[None, :]
        tl.store(grad_x + at, gx, inside)
        tl.store(grad_z + at, gz, inside)
        at = (sequence * pixels + pixel)[:, None] * N + state[None, :]
        tl.atomic_add(grad_B + at, tl.sum(grad_h * (time * x_tile)[:, :, None], 1), with_state)
        tl.atomic_add(grad_C + at, tl.sum(states * gy[:, :, None], 1), with_state)
    at = (sequence * channels + channel)[:, None] * N + state[None, :]
    tl.store(grad_A + at, sum_A, has_both)
