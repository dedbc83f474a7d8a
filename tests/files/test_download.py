"""Downloads are complete, checked and continued; a file put there by hand comes first."""

import http.server
import threading

import pytest

from trunchier.files import DownloadError, download, local_file

CONTENT = bytes(range(256)) * 40


class Server(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT; its first answer to /cut.pth breaks off in the middle."""

    requests = []

    def do_GET(self):
        start = 0
        if 'Range' in self.headers:
            start = int(self.headers['Range'].split('=')[1].rstrip('-'))
        first = not any(path == self.path for path, _ in self.requests)
        self.requests.append((self.path, start))
        if self.path.startswith('/page'):
            self.send_response(200)
            self.send_header('Content-Type', 'text/html')
            self.send_header('Content-Length', '3')
            self.end_headers()
            self.wfile.write(b'hi!')
            return
        self.send_response(206 if start else 200)
        self.send_header('Content-Type', 'application/octet-stream')
        self.send_header('Content-Length', str(len(CONTENT) - start))
        self.send_header('ETag', '"1"')
        if start:
            self.send_header('Content-Range', f'bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}')
        self.end_headers()
        end = len(CONTENT) // 2 if first and 'cut' in self.path else len(CONTENT)
        self.wfile.write(CONTENT[start:end])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Server.requests.clear()
    httpd = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Server)
    threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
    yield f'http://127.0.0.1:{httpd.server_port}'
    httpd.shutdown()
    httpd.server_close()


def test_a_download_that_breaks_off_continues_where_it_was(server, tmp_path):
    path = download(f'{server}/cut.pth', tmp_path)
    assert path.read_bytes() == CONTENT
    assert Server.requests == [('/cut.pth', 0), ('/cut.pth', len(CONTENT) // 2)]
    assert not list(tmp_path.glob('*.part'))


def test_a_file_is_downloaded_once(server, tmp_path):
    for _ in range(2):
        download(f'{server}/once.pth', tmp_path)
    assert len(Server.requests) == 1


def test_a_copy_put_there_by_hand_is_taken_first(server, tmp_path):
    (tmp_path / 'data' / 'checkpoints').mkdir(parents=True)
    (tmp_path / 'data' / 'checkpoints' / 'mine.pth').write_bytes(b'mine')
    assert local_file(f'{server}/mine.pth').read_bytes() == b'mine'
    assert Server.requests == []


def test_a_name_with_a_hash_is_checked(server, tmp_path):
    with pytest.raises(DownloadError, match='SHA-256'):
        download(f'{server}/net-0123abcd.pth', tmp_path)
    assert not list(tmp_path.glob('net*'))


def test_a_web_page_is_no_checkpoint(server, tmp_path):
    with pytest.raises(DownloadError, match='web page'):
        download(f'{server}/page.pth', tmp_path)


def test_no_connection_says_where_to_put_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DownloadError, match='data/checkpoints/swin.pth'):
        download('http://127.0.0.1:9/swin.pth', tmp_path)
