"""Train the lifter from 2D keypoints to bodies, on synthetic poses and errors of a 2D model.

  python tools/train_lifter.py errors --images 6000 --out work_dirs/lifter/errors.npz
  python tools/train_lifter.py train --errors work_dirs/lifter/errors.npz \
      --out work_dirs/lifter/BodyLifter.safetensors
  python tools/train_lifter.py test work_dirs/lifter/BodyLifter.safetensors

The first predicts keypoints of rendered people whose bodies are known. The second takes CPU minutes
and writes its state every so often: with --resume it goes on where it was stopped. The third prints
errors on synthetic people that were never seen, from exact and from predicted keypoints.
"""

import argparse
import sys
import time
from pathlib import Path

import idle_threads  # noqa: F401  before torch
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trunchier.conventions import COCO_17, EVAL_14_IN_44, JOINTS_44
from trunchier.datasets.npz import read_people_npz
from trunchier.files import whole_file
from trunchier.geometry import (
    SkinnedPoints,
    align_similarity,
    axis_angle_to_matrix,
    rotation_6d_to_matrix,
)
from trunchier.inference.mesh import MeshInferencer
from trunchier.inference.pose import PosePredictor
from trunchier.models.lifting.body import BodyLifter, load_lifter
from trunchier.models.mesh.hmr2_head import EMBEDDED_MEAN_PARAMS, read_mean_params
from trunchier.synthetic.keypoints import (
    ERRORS,
    Batch,
    KeypointStream,
    coco_points,
    read_errors,
    size_of,
)
from trunchier.synthetic.people import BOX_PADDING, SyntheticPeople
from trunchier.weights.find import find
from trunchier.weights.load import save_weights

EXTRA = [17 + joint - 25 for joint in EVAL_14_IN_44]  # the 14 joints of MPJPE among `coco_points`
HIPS = [EXTRA[2], EXTRA[3]]
NOTE = 'trained on synthetic people only'
TEST_SEED = 77


def main() -> None:
    args = _arguments()
    try:
        args.run(args)
    except (OSError, ValueError) as error:
        sys.exit(f'error: {error}')


def _arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    errors = commands.add_parser('errors', help='errors of a 2D model on rendered people')
    errors.add_argument('--model', default='pose', help='name of a pose model (default: ours)')
    errors.add_argument('--weights', help='its checkpoint')
    errors.add_argument('--images', type=int, default=6000)
    errors.add_argument('--seed', type=int, default=2002)
    errors.add_argument('--out', type=Path, required=True)
    errors.set_defaults(run=write_errors)
    train = commands.add_parser('train', help='train a lifter')
    train.add_argument('--errors', help='file of the command `errors`; without: errors are drawn')
    train.add_argument('--steps', type=int, default=20_000)
    train.add_argument('--batch-size', type=int, default=256)
    train.add_argument('--poses', type=int, default=120_000, help='different poses')
    train.add_argument('--lr', type=float, default=1e-3)
    train.add_argument('--seed', type=int, default=0)
    train.add_argument('--out', type=Path, required=True, help='.safetensors')
    train.add_argument('--resume', action='store_true')
    train.set_defaults(run=train_lifter)
    test = commands.add_parser('test', help='errors on synthetic people')
    test.add_argument('weights', nargs='?', help='default: those of the package')
    test.add_argument('--errors', help='also from the keypoints of this file of `errors`')
    test.add_argument('--num', type=int, default=2000)
    test.add_argument('--people', nargs='+', default=[], metavar='NPZ', help='annotated people')
    test.add_argument('--images', help='folder of their images, to lift what is found there')
    test.set_defaults(run=test_lifter)
    return parser.parse_args()


