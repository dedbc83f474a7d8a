"""Hooks of training: random numbers that a resume continues, and workers that end with it."""

import atexit
import multiprocessing
import os
import random
import signal
import threading
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop, Runner
from torch.utils.data import DataLoader, Dataset

from ..files.processes import follow_parent


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

    Workers die with their process, however it ends (on Linux). If a batch takes longer than
    `timeout` seconds, as of a stopped worker, the run ends with an error (not on Windows); if a
    worker was killed, at once. (torch's own timeout does not see a worker that stops while it hands
    a batch over.)
    """

    priority = 'LOWEST'

    def __init__(self, timeout: float = 600):
        self.timeout = timeout

    def _wait(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """A batch is loaded from here on."""
        if _has_timer():
            signal.signal(signal.SIGALRM, self._give_up)
            signal.setitimer(signal.ITIMER_REAL, self.timeout)

    def _work(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """The batch is there, or none is needed."""
        if _has_timer():
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _give_up(self, number, frame):
        while (
            frame is not None and frame.f_code.co_filename != torch.utils.data.dataloader.__file__
        ):
            frame = frame.f_back
        if frame is None:  # another error has ended the wait
            return
        stopped = [child.pid for child in multiprocessing.active_children() if is_stopped(child)]
        reason = f'the data loading workers {stopped} are stopped'
        if not stopped:
            reason = 'a data loading worker hangs, or the storage is too slow'
        raise RuntimeError(
            f'no batch for {self.timeout} seconds: {reason}; '
            "custom_hooks = [dict(type='WorkerHook', timeout=SECONDS)] changes the limit"
        )

    def before_train(self, runner: Runner) -> None:
        guard_workers(runner.train_dataloader)
        self._wait(runner)

    def before_val(self, runner: Runner) -> None:
        guard_workers(runner.val_dataloader)
        self._wait(runner)

    def before_test(self, runner: Runner) -> None:
        guard_workers(runner.test_dataloader)
        self._wait(runner)

    before_train_epoch = after_train_iter = after_val_iter = after_test_iter = _wait

    def after_val(self, runner: Runner) -> None:
        if isinstance(runner._train_loop, BaseLoop):
            self._wait(runner)

    before_train_iter = before_val_iter = before_test_iter = _work
    after_train_epoch = after_val_epoch = after_test_epoch = after_train = _work


def _has_timer():
    """Whether this thread may set a timer: the main one does, but not on Windows."""
    return hasattr(signal, 'SIGALRM') and threading.current_thread() is threading.main_thread()


def is_stopped(process: multiprocessing.Process) -> bool:
    """Whether a process of this machine is stopped (by SIGSTOP); False where that is not told."""
    try:
        status = Path(f'/proc/{process.pid}/stat').read_text()
    except OSError:
        return False
    return status.rpartition(')')[2].split()[0] == 'T'


def guard_workers(loader: DataLoader) -> None:
    """Let the workers of a loader, which have not begun yet, die with this process."""
    if loader.num_workers and not isinstance(loader.worker_init_fn, _Start):
        loader.worker_init_fn = _Start(loader.worker_init_fn)
        atexit.unregister(end_workers)
        atexit.register(end_workers)


def end_workers() -> None:
    """Terminate child processes, stopped ones too, for which Python would wait at its end."""
    forget_ends_of_workers()
    for child in multiprocessing.active_children():
        if child.daemon:
            child.terminate()
            if hasattr(signal, 'SIGCONT'):  # not on Windows
                os.kill(child.pid, signal.SIGCONT)


def forget_ends_of_workers() -> None:
    """Remove torch's handler, which raises RuntimeError, wherever it runs, when a worker ends."""
    if hasattr(signal, 'SIGCHLD') and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


class _Start:
    """First function of a worker process."""

    def __init__(self, then: Callable | None):
        self.then = then

    def __call__(self, worker: int) -> None:
        follow_parent()
        if self.then is not None:
            self.then(worker)
