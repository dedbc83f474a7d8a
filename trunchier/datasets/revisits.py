"""Sampler of an endless stream that shows images again that were hard.

A sample of the stream is a function of its position, so an image is kept as a number, not as
pixels. The stream is divided into blocks of positions. How hard the people of block n - 2 were
decides which of them are shown again in block n; the block between leaves data loading workers time
to load ahead. Everything else stays as `MixSampler` has it: fresh samples are the same ones at the
same positions, and what is shown does not depend on the number of workers or of processes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import Dataset

from .people import MixSampler, generator

DELAY = 2  # blocks from a person's first visit to the next


@dataclass
class Block:
    """Samples at consecutive positions."""

    images: np.ndarray  # (N,) int64, position at which the image was first shown
    visits: np.ndarray  # (N,) int64, how often it was shown before
    difficulty: np.ndarray  # (N,) float32, NaN: not told yet


@DATA_SAMPLERS.register_module()
class RevisitSampler(MixSampler):
    """Positions of a stream, some of which show a hard image of an earlier position again.

    Yields (seed, position), or (seed, position, earlier position): the image and the person of the
    earlier one with the augmentation of this one. `RevisitHook` tells how hard people were. The
    hardest of a block, which may be hidden beyond recognition, are left out; the next hardest are
    shown in the next block but one.

    Args:
        dataset: a SyntheticKeypoints.
        seed: see MixSampler.
        share: of samples that show an image again.
        skip: share of the hardest of a block that are not shown again.
        visits: how often an image is shown again at most.
        block: positions in a block; at least those that all workers of all ranks load ahead.

    Raises:
        ValueError: an option out of range. TypeError: a data set that cannot show images again.
    """

    def __init__(
        self,
        dataset: Dataset,
        seed: int | None = None,
        share: float = 0.25,
        skip: float = 0.05,
        visits: int = 2,
        block: int = 1024,
    ):
        super().__init__(dataset, seed)
        if not getattr(dataset, 'revisits', False):
            raise TypeError(
                f'{type(dataset).__name__} cannot show an image again; RevisitSampler takes '
                'SyntheticKeypoints, others MixSampler'
            )
        for name, value in (('share', share), ('skip', skip)):
            if not 0 <= value < 1:
                raise ValueError(f'{name} is {value}; expected a fraction, 0 to below 1')
        for name, value in (('visits', visits), ('block', block)):
            if value < 1:
                raise ValueError(f'{name} is {value}; expected 1 or more')
        self.share, self.skip, self.visits, self.block = share, skip, visits, block
        self._blocks: dict[int, Block] = {}
        self._first = self._told = 0  # positions: of all that is known, and behind it

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        if self.position != self._told:  # resumed without what was known
            self._blocks.clear()
            self._first = self._told = self.position
        for position in count(self.position + self.rank, self.world):
            number, slot = divmod(position, self.block)
            image = int(self._planned(number).images[slot])
            yield (self.seed, position) + (() if image == position else (image,))

    def tell(self, position: int, difficulties: Sequence[float] | np.ndarray) -> None:
        """How hard the samples at `position` and behind it were; each is told once, in order.

        Args:
            difficulties: of all ranks, in any unit, 0 or more; those that are not finite count 0.

        Raises:
            ValueError: another position comes next.
        """
        if position != self._told:
            raise ValueError(f'told the samples from {position} on; {self._told} comes next')
        for value in np.nan_to_num(np.float32(difficulties), posinf=0):
            number, slot = divmod(self._told, self.block)
            self._planned(number).difficulty[slot] = value
            self._told += 1
        for number in [n for n in self._blocks if n < self._told // self.block - DELAY]:
            del self._blocks[number]

    def state_dict(self) -> dict:
        """What a resumed run must know; its tensors change with the sampler."""
        blocks = {
            number: {name: torch.from_numpy(array) for name, array in vars(block).items()}
            for number, block in self._blocks.items()
        }
        return dict(block=self.block, first=self._first, told=self._told, blocks=blocks)

    def load_state_dict(self, state: dict) -> None:
        """Continue at a `state_dict`; ValueError if it has blocks of another size."""
        if state['block'] != self.block:
            raise ValueError(
                f'the resumed run has block={state["block"]}, this one {self.block}; keep it'
            )
        self._first, self._told = state['first'], state['told']
        self._blocks = {
            number: Block(**{name: tensor.numpy().copy() for name, tensor in block.items()})
            for number, block in state['blocks'].items()
        }

    def _planned(self, number):
        """Block `number`, which is planned when it is first asked for."""
        if number not in self._blocks:
            images = np.arange(number * self.block, (number + 1) * self.block)
            visits = np.zeros_like(images)
            if former := self._blocks.get(number - DELAY):
                chosen = self._hard(former, number - DELAY)
                order = generator('revisits', self.seed, number).permutation(self.block)
                slots = order[: len(chosen)]
                images[slots], visits[slots] = former.images[chosen], former.visits[chosen] + 1
            unknown = np.full(self.block, np.nan, np.float32)
            self._blocks[number] = Block(images, visits, unknown)
        return self._blocks[number]

    def _hard(self, former, number):
        """Slots of a block whose images are shown again, hardest first."""
        slots = np.arange(max(self._first - number * self.block, 0), self.block)
        difficulty = former.difficulty[slots]
        if unknown := int(np.isnan(difficulty).sum()):
            raise RuntimeError(
                f'{unknown} of {len(slots)} samples from {number * self.block} on are not trained '
                f'on while block {number + DELAY} is loaded; RevisitSampler needs RevisitHook in '
                f'custom_hooks, and a block (now {self.block}) of at least as many samples as all '
                'workers load ahead: ranks * (num_workers * prefetch_factor + 1) * batch_size'
            )
        hardest = slots[np.argsort(-difficulty, kind='stable')][int(self.skip * len(slots)) :]
        again = hardest[former.visits[hardest] < self.visits]
        return again[: round(self.share * len(slots))]
