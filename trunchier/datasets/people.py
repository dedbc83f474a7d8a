"""Base class, mixing and concatenation of data sets of people, and the sampler of a mix.

Training draws an infinite stream of samples that is a function of (seed, position): the data set
(by weight), its record (shards are resampled with replacement, as in 4D-Humans), the augmentation
and the real poses. Hence

- ranks and workers share the stream evenly without communication, and two processes together see
  what one process with the joint batch sees;
- a run resumes at any position at once: nothing is replayed, no shuffle buffer is restored;
- no record is repeated unless it was drawn repeatedly.

webdataset's own pipelines have none of these properties (each worker streams shards through a
shuffle buffer), therefore its shards are read by index here. The advantage of streaming is kept:
16 shards are visited at a time, and each shard is still read in one burst.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import count
from zlib import crc32

import numpy as np
from mmengine.dataset import Compose
from mmengine.dist import get_dist_info, sync_random_seed
from mmengine.registry import DATA_SAMPLERS, DATASETS
from torch.utils.data import Dataset, Sampler

from ..conventions import JOINTS_44, JOINTS_44_FLIP, JOINTS_44_FLIP_PAIRS
from .annotations import BadCount, BadRecord

# Limbs of OpenPose, then of the extra joints.
SKELETON_44 = (
    (0, 1), (1, 2), (2, 3), (3, 4), (1, 5), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (10, 11),
    (8, 12), (12, 13), (13, 14), (0, 15), (0, 16), (15, 17), (16, 18),
    (14, 19), (19, 20), (14, 21), (11, 22), (22, 23), (11, 24),
    (25, 26), (26, 27), (28, 29), (29, 30), (31, 32), (32, 33), (34, 35), (35, 36), (33, 37),
    (34, 37), (37, 38), (27, 39), (28, 39), (39, 41), (41, 40), (40, 42), (42, 43),
)  # fmt: skip


class People(Dataset):
    """Data set of records (see `transforms`), one per person.

    Subclasses implement `__len__` and `record(index)`; they extend `full_init()` if there is
    anything to read first, and override `locate` to draw records in another order.

    Args:
        name: of the data set, in messages and metainfo.
        pipeline: transforms that `dataset[index]` applies to its record.
    """

    def __init__(self, name: str, pipeline: Sequence = ()):
        self.name = name
        self.pipeline = Compose(pipeline)

    def full_init(self) -> None:
        """Read files that the first record requires; mmengine's runner calls it."""
        for transform in self.pipeline.transforms:
            if hasattr(transform, 'load'):
                transform.load()

    def record(self, index: int) -> dict:
        """The record of one person.

        Raises:
            BadRecord: it is unusable.
        """
        raise NotImplementedError

    def __getitem__(self, index):
        return self.pipeline({**self.record(index), 'rng': generator('record', 0, index)})

    def locate(self, seed: int, position: int) -> int:
        """Index of the record at `position` in the infinite stream of `seed`.

        Each pass through the data set is a permutation of its own.
        """
        epoch, step = divmod(position, len(self))
        return int(_order(seed, self.name, epoch, len(self))[step])

    @property
    def metainfo(self) -> dict:
        return dict(
            dataset_name=self.name,
            num_keypoints=len(JOINTS_44),
            keypoint_id2name=dict(enumerate(JOINTS_44)),
            keypoint_name2id={name: i for i, name in enumerate(JOINTS_44)},
            flip_indices=JOINTS_44_FLIP,
            flip_pairs=JOINTS_44_FLIP_PAIRS,
            skeleton_links=SKELETON_44,
        )


def generator(purpose: str, seed: int, *numbers: int | str) -> np.random.Generator:
    """Random generator that depends on all arguments."""
    words = [crc32(n.encode()) if isinstance(n, str) else n for n in (purpose, seed, *numbers)]
    return np.random.default_rng(words)


@lru_cache(maxsize=16)
def _order(seed, name, epoch, size):
    return generator('order', seed, name, epoch).permutation(size)


