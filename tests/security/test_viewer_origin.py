"""The viewer's page answers only its own origin with its token, whatever a client sends."""

import contextlib
import html
import re
import socket

import pytest
from websockets.exceptions import InvalidHandshake
from websockets.sync.client import connect

viser = pytest.importorskip('viser', reason='the viewer is an optional extra: pip install viser')
from trunchier.visualization import viewer as module  # noqa: E402

PATIENCE = 60  # seconds that a broken server is waited for


@pytest.fixture(scope='module')
def viewer():
    made = module.Viewer(port=8571)
    yield made
    made.close()


@pytest.fixture
def token(viewer):
    return re.fullmatch(r'http://127\.0\.0\.1:\d+/\?token=([\w-]{32})', viewer.address)[1]


def get(viewer, target, *headers, host=None):
    """Status and head of the answer to a raw request."""
    lines = [f'GET {target} HTTP/1.1', f'Host: {host or f"127.0.0.1:{viewer.port}"}', *headers]
    with socket.create_connection(('127.0.0.1', viewer.port), PATIENCE) as connection:
        connection.sendall('\r\n'.join([*lines, '', '']).encode())
        answer = b''
        while b'\r\n\r\n' not in answer and (part := connection.recv(65536)):
            answer += part
    head = answer.partition(b'\r\n\r\n')[0].decode()
    return int(head.split()[1]), head


def cookie(viewer, token):
    _, head = get(viewer, f'/?token={token}')
    found = re.search(r'Set-Cookie: (\S+=\S+); HttpOnly; SameSite=Strict; Path=/', head)
    return found[1]


def opens(viewer, **headers):
    """Whether a websocket is opened and gets the scene."""
    version = f'viser-v{viser.__version__}'
    address = f'ws://127.0.0.1:{viewer.port}/'
    origin = headers.pop('Origin', None)
    try:
        with connect(
            address, subprotocols=[version], additional_headers=headers, origin=origin,
            open_timeout=PATIENCE, proxy=None,
        ) as page:  # fmt: skip
            return bool(page.recv(timeout=PATIENCE))
    except InvalidHandshake:
        return False


def test_the_page_is_served_with_its_token_only(viewer, token):
    assert get(viewer, f'/?token={token}')[0] == 200
    for target in ('/', '/?token=', '/?token=x', f'/?token={token[:-1]}', f'/?other={token}',
                   f'/{token}', f'/#token={token}', '/index.html'):  # fmt: skip
        assert get(viewer, target)[0] == 403, target


def test_the_cookie_of_the_page_opens_the_rest(viewer, token):
    kept = cookie(viewer, token)
    assert get(viewer, '/index.html', f'Cookie: {kept}')[0] == 200
    assert get(viewer, '/index.html', f'Cookie: other=1; {kept}; more=2')[0] == 200
    name = kept.partition('=')[0]
    for wrong in (f'{name}=', f'{name}={"x" * 32}', f'other={token}', '=;=;"', 'x' * 5000):
        assert get(viewer, '/index.html', f'Cookie: {wrong}')[0] == 403, wrong


def test_names_that_may_be_rebound_to_this_machine_are_refused(viewer, token):
    target, port = f'/?token={token}', viewer.port
    for host in (f'127.0.0.1:{port}', f'localhost:{port}', 'localhost', f'[::1]:{port}'):
        assert get(viewer, target, host=host)[0] == 200, host
    for host in ('evil.example', f'evil.example:{port}', f'127.0.0.1.evil.example:{port}',
                 f'localhost.evil.example:{port}', '', '[', f'x@evil.example:{port}'):  # fmt: skip
        assert get(viewer, target, host=host or ' ')[0] == 421, host
    twice = get(viewer, target, 'Host: evil.example')
    assert 400 <= twice[0] < 500


def test_requests_of_other_origins_are_refused_in_spite_of_the_token(viewer, token):
    own = f'http://127.0.0.1:{viewer.port}'
    assert get(viewer, f'/?token={token}', f'Origin: {own}')[0] == 200
    for origin in ('http://evil.example', 'null', f'{own}.evil.example', 'http://127.0.0.1:1',
                   f'http://localhost:{viewer.port}', 'file://', 'x', ''):  # fmt: skip
        assert get(viewer, f'/?token={token}', f'Origin: {origin}')[0] == 403, origin


def test_headers_that_are_no_addresses_are_refused(viewer, token):
    for header in ('Origin: http://[', 'Origin: http://[x]/', 'Cookie: \x80=[', 'Cookie: a=b;;;='):
        target = '/index.html' if header.startswith('Cookie') else f'/?token={token}'
        assert 400 <= get(viewer, target, header)[0] < 500, header


def test_a_websocket_opens_for_the_page_alone(viewer, token):
    kept, own = cookie(viewer, token), f'http://127.0.0.1:{viewer.port}'
    assert opens(viewer, Cookie=kept, Origin=own)
    assert not opens(viewer, Cookie=kept, Origin='http://evil.example')
    assert not opens(viewer, Origin=own)
    assert not opens(viewer)
    assert not opens(viewer, Cookie=kept.replace('=', '=x'), Origin=own)


@pytest.mark.parametrize(
    'target, status',
    [
        ('/' + 'a' * 5000, 414),
        ('/' + 'a' * 900, 404),
        ('/%00', 404),
        ('/../../../../etc/passwd', 404),
        ('/%2e%2e/%2e%2e/etc/passwd', 404),
        ('/..%5c..%5cetc', 404),
        ('//etc/passwd', 404),
        ('//[', None),
        ('http://[x', None),
        ('/' + 'a' * 20000, None),
    ],
)
def test_no_path_leads_outside_or_to_an_error_of_the_server(viewer, token, target, status):
    kept = cookie(viewer, token)
    try:
        found, head = get(viewer, target, f'Cookie: {kept}')
    except (ConnectionError, IndexError):  # cut off
        found = 400
    assert 400 <= found < 500 and status in (None, found)


def test_every_viewer_has_its_own_token(viewer, token):
    other = module.Viewer(port=viewer.port)
    with contextlib.closing(other):
        assert token not in other.address
        assert get(other, f'/?token={token}')[0] == 403


def test_a_viser_that_cannot_be_guarded_is_refused(monkeypatch):
    """One that opens its server by other means."""
    monkeypatch.setattr(module.Guard, 'installed', lambda self: contextlib.nullcontext())
    with pytest.raises(RuntimeError, match='does not let its requests be checked'):
        module.Viewer(port=8671)


def test_names_of_files_are_text_on_the_page():
    name = '![x](http://evil.example/y) {globalThis.z=1} <b>*c*</b>\x1b'
    shown = module._plain(name)
    assert not re.search(r'[{}<>\[\]()*!\x1b]', shown)
    assert html.unescape(shown) == name.replace('\x1b', '?')
