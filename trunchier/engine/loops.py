"""A training loop that resumes a stream of samples without replaying it."""

from typing import Any

import torch
from mmengine.dist import get_rank
from mmengine.registry import LOOPS
from mmengine.runner import Runner
from mmengine.runner.loops import IterBasedTrainLoop, _InfiniteDataloaderIterator
from torch import nn
from torch.utils.data import DataLoader

from .hooks import guard_workers, position_seed


@LOOPS.register_module()
class StreamTrainLoop(IterBasedTrainLoop):
    """Iteration-based training on an endless stream, which resumes at its position at once.

    mmengine's loop replays every past batch, which takes hours. Here the sampler (such as
    MixSampler) has a `position`, which the checkpoint saves, and the random numbers of an iteration
    (drop path, dropout) are seeded by (seed, rank, iteration), so that a resumed run equals an
    uninterrupted one.

    Raises:
        TypeError: the dataloader's sampler has no `position`.
    """

    def __init__(
        self, runner: Runner, dataloader: DataLoader | dict, max_iters: int, **kwargs: Any
    ):
        if isinstance(dataloader, dict):
            diff = runner._randomness_cfg.get('diff_rank_seed', False)
            dataloader = runner.build_dataloader(dataloader, runner.seed, diff)
        guard_workers(dataloader)  # the next call starts them
        super().__init__(runner, dataloader, max_iters, **kwargs)
        if not hasattr(self.dataloader.sampler, 'position'):
            raise TypeError(
                'StreamTrainLoop resumes a sampler with a `position`, such as MixSampler; got '
                f'{type(self.dataloader.sampler).__name__}. Use type="IterBasedTrainLoop"'
            )

    def run(self) -> nn.Module:
        """Train until `max_iters`.

        Raises:
            ValueError: resumed from a checkpoint of another loop.
        """
        sampler, hub = self.dataloader.sampler, self.runner.message_hub
        self.runner.call_hook('before_train')
        self.runner.call_hook('before_train_epoch')
        if self._iter > 0:
            state = hub.get_info('stream')
            if state is None:
                raise ValueError(
                    f'the checkpoint of iteration {self._iter} was written by another loop: it has '
                    'no position in the stream; start a new run from it (load_from, not resume)'
                )
            sampler.seed, sampler.position = state['seed'], state['position']
            # Workers may have begun at the start of the stream.
            self.dataloader_iterator = _InfiniteDataloaderIterator(self.dataloader)
        start, first = sampler.position, self._iter
        while self._iter < self._max_iters and not self.stop_training:
            self.runner.model.train()
            batch = next(self.dataloader_iterator)
            torch.manual_seed(position_seed(sampler.seed, get_rank(), self._iter))
            seen = (self._iter + 1 - first) * self.dataloader.batch_size * sampler.world
            hub.update_info('stream', dict(seed=sampler.seed, position=start + seen))
            self.run_iter(batch)
            self._decide_current_val_interval()
            due = self._iter % self.val_interval == 0 or self._iter == self._max_iters
            if due and self.runner.val_loop is not None and self._iter >= self.val_begin:
                self.runner.val_loop.run()
        self.runner.call_hook('after_train_epoch')
        self.runner.call_hook('after_train')
        return self.runner.model
