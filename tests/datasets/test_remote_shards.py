"""Shards on servers are read in byte ranges, with a bounded cache, as safely as those of a disk."""

import contextlib
import http.server
import multiprocessing
import re
import threading

import fsspec
import numpy as np
import people
import pytest

from trunchier.datasets import ShardPeople, shards
from trunchier.files import remote
from trunchier.files.remote import RangeCache, read_range


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two shards; what is downloaded stays in tmp_path."""
    monkeypatch.setenv('TRUNCHIER_HOME', str(tmp_path / 'home'))
    monkeypatch.setattr(remote, 'PAUSE', 0.0)
    return people.write_shards(tmp_path / 'set', shards=2, members=3)


@pytest.fixture
def memory(folder):
    """The address of a copy in fsspec's memory."""
    system = fsspec.filesystem('memory')
    for path in folder.glob('*.tar'):
        system.pipe_file(f'/bucket/set/{path.name}', path.read_bytes())
    yield 'memory://bucket/set'
    system.rm('/bucket', recursive=True)


class Ranges(http.server.BaseHTTPRequestHandler):
    """Files of the server's `files` by range; `asked` has each (path, range)."""

    def do_HEAD(self):  # noqa: N802
        self.do_GET()

    def do_GET(self):  # noqa: N802
        server, wanted = self.server, self.headers.get('Range')
        data = server.files.get(self.path)
        server.asked.append((self.command, wanted))
        if data is None or server.failures > 0 and self.command == 'GET':
            server.failures -= data is not None
            self.send_error(404 if data is None else 503)
            return
        span, total = re.fullmatch(r'bytes=(\d+)-(\d+)', wanted or ''), len(data)
        if span and server.ranges:
            first, last = int(span[1]), min(int(span[2]), total - 1)
            data = data[first : last + 1]
            self.send_response(206)
            self.send_header('Content-Range', f'bytes {first}-{last}/{total}')
        else:
            self.send_response(200)
        if server.ranges:
            self.send_header('Accept-Ranges', 'bytes')
        self.send_header('ETag', str(hash(server.files[self.path])))
        self.send_header('Content-Length', str(len(data)))
        self.end_headers()
        if self.command == 'GET':
            with contextlib.suppress(ConnectionError):
                self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(folder):
    pytest.importorskip('aiohttp', reason='fsspec reads http(s) by it: pip install aiohttp')
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Ranges)
    server.files = {f'/{path.name}': path.read_bytes() for path in folder.glob('*.tar')}
    server.asked, server.failures, server.ranges = [], 0, True
    server.address = f'http://127.0.0.1:{server.server_address[1]}'
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def ready(urls, **options):
    dataset = ShardPeople(urls, name='set', **options)
    dataset.full_init()
    return dataset


def assert_equal(dataset, other):
    assert len(dataset) == len(other) == 6
    for index in range(6):
        found, wanted = dataset.record(index), other.record(index)
        assert found['key'] == wanted['key']
        np.testing.assert_array_equal(found['image'], wanted['image'])
        np.testing.assert_array_equal(found['keypoints_3d'], wanted['keypoints_3d'])


def test_an_object_store_gives_what_the_disk_gives(memory, folder):
    names = [path.rpartition('/')[2] for path in shards.expand_urls(f'{memory}/*.tar')]
    assert names == ['000000.tar', '000001.tar']
    assert_equal(ready(f'{memory}/{{000000..000001}}.tar'), ready(folder))


def test_an_http_server_gives_what_the_disk_gives_and_whole_files_are_not_read(server, folder):
    dataset = ready(f'{server.address}/{{000000..000001}}.tar')
    server.asked.clear()
    assert_equal(dataset, ready(folder))
    spans = [wanted for command, wanted in server.asked if command == 'GET']
    assert len(spans) == 12  # an image and its annotations, six times
    sizes = [int(last) - int(first) for first, last in (w[6:].split('-') for w in spans)]
    assert max(sizes) < min(map(len, server.files.values()))
    server.asked.clear()
    assert_equal(dataset, ready(folder))
    assert server.asked == []  # all is in the cache
    # The index is there, too: the next run asks for the state of each shard alone.
    ready(f'{server.address}/{{000000..000001}}.tar')
    assert {command for command, _ in server.asked} == {'HEAD'}


