"""Packages that stand in for others which cannot be imported; `compat.patches` says when."""
