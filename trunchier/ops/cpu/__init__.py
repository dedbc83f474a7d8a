"""Kernels compiled for CPUs by numba."""
