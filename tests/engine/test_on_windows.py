"""Hooks of the default configs without what Python does not have on Windows."""

import multiprocessing
import os
import signal
import time
from types import SimpleNamespace

import pytest
from torch.utils.data import DataLoader

from trunchier.engine import hooks
from trunchier.engine.checkpoints import WholeFileBackend


@pytest.fixture(autouse=True)
def windows(monkeypatch):
    for name in ('SIGALRM', 'SIGCONT', 'ITIMER_REAL', 'setitimer'):
        monkeypatch.delattr(signal, name)
    monkeypatch.delattr(os, 'O_DIRECTORY')
    open_file = os.open

    def open_no_folder(path, *arguments):
        if os.path.isdir(path):
            raise PermissionError(13, 'Permission denied', str(path))
        return open_file(path, *arguments)

    monkeypatch.setattr(os, 'open', open_no_folder)


def test_the_hook_of_workers_sets_no_timer():
    hook, runner = hooks.WorkerHook(), SimpleNamespace(train_dataloader=DataLoader([1, 2]))
    hook.before_train(runner)
    hook.before_train_iter(runner, 0)
    hook.after_train_iter(runner, 0)
    hook.after_train(runner)


def test_workers_are_ended(monkeypatch):
    child = multiprocessing.Process(target=time.sleep, args=(600,), daemon=True)
    child.start()
    monkeypatch.setattr(multiprocessing, 'active_children', lambda: [child])
    hooks.end_workers()
    child.join(60)
    assert not child.is_alive()


def test_a_checkpoint_is_written(tmp_path):
    WholeFileBackend().put(b'weights', tmp_path / 'epoch_1.pth')
    assert [path.name for path in tmp_path.iterdir()] == ['epoch_1.pth']
    assert (tmp_path / 'epoch_1.pth').read_bytes() == b'weights'
