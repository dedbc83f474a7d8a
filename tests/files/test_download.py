"""Downloads are announced, complete, checked and continued; files put there by hand come first."""

import hashlib
import http.server
import io
import socket
import tarfile
import threading
import urllib.request
import zipfile

import pytest

from trunchier.files import DownloadError, download, local_file
from trunchier.files.download import _Redirects

pytestmark = pytest.mark.usefixtures('online')
CONTENT = bytes(range(256)) * 40
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def archives():
    """{name: a .zip and a .tar.gz with CONTENT as sdk/net.onnx, and another file}."""
    zipped, tarred = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(zipped, 'w') as file:
        file.writestr('sdk/read.me', b'hello')
        file.writestr('sdk/net.onnx', CONTENT)
    with tarfile.open(fileobj=tarred, mode='w:gz') as file:
        for name, data in (('./sdk/read.me', b'hello'), ('./sdk/net.onnx', CONTENT)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return {'net-0123abcd.zip': zipped.getvalue(), 'net.tar.gz': tarred.getvalue()}


ARCHIVES = archives()


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
        if self.path.startswith('/to/'):  # such as /to/http://127.0.0.1:9/net.pth
            self.send_response(302)
            self.send_header('Location', self.path.removeprefix('/to/'))
            self.send_header('Content-Length', '0')
            self.end_headers()
            return
        content = ARCHIVES.get(self.path.rpartition('/')[2], CONTENT)
        self.send_response(206 if start else 200)
        self.send_header('Content-Type', 'application/octet-stream')
        length = 10**15 if 'huge' in self.path else len(content) - start
        self.send_header('Content-Length', str(length))
        self.send_header('ETag', '"1"')
        if start:
            self.send_header('Content-Range', f'bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}')
        self.end_headers()
        end = len(content) // 2 if first and 'cut' in self.path else len(content)
        self.wfile.write(content[start:end])

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


# --- where, and whether at all --------------------------------------------------------------------
def test_downloads_go_into_the_folder_of_the_environment(server, tmp_path, monkeypatch):
    monkeypatch.setenv('TRUNCHIER_HOME', str(tmp_path / 'home'))
    assert download(f'{server}/once.pth') == tmp_path / 'home' / 'once.pth'
    monkeypatch.delenv('TRUNCHIER_HOME')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'xdg'))
    assert download(f'{server}/once.pth') == tmp_path / 'xdg' / 'trunchier' / 'once.pth'


