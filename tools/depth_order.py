#!/usr/bin/env python
"""Depth order of overlapping people in synthetic scenes, by lifted bodies and by their ground.

    python tools/depth_order.py --scenes 150 [--model VMPose-T-S2]
    python tools/depth_order.py --clips 40

Scenes are images with the occluders, cut-off people and tilted cameras of `SyntheticPeople`; clips
are motions on one ground. Bodies are lifted from true 2D keypoints and, in the true boxes, from
those of a pose model, or in clips from true ones with its errors.
"""

import argparse
import itertools
import math
from typing import Any

import idle_threads  # noqa: F401  before torch
import numpy as np
import torch
from torch import Tensor

from trunchier.conventions import JOINTS_44
from trunchier.geometry import axis_angle_to_matrix, coco_points
from trunchier.inference.lift import LiftPredictor
from trunchier.inference.predictor import Crop
from trunchier.inference.world import World
from trunchier.synthetic.motion import Motions
from trunchier.synthetic.noise import read_noise
from trunchier.synthetic.people import SyntheticPeople
from trunchier.weights.find import find

APART = 0.2  # meters, as of the depth relations of BEV (Sun et al., CVPR 2022)
SIZES = 0.068  # standard deviation of the logarithm of the height of the synthetic people
SHAPE, FRAMES, MARGIN = (480, 640), 81, 0.06  # of clips; of boxes


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument('--scenes', type=int, default=150)
    parser.add_argument('--clips', type=int, default=0, help='clips of moving people, instead')
    parser.add_argument('--seed', type=int, default=77)
    parser.add_argument('--model', default='pose', help='2D model (default: pose)')
    args = parser.parse_args()
    predictor = LiftPredictor.load(find(f'{args.model}+lift' if args.model != 'pose' else 'lift'))
    order = Order()
    if args.clips:
        motions = Motions(args.seed)
        for _ in range(args.clips):
            order.add(*clip(predictor, motions))
    else:
        scenes = SyntheticPeople(args.seed, (320, 240), max_people=5, min_people=2)
        for index in range(args.scenes):
            order.add(*scene(predictor, scenes[index]))
    order.show()


class Order:
    """Right and wrong pairs of people whose boxes overlap."""

    def __init__(self) -> None:
        self.pairs: dict[tuple[str, str], list[tuple[bool, float, float]]] = {}

    def add(self, true: np.ndarray, boxes: np.ndarray, found: dict[str, list[list[dict]]]) -> None:
        """True depths (T, P), boxes (T, P, 4) as xyxy; people of each frame, by kind."""
        for kind, people in found.items():
            for way, depths in depths_of(people).items():
                pairs = self.pairs.setdefault((kind, way), [])
                for a, b in itertools.combinations(range(true.shape[1]), 2):
                    low = np.maximum(boxes[:, a, :2], boxes[:, b, :2])
                    high = np.minimum(boxes[:, a, 2:], boxes[:, b, 2:])
                    for frame in np.flatnonzero((high > low).all(1)):
                        one, two = true[frame, [a, b]]
                        right = (depths[frame, a] < depths[frame, b]) == (one < two)
                        pairs.append((right, abs(one - two), abs(np.log(one / two))))

    def show(self) -> None:
        """Print the table, and what is possible if all but people's sizes were known."""
        apart = f'{APART} m apart'
        print(f'| keypoints | distance by | pairs | right order | of those {apart} |')
        print('|---|---|---|---|---|')
        for (kind, way), pairs in self.pairs.items():
            right, meters, ratios = np.array(pairs).T
            clear = meters >= APART
            percent = f'{100 * right.mean():.1f} % | {100 * right[clear].mean():.1f} %'
            print(f'| {kind} | {way} | {len(pairs)} | {percent} |')
        chance = np.array([0.5 + 0.5 * math.erf(each / (2 * SIZES)) for each in ratios])
        percent = f'{100 * chance.mean():.1f} % | {100 * chance[clear].mean():.1f} %'
        print(f'| all but sizes known | size | {len(pairs)} | {percent} |')


def scene(predictor: LiftPredictor, sample: dict) -> tuple:
    """Arguments of `Order.add` of an image."""
    people = sample['people']
    boxes = np.array([each['bbox'] for each in people])
    boxes[:, 2:] += boxes[:, :2]
    true = np.array([each['keypoints_3d'][:, 2].mean() for each in people])
    found = {kind: [each] for kind, each in bodies(predictor, sample, boxes).items()}
    return true[None], boxes[None], found


def bodies(predictor: LiftPredictor, sample: dict, boxes: np.ndarray) -> dict[str, list[dict]]:
    """People lifted from true keypoints and from predicted ones."""
    people, image = sample['people'], np.ascontiguousarray(sample['image'][..., ::-1])
    shape, focal = image.shape[:2], float(sample['focal'])
    predictor.lens.principal_point = sample['principal_point']
    crops = [Crop.of_box(box, shape, focal) for box in boxes]
    points = torch.from_numpy(np.stack([each['keypoints'] for each in people])).float()
    points[..., 2] = (points[..., 2] > 0).float()
    with torch.no_grad():
        lifted = predictor.lifted(points[..., :2], points[..., 2], *predictor.lenses(crops))
        true = predictor.placed(lifted, points, crops)
    crops = [predictor.crop(image, box, focal) for box in boxes]
    return {'true 2D': true, 'predicted 2D': predictor.decode(predictor.forward(crops), crops)}


