"""Training: learning rates by depth, two optimizers, a loop that resumes without replay."""

from .loops import StreamTrainLoop
from .optimizers import (
    AutocastOptimWrapper,
    DepthDecayOptimWrapperConstructor,
    TwoOptimWrapperConstructor,
)

__all__ = [
    'AutocastOptimWrapper',
    'DepthDecayOptimWrapperConstructor',
    'StreamTrainLoop',
    'TwoOptimWrapperConstructor',
]
