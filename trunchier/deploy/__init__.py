"""Models for inference: folded, lowered, exported, and exported files as networks."""
