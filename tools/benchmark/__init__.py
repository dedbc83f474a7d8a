"""Benchmarks of speed and memory; `commands` lists them."""
