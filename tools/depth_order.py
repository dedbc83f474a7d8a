#!/usr/bin/env python
"""Depth order of overlapping people in synthetic scenes, by lifted bodies and by their ground.

    python tools/depth_order.py --scenes 150 [--model VMPose-T-S2]

Scenes have the occluders, cut-off people and tilted cameras of `SyntheticPeople`. Bodies are lifted
from true 2D keypoints, and from those of a pose model in the true boxes.
"""

import argparse
import itertools

import idle_threads  # noqa: F401  before torch
import numpy as np
import torch

from trunchier.conventions import JOINTS_44
from trunchier.inference.lift import LiftPredictor
from trunchier.inference.predictor import Crop
from trunchier.inference.world import World
from trunchier.synthetic.people import SyntheticPeople
from trunchier.weights.find import find


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument('--scenes', type=int, default=150)
    parser.add_argument('--seed', type=int, default=77)
    parser.add_argument('--model', default='pose', help='2D model (default: pose)')
    args = parser.parse_args()
    scenes = SyntheticPeople(args.seed, (320, 240), max_people=5, min_people=2)
    pose = LiftPredictor.load(find(f'{args.model}+lift' if args.model != 'pose' else 'lift'))
    right: dict[tuple[str, str], list[bool]] = {}
    for index in range(args.scenes):
        scene = scenes[index]
        people = scene['people']
        true = np.array([each['keypoints_3d'][:, 2].mean() for each in people])
        for kind, found in bodies(pose, scene).items():
            for way, depths in depths_of(found).items():
                pairs = right.setdefault((kind, way), [])
                for a, b in itertools.combinations(range(len(people)), 2):
                    if overlap(people[a]['bbox'], people[b]['bbox']):
                        pairs.append((depths[a] < depths[b]) == (true[a] < true[b]))
    print('| keypoints | distance by | pairs | right order |\n|---|---|---|---|')
    for (kind, way), pairs in right.items():
        print(f'| {kind} | {way} | {len(pairs)} | {100 * np.mean(pairs):.1f} % |')


def bodies(predictor: LiftPredictor, scene: dict) -> dict[str, list[dict]]:
    """People lifted from true keypoints and from predicted ones."""
    people, image = scene['people'], np.ascontiguousarray(scene['image'][..., ::-1])
    boxes = np.array([each['bbox'] for each in people])
    boxes[:, 2:] += boxes[:, :2]
    shape, focal = image.shape[:2], float(scene['focal'])
    predictor.lens.principal_point = scene['principal_point']
    crops = [
        Crop(torch.empty(0), (box[:2] + box[2:]) / 2, box[2:] - box[:2], shape, focal)
        for box in boxes
    ]
    points = torch.from_numpy(np.stack([each['keypoints'] for each in people])).float()
    points[..., 2] = (points[..., 2] > 0).float()
    with torch.no_grad():
        true = predictor.placed(predictor.lifted(points[..., :2], points[..., 2]), points, crops)
    crops = [predictor.crop(image, box, focal) for box in boxes]
    return {'true 2D': true, 'predicted 2D': predictor.decode(predictor.forward(crops), crops)}


def depths_of(people: list[dict]) -> dict[str, np.ndarray]:
    """Distance of each by the body's size, and by the ground, too."""
    names = ('joints', 'translation', 'coco_keypoints')
    arrays = {name: np.stack([each[name] for each in people]) for name in names}
    arrays['transl'] = arrays.pop('translation')
    arrays['track_ids'] = np.arange(len(people))
    world = World.of_arrays(arrays, JOINTS_44)
    depths = (arrays['joints'] + arrays['transl'][:, None])[..., 2].mean(1)
    scales = np.array([world.scales.get(track, 1.0) for track in range(len(people))])
    return {'size': depths, 'size and ground': depths * scales}


def overlap(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether boxes xywh overlap."""
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[:2] + a[2:], b[:2] + b[2:])
    return bool((high > low).all())


if __name__ == '__main__':
    main()