@torch.no_grad()
def clip(predictor: LiftPredictor, motions: Motions) -> tuple:
    """Arguments of `Order.add` of people who move on one ground before a camera that does not."""
    random, (height, width) = motions.random, SHAPE

    def uniform(low, high, *shape):
        return low + (high - low) * torch.rand(shape, generator=random)

    while True:
        count = int(torch.randint(2, 6, (), generator=random))
        motion = motions.draw(count, FRAMES)
        focal = float(width / 2 / torch.tan(torch.deg2rad(uniform(30, 90)) / 2))
        pitch, roll = torch.deg2rad(uniform(-3, 15)), torch.deg2rad(uniform(-4, 4))
        tall = uniform(0.8, 2.6)  # of the camera
        near = (1.7 * focal / height / uniform(0.25, 0.9) + uniform(-1.5, 3, count)).clamp_min(2.2)
        aside = uniform(-0.3, 0.3, count) * near * width / focal
        turns = torch.stack([torch.zeros(count), uniform(0, 6.28, count), torch.zeros(count)], 1)
        turns = axis_angle_to_matrix(turns)[:, None]
        zero = torch.zeros(())
        tilts = torch.stack([torch.stack([pitch, zero, zero]), torch.stack([zero, zero, roll])])
        tilt, turn = axis_angle_to_matrix(tilts)
        to_camera = turn @ tilt @ torch.diag(torch.tensor([1.0, -1, -1]))
        middle = motion.translation[:, FRAMES // 2, None] * torch.tensor([1.0, 0, 1])
        path = (turns @ (motion.translation - middle)[..., None])[..., 0]
        path = (path + torch.stack([aside, -tall.expand(count), -near], 1)[:, None]) @ to_camera.T
        rotations = motion.rotations.clone()
        rotations[:, :, 0] = to_camera @ turns @ motion.rotations[:, :, 0]
        betas = motion.betas[:, None].expand(-1, FRAMES, -1).flatten(0, 1)
        joints, points = coco_points()(rotations.flatten(0, 1), betas)
        shift = path.flatten(0, 1)[:, None] - joints[:, :1]
        joints, points = ((each + shift).unflatten(0, path.shape[:2]) for each in (joints, points))
        center = torch.tensor([width, height]) / 2
        pixels = points[..., :2] / points[..., 2:].clamp_min(0.3) * focal + center
        inside = ((pixels >= 0) & (pixels < 2 * center)).all(3)
        kept = (joints[..., 2].amin((1, 2)) > 0.8) & (inside[..., :17].sum(2) >= 5).all(1)
        if kept.sum() >= 2:
            break
    pixels, inside, true = pixels[kept], inside[kept, :, :17], joints[kept][..., 2].mean(2)
    low, high = pixels.amin(2), pixels.amax(2)
    margin = MARGIN * (high - low).amax(2, keepdim=True)
    boxes = torch.cat([(low - margin).clamp_min(0), (high + margin).minimum(2 * center - 1)], 2)
    truth = pixels[:, :, :17]
    noisy, scores = read_noise().sample(truth, random)
    found = {
        'true 2D': torch.cat([truth, inside[..., None]], 3),
        'with errors of VMPose-T-S2': torch.cat([noisy, (scores * inside)[..., None]], 3),
    }
    predictor.lens.principal_point = center.numpy()
    for kind, keypoints in found.items():
        tracks = [lifted(predictor, *each, focal) for each in zip(keypoints, boxes, strict=True)]
        found[kind] = [list(frame) for frame in zip(*tracks, strict=True)]
    return true.T.numpy(), boxes.transpose(0, 1).numpy(), found


def lifted(predictor: LiftPredictor, keypoints: Tensor, boxes: Tensor, focal: float) -> list[dict]:
    """A person in the frames of a clip, from keypoints (T, 17, 3) in boxes (T, 4)."""
    windows = keypoints.split(predictor.windows.length)
    lifter: Any = predictor.windows
    crops = [Crop.of_box(box, SHAPE, focal) for box in boxes.numpy()]
    lens = [each[0] for each in predictor.lenses(crops)]
    parts = [lifter.lift(each[..., :2], each[..., 2], *lens) for each in windows]
    bodies = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return predictor.placed(bodies, keypoints, crops)


def depths_of(frames: list[list[dict]]) -> dict[str, np.ndarray]:
    """Distances (T, P) by the body's size, and by the ground, too."""
    people = [person for frame in frames for person in frame]
    names = ('joints', 'translation', 'coco_keypoints')
    arrays = {name: np.stack([each[name] for each in people]) for name in names}
    arrays['transl'] = arrays.pop('translation')
    shape = len(frames), len(frames[0])
    arrays['track_ids'] = np.tile(np.arange(shape[1]), shape[0])
    world = World.of_arrays(arrays, JOINTS_44)
    depths = (arrays['joints'] + arrays['transl'][:, None])[..., 2].mean(1).reshape(shape)
    scales = np.array([world.scales.get(track, 1.0) for track in range(shape[1])])
    return {'size': depths, 'size and ground': depths * scales}


if __name__ == '__main__':
    main()
