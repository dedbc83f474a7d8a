#!/usr/bin/env python
"""Check the data sets of mesh recovery: completeness, statistics, a contact sheet of samples.

    trunchier check-data data                          # 4D-Humans' data under data/
    trunchier check-data data --full --workers 16      # and index every shard
    trunchier check-data --shards 'data/mine/*.tar' --sheet mine.png
    trunchier check-data --npz eval.npz --images photos

Under the root it looks for hmr2_training_data/ (shards, mocap, pose histogram),
hmr2_evaluation_data/ (npz files) and their folders of images. For each data set it counts the
shards or rows, decodes some people, prints statistics of their keypoints and draws them into one
contact sheet. The exit status is 1 if data is missing or unusable.
"""

import argparse
import contextlib
import os
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

import cv2
import numpy as np
from mmengine.logging import MMLogger

from trunchier.conventions import JOINTS_44
from trunchier.datasets import CropPerson, NpzPeople, ShardPeople
from trunchier.datasets.annotations import BadRecord, describe, load_probable_poses
from trunchier.datasets.people import SKELETON_44, People
from trunchier.datasets.shard_index import describe_facts
from trunchier.datasets.transforms import load_real_poses
from trunchier.inference.writers import write_image
from trunchier.visualization.overlays import contact_sheet
from trunchier.zoo import datasets as released

TRAINING_HELP = (
    'fetch_training_data.sh in github.com/shubham-goel/4D-Humans downloads the training data; '
    'unpack it so that {root} holds dataset_tars/, ' + released.MOCAP
)
EVALUATION_HELP = (
    'the README of github.com/shubham-goel/4D-Humans links hmr2_evaluation_data.tar.gz; unpack it '
    'as {root}'
)
TILES, TILE = 8, 160  # people per data set on the sheet, pixels
SAMPLE = 64  # people per data set for statistics


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog='trunchier check-data',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add('root', nargs='?', help='folder of the 4D-Humans data')
    add('--shards', action='append', default=[], metavar='URLS', help='other shards')
    add('--npz', action='append', default=[], metavar='FILE', help='other npz')
    add('--images', default='.', help='folder of the images of --npz')
    add('--full', action='store_true', help='index all shards, not only the first and last')
    add('--workers', type=int, default=1, metavar='N', help='processes for indexing')
    add('--sheet', default='check_data.png', help='contact sheet to write')
    args = parser.parse_args(arguments)
    if not (args.root or args.shards or args.npz):
        parser.error('give a root, --shards or --npz')

    problems, rows = [], []
    if args.root:
        root = Path(args.root)
        check_training(root / 'hmr2_training_data', args, problems, rows)
        check_evaluation(root / 'hmr2_evaluation_data', root, problems, rows)
    for urls in args.shards:
        check_shards(dict(urls=urls), args, problems, rows)
    for file in args.npz:
        check_npz(dict(ann_file=file, img_dir=args.images), problems, rows)

    if rows:
        names, columns = zip(*rows, strict=True)
        write_image(contact_sheet([*zip_longest(*columns)], [*names], TILE), args.sheet)
        print(f'\n{args.sheet}: {sum(map(len, columns))} people drawn')
    if problems:
        print(f'\n{len(problems)} problems:')
        for problem in problems:
            print(f'- {problem}')
        sys.exit(1)
    print('\nnothing is missing')


# --- Released data of 4D-Humans -------------------------------------------------------------------
def check_training(root: Path, args: Namespace, problems: list, rows: list) -> None:
    print(f'Training data in {root}')
    if not root.is_dir():
        problems.append(f'no folder {root}: ' + TRAINING_HELP.format(root=root))
        return
    with reported(problems):
        poses, betas = load_real_poses(root / released.MOCAP)
        print(f'{released.MOCAP}: {len(poses)} poses, {"no" if betas is None else "with"} betas')
    histogram = root / released.POSE_HISTOGRAM
    with reported(problems):
        share = load_probable_poses(histogram).mean()
        print(f'{released.POSE_HISTOGRAM}: {100 * share:.2f} % of the bins are probable')

    for config in released.training_sets(root, pose_histogram=histogram.is_file())['datasets']:
        config.pop('type')
        dataset = ShardPeople(**config)
        present = [path for path in dataset.paths if os.path.isfile(path)]
        missing = sorted(set(dataset.paths) - set(present))
        if missing:
            problems.append(
                f'{dataset.name}: {len(missing)} of {len(dataset.paths)} shards are missing, from '
                f'{missing[0]} to {missing[-1]}: ' + TRAINING_HELP.format(root=root)
            )
        if present:
            check_shards({**config, 'urls': present}, args, problems, rows)


def check_evaluation(root: Path, images: Path, problems: list, rows: list) -> None:
    print(f'\nEvaluation data in {root}')
    if not root.is_dir():
        problems.append(f'no folder {root}: ' + EVALUATION_HELP.format(root=root))
        return
    for config in released.evaluation_sets(root, images):
        config.pop('type')
        check_npz(config, problems, rows)


