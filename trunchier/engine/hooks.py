"""Hooks of training: random numbers that a resume continues, and workers that end with it."""

import atexit
import ctypes
import multiprocessing
import os
import random
import signal
import sys
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch.utils.data import DataLoader, Dataset

WORKER_TIMEOUT = 600  # seconds
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux


@HOOKS.register_module()
class SeedHook(Hook):
    """Random numbers of epoch-based training as a function of the position, not of the history.

    Augmentation is seeded by (seed, epoch, index of the sample), in whichever process it runs; drop
    path and dropout by (seed, rank, iteration). Hence a resumed run equals an uninterrupted one bit
    for bit, and the number of workers does not matter. (`StreamTrainLoop` does so by itself.)
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        loader, hub = runner.train_dataloader, runner.message_hub
        if runner.iter == 0 or 'sample_seed' not in hub.runtime_info:
            hub.update_info('sample_seed', getattr(loader.sampler, 'seed', runner.seed))
        self.seed = hub.get_info('sample_seed')
        if hasattr(loader.sampler, 'seed'):
            loader.sampler.seed = self.seed
        self.samples = SeededSamples(loader.dataset, self.seed)
        loader.dataset.__getitems__ = self.samples  # called by torch's loader for each batch

    def before_train_epoch(self, runner: Runner) -> None:
        self.samples.epoch.fill_(runner.epoch)
        seed_all(position_seed(self.seed, 'epoch', runner.epoch))

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | Sequence | None = None
    ) -> None:
        seed_all(position_seed(self.seed, get_rank(), runner.iter))


class SeededSamples:
    """Function from indices to samples of `dataset`, each with random numbers of its own."""

    def __init__(self, dataset: Dataset, seed: int):
        self.dataset = dataset
        self.seed = seed
        self.epoch = torch.zeros(1, dtype=torch.int64).share_memory_()  # workers outlive epochs

    def __call__(self, indices: Sequence) -> list:
        return [self._sample(index) for index in indices]

    def _sample(self, index):
        seed_all(position_seed(self.seed, 'sample', int(self.epoch), index))
        return self.dataset[index]


def position_seed(*position: Any) -> int:
    """A 32-bit seed that differs between positions."""
    return zlib.crc32(' '.join(map(str, position)).encode())


def seed_all(seed: int) -> None:
    """Seed the generators of Python, numpy and torch in this process."""
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


@HOOKS.register_module()
class WorkerHook(Hook):
    """End data loading workers with the process that loads, and the run with its workers.

    Workers die with their process, however it ends (on Linux). A batch that takes longer than
    `timeout` seconds, as from a stopped worker, ends the run with an error; a worker that was
    killed does so at once.
    """

    priority = 'VERY_HIGH'

    def __init__(self, timeout: float = WORKER_TIMEOUT):
        self.timeout = timeout

    def before_train(self, runner: Runner) -> None:
        guard_workers(runner.train_dataloader, self.timeout)

    def before_val(self, runner: Runner) -> None:
        guard_workers(runner.val_dataloader, self.timeout)

    def before_test(self, runner: Runner) -> None:
        guard_workers(runner.test_dataloader, self.timeout)


def guard_workers(loader: DataLoader, timeout: float = WORKER_TIMEOUT) -> None:
    """See `WorkerHook`. No effect on workers that have begun; a timeout of the loader is kept."""
    if loader.num_workers and not isinstance(loader.worker_init_fn, _Start):
        loader.worker_init_fn = _Start(loader.worker_init_fn)
        loader.timeout = loader.timeout or timeout
        atexit.unregister(end_workers)
        atexit.register(end_workers)


def end_workers() -> None:
    """Terminate child processes, stopped ones too, for which Python would wait at its end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler takes the ends for failures
    for child in multiprocessing.active_children():
        if child.daemon:
            child.terminate()
            os.kill(child.pid, signal.SIGCONT)


class _Start:
    """First function of a worker process."""

    def __init__(self, then: Callable | None):
        self.then = then

    def __call__(self, worker: int) -> None:
        if sys.platform == 'linux':
            ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
        if self.then is not None:
            self.then(worker)
