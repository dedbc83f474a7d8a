"""A lock of a folder, which dies with its process."""

import contextlib
import errno
import os
from pathlib import Path
from typing import TextIO

try:
    import fcntl
except ImportError:  # Windows: no folder is locked
    fcntl = None

NAME = '.lock'


class FolderInUse(RuntimeError):
    """Another run writes into the folder."""


class FolderLock:
    """Keeps other runs out of `folder` until `release`, or until this process ends in any way.

    Raises:
        FolderInUse: another process, or another lock of this one, holds it.
        OSError: the lock file cannot be written.
    """

    def __init__(self, folder: str | Path):
        self.path = Path(folder, NAME)
        self.file = _locked(self.path)

    def release(self) -> None:
        """Let others in; nothing happens the second time."""
        if self.file is not None:
            self.path.unlink(missing_ok=True)  # while it is locked: no one else's is removed
            self.file.close()
            self.file = None


def _locked(path: Path) -> TextIO:
    while True:
        file = open(path, 'a+')  # noqa: SIM115  open as long as the lock is held
        if fcntl is None:
            return file
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read(100).strip()
            file.close()
            raise FolderInUse(
                f'{path.parent} is in use by another run ({holder or "which just began"}): wait '
                'until it ends, end it, or choose another folder'
            ) from None
        except OSError as error:  # a network file system without locks
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                file.close()
                raise
        if _is_at(file, path):
            os.truncate(path, 0)
            with contextlib.suppress(OSError):  # the disk is full, which the run will say
                os.write(file.fileno(), f'process {os.getpid()}'.encode())
            return file
        file.close()  # its holder has just removed it


def _is_at(file, path):
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False