def test_a_file_that_torch_hub_has_is_taken(server, tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.setenv('TRUNCHIER_HOME', str(tmp_path / 'home'))
    path = tmp_path / 'torch' / 'hub' / 'checkpoints' / 'net.pth'
    path.parent.mkdir(parents=True)
    path.write_bytes(b'mine')
    assert download(f'{server}/net.pth') == path
    assert Server.requests == []


def test_offline_nothing_is_asked_and_the_error_says_what_to_do(server, tmp_path, monkeypatch):
    monkeypatch.setenv('TRUNCHIER_OFFLINE', '1')
    with pytest.raises(DownloadError, match=r'(?s)TRUNCHIER_OFFLINE.*put it at data/checkpoints'):
        download(f'{server}/net.pth', tmp_path)
    assert Server.requests == []
    monkeypatch.setenv('TRUNCHIER_OFFLINE', '0')
    assert download(f'{server}/net.pth', tmp_path).read_bytes() == CONTENT


def test_a_download_is_announced_once_with_its_size_and_note(server, tmp_path, capsys):
    for _ in range(2):
        download(f'{server}/net.pth', tmp_path, note='license: MIT')
    text = f'downloading net.pth (license: MIT), 10 kB, from 127.0.0.1 to {tmp_path}\n'
    assert capsys.readouterr().err == text


def test_progress_begins_before_the_first_byte_and_ends_with_the_last(server, tmp_path):
    seen = []
    download(f'{server}/net.pth', tmp_path, progress=lambda *pair: seen.append(pair))
    assert seen[0] == (0, len(CONTENT)) and seen[-1] == (len(CONTENT), len(CONTENT))


# --- bad input ------------------------------------------------------------------------------------
def test_redirects_are_followed(server, tmp_path):
    path = download(f'{server}/to/{server}/net.pth', tmp_path)
    assert path.read_bytes() == CONTENT and path.name == 'net.pth'


@pytest.mark.parametrize('target', ['file:///etc/passwd', 'ftp://127.0.0.1/net.pth'])
def test_redirects_to_something_else_than_the_web_are_refused(server, tmp_path, target):
    with pytest.raises(DownloadError, match='redirect'):
        download(f'{server}/to/{target}', tmp_path, name='net.pth')
    assert not (tmp_path / 'net.pth').exists()


def test_a_file_of_another_size_is_not_downloaded(server, tmp_path):
    with pytest.raises(DownloadError, match='10240 bytes, not the one of 7'):
        download(f'{server}/net.pth', tmp_path, size=7)
    assert not list(tmp_path.glob('net.pth'))


def test_no_space_is_said_before_the_download_with_the_remedy(server, tmp_path):
    with pytest.raises(DownloadError, match=r'no space left.*TRUNCHIER_HOME'):
        download(f'{server}/huge.pth', tmp_path)
    assert len(Server.requests) == 1


def test_a_cache_that_cannot_be_made_is_named(server, tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(DownloadError, match='TRUNCHIER_HOME'):
        download(f'{server}/net.pth', tmp_path / 'file' / 'cache')


def test_the_proxy_of_the_environment_is_used_and_named_in_errors(server, tmp_path, monkeypatch):
    monkeypatch.setenv('http_proxy', server.replace('//', '//user:secret@'))
    for name in ('no_proxy', 'NO_PROXY'):
        monkeypatch.delenv(name, raising=False)
    path = download('http://elsewhere.invalid/net.pth', tmp_path)
    assert path.read_bytes() == CONTENT
    assert Server.requests == [('http://elsewhere.invalid/net.pth', 0)]
    monkeypatch.setenv('http_proxy', 'http://user:secret@127.0.0.1:9')
    with pytest.raises(DownloadError, match='through the proxy 127.0.0.1') as caught:
        download('http://elsewhere.invalid/other.pth', tmp_path)
    assert 'secret' not in str(caught.value)


def test_the_hash_of_openmmlab_names_is_read_before_their_date(server, tmp_path):
    name = f'net-{SHA256[:8]}_20230314.pth'
    assert download(f'{server}/{name}', tmp_path).read_bytes() == CONTENT
    with pytest.raises(DownloadError, match='SHA-256'):
        download(f'{server}/net-0123abcd_20230314.pth', tmp_path)


# --- archives -------------------------------------------------------------------------------------
@pytest.mark.parametrize('name', ARCHIVES)
def test_one_file_of_an_archive_is_kept(server, tmp_path, name):
    facts = dict(name='net.onnx', member='net.onnx', sha256=SHA256)
    path = download(f'{server}/{name}', tmp_path, **facts)
    assert path.read_bytes() == CONTENT
    assert [each.name for each in tmp_path.iterdir()] == ['net.onnx']


@pytest.mark.parametrize('name', ARCHIVES)
def test_of_an_archive_the_largest_member_of_a_kind_is_kept(server, tmp_path, name):
    path = download(f'{server}/{name}', tmp_path, name='any.file', member='*.*', sha256=SHA256)
    assert path.read_bytes() == CONTENT
    assert [each.name for each in tmp_path.iterdir()] == ['any.file']


@pytest.mark.parametrize('name', [*ARCHIVES, 'no-archive.zip'])
def test_an_archive_without_the_file_is_refused_and_removed(server, tmp_path, name):
    with pytest.raises(DownloadError, match='no archive with other.onnx'):
        download(f'{server}/{name}', tmp_path, name='other.onnx', member='other.onnx')
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('name', ARCHIVES)
def test_other_parts_of_an_archive_are_kept_beside_the_file(server, tmp_path, name):
    beside = {'read.me': 'kept.me', 'absent.me': 'absent.me'}
    facts = dict(name='net.onnx', member='net.onnx', sha256=SHA256, beside=beside)
    download(f'{server}/{name}', tmp_path, **facts)
    assert sorted(each.name for each in tmp_path.iterdir()) == ['kept.me', 'net.onnx']


# --- servers that do not answer -------------------------------------------------------------------
def test_a_name_server_that_does_not_answer_is_not_waited_for(tmp_path, monkeypatch):
    answer = threading.Event()
    monkeypatch.setattr(socket, 'getaddrinfo', lambda *given, **options: answer.wait())
    with pytest.raises(DownloadError, match=r'timed out: no address of models\.example in 0\.1 s'):
        download('https://models.example/net.pth', tmp_path, patience=0.1)
    assert not answer.is_set()  # it never came
    answer.set()


def test_a_server_that_does_not_answer_is_tried_once_by_those_in_a_hurry(tmp_path):
    with socket.create_server(('127.0.0.1', 0)) as silent:
        address = f'http://127.0.0.1:{silent.getsockname()[1]}/net.pth'
        with pytest.raises(DownloadError, match='timed out'):
            download(address, tmp_path, patience=0.1)
        silent.settimeout(0)
        silent.accept()[0].close()
        with pytest.raises(BlockingIOError):  # nobody else came
            silent.accept()


def test_a_redirect_from_https_to_http_is_refused():
    request = urllib.request.Request('https://example.org/net.pth')
    redirects, target = _Redirects(), 'http://example.org/net.pth'
    with pytest.raises(OSError, match='redirects from https to http'):
        redirects.redirect_request(request, None, 302, 'Found', {}, target)
    target = 'https://elsewhere.example/net.pth'
    assert redirects.redirect_request(request, None, 302, 'Found', {}, target).full_url == target