def test_workers_of_a_loader_read_by_themselves(server, folder):
    dataset = ready(f'{server.address}/{{000000..000001}}.tar', cache_bytes=0)
    first = dataset.record(0)['image']
    context = multiprocessing.get_context('fork')
    queue = context.Queue()
    worker = context.Process(target=lambda: queue.put(dataset.record(0)['image']))
    worker.start()
    np.testing.assert_array_equal(queue.get(timeout=60), first)
    worker.join()


def test_a_server_that_fails_is_asked_again_and_then_named(server, folder):
    dataset = ready(f'{server.address}/{{000000..000001}}.tar', cache_bytes=0)
    server.failures = remote.ATTEMPTS - 1
    assert dataset.record(0)['key'] == ready(folder).record(0)['key']
    server.failures = 100
    with pytest.raises(OSError, match=r'000000.tar cannot be read.*503'):
        dataset.record(0)


def test_a_server_without_ranges_is_refused(server):
    server.ranges = False
    with pytest.raises(OSError, match='ignores byte ranges'):
        read_range(f'{server.address}/000000.tar', 512, 100)


def test_a_changed_shard_is_indexed_and_read_anew(memory, folder):
    first = ready(f'{memory}/000000.tar')
    first.record(0)
    people.write_shard(folder / 'other.tar', [people.sample('new', [people.annotation()])])
    content = (folder / 'other.tar').read_bytes()
    fsspec.filesystem('memory').pipe_file('/bucket/set/000000.tar', content)
    second = ready(f'{memory}/000000.tar')
    assert len(first) == 3 and len(second) == 1 and second.record(0)['key'] == 'new'


def test_a_missing_shard_is_named(memory):
    with pytest.raises(FileNotFoundError, match='no shard .*000002.tar'):
        ready(f'{memory}/{{000000..000007}}.tar')
    with pytest.raises(FileNotFoundError, match='no file matches'):
        shards.expand_urls(f'{memory}/*.zip')


@pytest.mark.parametrize(
    'url', ['pipe:curl x', 'ftp://a/b.tar', 'file:///a.tar', 'zip://a::s3://b']
)
def test_other_addresses_are_refused(url):
    with pytest.raises((ValueError, OSError), match='is not run|cannot be read; expected'):
        ready(url)


# --- The cache ------------------------------------------------------------------------------------
def test_the_cache_is_bounded_and_forgets_what_was_used_longest_ago(tmp_path, memory):
    fsspec.filesystem('memory').pipe_file('/bucket/big', bytes(range(256)) * 64)
    cache = RangeCache(tmp_path / 'cache', limit=4096)
    for offset in range(0, 16384, 128):
        assert (
            cache.read('memory://bucket/big', offset, 128)
            == bytes(range(256))[offset % 256 :][:128]
        )
        total = sum(path.stat().st_size for path in cache.folder.rglob('*') if path.is_file())
        assert total <= 4096 + 4096 // 16 + 144
    fsspec.filesystem('memory').rm('/bucket/big')
    assert len(cache.read('memory://bucket/big', 16384 - 128, 128)) == 128  # the last one is there
    with pytest.raises(FileNotFoundError):
        cache.read('memory://bucket/big', 0, 128)


def test_a_damaged_part_of_the_cache_is_read_again(tmp_path, memory):
    fsspec.filesystem('memory').pipe_file('/bucket/big', b'0123456789' * 10)
    cache = RangeCache(tmp_path / 'cache', limit=4096)
    assert cache.read('memory://bucket/big', 10, 10) == b'0123456789'
    (stored,) = (path for path in cache.folder.rglob('*') if path.is_file())
    for damage in (b'', stored.read_bytes()[:-1] + b'x', b'y' + stored.read_bytes()[1:]):
        stored.write_bytes(damage)
        assert cache.read('memory://bucket/big', 10, 10) == b'0123456789'
    with pytest.raises(OSError, match='5 bytes from byte 95 on, expected 10'):
        cache.read('memory://bucket/big', 95, 10)
