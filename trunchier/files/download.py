"""Downloads: a file is complete, or absent and continued by the next call."""

import contextlib
import hashlib
import http.client
import json
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import torch

from .whole import fcntl, lock_file, whole_file

ATTEMPTS = 3


class DownloadError(RuntimeError):
    """A file that could not be downloaded, or is not what its name says."""


def local_file(checkpoint: str | Path) -> Path:
    """Path of `checkpoint` on this machine; an http(s) address is downloaded once.

    Raises:
        FileNotFoundError: no such file; says where it may be put.
        DownloadError: the download failed.
    """
    checkpoint = str(checkpoint)
    if re.match(r'https?://', checkpoint):
        return download(checkpoint)
    path = Path(checkpoint)
    if not path.is_file():
        raise FileNotFoundError(
            f'no checkpoint {path} (from {Path.cwd()}); "Weights" in README.md says where it comes '
            'from. To train from scratch: --cfg-options model.backbone.init_cfg=None (pose) or '
            'model.init_cfg=None (mesh)'
        )
    return path


def download(url: str, folder: str | Path | None = None) -> Path:
    """Fetch `url` once, into `folder` (default: torch.hub's checkpoints), and return the path.

    A copy in data/checkpoints is taken first. One process at a time downloads a file, to a `.part`
    file, which a later call continues if the server still has the same file. It is renamed once its
    size is the one that the server stated, and its SHA-256 begins with the one in the address
    (`...pth#sha256=1a2b...`) or in the name (`name-1a2b3c4d.pth`), if there is one.

    Raises:
        DownloadError: no connection, an answer that is not a file, or another size or hash.
    """
    address, _, fragment = url.partition('#')
    name = Path(urllib.parse.unquote(urllib.parse.urlparse(address).path)).name
    if name in ('', '.', '..'):
        raise DownloadError(f'{url} does not name a file')
    by_hand = Path('data/checkpoints') / name
    if by_hand.is_file():
        return by_hand
    folder = Path(folder or os.path.join(torch.hub.get_dir(), 'checkpoints'))
    path = folder / name
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(path.with_name(f'.{name}.lock')):
        if not path.is_file():  # another process may have been faster
            part = path.with_name(f'{name}.part')
            _fetch(address, part, by_hand)
            _check_hash(part, name, fragment)
            os.replace(part, path)
    return path


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`, which is removed in the end; wait while another process does."""
    descriptor = None
    while fcntl is not None and descriptor is None:  # the process before may just remove it
        descriptor = lock_file(path, os.O_RDWR | os.O_CREAT, wait=True)
    try:
        yield
    finally:
        if descriptor is not None:
            path.unlink(missing_ok=True)
            os.close(descriptor)


def _fetch(url, part, by_hand):
    """Download `url` to `part`; what is there is continued if it is of the same file."""
    facts = part.with_name(f'{part.name}.json')  # of the answer that `part` began with
    error = None
    for _ in range(ATTEMPTS):
        try:
            size = _receive(url, part, facts)
        except (http.client.HTTPException, OSError, ValueError) as failure:
            error = failure
            continue
        if size in (None, part.stat().st_size):
            facts.unlink(missing_ok=True)
            return
        error = f'{part.stat().st_size} of {size} bytes were received'
    raise DownloadError(
        f'{url} could not be downloaded: {error}. Download it by other means and put it at '
        f'{by_hand}; a later call continues from {part}'
    )


def _receive(url, part, facts):
    """Write the rest of `url` to `part`; returns the size of the file, None if it ended itself."""
    have = part.stat().st_size if part.exists() else 0
    begun = json.loads(facts.read_text()) if have and facts.exists() else {}
    if begun.get('url') != url or not begun.get('version') or not begun.get('size'):
        have, begun = 0, {}
    headers = {'Accept-Encoding': 'identity'}
    if have:
        headers |= {'Range': f'bytes={have}-', 'If-Range': begun['version']}
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # the server has nothing beyond `have`
            if have == begun.get('size'):
                return have
            facts.unlink(missing_ok=True)  # begin anew
        raise
    with answer:
        if answer.headers.get_content_type() == 'text/html':
            raise OSError('the answer is a web page, not a file')
        if answer.headers.get('Content-Encoding', 'identity') != 'identity':
            raise OSError('the answer is compressed, which was not asked for')
        if answer.status == 206:
            span = re.fullmatch(
                r'bytes (\d+)-\d+/(\d+)', answer.headers.get('Content-Range', '').strip()
            )
            wanted = have, begun.get('size'), begun.get('version')
            if not span or (int(span[1]), int(span[2]), _version(answer)) != wanted:
                facts.unlink(missing_ok=True)
                raise OSError('the server continued at another byte, or another file')
            size, mode = begun['size'], 'ab'
        else:
            length, mode = answer.headers.get('Content-Length'), 'wb'
            size = None if length is None else int(length)
            if size is None and not answer.chunked:
                raise OSError('the server does not say how long the file is')
            with whole_file(facts) as new:
                new.write_text(json.dumps(dict(url=url, version=_version(answer), size=size)))
        with open(part, mode) as file:
            while block := answer.read(1 << 20):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
    return size


def _version(answer):
    """What names the version of the file that a server sends: a strong ETag, or its date."""
    tag = answer.headers.get('ETag', '')
    return tag if tag.startswith('"') else answer.headers.get('Last-Modified')


def _check_hash(path, name, fragment):
    expected = re.fullmatch(r'sha256=([0-9a-f]{8,64})', fragment)
    expected = expected or re.search(r'-([0-9a-f]{8,64})\.\w+$', name)
    if not expected:
        return
    contents = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(1 << 20):
            contents.update(block)
    found = contents.hexdigest()
    if not found.startswith(expected[1]):
        path.unlink()
        raise DownloadError(
            f'{name}: SHA-256 is {found[:16]}..., expected {expected[1]}; the damaged download was '
            'removed, try again'
        )
