"""Data sets of people, and how a training stream is drawn from several of them.

Training draws an endless stream of samples, and sample number `position` of the stream of `seed` is
the same whoever asks for it: which data set (by weight), which of its records (shards resampled
with replacement, as in 4D-Humans), which augmentation and which real poses are all functions of
(seed, position). Hence

- ranks and workers share the stream evenly without talking to each other, and two processes see
  together what one process with the joint batch sees;
- a run resumes at any position at once, with nothing replayed and no shuffle buffer to restore;
- nothing appears twice but what was drawn twice.

webdataset's own pipelines give none of these (they stream shards per worker through shuffle
buffers), which is why its shards are read by index here. What streaming is good at is kept: a
shard is read while the stream visits it, 16 at a time, so that the disk sees each file in one
piece of time.
"""

from functools import lru_cache
from zlib import crc32

import numpy as np
from mmengine.dataset import Compose
from mmengine.dist import get_dist_info, sync_random_seed
from mmengine.registry import DATA_SAMPLERS, DATASETS
from torch.utils.data import Dataset, Sampler

from ..conventions import JOINTS_44, JOINTS_44_FLIP, JOINTS_44_FLIP_PAIRS
from .annotations import BadCount, BadRecord, log_warning

# Limbs to draw: OpenPose's, then those of the extra joints.
SKELETON_44 = (
    (0, 1), (1, 2), (2, 3), (3, 4), (1, 5), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (10, 11),
    (8, 12), (12, 13), (13, 14), (0, 15), (0, 16), (15, 17), (16, 18),
    (14, 19), (19, 20), (14, 21), (11, 22), (22, 23), (11, 24),
    (25, 26), (26, 27), (28, 29), (29, 30), (31, 32), (32, 33), (34, 35), (35, 36), (33, 37),
    (34, 37), (37, 38), (27, 39), (28, 39), (39, 41), (41, 40), (40, 42), (42, 43),
)  # fmt: skip


class People(Dataset):
    """Records of people: see `transforms` for what a record is.

    A subclass gives `__len__`, `record(index)`, and `full_init()` if it has something to read
    first; one whose records are endless gives its own `locate`.

    Args:
        name: of the data set, in messages and metainfo.
        pipeline: transforms that `dataset[index]` sends its record through.
    """

    def __init__(self, name, pipeline=()):
        self.name = name
        self.pipeline = Compose(pipeline)

    def full_init(self):
        """Read what is needed before the first record (mmengine's runner calls it)."""
        load_transforms(self.pipeline)

    def record(self, index):
        """The record of one person.

        Raises:
            BadRecord: it cannot be used.
        """
        raise NotImplementedError

    def __getitem__(self, index):
        return self.pipeline({**self.record(index), 'rng': generator('record', 0, index)})

    def locate(self, seed, position):
        """Which record is at `position` of the endless stream of `seed`: pass after pass, each in
        its own order."""
        turn, place = divmod(position, len(self))
        return int(_order(seed, self.name, turn, len(self))[place])

    @property
    def metainfo(self):
        return dict(
            dataset_name=self.name,
            num_keypoints=len(JOINTS_44),
            keypoint_id2name=dict(enumerate(JOINTS_44)),
            keypoint_name2id={name: i for i, name in enumerate(JOINTS_44)},
            flip_indices=JOINTS_44_FLIP,
            flip_pairs=JOINTS_44_FLIP_PAIRS,
            skeleton_links=SKELETON_44,
        )


def generator(purpose, seed, *numbers):
    """np.random.Generator of its own for each purpose, seed, name and position."""
    words = [crc32(n.encode()) if isinstance(n, str) else n for n in (purpose, seed, *numbers)]
    return np.random.default_rng(words)


@lru_cache(maxsize=16)
def _order(seed, name, turn, size):
    return generator('order', seed, name, turn).permutation(size)


def load_transforms(pipeline):
    for transform in pipeline.transforms:
        if hasattr(transform, 'load'):
            transform.load()


@DATASETS.register_module()
class MixedPeople(People):
    """An endless training stream from several data sets.

    Indices are positions, or (seed, position) as `MixSampler` yields them. A record that cannot be
    used is counted, and another of the same data set takes its place.

    Args:
        datasets (list): the data sets, as configs or objects (`People`).
        weights (list): how often each is drawn, in any unit.
        epoch_size (int): samples that count as an epoch; HMR2.0's 100 000.
        pipeline (list): transforms of all records.
        max_bad_share (float): share of bad records, per data set and worker pool, above which
            training stops.

    Raises:
        ValueError: weights that do not fit.
        RuntimeError: too many bad records.
    """

    def __init__(
        self,
        datasets,
        weights=None,
        epoch_size=100_000,
        pipeline=(),
        max_bad_share=0.01,
        name='mix',
    ):
        super().__init__(name, pipeline)
        weights = np.ones(len(datasets)) if weights is None else np.asarray(weights, np.float64)
        if weights.shape != (len(datasets),) or not (weights > 0).all() or not len(datasets):
            raise ValueError(
                f'each of the {len(datasets)} data sets wants a weight above 0, got {weights}'
            )
        self.datasets = [DATASETS.build(d) if isinstance(d, dict) else d for d in datasets]
        names = [d.name for d in self.datasets]
        if len(set(names)) < len(names):
            raise ValueError(f'each data set wants a name of its own, got {names}')
        self.weights = weights / weights.sum()
        self.epoch_size = epoch_size
        self.bad_counts = [BadCount(d.name, max_bad_share) for d in self.datasets]
        self._mixes = {}

    def full_init(self):
        super().full_init()
        for dataset in self.datasets:
            dataset.full_init()

    def __len__(self):
        return self.epoch_size

    def __getitem__(self, index):
        seed, position = index if isinstance(index, tuple) else (0, index)
        number, place = self.locate(seed, position)
        dataset, count = self.datasets[number], self.bad_counts[number]
        rng = generator('record', seed, position)
        chosen = dataset.locate(seed, place)
        for _ in range(100):
            try:
                record = dataset.record(chosen)
            except BadRecord as error:
                count.add_bad(error.kind, f'record {chosen}', error)
                chosen = int(rng.integers(len(dataset)))
            else:
                count.add_good()
                return self.pipeline({**record, 'rng': rng})
        raise RuntimeError(f'{dataset.name}: 100 bad records in a row; run tools/check_data.py')

    def locate(self, seed, position):
        """(which data set, position in its stream) of a position in the mixed stream."""
        if seed not in self._mixes:
            self._mixes[seed] = _Mix(seed, self.weights)
        return self._mixes[seed][position]

    def report(self):
        """Dict from data set to its count of good records and of bad ones by kind."""
        return {
            dataset.name: dict(good=count.good, bad=count.bad)
            for dataset, count in zip(self.datasets, self.bad_counts, strict=True)
        }