# --- One data set ---------------------------------------------------------------------------------
@contextlib.contextmanager
def reported(problems: list) -> Iterator[None]:
    """Append errors to the problems."""
    try:
        yield
    except (FileNotFoundError, ValueError, RuntimeError) as error:
        problems.append(str(error))


def check_shards(config: dict, args: Namespace, problems: list, rows: list) -> None:
    with reported(problems):
        dataset = ShardPeople(**config, max_bad_share=1.0)
        if not args.full and len(dataset.paths) > 2:
            print(f'{dataset.name}: {len(dataset.paths)} shards, checking the first and the last:')
            ends = [dataset.paths[0], dataset.paths[-1]]
            dataset = ShardPeople(**{**config, 'urls': ends}, max_bad_share=1.0)
        facts = dataset.index(args.workers)
        print(f'{dataset.name}: {describe_facts(facts)}')
        if facts['bad']:
            problems.append(f'{dataset.name}: {describe(facts["bad"])}; {facts["examples"]}')
        sample(dataset, problems, rows)


def check_npz(config: dict, problems: list, rows: list) -> None:
    with reported(problems):
        dataset = NpzPeople(**config, max_bad_share=1.0)
        dataset.full_init()
        print(f'{dataset.name}: {len(dataset)} people')
        sample(dataset, problems, rows)


def sample(dataset: People, problems: list, rows: list) -> None:
    """Decode people evenly spaced in the data set, print statistics, add their tiles to `rows`."""
    records, bad = [], Counter()
    for number in np.unique(np.linspace(0, len(dataset) - 1, SAMPLE).astype(int)):
        try:
            records.append(dataset.record(int(number)))
        except BadRecord as error:
            bad[error.kind] += 1
            example = error
    if bad:
        problems.append(f'{dataset.name}: {describe(bad)} among {SAMPLE} people ({example})')
    if records:
        print(f'  {describe_people(records)}')
        rows.append((dataset.name, [draw_person(record) for record in records[:TILES]]))


def describe_people(records: list[dict]) -> str:
    """One line of statistics."""
    points = np.stack([record['keypoints_2d'] for record in records])
    seen = points[..., 2] > 0
    sizes = np.array([record['image'].shape[1::-1] for record in records])[:, None]
    inside = ((points[..., :2] >= 0) & (points[..., :2] < sizes)).all(-1)
    center = np.array([record['center'] for record in records])[:, None]
    box = np.array([record['scale'] for record in records])[:, None] * 200
    boxed = (np.abs(points[..., :2] - center) <= box.max(-1, keepdims=True) / 2).all(-1)
    joints = np.stack([record['keypoints_3d'] for record in records])
    known = joints[..., 3] > 0
    text = (
        f'{len(records)} samples: images {np.median(sizes[:, 0, 0]):.0f} x '
        f'{np.median(sizes[:, 0, 1]):.0f}, boxes {np.median(box.max(-1)):.0f} pixels (medians); '
        f'keypoints: {seen.sum(1).mean():.1f} per person'
    )
    if seen.any():
        text += f', {inside[seen].mean():.0%} in the image, {boxed[seen].mean():.0%} in the box'
    text += f'; 3D joints: {known.sum(1).mean():.1f} per person'
    neck, pelvis = (JOINTS_44.index(n) for n in ('extra_neck_lsp', 'extra_pelvis_mpii'))
    both = known[:, neck] & known[:, pelvis]
    if both.any():
        length = np.linalg.norm(joints[both, neck, :3] - joints[both, pelvis, :3], axis=-1)
        text += f', neck to pelvis {np.median(length):.2f} m'
    for name in ('has_pose', 'has_betas'):
        share = np.mean([record[name] > 0 for record in records])
        text += f'; {name} {share:.0%}'
    return text


# --- Contact sheet --------------------------------------------------------------------------------
LEFT, RIGHT, MIDDLE = (60, 160, 255), (255, 170, 60), (120, 255, 120)  # BGR


def draw_person(record: dict) -> np.ndarray:
    """(TILE, TILE, 3) BGR crop with the skeleton: left orange, right blue, the rest green."""
    result = CropPerson(size=TILE)(record)
    tile = np.ascontiguousarray(result['crop'])
    points = (result['crop_keypoints_2d'][:, :2] + 0.5) * TILE
    seen = result['crop_keypoints_2d'][:, 2] > 0
    pixels = [tuple(int(v) for v in np.clip(point, -999, 999).round()) for point in points]
    for a, b in SKELETON_44:
        if seen[a] and seen[b]:
            cv2.line(tile, pixels[a], pixels[b], side_color(a, b), 1, cv2.LINE_AA)
    for joint in np.nonzero(seen)[0]:
        cv2.circle(tile, pixels[joint], 2, side_color(joint), -1, cv2.LINE_AA)
    return tile


def side_color(*joints: int) -> tuple[int, int, int]:
    names = ' '.join(JOINTS_44[joint] for joint in joints)
    return LEFT if 'left' in names else RIGHT if 'right' in names else MIDDLE


if __name__ == '__main__':
    MMLogger.get_instance('check_data', log_level='ERROR')
    main()
