"""Stored features of a frozen encoder: files, and the data set that trains a head on them.

A folder holds `features-00000.safetensors`, ... with, of N samples of a mesh model's pipeline:
`features` (N, C, h, w) float16, what the head reads; and for each field of `gt_instances` but
masks an array (N, 1, ...). The metadata has `origin`, which encoder made them, and `samples`, the
metainfo of each, as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from mmengine.registry import DATASETS

from ..files import whole_file
from .people import People

if TYPE_CHECKING:
    from mmpose.structures import PoseDataSample

PATTERN = 'features-*.safetensors'
FEATURES = 'features'
OPEN_FILES = 1024


def shard_path(folder: str | Path, number: int) -> Path:
    """Of the shard `number`, >= 0."""
    return Path(folder) / PATTERN.replace('*', f'{number:05d}')


def write_features(
    path: str | Path,
    origin: str,
    people: Sequence[PoseDataSample],
    maps: Sequence[np.ndarray],
) -> None:
    """Write a shard.

    Args:
        origin: which encoder made the maps.
        people: `data_samples` of PackPerson, with the same fields.
        maps: (C, h, w) of each.
    """
    from safetensors.numpy import save_file

    arrays = {
        name: np.stack([each.gt_instances[name] for each in people])
        for name in people[0].gt_instances.keys()  # noqa: SIM118  its iterator gives instances
        if name != 'masks'  # as large as a crop
    }
    # safetensors writes an array as it lies in memory, and maps may be channels last.
    arrays[FEATURES] = np.ascontiguousarray(np.stack(maps), np.float16)
    metainfo = [{name: _plain(value) for name, value in each.metainfo.items()} for each in people]
    with whole_file(path) as part:
        save_file(arrays, part, dict(origin=origin, samples=json.dumps(metainfo)))


def _plain(value):
    """What JSON can hold; arrays return from it as lists."""
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


class Shard:
    """One file; its arrays stay on the disk.

    Raises:
        ValueError: not such a file, or a damaged one.
    """

    def __init__(self, path: str | Path):
        from safetensors import SafetensorError, safe_open

        try:
            self._file = safe_open(path, framework='np')
            about = self._file.metadata() or {}
            self.origin, self.samples = about['origin'], json.loads(about['samples'])
            names = self._file.keys()  # it is no dict
            self._arrays = {name: self._file.get_slice(name) for name in names}
            shapes = {name: each.get_shape() for name, each in self._arrays.items()}
        except (SafetensorError, KeyError, ValueError) as error:
            raise ValueError(
                f'{path} holds no stored features, or is cut off ({error!r}); '
                'python tools/store_features.py writes them'
            ) from error
        if not isinstance(self.samples, list) or len(shapes.get(FEATURES, ())) != 4:
            raise ValueError(f'{path} holds no stored features: {shapes}')
        if wrong := {name: shape for name, shape in shapes.items() if shape[0] != len(self)}:
            raise ValueError(f'{path} describes {len(self)} samples, but has {wrong}')

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, row: int) -> dict[str, Any]:
        """As PackPerson returns, with `inputs` (C, h, w) float16."""
        from mmengine.structures import InstanceData
        from mmpose.structures import PoseDataSample

        arrays = {name: each[row] for name, each in self._arrays.items()}
        features = torch.from_numpy(arrays.pop(FEATURES))
        sample = PoseDataSample(metainfo=self.samples[row])
        sample.gt_instances = InstanceData(**arrays)
        return dict(inputs=features, data_samples=sample)


@DATASETS.register_module()
class FeaturePeople(People):
    """Stored features and targets of people, for a model whose backbone is `StoredFeatures`.

    With `MixSampler` each pass is a permutation of its own, and a run resumes at its position.

    Args:
        folder: of tools/store_features.py.
        name: see People.

    Raises (in `full_init`):
        FileNotFoundError: a folder without features.
        ValueError: damaged files, or features of different encoders.
    """

    def __init__(self, folder: str | Path, name: str = 'features'):
        super().__init__(name)
        self.folder = Path(folder)
        self._paths: list[Path] = []
        self._ends = np.zeros(0, np.int64)

    def __getstate__(self):
        return {key: value for key, value in vars(self).items() if key != '_shard'}

    @property
    def _shard(self):
        """Opens a shard; open ones are kept, by this process."""
        return vars(self).setdefault('_shard', lru_cache(OPEN_FILES)(Shard))

    def full_init(self) -> None:
        """Read what the shards describe."""
        if self._paths:
            return
        paths = sorted(self.folder.glob(PATTERN))
        if not paths:
            raise FileNotFoundError(
                f'no features in {self.folder}: python tools/store_features.py CONFIG --out '
                f'{self.folder} writes them'
            )
        shards = [self._shard(path) for path in paths]
        for path, shard in zip(paths, shards, strict=True):
            if shard.origin != shards[0].origin:
                raise ValueError(
                    f'{path} is of {shard.origin}, {paths[0].name} of {shards[0].origin}'
                )
        self._paths, self._ends = paths, np.cumsum([len(shard) for shard in shards])

    def __len__(self) -> int:
        self.full_init()
        return int(self._ends[-1])

    @property
    def metainfo(self) -> dict:
        """As of all people, and `encoder`, the origin of the features; checkpoints keep it."""
        self.full_init()
        return dict(super().metainfo, encoder=self._shard(self._paths[0]).origin)

    def __getitem__(self, index):
        """Sample `index`, or that at (seed, position) of MixSampler."""
        row = self.locate(*index) if isinstance(index, tuple) else index
        self.full_init()
        number = int(np.searchsorted(self._ends, row, side='right'))
        shard = self._shard(self._paths[number])
        return shard[int(row) - int(self._ends[number]) + len(shard)]
