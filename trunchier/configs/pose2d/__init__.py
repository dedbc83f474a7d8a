"""Pose models on COCO."""
