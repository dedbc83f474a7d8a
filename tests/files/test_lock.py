"""A folder is locked for one run, whose death unlocks it."""

import signal
import subprocess
import sys

import pytest

from trunchier.files import whole
from trunchier.files.lock import FolderInUse, FolderLock

HOLD = """
import sys
from trunchier.files.lock import FolderLock
lock = FolderLock(sys.argv[1])
print('held', flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock."""
    process = subprocess.Popen(
        [sys.executable, '-c', HOLD, tmp_path],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == 'held\n'
    yield process
    process.kill()
    process.communicate()


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
    with pytest.raises(FolderInUse, match=f'process {holder.pid}'):
        FolderLock(tmp_path)
    holder.send_signal(end)
    holder.wait()
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
