"""Training: learning rates by depth, two optimizers, safe checkpoints, exact resumes."""

from .checkpoints import SafeCheckpointHook
from .hooks import SeedHook, WorkerHook
from .loops import StreamTrainLoop
from .optimizers import (
    AutocastOptimWrapper,
    DepthDecayOptimWrapperConstructor,
    TwoOptimWrapperConstructor,
)
from .revisits import RevisitHook

__all__ = [
    'AutocastOptimWrapper',
    'DepthDecayOptimWrapperConstructor',
    'RevisitHook',
    'SafeCheckpointHook',
    'SeedHook',
    'StreamTrainLoop',
    'TwoOptimWrapperConstructor',
    'WorkerHook',
]
