"""Selective scan of VMamba: the recurrence, and one module a backend."""
