"""Training: learning rates by depth, two optimizers, a loop that resumes without replay."""

from .training import (
    AutocastOptimWrapper,
    DepthDecayOptimWrapperConstructor,
    StreamTrainLoop,
    TwoOptimWrapperConstructor,
)

__all__ = [
    'AutocastOptimWrapper',
    'DepthDecayOptimWrapperConstructor',
    'StreamTrainLoop',
    'TwoOptimWrapperConstructor',
]
