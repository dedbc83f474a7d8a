"""The selective scan as on the page: Mamba (Gu and Dao, 2023), algorithm 2, and VMamba's SS2D.

The truth that the other backends are compared with. Differentiable by autograd, and slow.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = True,
) -> Tensor:
    """See `trunchier.ops.selective_scan`."""
    exact = torch.promote_types(u.dtype, torch.float32)
    dtype, (u, delta, A, B, C) = u.dtype, (x.to(exact) for x in (u, delta, A, B, C))
    batch, groups, states, length = B.shape
    if delta_bias is not None:
        delta = delta + delta_bias.to(exact)[:, None]
    if delta_softplus:
        delta = F.softplus(delta)
    B = B.repeat_interleave(u.shape[1] // groups, dim=1)  # (batch, channels, N, L)
    C = C.repeat_interleave(u.shape[1] // groups, dim=1)

    h = u.new_zeros(batch, u.shape[1], states)
    y = []
    for t in range(length):
        decay = torch.exp(delta[..., t, None] * A)
        h = decay * h + (delta[..., t] * u[..., t])[..., None] * B[..., t]
        y.append((h * C[..., t]).sum(-1))
    y = torch.stack(y, dim=-1) if y else u * 0
    if D is not None:
        y = y + D.to(exact)[:, None] * u
    return y.to(dtype)


def selective_scan_2d(
    x: Tensor, projection: Tensor, A: Tensor, D: Tensor, delta_weight: Tensor, delta_bias: Tensor
) -> Tensor:
    """See `trunchier.ops.selective_scan_2d`."""
    exact = torch.promote_types(x.dtype, torch.float32)
    dtype, (x, projection) = x.dtype, (t.to(exact) for t in (x, projection))
    batch, height, width, channels = x.shape
    states, rank = A.shape[2], delta_weight.shape[2]

    ways = projection.permute(3, 0, 4, 1, 2)  # (4, batch, R + 2 N, H, W)
    ways = torch.stack([cross_scan(way)[:, k] for k, way in enumerate(ways)], dim=1)
    delta, B, C = ways.split([rank, states, states], dim=2)
    delta = torch.einsum('bkrl,kdr->bkdl', delta, delta_weight.to(exact))
    y = selective_scan(
        cross_scan(x.permute(0, 3, 1, 2)).flatten(1, 2),
        delta.flatten(1, 2),
        A.flatten(0, 1),
        B,
        C,
        D.flatten(),
        delta_bias.flatten(),
    )
    y = cross_merge(y.view(batch, 4, channels, height * width), height, width)
    return y.permute(0, 2, 3, 1).to(dtype)


def cross_scan(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, 4, C, H*W): read by rows, by columns, and both from the end."""
    rows, columns = x.flatten(2), x.transpose(2, 3).flatten(2)
    return torch.stack((rows, columns, rows.flip(-1), columns.flip(-1)), dim=1)


def cross_merge(y: Tensor, height: int, width: int) -> Tensor:
    """(B, 4, C, H*W) -> (B, C, H, W): lay each on the map, and sum; `cross_scan` transposed."""
    rows, columns = y[:, :2].unbind(1)
    rows_back, columns_back = y[:, 2:].flip(-1).unbind(1)
    rows = (rows + rows_back).unflatten(-1, (height, width))
    return rows + (columns + columns_back).unflatten(-1, (width, height)).transpose(2, 3)
