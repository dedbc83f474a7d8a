"""Windows of a map: which token is where, and moving tokens into windows and back.

Padding, cyclic shift and partition are one gather.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .plans import cached_plan
from .when import is_traced

# Added to scores across the seam of a shifted map. The authors add -100, whose exponential is a
# subnormal number: products with it take ten times as long on Intel's CPUs. That of -1000 is 0.
MASKED = -1000.0


class Layout(NamedTuple):
    """Positions of the tokens of a map in windows of P positions each."""

    windows: int
    num_padded: int
    shifted: bool
    sources: Tensor  # (windows * P,) the token at each position; any token at padded positions
    padded_sources: Tensor  # the same; one beyond the last token at padded positions
    padded: Tensor  # (num_padded,) positions without a token
    back: Tensor  # (tokens,) the position of each token
    tokens: Tensor  # (windows, P) int32, the token at each position, or -1
    region: Tensor  # (windows, P) int32; positions of one region attend to each other
    mask: Tensor  # (windows, P, P) 0, or MASKED across the seam
    offsets: Tensor  # (P * P,) row of the bias table, by query and key


@cached_plan
def window_layout(
    height: int, width: int, window: int | tuple[int, int], shift: int | tuple[int, int]
) -> Layout:
    """Layout of a (height, width) map in windows of `window` tokens a side, moved by `shift`.

    Pairs are (vertical, horizontal). The decorated function takes a device as its last argument.
    """
    window, shift = ((n, n) if isinstance(n, int) else n for n in (window, shift))
    rows, columns = (-(-n // side) * side for n, side in zip((height, width), window, strict=True))

    def to_windows(grid):  # (rows, columns) -> (windows, P)
        grid = grid.reshape(rows // window[0], window[0], columns // window[1], window[1])
        return grid.swapaxes(1, 2).reshape(-1, window[0] * window[1])

    tokens = np.full((rows, columns), -1)
    tokens[:height, :width] = np.arange(height * width).reshape(height, width)
    tokens = to_windows(np.roll(tokens, (-shift[0], -shift[1]), (0, 1)))
    filled = tokens.ravel() >= 0
    back = np.empty(height * width, dtype=np.int64)
    back[tokens.ravel()[filled]] = np.flatnonzero(filled)

    # The last `shift` rows come from the top, across the seam.
    row, column = (
        np.digitize(np.arange(n), [n - side, n - move])
        for n, side, move in zip((rows, columns), window, shift, strict=True)
    )
    region = to_windows(3 * row[:, None] + column).astype(np.int32)
    places = np.divmod(np.arange(window[0] * window[1]), window[1])
    dy, dx = (axis[:, None] - axis + n - 1 for axis, n in zip(places, window, strict=True))
    padded = np.flatnonzero(~filled)
    return Layout(
        windows=len(tokens),
        num_padded=len(padded),
        shifted=max(shift) > 0,
        sources=tokens.ravel().clip(0),
        padded_sources=np.where(filled, tokens.ravel(), height * width),
        padded=padded,
        back=back,
        tokens=tokens.astype(np.int32),
        region=region,
        mask=np.where(region[:, :, None] == region[:, None], 0, MASKED).astype(np.float32),
        offsets=(dy * (2 * window[1] - 1) + dx).ravel(),
    )


def to_windows(tokens: Tensor, padding: Tensor, layout: Layout) -> Tensor:
    """(B, tokens, C) -> (B, windows * P, C), with `padding` (C,) at the padded positions."""
    padding = padding.to(tokens.dtype)
    if tokens.requires_grad and not torch.jit.is_tracing():  # jit cannot trace an autograd.Function
        return _Moved.apply(tokens, padding, layout)
    return _to_windows(tokens, padding, layout)


def to_tokens(positions: Tensor, layout: Layout) -> Tensor:
    """(B, windows * P, C) -> (B, tokens, C): the inverse of `to_windows`."""
    if positions.requires_grad and not torch.jit.is_tracing():
        return _Moved.apply(positions, None, layout)
    return _to_tokens(positions, layout)


def _to_windows(tokens, padding, layout):
    if is_traced() and layout.num_padded:  # a graph would copy before it writes in place
        padding = padding.expand(tokens.shape[0], 1, -1)
        return torch.cat((tokens, padding), dim=1).index_select(1, layout.padded_sources)
    positions = tokens.index_select(1, layout.sources)
    if layout.num_padded:
        padding = padding.expand(positions.shape[0], layout.num_padded, -1)
        positions.index_copy_(1, layout.padded, padding)
    return positions


def _to_tokens(positions, layout):
    return positions.index_select(1, layout.back)


class _Moved(torch.autograd.Function):
    """`_to_windows`, or `_to_tokens` without padding: each is the other's backward pass.

    That of index_select would add up gradients row by row, though no row has more than one.
    """

    @staticmethod
    def forward(x, padding, layout):
        return _to_tokens(x, layout) if padding is None else _to_windows(x, padding, layout)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, padding, ctx.layout = inputs
        ctx.to_windows = padding is not None

    @staticmethod
    def backward(ctx, grad):
        if ctx.to_windows:
            padding = grad.index_select(1, ctx.layout.padded).sum((0, 1))
            return _to_tokens(grad, ctx.layout), padding, None
        return _to_windows(grad, grad.new_zeros(grad.shape[2]), ctx.layout), None, None
