"""Files, and parts of them, anywhere: paths of this machine, addresses of stores and servers.

Addresses are read by fsspec in byte ranges: s3:// needs the package s3fs, gs:// gcsfs, az:// adlfs
and https:// aiohttp. A process that has none of these gets an ImportError that names it.
"""

import hashlib
import os
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from .optional import need
from .whole import whole_file

SCHEMES = ('s3', 'gs', 'az', 'hf', 'http', 'https', 'memory')
ADDRESS = re.compile(rf'(?:{"|".join(SCHEMES)})://[^:]')
ATTEMPTS, PAUSE = 3, 0.5  # of a read; seconds before the second
DIGEST = 16  # bytes
BLOCK = 1 << 20  # bytes that are read ahead while a remote file is walked through


def is_remote(path: str | os.PathLike) -> bool:
    """Whether it is an address rather than a path of this machine."""
    return '://' in str(path)


def _system(address):
    """fsspec's file system of an address, and the path in it.

    Raises:
        ValueError: an address of another kind.
    """
    address = str(address)
    if not ADDRESS.match(address) or '::' in address:
        raise ValueError(f'{address} cannot be read; expected a path or {", ".join(SCHEMES)}://')
    return need('fsspec.core', f'reading {address}').url_to_fs(address)


def matching(address: str) -> list[str]:
    """Addresses that match one with *, sorted.

    Raises:
        FileNotFoundError: none does.
        ValueError: http(s), which has no lists of files.
    """
    if address.startswith('http'):
        raise ValueError(f'{address}: a server lists no files; write {{000000..000312}} instead')
    system, name = _system(address)
    found = sorted(system.unstrip_protocol(each) for each in system.glob(name))
    if not found:
        raise FileNotFoundError(f'no file matches {address}')
    return found


def open_anywhere(path: str | os.PathLike) -> IO[bytes]:
    """A seekable binary file.

    Raises:
        OSError: no such file, no permission, or a server that serves no byte ranges.
        ImportError: fsspec lacks a package for this kind of address.
    """
    if not is_remote(path):
        return open(path, 'rb')
    system, name = _system(path)
    return system.open(name, 'rb', block_size=BLOCK)


def read_range(path: str | os.PathLike, offset: int, size: int, exact: bool = False) -> bytes:
    """`size` bytes of a file from `offset` on; fewer at its end. A server is asked ATTEMPTS times.

    Args:
        exact: fewer bytes are an error.

    Raises:
        OSError, ImportError: as `open_anywhere`.
    """
    data = _read(path, offset, size)
    if len(data) > size:
        raise OSError(f'{path}: the server ignores byte ranges; download the file first')
    if exact and len(data) < size:
        raise OSError(f'{path}: {len(data)} bytes from byte {offset} on, expected {size}')
    return data


def _read(path, offset, size):
    if not is_remote(path):
        with open(path, 'rb') as file:
            file.seek(offset)
            return file.read(size)
    system, name = _system(path)
    attempt = 1
    while True:
        try:
            return system.cat_file(name, offset, offset + size) if size else b''
        except (FileNotFoundError, PermissionError):
            raise
        except Exception as error:  # of the package for this kind of address
            if attempt == ATTEMPTS:
                raise OSError(f'{path} cannot be read: {error}') from error
        time.sleep(PAUSE * attempt)
        attempt += 1


def write_whole(path: str | os.PathLike, data: bytes) -> None:
    """Write a file, complete or not at all; the folder is created."""
    if not is_remote(path):
        with whole_file(Path(path)) as part:
            part.write_bytes(data)
        return
    system, name = _system(path)
    system.pipe_file(name, data)


def files_in(folder: str) -> list[str]:
    """Paths or addresses of what lies in a folder, sorted; none if there is no such folder."""
    if not is_remote(folder):
        return sorted(map(str, Path(folder).glob('*.*')))
    system, path = _system(folder)
    names = system.ls(path, detail=False) if system.exists(path) else []
    return sorted(f'{folder}/{os.path.basename(name)}' for name in names)


def remove(path: str) -> None:
    """Delete a file."""
    if is_remote(path):
        system, name = _system(path)
        system.rm(name)
    else:
        os.unlink(path)


def state_of(path: str | os.PathLike) -> tuple[int, Any]:
    """Size in bytes, and what changes with the content: time of a path, tag of an address.

    Raises:
        OSError, ImportError: as `open_anywhere`.
    """
    if not is_remote(path):
        status = os.stat(path)
        return status.st_size, status.st_mtime_ns
    system, name = _system(path)
    info = system.info(name)
    tags = (str(info[tag]) for tag in ('ETag', 'etag', 'mtime', 'created') if info.get(tag))
    return int(info['size']), next(tags, '')


class RangeCache:
    """Parts of remote files in a folder of bounded size, which any number of processes share.

    A part is stored with its digest: what is damaged is read again. The oldest are deleted once
    the folder exceeds `limit`; between two looks at it, a process writes up to a sixteenth of that.

    Args:
        folder: created when it is needed.
        limit: bytes.
    """

    def __init__(self, folder: str | Path, limit: int):
        self.folder, self.limit = Path(folder), limit
        self.written: int | None = None  # since the last look; None: before the first

    def read(self, path: str, offset: int, size: int, tag: object = '') -> bytes:
        """As `read_range`, exactly `size` bytes.

        Args:
            tag: of the state of the file, see `state_of`.
        """
        if size > self.limit // 16:
            return read_range(path, offset, size, exact=True)
        key = _digest(f'{path} {tag} {offset} {size}'.encode()).hex()
        place = self.folder / key[:2] / key
        with suppress(OSError):
            stored = place.read_bytes()
            data = stored[DIGEST:]
            if len(data) == size and stored[:DIGEST] == _digest(data):
                os.utime(place)
                return data
        data = read_range(path, offset, size, exact=True)
        with suppress(OSError):  # a full or read-only disk: it is read again the next time
            self._store(place, data)
        return data

    def _store(self, place, data):
        with whole_file(place) as part:
            part.write_bytes(_digest(data) + data)
        if self.written is None or self.written > self.limit // 16:
            self._shrink()
        self.written += len(data)

    def _shrink(self):
        """Delete what was used longest ago until a sixteenth is free."""
        files = []
        for path in self.folder.glob('??/*'):
            with suppress(OSError):  # another process deletes as well
                status = path.stat()
                files.append((status.st_mtime_ns, status.st_size, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self.limit - self.limit // 16:
                break
            path.unlink(missing_ok=True)
            total -= size
        self.written = 0


def _digest(data):
    return hashlib.blake2b(data, digest_size=DIGEST).digest()
