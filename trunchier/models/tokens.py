"""A knowledge token in a backbone: ViTPose's appended token, for maps as well as sequences."""

from typing import Any

import torch
from torch import Tensor, nn

JOINS = ('row', 'add')


class TokenJoin:
    """Hooks that let a token take part in the blocks of one stage, and leave before their output.

    Args:
        backbone: a truncated backbone, or a plain ViT with `layers`.
        stage: index of the stage; -1 is the last one.
        join: 'row': on a sequence the token is appended as in ViTPose; on a map (B, h, w, C) it
            fills a row on top, which windows attend to and scans begin with. 'add': it is added to
            every cell.

    Raises:
        ValueError: an unknown `join`, or a row on a ViT of windows.

    Attributes:
        token: (C,); None: the backbone is unchanged.
    """

    def __init__(self, backbone: nn.Module, stage: int, join: str):
        if join not in JOINS:
            raise ValueError(f'join is {join!r}; expected {JOINS}')
        self.join, self.joined = join, False
        self.token: Tensor | None = None
        blocks = blocks_of(backbone, stage)
        if (
            join == 'row'
            and any(hasattr(getattr(b, 'attn', None), 'window') for b in blocks)
            and (hasattr(backbone, 'layers'))
        ):
            raise ValueError(
                "join='row' appends a token to a sequence, which windows do not divide: give "
                "join='add', or a ViT of full attention"
            )
        blocks[0].register_forward_pre_hook(self.enter)
        blocks[-1].register_forward_hook(self.leave)

    def enter(self, block: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Pre-hook of the first block."""
        self.joined = self.token is not None
        if not self.joined:
            return None
        x, *others = args
        token = self.token.to(x.dtype)
        if self.join == 'add':
            return (x + token, *others)
        if x.ndim == 3:
            return (torch.cat((x, token.expand(len(x), 1, -1)), 1), *others)
        return (torch.cat((token.expand(len(x), 1, x.shape[2], -1), x), 1), *others)

    def leave(self, block: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        """Hook of the last block."""
        if not self.joined or self.join == 'add':
            return None
        return output[:, :-1] if output.ndim == 3 else output[:, 1:]


def blocks_of(backbone: nn.Module, stage: int) -> nn.ModuleList:
    """Blocks of a stage; TypeError: a backbone of another structure, ValueError: no such stage."""
    if hasattr(backbone, 'stages'):
        stages = [stage.blocks for stage in backbone.stages]
    elif hasattr(backbone, 'layers') and hasattr(backbone, 'embed_dims'):
        stages = [backbone.layers]
    else:
        raise TypeError(
            f'a token joins truncated backbones and ViTs, not {type(backbone).__name__}'
        )
    if not -len(stages) <= stage < len(stages):
        raise ValueError(f'stage is {stage}; {type(backbone).__name__} has {len(stages)}')
    return stages[stage]


def width_of(backbone: nn.Module, stage: int) -> int:
    """Channels of the map or the tokens in a stage."""
    blocks_of(backbone, stage)
    if not hasattr(backbone, 'stages'):
        return backbone.embed_dims
    return backbone.arch['channels'][range(len(backbone.stages))[stage]]


def project(token: Tensor, width: int, projection: str | None) -> Tensor:
    """A token (C,) of the teacher as one of the student, (width,), of the same mean square.

    'orthogonal' is a matrix with orthonormal rows or columns, a function of the two widths.

    Raises:
        ValueError: widths that differ without a projection, or an unknown one.
    """
    if projection not in (None, 'orthogonal'):
        raise ValueError(f"projection is {projection!r}; expected 'orthogonal' or None")
    if len(token) == width:
        return token
    if projection is None:
        raise ValueError(
            f"the token has {len(token)} channels, the student's stage {width}: set "
            "projection='orthogonal', or choose stages of equal width"
        )
    wide, narrow = max(len(token), width), min(len(token), width)
    random = torch.randn(wide, narrow, generator=torch.Generator().manual_seed(0))
    basis = torch.linalg.qr(random)[0]  # orthonormal columns
    if width < len(token):
        return basis.T @ token
    return basis @ token * (width / len(token)) ** 0.5
