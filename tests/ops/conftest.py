import pytest
import torch
from poison import poison
from torch.utils import _device


@pytest.fixture(autouse=True)
def empty_memory_is_nan():
    with pytest.MonkeyPatch.context() as patch:
        poison(patch.setattr)
        yield
    _device._device_constructors.cache_clear()  # `with torch.device` keeps the functions it saw


@pytest.fixture
def threads(request):
    """Runs a test with `request.param` threads of torch."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)
