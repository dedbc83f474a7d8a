"""Truncated hierarchical backbones for pose estimation and mesh recovery, for mmpose.

Importing registers every module in mmengine's root registries; it needs torch and mmengine alone.
"""

__version__ = '0.1.0'

from . import compat

compat.apply()  # first: what is registered below may meet the parts of the stack that it mends

from . import checkpoints, datasets, metrics, models, synthetic, training  # noqa: E402
from .deployment import deploy  # noqa: E402

__all__ = [
    'checkpoints',
    'compat',
    'datasets',
    'deploy',
    'metrics',
    'models',
    'synthetic',
    'training',
]
