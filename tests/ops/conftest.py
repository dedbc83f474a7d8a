import pytest
import torch
from poison import poison


@pytest.fixture(autouse=True)
def empty_memory_is_nan(monkeypatch):
    poison(monkeypatch.setattr)


@pytest.fixture
def threads(request):
    """Runs a test with `request.param` threads of torch."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)
