"""Visualization: overlays on images, contact sheets, a viewer in the browser."""
