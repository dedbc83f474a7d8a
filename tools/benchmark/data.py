"""Samples/s of the training data loaders by stage, of synthetic people and of mesh overlays."""

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import make_shards
import numpy as np
from make_synthetic import cores
from mmengine.config import Config
from mmengine.dataset import BaseDataset, pseudo_collate
from mmengine.registry import DATASETS, MODELS, init_default_scope
from torch.utils.data import DataLoader

from benchmark.report import Table, progress
from benchmark.timing import seconds_each
from trunchier.models.mesh.body import EMBEDDED_BODY, read_body
from trunchier.visualization.overlays import draw_bodies
from trunchier.weights.find import find_config


def add_arguments(add: Callable) -> None:
    add('--num', type=int, default=100, metavar='N', help='images (default: 100)')
    add('--size', nargs=2, type=int, default=(640, 480), metavar=('W', 'H'), help='of an image')
    add('--workers', type=int, default=min(cores(), 16), metavar='N')


def run(args: argparse.Namespace) -> Table:
    from trunchier.synthetic.coco import write_coco  # numba

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_coco(folder / 'people', args.num, size=tuple(args.size), quiet=True)
        progress('images made')
        rows = pose_rows(folder / 'people', args)
        progress('pose loader')
        rows += mesh_rows(folder, args)
        progress('mesh loader')
    made, drawn = synthetic_people_per_second(60), overlays_per_second()
    rows.append(dict(what='synthetic people, 256 x 256', stage='all', rate=made))
    rows.append(dict(what='mesh overlay, 512 x 512', stage='all', rate=drawn))
    for row in rows:
        row['microseconds'] = 1e6 / row['rate']
    columns = dict(what='data', stage='stage', rate='per second', microseconds='microseconds each')
    notes = [
        f'{args.num} images of {args.size[0]} x {args.size[1]}, one person each, on a local disk '
        f'and cached in memory; one process, except the loader with {args.workers}'
    ]
    return Table('Data', columns, rows, notes)


def pose_rows(people: Path, args: argparse.Namespace) -> list[dict]:
    """Stages of the pose recipe's training pipeline (mmpose)."""
    import mmpose.datasets  # noqa: F401  registers the data sets

    cfg = find_config('vm-t-s2', 'pose').cfg
    init_default_scope('mmpose')
    spec = Config(dict(cfg.train_dataloader.dataset)).to_dict()
    spec.update(data_root=str(people), ann_file='annotations.json', data_prefix=dict(img='images/'))
    with contextlib.redirect_stdout(None):  # pycocotools announces its index
        dataset = DATASETS.build(spec)
    stages = stage_seconds(dataset.get_data_info, dataset.pipeline.transforms, len(dataset))
    files = [dataset.get_data_info(index)['img_path'] for index in range(len(dataset))]
    stages |= file_seconds('LoadImage', files)
    return loader_rows('pose', cfg, dataset, stages, args)


def mesh_rows(folder: Path, args: argparse.Namespace) -> list[dict]:
    """Stages of the mesh recipe's training pipeline, from tar shards."""
    with contextlib.redirect_stdout(None):
        make_shards.main([str(folder / 'people'), '--out', str(folder / 'shards')])
    cfg = find_config('vm-t-s2', 'mesh').cfg
    pipeline = [dict(step) for step in cfg.train_pipeline]
    for step in pipeline:
        if step['type'] == 'AddRealPoses':
            step['path'] = None
    dataset = DATASETS.build(dict(
        type='MixedPeople', pipeline=pipeline, epoch_size=args.num,
        datasets=[dict(type='ShardPeople', urls=str(folder / 'shards'), filters=None)],
    ))  # fmt: skip
    dataset.full_init()
    (shards,) = dataset.datasets

    def record(index):
        return {**shards.record(index % len(shards)), 'rng': np.random.default_rng(index)}

    stages = {'read and check': seconds_each(record, args.num)}
    stages |= stage_seconds(record, dataset.pipeline.transforms, args.num)
    files = sorted((folder / 'people' / 'images').iterdir())
    stages |= file_seconds('read and check', files)
    return loader_rows('mesh', cfg, dataset, stages, args)


def stage_seconds(source: Callable, transforms: list[Callable], num: int) -> dict[str, float]:
    """{name of a transform: median seconds}."""
    times = {type(transform).__name__: [] for transform in transforms}
    for index in range(num):
        sample = source(index)
        for transform in transforms:
            start = time.perf_counter()
            sample = transform(sample)
            times[type(transform).__name__].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def file_seconds(stage: str, files: list) -> dict[str, float]:
    """Median seconds of reading and of decoding an image, which are parts of a stage."""
    contents = [np.frombuffer(Path(file).read_bytes(), np.uint8) for file in files]
    return {
        f'of {stage}: read file': seconds_each(lambda i: Path(files[i]).read_bytes(), len(files)),
        f'of {stage}: decode JPEG': seconds_each(
            lambda i: cv2.imdecode(contents[i], cv2.IMREAD_COLOR), len(files)
        ),
    }


def loader_rows(
    what: str, cfg: Config, dataset: BaseDataset, stages: dict, args: argparse.Namespace
) -> list[dict]:
    batch = [dataset[i] for i in range(min(32, args.num))]
    preprocess = MODELS.build(cfg.model.data_preprocessor)
    stages['collate'] = seconds_each(lambda _: pseudo_collate(batch), 20) / len(batch)
    collated = pseudo_collate(batch)
    stages['stack, normalize'] = seconds_each(lambda _: preprocess(collated), 5) / len(batch)
    rows = [dict(what=what, stage=name, rate=1 / seconds) for name, seconds in stages.items()]
    for workers in sorted({0, args.workers}):
        loader = DataLoader(
            dataset, 16, num_workers=workers, collate_fn=pseudo_collate,
            sampler=range(args.num), persistent_workers=workers > 0,
        )  # fmt: skip
        epoch = seconds_each(lambda _, loader=loader: [None for _ in loader], 3)
        rows.append(dict(what=what, stage=f'loader, {workers} workers', rate=args.num / epoch))
    return rows


def synthetic_people_per_second(num: int) -> float:
    """Images that `SyntheticPeople` makes in one second of one core."""
    from trunchier.synthetic.people import SyntheticPeople  # numba

    people, threads = SyntheticPeople(seed=0, size=256), cv2.getNumThreads()
    cv2.setNumThreads(1)
    seconds = seconds_each(people.__getitem__, num, time.process_time)
    cv2.setNumThreads(threads)
    return 1 / seconds


def overlays_per_second() -> float:
    """Bodies that the renderer draws over an image of 512 x 512."""
    body = read_body(EMBEDDED_BODY)
    vertices = np.float32(body['v_template'] * [1, -1, -1] + [0, -0.3, 2.6])[None]
    image, colors = np.zeros((512, 512, 3), np.uint8), np.full((1, 3), 200.0)
    return 1 / seconds_each(
        lambda _: draw_bodies(image, vertices, body['f'], (512, 512), (256, 256), colors), 30
    )
