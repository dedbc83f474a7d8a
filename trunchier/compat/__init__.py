"""What the stock OpenMMLab stack needs on current torch, mmcv-lite and numpy."""

from .patches import OUTCOMES, apply

__all__ = ['OUTCOMES', 'apply']
