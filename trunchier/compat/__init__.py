"""What the stock OpenMMLab stack needs on current torch, mmcv-lite and numpy."""

from .patches import OUTCOMES, apply, without_sharding

__all__ = ['OUTCOMES', 'apply', 'without_sharding']
