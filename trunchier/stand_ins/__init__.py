"""Packages that stand in for others which cannot be imported; `trunchier.compat` says when."""
