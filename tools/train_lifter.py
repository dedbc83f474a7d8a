"""Train the lifter from 2D keypoints to bodies, on synthetic poses and errors of a 2D model.

  python tools/train_lifter.py errors --images 6000 --out work_dirs/lifter/errors.npz
  python tools/train_lifter.py train --errors work_dirs/lifter/errors.npz \
      --out work_dirs/lifter/BodyLifter.safetensors
  python tools/train_lifter.py test work_dirs/lifter/BodyLifter.safetensors
  python tools/train_lifter.py noise --out work_dirs/lifter/detector_noise.npz
  python tools/train_lifter.py train-tracks --out work_dirs/lifter/BodyTrackLifter.safetensors
  python tools/train_lifter.py test-tracks work_dirs/lifter/BodyTrackLifter.safetensors

The first predicts keypoints of rendered people whose bodies are known. The second takes CPU minutes
and writes its state every so often: with --resume it goes on where it was stopped. The third prints
errors on synthetic people that were never seen, from exact and from predicted keypoints. The others
are for tracks: errors of a 2D model along rendered motions, a lifter of windows that starts as the
lifter of frames, and its errors beside those of the lifter of frames.
"""

import argparse
import math
import sys
import time
from pathlib import Path

import cv2
import idle_threads  # noqa: F401  before torch
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trunchier.conventions import COCO_17, EVAL_14_IN_44, JOINTS_44
from trunchier.datasets.npz import read_people_npz
from trunchier.files import read_npz, whole_file
from trunchier.geometry import (
    SkinnedPoints,
    align_similarity,
    axis_angle_to_matrix,
    rotation_6d_to_matrix,
)
from trunchier.inference.mesh import MeshInferencer
from trunchier.inference.pose import PosePredictor
from trunchier.models.lifting.body import BodyLifter, load_lifter
from trunchier.models.lifting.track import WINDOW, BodyTrackLifter, load_track_lifter
from trunchier.models.mesh.hmr2_head import EMBEDDED_MEAN_PARAMS, read_mean_params
from trunchier.synthetic.films import render_motion
from trunchier.synthetic.keypoints import (
    ERRORS,
    Batch,
    KeypointStream,
    coco_points,
    read_errors,
    size_of,
)
from trunchier.synthetic.motion import Motion, Motions
from trunchier.synthetic.noise import fit_noise, read_noise
from trunchier.synthetic.people import BOX_PADDING, SyntheticPeople
from trunchier.synthetic.sequences import KeypointSequences, Shot, film
from trunchier.weights.find import find
from trunchier.weights.load import save_weights

EXTRA = [17 + joint - 25 for joint in EVAL_14_IN_44]  # the 14 joints of MPJPE among `coco_points`
HIPS = [EXTRA[2], EXTRA[3]]
NOTE = 'trained on synthetic people only'
TEST_SEED = 77


def main(arguments: list[str] | None = None) -> None:
    args = _arguments(arguments)
    try:
        args.run(args)
    except (OSError, ValueError) as error:
        sys.exit(f'error: {error}')


def _arguments(arguments):
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
    noise = commands.add_parser('noise', help='errors of a 2D model along rendered motions')
    noise.add_argument('--model', default='pose', help='name of a pose model (default: ours)')
    noise.add_argument('--weights', help='its checkpoint')
    noise.add_argument('--tracks', type=int, default=60)
    noise.add_argument('--seed', type=int, default=2002)
    noise.add_argument('--out', type=Path, required=True)
    noise.set_defaults(run=write_noise)
    tracks = commands.add_parser('train-tracks', help='train a lifter of tracks')
    tracks.add_argument('--start', help='weights of a lifter of frames (default: ours)')
    tracks.add_argument('--noise', help='file of the command `noise` (default: ours)')
    tracks.add_argument('--steps', type=int, default=10_000)
    tracks.add_argument('--minutes', type=float, default=math.inf, help='end after this time')
    tracks.add_argument('--batch-size', type=int, default=16, help='windows')
    tracks.add_argument('--poses', type=int, default=8000, help='different key poses')
    tracks.add_argument('--lr', type=float, default=1e-3)
    tracks.add_argument('--seed', type=int, default=0)
    tracks.add_argument('--out', type=Path, required=True, help='.safetensors')
    tracks.add_argument('--resume', action='store_true')
    tracks.set_defaults(run=train_tracks)
    judge = commands.add_parser('test-tracks', help='errors of tracks and of motion')
    judge.add_argument('weights', nargs='?', help='default: those of the package')
    judge.add_argument('--num', type=int, default=300, help='tracks')
    judge.add_argument('--rendered', type=int, default=0, help='tracks to render, for our 2D model')
    judge.add_argument('--motions', metavar='NPZ', help='poses (N, 72) and lengths, 10 fps')
    judge.add_argument('--people', nargs='+', default=[], metavar='NPZ', help='annotated people')
    judge.add_argument('--images', help='folder of their images, to lift what is found there')
    judge.set_defaults(run=test_tracks)
    return parser.parse_args(arguments)


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
        batch = stream.batch(args.batch_size)
        out, truth = lifter(batch.keypoints, batch.scores), points(batch.rotations, batch.betas)
        losses = lifter_losses(out, posed(points, out), batch, truth)
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


