"""Files and folders that appear complete or not at all.

They are written beside their place, under a hidden name that is locked meanwhile. What a killed
process has left there is taken over by the next one that writes the same file or folder.
"""

import contextlib
import hashlib
import os
import shutil
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

try:
    import fcntl
except ImportError:  # Windows: nothing is locked
    fcntl = None

LONGEST_NAME = 200  # bytes; longer ones get a part of another name, for file systems allow 255
PATIENCE = 2.0  # seconds; the workers of a killed process may hold its lock for a moment


def file_digest(path: str | Path) -> str:
    """The 64 digits of a file's SHA-256."""
    content = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(1 << 20):
            content.update(block)
    return content.hexdigest()


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """`with whole_file(path) as part`: what is written to `part` becomes `path` on success.

    `part` lies beside `path`, hidden, and has its suffix, since some writers go by that.

    Raises:
        OSError: the folder cannot be written, or the disk is full; `path` is then as before.
    """
    path = Path(path)
    with _naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = _part(path, path.suffix)
        lock = lock_file(part, os.O_RDWR | os.O_CREAT)
        if lock is None:  # of another thread or process: the last one wins
            part = part.with_stem(f'{part.stem}-{os.getpid()}-{time.monotonic_ns()}')
        try:
            yield part
            os.replace(part, path)  # from now on, another writer's part may have this name
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        finally:
            _unlock(lock)


@contextlib.contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """`with whole_folder(path) as part`: the folder `part` becomes `path` on success.

    Raises:
        OSError: `path` exists and is not an empty folder, another run is writing it, the folder
            above it cannot be written, or the disk is full; `path` is then as before.
    """
    with scratch_folder(path) as part:
        yield part
        os.replace(part, path)


@contextlib.contextmanager
def scratch_folder(path: str | Path) -> Iterator[Path]:
    """`with scratch_folder(path) as part`: an empty folder beside `path`, removed at the end.

    Raises:
        OSError: as by `whole_folder`.
    """
    path = Path(path)
    with _naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = _part(path)
        end = time.monotonic() + PATIENCE
        while True:
            part.mkdir(exist_ok=True)
            lock = lock_file(part, os.O_RDONLY)
            if lock is not None or fcntl is None:
                break
            if time.monotonic() > end:
                raise FileExistsError(
                    f'{path} is being written by another run; wait until it ends, end it, or '
                    'choose another folder'
                )
            time.sleep(0.05)
        try:
            for left in part.iterdir():  # by a killed process
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            yield part
        finally:
            if lock is None or _is_at(lock, part):  # else moved, and it may be another writer's
                shutil.rmtree(part, ignore_errors=True)
            _unlock(lock)


@contextlib.contextmanager
def _naming(path):
    """Errors of writing, as to a full disk, name no file: name `path`."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def _part(path, suffix=''):
    name = path.name.removesuffix(suffix)
    if len(os.fsencode(path.name)) > LONGEST_NAME:
        name = f'{zlib.crc32(os.fsencode(path.name)):08x}'
    return path.with_name(f'.{name}.part{suffix}')


def lock_file(path: str | Path, flags: int, wait: bool = False) -> int | None:
    """Open and lock a file or folder; returns its descriptor, or None: another one holds it.

    Args:
        wait: until its holder lets go; None then means that the holder has removed it.
    """
    if fcntl is None:
        return None
    with contextlib.suppress(FileNotFoundError):  # its holder has just moved it
        descriptor = os.open(path, flags, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            mine = _is_at(descriptor, path)
        except BlockingIOError:
            mine = False
        except OSError:  # a file system without locks
            mine = True
        if mine:
            return descriptor
        os.close(descriptor)
    return None


def _is_at(descriptor, path):
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    return False


def _unlock(descriptor):
    if descriptor is not None:
        os.close(descriptor)


def save_npz(path: str | Path, **arrays: np.ndarray) -> None:
    """Write an .npz file, without pickles.

    Raises:
        ValueError: an array of Python objects. OSError: see `whole_file`.
    """
    for name, array in arrays.items():
        if np.asarray(array).dtype.hasobject:
            raise ValueError(f'{path}: array {name!r} holds Python objects; give numbers or text')
    with whole_file(path) as part, open(part, 'wb') as file:
        np.savez(file, **arrays)


def check_writable(folder: str | Path) -> None:
    """Raise OSError, before any work, if files cannot be created in `folder`."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f'.writable-{os.getpid()}'
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise type(error)(
            error.errno, f'nothing can be written to {folder} ({error.strerror}); choose another'
        ) from error
