#!/usr/bin/env python
"""PCK of pose models on a few annotated photos, with bootstrap intervals over people.

    python tools/score_photos.py VMPose-T-S2 \
        --people coco=person_keypoints.json:photos mpii=mpii.json:images

Each set is TYPE=ANNOTATIONS:IMAGES, where TYPE is coco, posetrack18, mpii or another data set of
mmpose that has some of COCO's 17 keypoints by name; the others are left out. Boxes are the
annotated ones. A keypoint is found within a share of the longer side of its person's box. An
interval over few people is wide, and says nothing of photos of another kind.
"""

import argparse
from pathlib import Path
from typing import Any

import idle_threads  # noqa: F401  before torch
import numpy as np
from compare_scores import interval, pck
from mmengine.dataset import BaseDataset
from mmpose.registry import DATASETS

from trunchier.conventions import COCO_17
from trunchier.inference.pose import PoseInferencer

CLASSES = dict(coco='CocoDataset', posetrack18='PoseTrack18Dataset', mpii='MpiiDataset')
SHARES = (0.1, 0.05)


def main(arguments: list[str] | None = None) -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument('model')
    parser.add_argument('weights', nargs='?', help='default: those of the package')
    parser.add_argument('--people', nargs='+', required=True, metavar='TYPE=JSON:IMAGES')
    args = parser.parse_args(arguments)
    sets = {text: read(text) for text in args.people}
    infer = PoseInferencer(args.model, args.weights, detector='whole_image')
    heads = ' | '.join(f'PCK@{share}, % [95 %]' for share in SHARES)
    print(f'| {infer.name} on | people | {heads} |\n|---|---|{"---|" * len(SHARES)}')
    everyone = []
    for text, dataset in sets.items():
        rows = [
            counted for person in dataset if (counted := count(infer, person, dataset.metainfo))
        ]
        everyone += rows
        show(text.partition('=')[2].rpartition(':')[0], rows)
    if len(sets) > 1:
        show('all', everyone)


def read(text: str) -> BaseDataset:
    """mmpose's data set of TYPE=ANNOTATIONS:IMAGES.

    Raises:
        ValueError: another form, an unknown type, or none of COCO's keypoints.
        FileNotFoundError: no such file.
    """
    kind, _, paths = text.partition('=')
    file, _, images = paths.rpartition(':')
    if not file or not images:
        raise ValueError(f'--people {text!r}; expected TYPE=ANNOTATIONS:IMAGES')
    for path in (file, images):
        if not Path(path).exists():
            raise FileNotFoundError(f'{path}, of --people {text!r}, does not exist')
    cls = CLASSES.get(kind, kind)
    if cls not in DATASETS:
        raise ValueError(f'no data set {kind!r}; give {", ".join(CLASSES)} or a class of mmpose')
    found = DATASETS.build(
        dict(type=cls, ann_file=file, data_prefix=dict(img=images), test_mode=True, pipeline=[])
    )
    if not set(COCO_17) & set(found.metainfo['keypoint_name2id']):
        raise ValueError(f"{kind} has none of COCO's keypoints by name")
    return found


def count(infer: PoseInferencer, person: dict, meta: dict[str, Any]) -> tuple | None:
    """Keypoints found within each of SHARES, and labeled; None without labeled ones."""
    ids = meta['keypoint_name2id']
    names = [name for name in COCO_17 if name in ids]
    theirs, ours = [ids[name] for name in names], [COCO_17.index(name) for name in names]
    visible = np.asarray(person['keypoints_visible'][0]).reshape(len(ids), -1)[theirs, 0] > 0
    if not visible.any():
        return None
    x1, y1, x2, y2 = box = np.asarray(person['bbox'][0], float)
    (result,) = infer(person['img_path'], bboxes=box[None])
    points = result.pred_instances.keypoints[0][ours]
    away = np.linalg.norm(points - person['keypoints'][0][theirs], axis=1) / max(x2 - x1, y2 - y1)
    return (*(int((away[visible] <= share).sum()) for share in SHARES), int(visible.sum()))


def show(name: str, rows: list[tuple]) -> None:
    cells = []
    for index in range(len(SHARES)):
        score, scores = pck([[(0, '', row[index], row[-1]) for row in rows]])
        low, high = interval(scores)
        cells.append(f'{score:.1f} [{low:.1f}, {high:.1f}]')
    print(f'| {name} | {len(rows)} | {" | ".join(cells)} |')


if __name__ == '__main__':
    main()