def posed(points: SkinnedPoints, out: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Joints and points of predicted bodies."""
    return points(torch.cat((out['global_orient'], out['body_pose']), 1), out['betas'])


def lifter_losses(
    out: dict[str, Tensor],
    found: tuple[Tensor, Tensor],
    batch: Batch,
    truth: tuple[Tensor, Tensor],
) -> dict[str, Tensor]:
    """Losses of the bodies of a batch, to be added; joints and points, as found and true."""
    rotations = torch.cat((out['global_orient'], out['body_pose']), 1)
    (joints, places), (true_joints, true_places) = found, truth
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


def write_noise(args: argparse.Namespace) -> None:
    predictor = PosePredictor.load(find(args.model, args.weights, 'pose'))
    motion = Motions(args.seed).draw(args.tracks, WINDOW)
    errors, scores, truths = [], [], []
    for index in range(args.tracks):
        truth, found, score, _ = predict_track(predictor, motion, index, args.seed)
        size = np.linalg.norm(truth.max(1) - truth.min(1), axis=-1)[:, None, None]
        errors.append((found - truth) / size)
        scores.append(score)
        truths.append(truth / size)
        if index % 10 == 0:
            print(f'track {index}', flush=True)
    noise = fit_noise(*(torch.from_numpy(np.float32(each)) for each in (errors, scores, truths)))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    noise.save(args.out)
    for field in ('persistence', 'direction', 'confidence', 'shared', 'swapped'):
        print(f'{field:12}', ' '.join(f'{value:.3f}' for value in getattr(noise, field).tolist()))


def predict_track(
    predictor: PosePredictor, motion: Motion, index: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of a rendered track: exact and found keypoints, scores, rotations into the camera."""
    rng = np.random.default_rng((seed, index, 1))
    frames, crops = list(render_motion(motion, index, seed)), []
    for frame in frames:
        side = np.tile(frame.bbox[2:] - frame.bbox[:2], 2)
        box = frame.bbox + 0.02 * side * rng.standard_normal(4)
        crops.append(predictor.crop(np.ascontiguousarray(frame.image[..., ::-1]), box))
    found = predictor.decode(predictor.forward(crops), crops)
    rows = [
        (frame.keypoints, each['keypoints'], each['keypoint_scores'].clip(0, 1), frame.rotations)
        for frame, each in zip(frames, found, strict=True)
    ]
    truth, keypoints, scores, rotations = (
        np.array(each, np.float32) for each in zip(*rows, strict=True)
    )
    return truth, keypoints, scores, rotations


def train_tracks(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    lifter, points = BodyTrackLifter(load_lifter(args.start)), coco_points()
    average = torch.optim.swa_utils.AveragedModel(
        lifter, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998)
    )
    optimizer = track_optimizer(lifter, args.lr)
    state_file, first = args.out.with_suffix('.state.pth'), 0
    parts = dict(lifter=lifter, average=average, optimizer=optimizer)
    if args.resume and state_file.is_file():
        state = torch.load(state_file, weights_only=True)
        first = state.pop('step')
        for name, part in parts.items():
            part.load_state_dict(state[name])
    highest = [args.lr * share for share in (0.3, 1)]
    noise = read_noise(args.noise)
    stream = KeypointSequences(args.seed, args.poses, noise)
    stream.random.manual_seed(args.seed + first)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    begin, seen = time.time(), 0
    for step in range(first, args.steps):
        done = max(step / args.steps, (time.time() - begin) / (60 * args.minutes))
        last = done >= 1 or step + 1 == args.steps
        for group, lr in zip(optimizer.param_groups, highest, strict=True):
            group['lr'] = lr * min(1, step / 100) * (1 + math.cos(math.pi * min(done, 1))) / 2
        # A quarter of the windows are shorter, with as many frames a batch.
        frames = WINDOW if step % 4 else 1 + int(torch.randint(WINDOW, (), generator=stream.random))
        count = args.batch_size * WINDOW // frames
        shot, keypoints, scores = stream.batch(count, frames)
        losses = track_losses(
            lifter, points, shot, keypoints, scores * _gaps(count, frames, stream)
        )
        optimizer.zero_grad()
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(lifter.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(lifter)
        seen += count * frames
        if (step + 1) % 100 == 0 or last:
            values = '  '.join(f'{name} {value:.4f}' for name, value in losses.items())
            rate = seen / (time.time() - begin)
            print(f'step {step + 1}  {values}  {rate:.0f} frames/s', flush=True)
            with whole_file(state_file) as part:
                states = {name: each.state_dict() for name, each in parts.items()}
                torch.save(dict(states, step=step + 1), part)
            halves = {name: each.half() for name, each in average.module.state_dict().items()}
            save_weights(halves, args.out, NOTE)
        if last:
            break


def track_optimizer(lifter: BodyTrackLifter, lr: float) -> torch.optim.Optimizer:
    """AdamW, in the order of the lifter's parameters; slower for the layers of single frames."""
    groups: dict[bool, list] = {True: [], False: []}
    for name, parameter in lifter.named_parameters():
        groups[name.startswith('frame.')].append(parameter)
    rates = {True: 0.3 * lr, False: lr}
    return torch.optim.AdamW(
        [dict(params=params, lr=rates[key]) for key, params in groups.items()], weight_decay=0.01
    )


def _gaps(count, frames, stream):
    """Frames in which the person was not found, in some windows: (B, T, 1) of 0 and 1."""
    begin = torch.randint(frames, (count, 1), generator=stream.random)
    length = torch.randint(1, 10, (count, 1), generator=stream.random)
    length = length * (torch.rand(count, 1, generator=stream.random) < 0.15)
    time = torch.arange(frames)
    gap = (time >= begin) & (time < begin + length)
    return (~gap | gap.all(1, keepdim=True))[..., None].float()


def track_losses(
    lifter: BodyTrackLifter, points: SkinnedPoints, shot: Shot, keypoints: Tensor, scores: Tensor
) -> dict[str, Tensor]:
    """Losses of windows, to be added: those of frames, and of steps between frames."""
    out = {name: each.flatten(0, 1) for name, each in lifter(keypoints, scores).items()}
    frames = scores.shape[1]
    betas = shot.betas[:, None].expand(-1, frames, -1)
    flat = (shot.rotations, betas, shot.truth, keypoints, scores)
    batch = Batch(*(each.flatten(0, 1) for each in flat))
    truth = shot.joints.flatten(0, 1), shot.points.flatten(0, 1)
    found = posed(points, out)
    losses = lifter_losses(out, found, batch, truth)
    if frames > 1:
        steps, true = (
            (places - joints[:, :1]).unflatten(0, (-1, frames)).diff(dim=1)
            for joints, places in (found, truth)
        )
        losses['steps'] = 20 * (steps - true).abs().mean()
    return losses


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


def test_tracks(args: argparse.Namespace) -> None:
    """Errors in mm, of velocity and acceleration in mm a frame, at 30 fps."""
    frames, tracks, points = load_lifter(), load_track_lifter(args.weights), coco_points()
    stream = KeypointSequences(TEST_SEED, 500)
    shot = film(stream.motions.draw(args.num, WINDOW), stream.random, stream.points)
    sets = {'exact keypoints': (shot.points[:, :, EXTRA], shot.truth, torch.ones(1, 1, 17))}
    for level, name in ((0.3, 'a better 2D model'), (1.0, 'VMPose-T-S2')):
        found = stream.noise.sample(shot.truth, stream.random, level)
        sets[f'errors of {name}, drawn'] = (shot.points[:, :, EXTRA], *found)
    if args.motions:
        shot = film(recorded(args.motions, args.num), stream.random, stream.points)
        sets['recorded motion, exact'] = shot.points[:, :, EXTRA], shot.truth, torch.ones(1, 1, 17)
        found = stream.noise.sample(shot.truth, stream.random, 0.3)
        sets['the same, errors of a better model'] = (shot.points[:, :, EXTRA], *found)
    if args.rendered:
        predictor = PosePredictor.load(find('pose', None, 'pose'))
        motion = stream.motions.draw(args.rendered, WINDOW)
        rows = [
            predict_track(predictor, motion, index, TEST_SEED) for index in range(args.rendered)
        ]
        exact, found, scores, rotations = (
            torch.from_numpy(np.array(each)) for each in zip(*rows, strict=True)
        )
        betas = motion.betas.repeat_interleave(WINDOW, 0)
        truth = points(rotations.flatten(0, 1), betas)[1][:, EXTRA]
        truth = truth.unflatten(0, (-1, WINDOW))
        sets['found by VMPose-T-S2, rendered'] = truth, found, scores
        sets['the same tracks, exact'] = truth, exact, torch.ones(1, 1, 17)
    print(f'{"":52}{"MPJPE":>8}{"PA-MPJPE":>10}{"MPJVE":>8}{"ACC-ERR":>8}')
    for name, (truth, keypoints, scores) in sets.items():
        scores = scores.expand(keypoints.shape[:3])
        for method, lifter in {'frame by frame': frames, 'windows': tracks}.items():
            bodies = [lifter.lift(*each) for each in zip(keypoints, scores, strict=True)]
            joints = torch.stack([posed(points, body)[1][:, EXTRA] for body in bodies])
            _print_track(f'{name}: {method}', joints, truth)
    for file in args.people:
        people = read_people_npz(file)
        truth = torch.from_numpy(people['keypoints_3d'])[:, EVAL_14_IN_44, :3]
        sources = {'annotated': _coco_of(torch.from_numpy(people['keypoints_2d']))}
        if args.images:
            sources['found'] = _found_in(people, args.images)
        for source, pair in sources.items():
            alone = [tracks.lift(*(each[None] for each in one)) for one in zip(*pair, strict=True)]
            bodies = {name: torch.cat([each[name] for each in alone]) for name in alone[0]}
            for method, body in {'frame by frame': frames.lift(*pair), 'windows': bodies}.items():
                joints = posed(points, body)[1][:, EXTRA]
                _print(f'{Path(file).stem}, {source}: {method}', joints, truth)


def recorded(path: str, count: int) -> Motion:
    """Tracks of a file of recorded poses, played back at 30 fps."""
    arrays = read_npz(path, ('poses', 'lengths'), 2**28)
    poses = arrays['poses'].reshape(-1, 24, 3).astype(np.float64)
    lengths = arrays['lengths']
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    return Motions(TEST_SEED, 600, (poses, starts, lengths)).draw(count, WINDOW, {'clip': 1})


def _print_track(name, joints, truth):
    joints, truth = (
        1000 * (each - each[:, :, 2:4].mean(2, keepdim=True)) for each in (joints, truth)
    )
    error = (joints - truth).norm(dim=-1).mean()
    aligned = align_similarity(joints.flatten(0, 1), truth.flatten(0, 1))
    least = (aligned - truth.flatten(0, 1)).norm(dim=-1).mean()
    steps = [(joints - truth).diff(n=order, dim=1).norm(dim=-1).mean() for order in (1, 2)]
    print(f'{name:52}{error:8.1f}{least:10.1f}{steps[0]:8.2f}{steps[1]:8.2f}', flush=True)


def _found_in(people, images):
    """Keypoints and scores that our 2D model finds of annotated people."""
    predictor = PosePredictor.load(find('pose', None, 'pose'))
    rows = []
    for row, name in enumerate(people['imgname']):
        image = cv2.imread(str(next(Path(images).rglob(Path(name).name))))
        center, half = people['center'][row], people['scale'][row] * 100 / BOX_PADDING
        crop = predictor.crop(image, np.concatenate((center - half, center + half)))
        (found,) = predictor.decode(predictor.forward([crop]), [crop])
        rows.append((found['keypoints'], found['keypoint_scores'].clip(0, 1)))
    keypoints, scores = (np.array(each, np.float32) for each in zip(*rows, strict=True))
    return torch.from_numpy(keypoints), torch.from_numpy(scores)


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
