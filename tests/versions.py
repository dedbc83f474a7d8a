"""Marks of tests that the installed versions cannot pass."""

import pytest
import torch
from mmengine.utils import digit_version


def needs_torch(version: str, what: str) -> pytest.MarkDecorator:
    """Skips a test on older versions of torch, by name."""
    is_older = digit_version(torch.__version__) < digit_version(version)
    return pytest.mark.skipif(is_older, reason=f'requires torch {version}: {what}')
