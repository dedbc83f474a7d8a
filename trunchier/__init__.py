"""Truncated hierarchical backbones for pose estimation and mesh recovery, for mmpose.

Importing registers every module in mmengine's root registries; it needs torch and mmengine alone.
"""

__version__ = '0.1.0'

from . import checkpoints, models, training

__all__ = ['checkpoints', 'models', 'training']
