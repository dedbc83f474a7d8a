"""A download is the whole file of the server, whatever network and other processes do."""

import hashlib
import http.server
import multiprocessing
import re
import threading
from types import SimpleNamespace

import pytest

from trunchier.files import DownloadError, download

pytestmark = pytest.mark.usefixtures('online')
OLD, NEW = (bytes([65 + i]) * 40_000 for i in range(2))


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.content` as `server.plan` says; the first `server.cuts` answers break off."""

    protocol_version = 'HTTP/1.1'

    def do_GET(self):
        server, plan = self.server, self.server.plan
        server.requests.append(dict(self.headers))
        content, start = server.content, 0
        if 'Range' in self.headers and plan.ranges:
            same = self.headers.get('If-Range') in (plan.version, None) or plan.ignores_if_range
            start = int(re.search(r'(\d+)', self.headers['Range'])[1]) if same else 0
        partial = start > 0
        if plan.restarts:
            start = 0
        self.send_response(206 if partial else 200)
        self.send_header('Content-Type', 'application/octet-stream')
        if plan.version:
            self.send_header('ETag', plan.version)
        if partial:
            self.send_header('Content-Range', f'bytes {start}-{len(content) - 1}/{len(content)}')
        if plan.length:
            self.send_header('Content-Length', str(len(content) - start))
        self.send_header('Connection', 'close')
        self.end_headers()
        body = content[start:]
        if server.cuts > 0:
            server.cuts -= 1
            body = body[: len(body) // 2]
            if server.changes is not None:
                server.content, plan.version = server.changes, plan.next_version
        if server.together is not None:
            self.wfile.write(body[:1000])
            self.wfile.flush()
            server.asked.set()
            server.together.wait(60)
            body = body[1000:]
        self.wfile.write(body)
        self.close_connection = True

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    httpd = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    httpd.plan = SimpleNamespace(
        version='"1"', next_version='"2"', length=True, ranges=True, restarts=False,
        ignores_if_range=False,
    )  # fmt: skip
    httpd.content, httpd.changes, httpd.cuts, httpd.requests = OLD, None, 0, []
    httpd.together, httpd.asked = None, threading.Event()
    httpd.url = f'http://127.0.0.1:{httpd.server_port}/net.pth'
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield httpd
    httpd.shutdown()
    httpd.server_close()


def left_over(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_that_changed_on_the_server_is_not_continued(server, tmp_path):
    server.cuts, server.changes = 1, NEW
    assert download(server.url, tmp_path).read_bytes() == NEW
    assert left_over(tmp_path) == ['net.pth']


def test_a_server_that_continues_another_file_is_noticed(server, tmp_path):
    server.cuts, server.changes = 1, NEW
    server.plan.ignores_if_range = True
    assert download(server.url, tmp_path).read_bytes() == NEW


def test_a_server_that_continues_at_byte_0_is_noticed(server, tmp_path):
    server.cuts, server.plan.restarts = 1, True
    assert download(server.url, tmp_path).read_bytes() == OLD


@pytest.mark.parametrize('version', [None, 'W/"weak"'])
def test_a_file_without_a_version_is_begun_anew(server, tmp_path, version):
    server.cuts, server.changes = 1, NEW
    server.plan.version = server.plan.next_version = version
    server.plan.ignores_if_range = True
    assert download(server.url, tmp_path).read_bytes() == NEW
    assert not any('Range' in headers for headers in server.requests)


def test_an_answer_without_length_that_is_cut_off_is_no_file(server, tmp_path):
    server.cuts, server.plan.length = 9, False
    with pytest.raises(DownloadError, match='does not say how long the file is'):
        download(server.url, tmp_path)
    assert not (tmp_path / 'net.pth').exists()


def test_a_server_that_always_breaks_off_leaves_a_part_that_the_next_call_continues(
    server, tmp_path
):
    server.cuts = 3
    with pytest.raises(DownloadError, match=r'35000 of 40000 bytes were received.*continues'):
        download(server.url, tmp_path)
    assert not (tmp_path / 'net.pth').exists()
    assert download(server.url, tmp_path).read_bytes() == OLD
    assert server.requests[-1]['Range'] == 'bytes=35000-'
    assert left_over(tmp_path) == ['net.pth']


def test_the_hash_in_an_address_is_checked(server, tmp_path):
    right = hashlib.sha256(OLD).hexdigest()
    with pytest.raises(DownloadError, match='SHA-256'):
        download(f'{server.url}#sha256={right[::-1]}', tmp_path)
    assert left_over(tmp_path) == []
    assert download(f'{server.url}#sha256={right}', tmp_path).read_bytes() == OLD


@pytest.mark.parametrize('path', ['', '/', '/..', '/a/%2e%2e'])
def test_an_address_that_names_no_file_is_refused(server, tmp_path, path):
    with pytest.raises(DownloadError, match='does not name a file'):
        download(server.url.rpartition('/')[0] + path, tmp_path / 'folder')
    assert server.requests == []


def fetch(url, folder, results):
    try:
        results.put('begun')
        results.put(download(url, folder).read_bytes())
    except BaseException as error:
        results.put(repr(error))


def test_two_processes_that_want_the_same_file_both_get_it(server, tmp_path):
    context = multiprocessing.get_context('fork')
    results, server.together = context.Queue(), threading.Event()
    both = [context.Process(target=fetch, args=(server.url, tmp_path, results)) for _ in range(2)]
    for process in both:
        process.start()
    assert [results.get(timeout=60) for _ in both] == ['begun'] * 2
    server.together.set()
    assert [results.get(timeout=60) for _ in both] == [OLD, OLD]
    for process in both:
        process.join(60)
    assert left_over(tmp_path) == ['net.pth']
    assert len(server.requests) == 1


def test_a_download_that_was_killed_holds_up_no_other(server, tmp_path):
    context = multiprocessing.get_context('fork')
    server.together = threading.Event()
    process = context.Process(target=fetch, args=(server.url, tmp_path, context.Queue()))
    process.start()
    assert server.asked.wait(60)
    process.kill()
    process.join(60)
    server.together.set()
    assert not (tmp_path / 'net.pth').exists()
    assert download(server.url, tmp_path).read_bytes() == OLD
    assert left_over(tmp_path) == ['net.pth']
