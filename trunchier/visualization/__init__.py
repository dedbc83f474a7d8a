"""Drawn predictions: overlays, plots, the viewer in a browser."""
