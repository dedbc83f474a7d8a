"""Registers the modules that need mmpose, mmpretrain or timm, without importing these."""

import importlib
from typing import Any

from mmengine.registry import MODELS
from torch import nn

from ..files.optional import need

MODULES = {
    'PlainViT': ('mmpretrain', '.backbones.vit'),
    'TruncatedTimm': ('timm', '.backbones.timm'),
    'DiffusionLifter': ('mmpose', '.lifting.diffusion'),
    'LiftingHead': ('mmpose', '.lifting.head'),
    'MultiDatasetHead': ('mmpose', '.multi_dataset'),
    'MultiDatasetEstimator': ('mmpose', '.multi_dataset'),
}


def _register(name, package, module):
    def build(**options: Any) -> nn.Module:
        need(package, name)
        return getattr(importlib.import_module(module, __package__), name)(**options)

    MODELS.register_module(name=name, module=build)


for _name, _where in MODULES.items():
    _register(_name, *_where)
