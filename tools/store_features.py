#!/usr/bin/env python
"""Store what a frozen encoder finds in the people of a mesh model's data, to train a head on it.

    python tools/store_features.py CONFIG --num 80000 --out data/features/train --amp
    python tools/store_features.py CONFIG --test --out data/features/test --amp

CONFIG is that of a mesh model; its backbone and neck start from its `init_cfg`. Samples 0 to NUM of
its training stream, augmented, become shards; `--test` takes its test data. The same command
continues after any end; processes with another --first share the work.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import launch  # idle threads, before torch
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.utils import track_iter_progress
from mmpose.structures import PoseDataSample
from torch import nn
from torch.utils.data import DataLoader, Dataset

import trunchier  # noqa: F401  registers what configs name
from trunchier.datasets.features import Shard, shard_path, write_features
from trunchier.deploy.precision import weights_digest
from trunchier.files.processes import clean_end
from trunchier.weights.find import pick_device

SAMPLES = 512  # of a shard


@clean_end()
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('config', help='of a mesh model')
    add('--out', required=True, metavar='DIR', help='of the shards')
    add('--num', type=int, help='samples of the training stream')
    add('--first', type=int, default=0, metavar='N', help='sample to begin with (default: 0)')
    add('--seed', type=int, default=0, help='of the stream (default: 0)')
    add('--test', action='store_true', help='the test data instead, whole')
    add('--batch-size', type=int, default=32, metavar='N', help='crops at once (default: 32)')
    add('--workers', type=int, default=1, metavar='N', help='processes that load (default: 1)')
    add('--amp', action='store_true', help='bfloat16')
    add('--device', help='default: a GPU if there is one')
    add('--cfg-options', nargs='+', action=launch.Settings, default={}, help='as of train.py')
    args = parser.parse_args(arguments)
    if args.test == (args.num is not None):
        parser.error('give --num, for samples of the training stream, or --test')
    try:
        cfg = Config.fromfile(args.config)
        cfg.merge_from_dict(args.cfg_options)
        store(cfg, args)
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        sys.exit(f'{type(error).__name__}: {error}')


def store(cfg: Config, args: argparse.Namespace) -> None:
    """Write the shards that are missing.

    Raises:
        ValueError: a folder with features of another encoder.
    """
    init_default_scope(cfg.get('default_scope', 'mmpose'))
    model = MODELS.build(cfg.model)
    model.init_weights()
    origin = encoder_of(model)
    model.to(pick_device(args.device)).eval()
    dataset = DATASETS.build((cfg.test_dataloader if args.test else cfg.train_dataloader).dataset)
    dataset.full_init()
    end = len(dataset) if args.test else args.num
    shards = {
        shard_path(args.out, first // SAMPLES): range(first, min(first + SAMPLES, end))
        for first in range(args.first // SAMPLES * SAMPLES, end, SAMPLES)
    }
    left = {path: those for path, those in shards.items() if not is_stored(path, origin)}
    print(f'{args.out}: {len(left)} of {len(shards)} shards to store, encoder {origin}')
    positions = [position for those in left.values() for position in those]
    samples = Samples(dataset, positions, None if args.test else args.seed)
    loader = DataLoader(samples, args.batch_size, num_workers=args.workers, collate_fn=list)
    found = found_by(model, loader, args.amp)
    for path, those in track_iter_progress([*left.items()]):
        people = [next(found) for _ in those]
        write_features(path, origin, *zip(*people, strict=True))


def encoder_of(model: nn.Module) -> str:
    """Backbone and digest of the weights that features depend on."""
    parts = [getattr(model, name) for name in ('backbone', 'neck') if hasattr(model, name)]
    return f'{type(model.backbone).__name__} {weights_digest(nn.ModuleList(parts))}'


def is_stored(path: Path, origin: str) -> bool:
    """Whether a shard is there; ValueError if it is damaged or of another encoder."""
    if not path.exists():
        return False
    if (other := Shard(path).origin) != origin:
        raise ValueError(f'{path} is of the encoder {other}, not of {origin}: name another --out')
    return True


class Samples(Dataset):
    """Samples of a data set at positions of its stream `seed`; None: by index."""

    def __init__(self, dataset: Dataset, positions: list[int], seed: int | None):
        self.dataset, self.positions, self.seed = dataset, positions, seed

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> dict:
        position = self.positions[index]
        return self.dataset[position if self.seed is None else (self.seed, position)]


@torch.no_grad()
def found_by(
    model: nn.Module, loader: DataLoader, amp: bool
) -> Iterator[tuple[PoseDataSample, np.ndarray]]:
    """Each sample and its map (C, h, w), float32."""
    for samples in loader:
        data = model.data_preprocessor(pseudo_collate(samples), False)
        with torch.autocast(data['inputs'].device.type, torch.bfloat16, enabled=amp):
            maps = model.extract_feat(data['inputs'])[-1]
        yield from zip(data['data_samples'], maps.float().cpu().numpy(), strict=True)


if __name__ == '__main__':
    main()
