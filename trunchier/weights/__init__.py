"""Weights: official checkpoints in, ours out; a model found by its name."""

from .load import CheckpointError, OfficialPretrained, load_checkpoint

__all__ = ['CheckpointError', 'OfficialPretrained', 'load_checkpoint']
