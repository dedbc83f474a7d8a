"""Registers `PlainViT` without importing mmpretrain, which only that backbone needs."""

import importlib
from typing import Any

from mmengine.registry import MODELS
from torch import nn

from ...files.optional import need


@MODELS.register_module(name='PlainViT')
def plain_vit(**options: Any) -> nn.Module:
    """A `PlainViT`; arguments in vit.py. ImportError without mmpretrain."""
    need('mmpretrain', 'PlainViT')
    return importlib.import_module('.vit', __package__).PlainViT(**options)
