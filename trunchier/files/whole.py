"""Files and folders that appear complete or not at all."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """`with whole_file(path) as part`: what is written to `part` becomes `path` on success.

    `part` lies beside `path`, hidden, and has its suffix, since some writers go by that.

    Raises:
        OSError: the folder cannot be written, or the disk is full; `path` is then as before.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'.{path.stem}.{os.getpid()}.part{path.suffix}')
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """`with whole_folder(path) as part`: the folder `part` becomes `path` on success.

    Raises:
        OSError: `path` exists and is not an empty folder, the folder above it cannot be written, or
            the disk is full; `path` is then as before.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'.{path.name}.{os.getpid()}.part')
    part.mkdir()
    try:
        yield part
        os.replace(part, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


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