def write_errors(args: argparse.Namespace) -> None:
    predictor = PosePredictor.load(find(args.model, args.weights, 'pose'))
    images = SyntheticPeople(args.seed, 320, max_people=3)
    rng = np.random.default_rng(args.seed)
    rows = []
    for index in range(args.images):
        scene = images[index]
        people = [each for each in scene['people'] if (each['keypoints'][:, 2] > 0).sum() >= 6]
        image = np.ascontiguousarray(scene['image'][..., ::-1])
        crops = []
        for person in people:
            (x, y, w, h), jitter = person['bbox'], 0.04 * rng.standard_normal(4)
            crops.append(
                predictor.crop(image, np.array([x, y, x + w, y + h]) + jitter * (w, h, w, h))
            )
        if not crops:
            continue
        found = predictor.decode(predictor.forward(crops), crops)
        rows += [(scene, *pair) for pair in zip(people, found, strict=True)]
        if index % 500 == 0:
            print(f'image {index}: {len(rows)} people', flush=True)
    pose, betas, translation = (
        torch.from_numpy(np.array([person[name] for _, person, _ in rows], np.float32))
        for name in ('pose', 'betas', 'translation')
    )
    focal = torch.tensor([scene['focal'] for scene, _, _ in rows])
    center = torch.from_numpy(np.array([scene['principal_point'] for scene, _, _ in rows]))
    _, points = coco_points()(axis_angle_to_matrix(pose.unflatten(1, (24, 3))), betas)
    places = points[:, :17] + translation[:, None]
    truth = places[..., :2] / places[..., 2:] * focal[:, None, None] + center[:, None]
    keypoints = torch.from_numpy(np.array([each['keypoints'] for *_, each in rows]))
    scores = torch.from_numpy(np.array([each['keypoint_scores'] for *_, each in rows]))
    arrays = (keypoints - truth) / size_of(truth), scores.clamp(0, 1), pose, betas, truth
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(args.out) as part, open(part, 'wb') as file:
        values = (array.numpy().astype(np.float32) for array in arrays)
        np.savez_compressed(file, **dict(zip(ERRORS, values, strict=True)))
    print(f'{len(rows)} people in {args.out}')


