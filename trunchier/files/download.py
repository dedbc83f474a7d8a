"""Downloads: a file is complete, or absent and continued by the next call.

Nothing is downloaded without a line on stderr that names the file, its size and the server.
"""

import contextlib
import errno
import fnmatch
import http.client
import json
import os
import re
import shutil
import socket
import sys
import tarfile
import threading
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from .whole import fcntl, file_digest, lock_file, whole_file

HOME, OFFLINE = 'TRUNCHIER_HOME', 'TRUNCHIER_OFFLINE'
BY_HAND = Path('data/checkpoints')
ATTEMPTS = 3
SECONDS = 60  # without a byte
FULL = (errno.ENOSPC, errno.EDQUOT)

# Called with the bytes received and the size of the file (None: unknown), first before any byte.
Progress = Callable[[int, 'int | None'], None]


class DownloadError(RuntimeError):
    """A file that could not be downloaded, or is not what its name says."""


def cache_folder() -> Path:
    """Folder of downloads: $TRUNCHIER_HOME, else `trunchier` in the user's cache."""
    if home := os.environ.get(HOME):
        return Path(home).expanduser()
    return Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser() / 'trunchier'


def is_offline() -> bool:
    """Whether $TRUNCHIER_OFFLINE forbids downloads."""
    return os.environ.get(OFFLINE, '0').lower() not in ('', '0', 'no', 'false', 'off')


def find_file(name: str) -> Path | None:
    """A file on this machine: put into data/checkpoints, in the cache, or of torch.hub."""
    torch_home = os.environ.get('TORCH_HOME') or Path(
        os.environ.get('XDG_CACHE_HOME') or '~/.cache', 'torch'
    )
    hub = Path(torch_home, 'hub', 'checkpoints').expanduser()
    places = (folder / name for folder in (BY_HAND, cache_folder(), hub))
    return next((path for path in places if path.is_file()), None)


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


def download(
    url: str,
    folder: str | Path | None = None,
    name: str = '',
    sha256: str | None = None,
    size: int = 0,
    member: str = '',
    note: str = '',
    progress: Progress | None = None,
    beside: dict[str, str] | None = None,
    patience: float = SECONDS,
) -> Path:
    """Fetch a file once, into `folder` (default: `cache_folder()`), and return its path.

    A file that is on this machine is taken first, see `find_file`. One process at a time downloads
    a file, to a `.part` file, which a later call continues if the server still has the same file.
    It is renamed once its size is the one that the server stated, and its SHA-256 is right.

    Args:
        url: http(s) address; may end with the hash: `...pth#sha256=1a2b...`.
        name: of the file; '': as in the address.
        sha256: the first or all of its digits; None: of the address, or of a name that carries
            them (`name-1a2b3c4d.pth`, `name-1a2b3c4d_20230314.pth`).
        size: bytes, if known.
        member: the address is of a .zip or .tar.gz, of which the file is the largest member whose
            name ends like this, a shell pattern such as `*.onnx`.
        note: what the announcement says about the file, such as its license.
        progress: see `Progress`; None: a line, and a bar on a terminal, on stderr.
        beside: {member: name} of other members to keep in `folder`; one that is absent is left out.
        patience: seconds to wait for a connection and for each part of the answer; less than
            SECONDS: there is one attempt.

    Raises:
        DownloadError: offline, no connection, no space, an answer that is not a file, or another
            size or hash.
    """
    address, _, fragment = url.partition('#')
    remote = Path(urllib.parse.unquote(urllib.parse.urlparse(address).path)).name
    name = name or remote
    if name in ('', '.', '..'):
        raise DownloadError(f'{url} does not name a file')
    if (
        found := find_file(name)
        if folder is None
        else next((path for path in (BY_HAND / name, Path(folder, name)) if path.is_file()), None)
    ):
        return found
    if is_offline():
        raise DownloadError(
            f'{name} is not on this machine, and ${OFFLINE} (--offline) forbids the download of '
            f'{address}; get it elsewhere and put it at {BY_HAND / name} or into {cache_folder()}'
        )
    folder = Path(folder or cache_folder())
    path = folder / name
    _make(folder)
    if progress is None:
        progress = _announce(f'{name}{f" ({note})" if note else ""}', address, folder)
    with _locked(path.with_name(f'.{name}.lock')):
        if not path.is_file():  # another process may have been faster
            part = path.with_name(f'{remote if member else name}.part')
            _fetch(address, part, BY_HAND / name, 0 if member else size, progress, patience)
            if member:
                whole, part = part, path.with_name(f'{name}.member')
                others = {each: folder / kept for each, kept in (beside or {}).items()}
                _take(whole, {member: part}, others)
                whole.unlink()
            _check_hash(part, name, _expected(remote, fragment) if sha256 is None else sha256)
            os.replace(part, path)
    return path


