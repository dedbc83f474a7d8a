import pytest
from fork_server import ForkServer


@pytest.fixture(scope='session')
def server():
    """Runs the tools; its imports take longer than they do."""
    server = ForkServer()
    yield server
    server.close()
