"""Adapters between a truncated backbone and a head."""