@DATASETS.register_module()
class MixedPeople(People):
    """Infinite training stream over several data sets.

    Indices are positions, or (seed, position) from `MixSampler`. Bad records are counted and
    replaced by another record of the same data set.

    Args:
        datasets: configs or objects (`People`).
        weights: sampling weights, in any unit; None: equal ones.
        epoch_size: samples per epoch; 100 000 in HMR2.0.
        pipeline: transforms of all records.
        max_bad_share: maximum share of bad records, per data set and worker pool.

    Raises:
        ValueError: weights are not positive or not one per data set; names are not unique.
        RuntimeError: too many bad records.
    """

    def __init__(
        self,
        datasets: Sequence[dict | People],
        weights: Sequence[float] | None = None,
        epoch_size: int = 100_000,
        pipeline: Sequence = (),
        max_bad_share: float = 0.01,
        name: str = 'mix',
    ):
        super().__init__(name, pipeline)
        weights = np.ones(len(datasets)) if weights is None else np.asarray(weights, np.float64)
        if weights.shape != (len(datasets),) or not (weights > 0).all() or not len(datasets):
            raise ValueError(
                f'each of the {len(datasets)} data sets requires a weight above 0, got {weights}'
            )
        self.datasets = [DATASETS.build(d) if isinstance(d, dict) else d for d in datasets]
        names = [d.name for d in self.datasets]
        if len(set(names)) < len(names):
            raise ValueError(f'names of data sets must be unique, got {names}')
        self.weights = weights / weights.sum()
        self.epoch_size = epoch_size
        self.bad_counts = [BadCount(d.name, max_bad_share) for d in self.datasets]
        self._mixes = {}

    def full_init(self) -> None:
        super().full_init()
        for dataset in self.datasets:
            dataset.full_init()

    def __len__(self) -> int:
        return self.epoch_size

    def __getitem__(self, index):
        seed, position = index if isinstance(index, tuple) else (0, index)
        number, own_position = self.locate(seed, position)
        dataset, counts = self.datasets[number], self.bad_counts[number]
        rng = generator('record', seed, position)
        chosen = dataset.locate(seed, own_position)
        for _ in range(100):
            try:
                record = dataset.record(chosen)
            except BadRecord as error:
                counts.add_bad(error.kind, f'record {chosen}', error)
                chosen = int(rng.integers(len(dataset)))
            else:
                counts.add_good()
                return self.pipeline({**record, 'rng': rng})
        raise RuntimeError(f'{dataset.name}: 100 bad records in a row; run tools/check_data.py')

    def locate(self, seed: int, position: int) -> tuple[int, int]:
        """Index of the data set, and position in its own stream, at a position of the mix."""
        if seed not in self._mixes:
            self._mixes[seed] = _Mix(seed, self.weights)
        return self._mixes[seed][position]


class _Mix:
    """Sampled data set at each position, by weight.

    Positions are drawn in blocks: the counts of the data sets in a block are multinomial, their
    order is shuffled, which equals independent draws. The position in a data set's own stream
    depends only on the counts of earlier blocks.
    """

    BLOCK = 1 << 15

    def __init__(self, seed, weights):
        self.seed = seed
        self.weights = weights
        self._starts = [np.zeros(len(weights), np.int64)]
        self._current = None, None

    def __getitem__(self, position):
        block, index = divmod(position, self.BLOCK)
        if self._current[0] != block:
            self._current = block, self._draw(block)
        numbers, ranks = self._current[1]
        number = int(numbers[index])
        return number, int(self._starts[block][number] + ranks[index])

    def _draw(self, block):
        while len(self._starts) <= block + 1:
            counts = self._rng(len(self._starts) - 1).multinomial(self.BLOCK, self.weights)
            self._starts.append(self._starts[-1] + counts)
        counts = self._starts[block + 1] - self._starts[block]
        rng = self._rng(block)
        rng.multinomial(self.BLOCK, self.weights)
        numbers = rng.permutation(np.repeat(np.arange(len(counts)), counts))
        ranks = np.empty(self.BLOCK, np.int64)
        for number, size in enumerate(counts):
            ranks[numbers == number] = np.arange(size)
        return numbers, ranks

    def _rng(self, block):
        return generator('mix', self.seed, block)


@DATA_SAMPLERS.register_module()
class MixSampler(Sampler):
    """Positions of a `MixedPeople` stream: rank r of n takes r, r + n, r + 2n, ...

    Args:
        dataset: the MixedPeople.
        seed: of the stream; None: a random one, synchronized over ranks.

    Attributes:
        position: start of the next iterator, counted over all ranks. After `n` iterations it is
            n * batch size * ranks; to resume there, set it before iterating over the loader.
    """

    def __init__(self, dataset: MixedPeople, seed: int | None = None):
        self.rank, self.world = get_dist_info()
        self.seed = sync_random_seed() if seed is None else seed
        self.epoch_size = len(dataset)
        self.position = 0

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        for position in count(self.position + self.rank, self.world):
            yield self.seed, position

    def __len__(self) -> int:
        """Samples per epoch and rank."""
        return self.epoch_size // self.world


@DATASETS.register_module()
class ConcatPeople(People):
    """Concatenated data sets, to evaluate all of them in one test run.

    A sample's metainfo `dataset` is the name of its data set.

    Args:
        datasets: configs or objects (`People`).
        pipeline: transforms of all records.
    """

    def __init__(
        self, datasets: Sequence[dict | People], pipeline: Sequence = (), name: str = 'all'
    ):
        super().__init__(name, pipeline)
        self.datasets = [DATASETS.build(d) if isinstance(d, dict) else d for d in datasets]
        self._ends = None

    def full_init(self) -> None:
        if self._ends is not None:
            return
        super().full_init()
        for dataset in self.datasets:
            dataset.full_init()
        self._ends = np.cumsum([len(dataset) for dataset in self.datasets])

    def __len__(self) -> int:
        self.full_init()
        return int(self._ends[-1])

    def record(self, index: int) -> dict:
        self.full_init()
        number = int(np.searchsorted(self._ends, index, side='right'))
        start = self._ends[number - 1] if number else 0
        return self.datasets[number].record(int(index - start))
