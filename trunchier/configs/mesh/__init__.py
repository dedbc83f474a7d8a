"""Mesh models on 4D-Humans' mix of data."""
