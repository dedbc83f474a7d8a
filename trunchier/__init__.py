"""Truncated hierarchical backbones for pose estimation and mesh recovery, for mmpose.

Importing registers every module in mmengine's root registries; it needs torch and mmengine alone.
"""

__version__ = '0.1.0'

from . import compat

compat.apply()  # first: what is registered below may meet the parts of the stack that it mends

from . import datasets, engine, metrics, models, synthetic, weights  # noqa: E402
from .deploy.fuse import deploy  # noqa: E402

__all__ = [
    'compat',
    'datasets',
    'deploy',
    'engine',
    'metrics',
    'models',
    'synthetic',
    'weights',
]