def _make(folder):
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DownloadError(
            f'the cache {folder} cannot be made ({error.strerror}); name another by ${HOME}'
        ) from error


def _announce(what, url, folder):
    """Progress on stderr: what is downloaded, how much, and on a terminal a bar."""
    host = urllib.parse.urlparse(url).hostname
    state = dict(begun=False, shown=-1)

    def show(received, size):
        percent = 100 * received // size if size else received >> 20
        if not state['begun']:
            amount = readable(size) if size else 'of unknown size'
            text = f'downloading {what}, {amount}, from {host} to {folder}'
            print(text, file=sys.stderr, flush=True)
            state['begun'] = True
        elif sys.stderr.isatty() and percent != state['shown']:
            state['shown'] = percent
            of = f'{percent:3} % of {readable(size)}' if size else readable(received)
            end = '\n' if received == size else ''
            print(f'\r  {of} ', end=end, file=sys.stderr, flush=True)

    return show


def readable(size: int) -> str:
    """Bytes as text: '343 MB' (decimal, as file managers show)."""
    for unit, factor in (('GB', 10**9), ('MB', 10**6), ('kB', 10**3)):
        if size >= factor:
            digits = 1 if size < 10 * factor else 0
            return f'{size / factor:.{digits}f} {unit}'
    return f'{size} bytes'


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


def _fetch(url, part, by_hand, size, progress, patience):
    """Download `url` to `part`; what is there is continued if it is of the same file."""
    facts = part.with_name(f'{part.name}.json')  # of the answer that `part` began with
    error = None
    for _ in range(1 if patience < SECONDS else ATTEMPTS):
        try:
            _check_name(url, patience)
            stated = _receive(url, part, facts, size, progress, patience)
        except (http.client.HTTPException, OSError, ValueError) as failure:
            error = failure
            if getattr(failure, 'errno', None) in FULL:
                raise DownloadError(
                    f'no space left in {part.parent} for {url}: free some, or name a folder on '
                    f'another disk by ${HOME}; a later call continues from {part.name}'
                ) from failure
            continue
        if stated in (None, part.stat().st_size):
            facts.unlink(missing_ok=True)
            return
        error = f'{part.stat().st_size} of {stated} bytes were received'
    raise DownloadError(
        f'{url} could not be downloaded{_through(url)}: {error}. Download it by other means and '
        f'put it at {by_hand}; a later call continues from {part}'
    )


