"""Truncated hierarchical backbones for pose estimation and mesh recovery, for mmpose."""

__version__ = '0.1.0'
