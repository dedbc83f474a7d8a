"""Truncated hierarchical backbones, one file a family."""
