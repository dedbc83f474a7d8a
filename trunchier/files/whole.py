"""Files that appear complete or not at all."""

import contextlib
import os
from pathlib import Path


@contextlib.contextmanager
def whole_file(path):
    """`with whole_file(path) as part`: what is written to `part` becomes `path` on success.

    Raises:
        OSError: the folder cannot be written, or the disk is full; no `path` then.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'.{path.stem}.part{path.suffix}')  # PyAV goes by the suffix
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def check_writable(folder):
    """Raise PermissionError or OSError, before any work, where nothing could be written."""
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