def train_lifter(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    lifter, points = BodyLifter(), coco_points()
    average = torch.optim.swa_utils.AveragedModel(
        lifter, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.999)
    )
    optimizer = torch.optim.AdamW(lifter.parameters(), args.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, args.steps, pct_start=0.05)
    state_file, first = args.out.with_suffix('.state.pth'), 0
    parts = dict(lifter=lifter, average=average, optimizer=optimizer, schedule=schedule)
    if args.resume and state_file.is_file():
        state = torch.load(state_file, weights_only=True)
        first = state.pop('step')
        for name, part in parts.items():
            part.load_state_dict(state[name])
    # A stream of its own after each interruption: the poses are the same, the draws are others.
    stream = KeypointStream(args.seed, args.poses, args.errors)
    stream.random.manual_seed(args.seed + first)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    begin = time.time()
    for step in range(first, args.steps):
        losses = lifter_losses(lifter, points, stream.batch(args.batch_size))
        optimizer.zero_grad()
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(lifter.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average.update_parameters(lifter)
        if (step + 1) % 500 == 0 or step + 1 == args.steps:
            values = '  '.join(f'{name} {value:.4f}' for name, value in losses.items())
            rate = (step + 1 - first) * args.batch_size / (time.time() - begin)
            print(f'step {step + 1}  {values}  {rate:.0f} people/s', flush=True)
            with whole_file(state_file) as part:
                states = {name: each.state_dict() for name, each in parts.items()}
                torch.save(dict(states, step=step + 1), part)
    halves = {name: each.half() for name, each in average.module.state_dict().items()}
    save_weights(halves, args.out, NOTE)


def lifter_losses(lifter: BodyLifter, points: SkinnedPoints, batch: Batch) -> dict[str, Tensor]:
    """Losses of a batch, to be added."""
    out = lifter(batch.keypoints, batch.scores)
    rotations = torch.cat((out['global_orient'], out['body_pose']), 1)
    joints, places = points(rotations, out['betas'])
    true_joints, true_places = points(batch.rotations, batch.betas)
    camera = out['camera'][:, None]
    pixels = camera[..., :1] * (places[:, :17, :2] + camera[..., 1:])
    spread = batch.truth.std((1, 2), keepdim=True)
    return dict(
        joints=10 * F.l1_loss(joints - joints[:, :1], true_joints - true_joints[:, :1]),
        points=10 * F.l1_loss(_centered(places), _centered(true_places)),
        rotations=F.mse_loss(rotations, batch.rotations),
        betas=0.003 * F.mse_loss(out['betas'], batch.betas),
        keypoints=F.smooth_l1_loss(pixels / spread, batch.truth / spread, beta=0.1),
    )


def _centered(places):
    return places - places[:, HIPS].mean(1, keepdim=True)


def test_lifter(args: argparse.Namespace) -> None:
    lifter, points = load_lifter(args.weights), coco_points()
    clean = KeypointStream(TEST_SEED, args.num, clean=True).batch(args.num)
    noise = 0.04 / 2**0.5 * size_of(clean.truth) * torch.randn(
        clean.truth.shape, generator=torch.Generator().manual_seed(TEST_SEED)
    )  # fmt: skip
    rows = {'exact keypoints': clean.keypoints, 'with 4 % noise': clean.truth + noise}
    sets = {name: (each, clean.scores, clean.rotations, clean.betas) for name, each in rows.items()}
    if args.errors:
        found = read_errors(args.errors)
        rotations = axis_angle_to_matrix(found['pose'].unflatten(1, (24, 3)))
        keypoints = found['truth'] + found['errors'] * size_of(found['truth'])
        body = rotations, found['betas']
        sets['keypoints of the model'] = keypoints, found['scores'], *body
        sets['the same people, exact'] = found['truth'], torch.ones_like(found['scores']), *body
    mean = read_mean_params(EMBEDDED_MEAN_PARAMS)
    mean = points(rotation_6d_to_matrix(mean['pose'].unflatten(1, (-1, 6))), mean['shape'])[1][
        :, EXTRA
    ]
    print(f'{"":36}{"people":>8}{"MPJPE":>8}{"PA-MPJPE":>10}  mm')
    for name, (keypoints, scores, *body) in sets.items():
        out = lifter.lift(keypoints, scores)
        rotations = torch.cat((out['global_orient'], out['body_pose']), 1)
        joints, truth = (points(*each)[1][:, EXTRA] for each in ((rotations, out['betas']), body))
        _print(name, joints, truth)
        _print('  the mean body', mean.expand_as(truth), truth)
    for file in args.people:
        people = read_people_npz(file)
        truth = torch.from_numpy(people['keypoints_3d'])[:, EVAL_14_IN_44, :3]
        keypoints, scores = _coco_of(torch.from_numpy(people['keypoints_2d']))
        out = lifter.lift(keypoints, scores)
        rotations = torch.cat((out['global_orient'], out['body_pose']), 1)
        name = Path(file).stem
        _print(f'{name}, annotated', points(rotations, out['betas'])[1][:, EXTRA], truth)
        _print('  the mean body', mean.expand_as(truth), truth)
        if args.images is None:
            continue
        infer = MeshInferencer('lift', device='cpu', detector='whole_image', lifter=args.weights)
        joints = []
        for row in range(len(truth)):
            image = next(Path(args.images).rglob(Path(people['imgname'][row]).name))
            center, half = people['center'][row], people['scale'][row] * 100 / BOX_PADDING
            box = np.concatenate((center - half, center + half))[None]
            joints.append(next(infer(image, bboxes=box)).pred_instances.joints[0])
        joints = torch.from_numpy(np.stack(joints))[:, EVAL_14_IN_44]
        _print(f'{name}, found by {infer.name.partition("+")[0]}', joints, truth)


def _print(name, joints, truth):
    """MPJPE and PA-MPJPE of 14 joints (P, 14, 3), centered on the hips."""
    ours, truth = (1000 * (each - each[:, 2:4].mean(1, keepdim=True)) for each in (joints, truth))
    aligned = align_similarity(ours, truth)
    error, least = ((each - truth).norm(dim=-1).mean() for each in (ours, aligned))
    print(f'{name:36}{len(truth):8}{error:8.1f}{least:10.1f}')


def _coco_of(keypoints):
    """Annotated (P, 44, 3) as COCO's (P, 17, 2) and scores, 0 where there is no such point."""
    found = torch.zeros(len(keypoints), len(COCO_17), 3)
    for index, name in enumerate(COCO_17):
        for other in (f'extra_{name}', name):
            if other in JOINTS_44:
                row = keypoints[:, JOINTS_44.index(other)]
                found[:, index] = torch.where(row[:, 2:] > 0, row, found[:, index])
    return found[..., :2], (found[..., 2] > 0).float()


if __name__ == '__main__':
    main()