def _check_name(url, patience):
    """Raise OSError if no address of the server, or of the proxy, is known within `patience`.

    The time limit of a connection does not hold for the look-up of its name.
    """
    parts = urllib.parse.urlparse(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy and not urllib.request.proxy_bypass(parts.netloc):
        parts = urllib.parse.urlparse(proxy if '://' in proxy else f'//{proxy}')
    answered = []

    def look_up():
        with contextlib.suppress(OSError):  # the connection says it
            socket.getaddrinfo(parts.hostname, parts.port or 443)
        answered.append(True)

    thread = threading.Thread(target=look_up, daemon=True)
    thread.start()
    thread.join(patience)
    if not answered:
        raise OSError(f'timed out: no address of {parts.hostname} in {patience:g} s')


def _through(url):
    """' through the proxy HOST', of the environment, if one is used."""
    parts = urllib.parse.urlparse(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if not proxy or urllib.request.proxy_bypass(parts.netloc):
        return ''
    place = urllib.parse.urlparse(proxy if '://' in proxy else f'//{proxy}')
    return f' through the proxy {place.hostname} (${parts.scheme}_proxy)'


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http(s) only, and never from https to http."""

    def redirect_request(self, request, answer, code, message, headers, url):
        old, new = (urllib.parse.urlparse(each).scheme for each in (request.full_url, url))
        if new not in ('http', 'https') or (old, new) == ('https', 'http'):
            raise OSError(f'the server redirects from {old} to {url}, which is not followed')
        return super().redirect_request(request, answer, code, message, headers, url)


def _receive(url, part, facts, size, progress, patience):
    """Write the rest of `url` to `part`; returns the size of the file, None if it ended itself."""
    have = part.stat().st_size if part.exists() else 0
    begun = json.loads(facts.read_text()) if have and facts.exists() else {}
    if begun.get('url') != url or not begun.get('version') or not begun.get('size'):
        have, begun = 0, {}
    headers = {'Accept-Encoding': 'identity'}
    if have:
        headers |= {'Range': f'bytes={have}-', 'If-Range': begun['version']}
    request = urllib.request.Request(url, headers=headers)
    try:
        answer = urllib.request.build_opener(_Redirects).open(request, timeout=patience)
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
            stated, mode = begun['size'], 'ab'
        else:
            length, mode, have = answer.headers.get('Content-Length'), 'wb', 0
            stated = None if length is None else int(length)
            if stated is None and not answer.chunked:
                raise OSError('the server does not say how long the file is')
            with whole_file(facts) as new:
                new.write_text(json.dumps(dict(url=url, version=_version(answer), size=stated)))
        if size and stated not in (None, size):
            raise OSError(f'the server has a file of {stated} bytes, not the one of {size}')
        if stated and stated - have > shutil.disk_usage(part.parent).free:
            raise OSError(errno.ENOSPC, f'{readable(stated - have)} are needed')
        progress(have, stated)
        with open(part, mode) as file:
            while block := answer.read(1 << 20):
                file.write(block)
                progress(file.tell(), stated)
            file.flush()
            os.fsync(file.fileno())
    return stated


def _version(answer):
    """What names the version of the file that a server sends: a strong ETag, or its date."""
    tag = answer.headers.get('ETag', '')
    return tag if tag.startswith('"') else answer.headers.get('Last-Modified')


def _expected(name, fragment):
    """SHA-256, or the start of it, that an address states, or ''."""
    stated = re.fullmatch(r'sha256=([0-9a-f]{8,64})', fragment)
    stated = stated or re.search(r'-([0-9a-f]{8,64})(?:_\d{8})?\.\w+$', name)
    return stated[1] if stated else ''


def _check_hash(path, name, expected):
    if not expected:
        return
    found = file_digest(path)
    if not found.startswith(expected):
        path.unlink()
        raise DownloadError(
            f'{name}: SHA-256 is {found[:16]}..., expected {expected[:16]}; the damaged download '
            'was removed, try again'
        )


def _take(archive, wanted, others):
    """Copy regular files out of a .zip or .tar.gz; names in it are only compared.

    Args:
        wanted, others: {end of the member's name, a shell pattern: path}, of several the largest;
            of `others` some may be absent.
    """
    paths, taken = wanted | others, {}

    def target(name, size):
        """Where to copy a member, or None."""
        for pattern, path in paths.items():
            if fnmatch.fnmatchcase(f'/{name}', f'*/{pattern}') and size > taken.get(path, -1):
                return path
        return None

    def copy(source, path, size):
        with whole_file(path) as new, open(new, 'wb') as file:
            shutil.copyfileobj(source, file, 1 << 20)
        taken[path] = size

    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as files:
                for each in files.infolist():
                    if path := target(each.filename, each.file_size):
                        with files.open(each) as source:
                            copy(source, path, each.file_size)
        else:
            with tarfile.open(archive, 'r|*') as files:
                for each in files:
                    if each.isreg() and (path := target(each.name, each.size)):
                        copy(files.extractfile(each), path, each.size)
        if missing := {*wanted.values()} - taken.keys():
            raise IndexError(missing)
    except (IndexError, tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        for path in wanted.values():
            path.unlink(missing_ok=True)
        archive.unlink()
        raise DownloadError(
            f'the download {archive.name} is no archive with {", ".join(wanted)} in it; it was '
            'removed'
        ) from error
