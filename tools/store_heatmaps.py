#!/usr/bin/env python
"""Store a teacher's heatmaps once, so that a student trains without its teacher in memory.

    python tools/store_heatmaps.py configs/distillation/CONFIG.py --batch-size 64

CONFIG is that of a HeatmapDistiller or TokenDistiller with `stored=True`. Each data set of its
training whose pipeline has a LoadTeacherHeatmaps gets heatmaps in the folder that this names: of
every person, in the crop without augmentation, float16. The same command continues after any end.
"""

import argparse
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from mmengine.utils import track_iter_progress
from torch.utils.data import DataLoader, Dataset, Subset

import trunchier  # noqa: F401
from trunchier.datasets.heatmaps import (
    PATTERN,
    HeatmapStore,
    Origin,
    crop_to_map,
    image_to_crop,
    write_heatmaps,
)
from trunchier.files.processes import clean_end
from trunchier.models.teachers import Teacher, keypoint_names, match_keypoints, teacher_digest
from trunchier.weights.find import pick_device

GEOMETRY = ('LoadImage', 'GetBBoxCenterScale', 'TopdownAffine')
PEOPLE = 512  # of a file


@clean_end()
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('config', help='of the distiller')
    add('--batch-size', type=int, default=32, help='crops at once (default: 32)')
    add('--workers', type=int, default=2, help='processes that read images (default: 2)')
    add('--device', help='of the teacher (default: a GPU if there is one)')
    add('--cfg-options', nargs='*', default=[], metavar='KEY=VALUE', help='changes of the config')
    args = parser.parse_args(arguments)
    try:
        cfg = Config.fromfile(args.config)
        cfg.merge_from_dict(dict(each.split('=', 1) for each in args.cfg_options))
        store(cfg, args.batch_size, args.workers, args.device)
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        sys.exit(f'{type(error).__name__}: {error}')


def store(cfg: Config, batch_size: int = 32, workers: int = 0, device: str | None = None) -> None:
    """Store the heatmaps that the data sets of a distiller's config load.

    Args:
        batch_size: crops at once; workers: processes that read images, 0: this one.

    Raises:
        ValueError: a config without stored heatmaps, or a folder of another teacher.
    """
    init_default_scope(cfg.get('default_scope', 'mmpose'))
    model = cfg.model
    wanted = list(_loaded(cfg.train_dataloader.dataset)) if model.get('stored') else []
    if not wanted:
        raise ValueError(
            'the config stores no heatmaps: give its model stored=True and the pipeline of its '
            'training data a LoadTeacherHeatmaps, see docs/distill.md'
        )
    names = [keypoint_names(model.get(each)) for each in ('keypoints', 'teacher_keypoints')]
    source = model.teacher, model.get('teacher_weights')
    digest = teacher_digest(*source, names)
    teacher = Teacher(*source, model.get('precision', 'float32'))
    teacher.model.to(pick_device(device))
    count = model.student.head.get('out_channels', 17)
    channels = match_keypoints(names[0], names[1], count, teacher.model.head.out_channels)
    codec = teacher.model.head.decoder
    (width, height), (columns, rows) = codec.input_size, codec.heatmap_size
    size, heatmap_size = (int(width), int(height)), (int(columns), int(rows))
    aligned = np.diag(crop_to_map(size, heatmap_size, True))[:2]
    for folder, dataset in wanted:
        steps = {step['type']: step for step in dataset['pipeline'] if step['type'] in GEOMETRY}
        steps['TopdownAffine'] = dict(steps['TopdownAffine'], input_size=size)
        udp = steps['TopdownAffine'].get('use_udp', False)
        built = DATASETS.build(dict(dataset, pipeline=[steps[name] for name in GEOMETRY]))
        origin = Origin(
            digest=digest,
            teacher=str(teacher),
            heatmap_size=heatmap_size,
            aligned=bool(np.allclose(aligned, 1 / codec.scale_factor)),
            udp=udp,
        )
        ids = [int(built.get_data_info(index)['id']) for index in range(len(built))]
        done = _done(folder, origin)
        left = [index for index, each in enumerate(ids) if each not in done]
        print(f'{folder}: {len(left)} of {len(ids)} people to store, teacher {teacher}')
        crops = Crops(built, udp, crop_to_map(size, heatmap_size, origin.aligned))
        loader = DataLoader(Subset(crops, left), batch_size, num_workers=workers, collate_fn=list)
        people = []
        for batch in track_iter_progress((loader, len(loader))):
            heatmaps = _heatmaps(teacher, [image for image, _ in batch], count, channels)
            people += [
                dict(person, heatmaps=each)
                for (_, person), each in zip(batch, heatmaps, strict=True)
            ]
            while len(people) >= PEOPLE:
                write_heatmaps(folder, origin, people[:PEOPLE])
                people = people[PEOPLE:]
        if people:
            write_heatmaps(folder, origin, people)


class Crops(Dataset):
    """Crops of people without augmentation, (3, H, W) uint8, and `id`, `box`, `size`, `warp`."""

    def __init__(self, dataset: Dataset, udp: bool, to_map: np.ndarray):
        self.dataset, self.udp, self.to_map = dataset, udp, to_map

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, dict[str, Any]]:
        results = self.dataset[index]
        warp = (self.to_map @ image_to_crop(results, self.udp))[:2]
        person = dict(id=results['id'], box=results['bbox'][0], warp=warp)
        image = torch.from_numpy(results['img'].transpose(2, 0, 1).copy())
        return image, dict(person, size=results['img_shape'][1::-1])


def _loaded(dataset: dict) -> Iterator[tuple[str, dict]]:
    """(folder, config) of the data sets in one that load heatmaps."""
    for each in dataset.get('datasets', []):
        yield from _loaded(each)
    for step in dataset.get('pipeline', []):
        if step['type'] == 'LoadTeacherHeatmaps':
            yield step['folder'], dataset


def _done(folder, origin):
    """What the folder has already, of the same teacher."""
    try:
        found = HeatmapStore(folder)
    except FileNotFoundError:
        return {}
    if found.origin != origin:
        raise ValueError(
            f'{folder} has heatmaps of {found.origin}, not of {origin}: name another folder in the '
            f'config, or delete its {PATTERN}'
        )
    return found.places


def _heatmaps(teacher, images, count, channels):
    """Heatmaps (B, count, h, w) of the student's keypoints; NaN of those that the teacher lacks."""
    data = teacher.model.data_preprocessor(dict(inputs=images, data_samples=[]))
    predicted = teacher(data['inputs']).float().cpu()
    heatmaps = predicted.new_full((len(images), count, *predicted.shape[2:]), torch.nan)
    own, other = channels
    heatmaps[:, own] = predicted[:, other]
    return heatmaps.numpy()


if __name__ == '__main__':
    main()
