"""A folder is locked for one run, whose death unlocks it."""

import contextlib
import os
import signal

import pytest

from trunchier.files import whole
from trunchier.files.lock import FolderInUse, FolderLock


@pytest.fixture
def holder(tmp_path):
    """Another process, that holds the lock."""
    held, say = os.pipe()
    process = os.fork()
    if process == 0:
        lock = FolderLock(tmp_path)
        os.write(say, bytes(str(lock.path.name), 'utf-8'))
        while True:
            signal.pause()
    assert os.read(held, 100)
    yield process
    with contextlib.suppress(ProcessLookupError, ChildProcessError):  # the test has ended it
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    os.close(held)
    os.close(say)


def test_the_second_is_refused_by_name_until_the_first_releases(tmp_path):
    first = FolderLock(tmp_path)
    for _ in range(2):
        with pytest.raises(FolderInUse, match='in use by another run .process .*another folder'):
            FolderLock(tmp_path)
    first.release()
    assert list(tmp_path.iterdir()) == []
    second = FolderLock(tmp_path)
    first.release()  # again: that of the second stays
    with pytest.raises(FolderInUse):
        FolderLock(tmp_path)
    second.release()


@pytest.mark.parametrize('end', [signal.SIGKILL, signal.SIGTERM])
def test_a_lock_dies_with_its_process(holder, tmp_path, end):
    with pytest.raises(FolderInUse, match=f'process {holder}'):
        FolderLock(tmp_path)
    os.kill(holder, end)
    os.waitpid(holder, 0)
    FolderLock(tmp_path).release()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_whose_file_is_removed_in_the_meantime_is_taken_anew(tmp_path, monkeypatch):
    """The holder unlinks its file between the opening and the locking of another."""
    first, flock = FolderLock(tmp_path), whole.fcntl.flock

    def late(file, flags):
        first.release()
        return flock(file, flags)

    monkeypatch.setattr(whole.fcntl, 'flock', late)
    second = FolderLock(tmp_path)
    assert second.path.exists()
    monkeypatch.undo()
    with pytest.raises(FolderInUse):
        FolderLock(tmp_path)
    second.release()
