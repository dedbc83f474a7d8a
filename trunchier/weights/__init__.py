"""Weights: official checkpoints in, ours out; a model found by its name."""

from .load import CheckpointError, OfficialPretrained, load_official

__all__ = ['CheckpointError', 'OfficialPretrained', 'load_official']
