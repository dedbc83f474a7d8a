"""Rendering of meshes on a CPU."""
