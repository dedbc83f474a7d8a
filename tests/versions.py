"""Skips tests that the installed version of torch cannot pass, by name."""

import pytest
import torch
from mmengine.utils import digit_version


def needs_torch(version: str, what: str) -> pytest.MarkDecorator:
    """Mark of a test that older versions of torch cannot pass."""
    return pytest.mark.skipif(_is_older(version), reason=_reason(version, what))


def require_torch(version: str, what: str) -> None:
    """The same within a fixture or a test."""
    if _is_older(version):
        pytest.skip(_reason(version, what))


def _is_older(version):
    return digit_version(torch.__version__) < digit_version(version)


def _reason(version, what):
    return f'requires torch {version}: {what}'
