"""A lock of a folder, which dies with its process."""

import contextlib
import os
from pathlib import Path

from .whole import fcntl, lock_file

NAME = '.lock'


class FolderInUse(RuntimeError):
    """Another run writes into the folder."""


class FolderLock:
    """Keeps other runs out of `folder` until `release`, or until this process ends in any way.

    Raises:
        FolderInUse: another process, or another lock of this one, holds it.
        OSError: the lock file cannot be made.
    """

    def __init__(self, folder: str | Path):
        self.path, self.descriptor = Path(folder, NAME), None
        for _ in range(3):  # its holder may just remove it
            self.descriptor = lock_file(self.path, os.O_RDWR | os.O_CREAT)
            if self.descriptor is not None or fcntl is None:
                break
        else:
            raise FolderInUse(
                f'{folder} is in use by another run ({self._holder()}): wait until it ends, end '
                'it, or choose another folder'
            )
        if self.descriptor is not None:
            with contextlib.suppress(OSError):  # the disk is full, which the run will say
                os.ftruncate(self.descriptor, 0)
                os.write(self.descriptor, f'process {os.getpid()}'.encode())

    def _holder(self):
        with contextlib.suppress(OSError):
            return self.path.read_text()[:100] or 'which just began'
        return 'which just ended'

    def release(self) -> None:
        """Let others in; nothing happens the second time."""
        if self.descriptor is not None:
            self.path.unlink(missing_ok=True)  # while it is locked: no one else's is removed
            os.close(self.descriptor)
            self.descriptor = None
