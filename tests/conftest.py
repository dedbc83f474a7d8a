"""Fixtures that several test files share."""

import http.server
import logging
import os
import threading
from pathlib import Path
from types import SimpleNamespace

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


@pytest.fixture(autouse=True)
def audible():
    """Tools silence the logs of their process: not those of the tests that follow."""
    before = logging.root.manager.disable
    yield
    logging.disable(before)


@pytest.fixture(scope='session', autouse=True)
def empty_cache(tmp_path_factory):
    """No test finds or fills the user's cache of downloads, or downloads from the internet."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TRUNCHIER_OFFLINE', '1')
        patch.setenv('TRUNCHIER_HOME', str(tmp_path_factory.mktemp('home')))
        yield


@pytest.fixture
def online(monkeypatch):
    """For tests with a local server."""
    monkeypatch.delenv('TRUNCHIER_OFFLINE')


class Files(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        content = self.server.files.get(self.path)
        self.server.asked.append(self.path)
        self.send_response(404 if content is None else 200)
        self.send_header('Content-Type', 'application/octet-stream')
        self.send_header('Content-Length', str(len(content or b'')))
        self.end_headers()
        self.wfile.write(content or b'')

    def log_message(self, *arguments):
        pass


@pytest.fixture
def web(online):
    """A local server: `web.files` is {path: bytes}, `web.url` its address, `web.asked` paths."""
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Files)
    server.files, server.asked = {}, []
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    url = f'http://127.0.0.1:{server.server_port}'
    yield SimpleNamespace(url=url, files=server.files, asked=server.asked)
    server.shutdown()
    server.server_close()
