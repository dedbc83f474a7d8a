"""Fixtures that several test files share."""

import os
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope='session')
def shared():
    """Folder of annotated photos beside the checkout, or a skip where it is absent."""
    default = Path(__file__).resolve().parents[2] / 'shared'
    folder = Path(os.environ.get('TRUNCHIER_SHARED', default))
    if not (folder / 'data').is_dir():
        pytest.skip(f'no annotated photos in {folder}; set TRUNCHIER_SHARED to run this test')
    return folder


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
