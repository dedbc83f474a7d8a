"""Weights: official checkpoints in, ours out; a model found by its name; official files fetched.

Names are imported when asked for: `weights.official` needs no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .load import CheckpointError, OfficialPretrained, load_checkpoint

__all__ = ['CheckpointError', 'OfficialPretrained', 'load_checkpoint']


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module('.load', __name__), name)