class _Mix:
    """Draws a data set for each position, by weight.

    In blocks: how often each data set appears in a block is multinomial, its order within is
    shuffled, which is the same as independent draws. Only the counts of earlier blocks are needed
    to know how far each data set's own stream has got.
    """

    BLOCK = 1 << 15

    def __init__(self, seed, weights):
        self.seed = seed
        self.weights = weights
        self._starts = [np.zeros(len(weights), np.int64)]
        self._current = None, None

    def __getitem__(self, position):
        block, place = divmod(position, self.BLOCK)
        if self._current[0] != block:
            self._current = block, self._draw(block)
        which, rank = self._current[1]
        number = int(which[place])
        return number, int(self._starts[block][number] + rank[place])

    def _draw(self, block):
        while len(self._starts) <= block + 1:
            counts = self._rng(len(self._starts) - 1).multinomial(self.BLOCK, self.weights)
            self._starts.append(self._starts[-1] + counts)
        counts = self._starts[block + 1] - self._starts[block]
        rng = self._rng(block)
        rng.multinomial(self.BLOCK, self.weights)
        which = rng.permutation(np.repeat(np.arange(len(counts)), counts))
        rank = np.empty(self.BLOCK, np.int64)
        for number, count in enumerate(counts):
            rank[which == number] = np.arange(count)
        return which, rank

    def _rng(self, block):
        return generator('mix', self.seed, block)


@DATA_SAMPLERS.register_module()
class MixSampler(Sampler):
    """Positions of a `MixedPeople` stream: rank r of n takes r, r + n, r + 2n, ...

    Args:
        dataset: the MixedPeople.
        seed (int): of the stream; None for one that all ranks agree on.
        endless (bool): for iteration-based loops. False: each epoch ends after the data set's
            `epoch_size`, and `set_epoch` says where it begins.

    Attributes:
        position: where the next iterator starts, counted over all ranks. After `n` iterations it
            is n * batch size * ranks; set it (or `load_state_dict`) before the loader is iterated,
            and training goes on there.
    """

    def __init__(self, dataset, seed=None, endless=True):
        self.rank, self.world = get_dist_info()
        self.seed = sync_random_seed() if seed is None else seed
        self.epoch_size = len(dataset)
        self.endless = endless
        self.position = 0

    def __iter__(self):
        position = self.position + self.rank
        end = float('inf') if self.endless else self.position + len(self) * self.world
        while position < end:
            yield self.seed, position
            position += self.world

    def __len__(self):
        """Samples of an epoch on this rank: the same on all."""
        return self.epoch_size // self.world

    def set_epoch(self, epoch):
        self.position = epoch * self.epoch_size

    def state_dict(self):
        return dict(seed=self.seed, position=self.position)

    def load_state_dict(self, state):
        self.seed, self.position = state['seed'], state['position']


@DATASETS.register_module()
class ConcatPeople(People):
    """Data sets one after the other, so that one test run evaluates all of them.

    Which one a sample is from is in its metainfo, `dataset`.

    Args:
        datasets (list): configs or objects (`People`).
        pipeline (list): transforms of all records.
        skip_missing (bool): leave out, with a warning, data sets whose files are not there.

    Raises:
        FileNotFoundError: no data set is there, or one is not and `skip_missing` is off.
    """

    def __init__(self, datasets, pipeline=(), skip_missing=False, name='all'):
        super().__init__(name, pipeline)
        self.datasets = [DATASETS.build(d) if isinstance(d, dict) else d for d in datasets]
        self.skip_missing = skip_missing
        self._ends = None

    def full_init(self):
        if self._ends is not None:
            return
        super().full_init()
        present = []
        for dataset in self.datasets:
            try:
                dataset.full_init()
                present.append(dataset)
            except FileNotFoundError as error:
                if not self.skip_missing:
                    raise
                log_warning(f'{dataset.name} is left out: {error}')
        if not present:
            raise FileNotFoundError('none of the data sets is there; see the warnings above')
        self.datasets = present
        self._ends = np.cumsum([len(dataset) for dataset in present])

    def __len__(self):
        self.full_init()
        return int(self._ends[-1])

    def record(self, index):
        self.full_init()
        number = int(np.searchsorted(self._ends, index, side='right'))
        start = self._ends[number - 1] if number else 0
        return self.datasets[number].record(int(index - start))
