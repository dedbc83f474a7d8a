"""Signals end training cleanly, its data loading workers end with it, and it ends with them."""

import os
import re
import signal
from pathlib import Path

import pytest
from forked import status, until
from people import write_shards
from small_trainings import mesh


@pytest.fixture
def training(server, tmp_path):
    """Start an endless mesh training; returns its process id, those of its workers, and its log."""
    write_shards(tmp_path / 'shards')
    cfg = mesh(tmp_path)
    cfg.train_dataloader.update(num_workers=2)
    cfg.train_cfg.max_iters = 1_000_000
    cfg.default_hooks.logger.interval = 1
    cfg.dump(tmp_path / 'mesh.py')

    def start(*options):
        log = tmp_path / 'log'
        arguments = 'train.py', tmp_path / 'mesh.py', '--work-dir', tmp_path / 'work'
        child = server.start(log, *arguments, *options)
        until(lambda: 'Iter(train)' in log.read_text(), 'the first iteration')
        workers = Path(f'/proc/{child}/task/{child}/children').read_text().split()
        assert len(workers) == 2
        return child, [int(worker) for worker in workers], log

    return start


def gone(process):
    """Whether a process has ended; a zombie, which nobody has waited for, has."""
    return status(process)[0] == 'Z'


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_a_training_that_a_signal_ends(training, server, number):
    child, workers, log = training()
    os.kill(child, number)
    code = server.wait()
    if number == signal.SIGKILL:
        assert code == -number
    else:
        assert code == 128 + number
        assert f'stopped by {number.name}' in log.read_text()
    until(lambda: all(map(gone, workers)), 'the end of the workers')


def test_a_stopped_worker_ends_the_training_with_an_error_that_says_so(training, server):
    child, workers, log = training('--cfg-options', 'custom_hooks.1.timeout=2')
    os.kill(workers[0], signal.SIGSTOP)
    assert server.wait() == 1
    text = f'no batch for 2 seconds: the data loading workers [{workers[0]}] are stopped'
    assert text in log.read_text()
    until(lambda: all(map(gone, workers)), 'the end of the workers, of the stopped one too')


def test_a_killed_worker_ends_the_training_with_an_error_that_says_so(training, server):
    child, workers, log = training()
    os.kill(workers[0], signal.SIGKILL)
    assert server.wait() == 1
    assert re.search(r'RuntimeError: .*DataLoader worker.* killed', log.read_text())
    until(lambda: all(map(gone, workers)), 'the end of the workers')
