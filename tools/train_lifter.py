"""Train lifters from 2D keypoints to bodies, on synthetic poses and errors of a 2D model.

  python tools/train_lifter.py errors --images 6000 --out work_dirs/lifter/errors.npz
  python tools/train_lifter.py train --errors work_dirs/lifter/errors.npz \
      --out work_dirs/lifter/BodyLifter.safetensors
  python tools/train_lifter.py prior work_dirs/lifter/BodyLifter.safetensors \
      --out work_dirs/lifter/lifter_prior.npz
  python tools/train_lifter.py noise --out work_dirs/lifter/detector_noise.npz
  python tools/train_lifter.py train-tracks --out work_dirs/lifter/BodyTrackLifter.safetensors

`errors` predicts keypoints of rendered people whose bodies are known, `noise` along rendered
motions. `train` is of lifters of frames, `train-tracks` of lifters of windows, which start as a
lifter of frames. Both write their state every 100 steps: with --resume they go on where they were
stopped. tools/test_lifter.py prints errors.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import idle_threads  # noqa: F401  before torch
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trunchier.conventions import EVAL_14_IN_44
from trunchier.files import whole_file
from trunchier.geometry import (
    SkinnedPoints,
    axis_angle_to_matrix,
    coco_points,
    matrix_to_axis_angle,
    similarity_transform,
)
from trunchier.inference.pose import PosePredictor
from trunchier.models.lifting.body import BodyLifter, load_lifter
from trunchier.models.lifting.facing import facing, seen_turned
from trunchier.models.lifting.track import WINDOW, BodyTrackLifter
from trunchier.synthetic.films import render_motion
from trunchier.synthetic.keypoints import ERRORS, Batch, KeypointStream, size_of
from trunchier.synthetic.motion import Motion, Motions
from trunchier.synthetic.noise import fit_noise, read_noise
from trunchier.synthetic.people import SyntheticPeople
from trunchier.synthetic.sequences import KeypointSequences, Shot
from trunchier.weights.find import find
from trunchier.weights.load import save_weights

EXTRA = [17 + joint - 25 for joint in EVAL_14_IN_44]  # the 14 joints of MPJPE among `coco_points`
HIPS = [EXTRA[2], EXTRA[3]]
NOTE = 'trained on synthetic people only'
LENS_ERROR = 0.25  # of the logarithm of a focal length that is guessed


def main(arguments: list[str] | None = None) -> None:
    run(__doc__, add_commands, arguments)


def run(about: str, add_commands: Callable, arguments: list[str] | None) -> None:
    """Run a command of a script: its parser's default `run`."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=about, formatter_class=formatter)
    add_commands(parser.add_subparsers(required=True))
    args = parser.parse_args(arguments)
    try:
        args.run(args)
    except (OSError, ValueError) as error:
        sys.exit(f'error: {error}')


def add_commands(commands: Any) -> None:
    errors = commands.add_parser('errors', help='errors of a 2D model on rendered people')
    errors.add_argument('--images', type=int, default=6000)
    errors.set_defaults(run=write_errors)
    noise = commands.add_parser('noise', help='errors of a 2D model along rendered motions')
    noise.add_argument('--tracks', type=int, default=60)
    noise.set_defaults(run=write_noise)
    for command in (errors, noise):
        command.add_argument('--model', default='pose', help='name of a pose model (default: ours)')
        command.add_argument('--weights', help='its checkpoint')
        command.add_argument('--seed', type=int, default=2002)
        command.add_argument('--out', type=Path, required=True, help='.npz')
    frames = commands.add_parser('train', help='train a lifter of frames')
    found = 'files of the command `errors`; without: errors are drawn'
    frames.add_argument('--errors', nargs='+', metavar='FILE', help=found)
    share = 'of a batch that are its people, with their own bodies (default: 1/8)'
    frames.add_argument('--share', type=float, default=1 / 8, help=share)
    tilt = 'by which their camera is turned around its axis (standard deviation)'
    frames.add_argument('--tilt', type=float, default=0.0, metavar='DEGREES', help=tilt)
    frames.add_argument('--start', help='weights of a lifter of frames (default: random ones)')
    frames.set_defaults(run=train_frames)
    prior = commands.add_parser('prior', help="covariance of a lifter's errors, to fit its bodies")
    prior.add_argument('weights', nargs='?', help='of a lifter of frames (default: ours)')
    prior.add_argument('--people', type=int, default=8000)
    prior.add_argument('--seed', type=int, default=6)
    prior.add_argument('--out', type=Path, required=True, help='.npz')
    prior.set_defaults(run=write_prior)
    tracks = commands.add_parser('train-tracks', help='train a lifter of tracks')
    tracks.add_argument('--start', help='weights of a lifter of frames (default: ours)')
    tracks.add_argument('--noise', help='file of the command `noise` (default: ours)')
    tracks.set_defaults(run=train_tracks)
    for command, steps, size, poses in (
        (frames, 20_000, 256, 120_000),
        (tracks, 10_000,  16,   8_000),
    ):  # fmt: skip
        command.add_argument('--steps', type=int, default=steps)
        command.add_argument('--minutes', type=float, default=math.inf, help='end after this time')
        command.add_argument('--batch-size', type=int, default=size, help='people, or windows')
        command.add_argument('--poses', type=int, default=poses, help='different (key) poses')
        command.add_argument('--lr', type=float, default=1e-3)
        command.add_argument('--seed', type=int, default=0)
        command.add_argument('--out', type=Path, required=True, help='.safetensors')
        command.add_argument('--resume', action='store_true')


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
    truth = places[..., :2] / places[..., 2:]
    keypoints = torch.from_numpy(np.array([each['keypoints'] for *_, each in rows]))
    keypoints = (keypoints - center[:, None]) / focal[:, None, None]
    scores = torch.from_numpy(np.array([each['keypoint_scores'] for *_, each in rows]))
    arrays = (keypoints - truth) / size_of(truth), scores.clamp(0, 1), pose, betas, truth
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(args.out) as part, open(part, 'wb') as file:
        values = (array.numpy().astype(np.float32) for array in arrays)
        np.savez_compressed(file, **dict(zip(ERRORS, values, strict=True)))
    print(f'{len(rows)} people in {args.out}')


def train_frames(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    lifter = load_lifter(args.start).train() if args.start else BodyLifter()
    points = coco_points()
    options = dict(found_share=args.share, tilt=args.tilt)
    stream = KeypointStream(args.seed, args.poses, args.errors, **options)

    def losses(step):
        batch = faced(stream.batch(args.batch_size), stream.random)
        out, truth = lifter(batch.keypoints, batch.scores), points(batch.rotations, batch.betas)
        return lifter_losses(out, posed(points, out), batch, truth), args.batch_size

    optimizer = torch.optim.AdamW(lifter.parameters(), args.lr, weight_decay=0.01)
    train(args, lifter, optimizer, losses, stream.random, decay=0.999)


def train_tracks(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    lifter, points = BodyTrackLifter(load_lifter(args.start)), coco_points()
    stream = KeypointSequences(args.seed, args.poses, read_noise(args.noise))

    def losses(step):
        # A quarter of the windows are shorter, with as many frames a batch.
        frames = WINDOW if step % 4 else 1 + int(torch.randint(WINDOW, (), generator=stream.random))
        count = args.batch_size * WINDOW // frames
        shot, keypoints, scores = stream.batch(count, frames)
        scores = scores * _gaps(count, frames, stream)
        shot, keypoints = faced_shot(shot, keypoints, scores, stream.random)
        return track_losses(lifter, points, shot, keypoints, scores), count * frames

    optimizer = track_optimizer(lifter, args.lr)
    train(args, lifter, optimizer, losses, stream.random, decay=0.998)


def train(
    args: argparse.Namespace,
    lifter: nn.Module,
    optimizer: torch.optim.Optimizer,
    losses: Callable[[int], tuple[dict[str, Tensor], int]],
    random: torch.Generator,
    decay: float,
) -> None:
    """Train and write the moving average of the weights; the state every 100 steps.

    Args:
        losses: step -> losses of a batch, to be added, and its number of bodies.
        random: what draws batches. decay: of the moving average, per step.
    """
    average = torch.optim.swa_utils.AveragedModel(
        lifter, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(decay)
    )
    highest = [group['lr'] for group in optimizer.param_groups]
    state_file, first = args.out.with_suffix('.state.pth'), 0
    parts = dict(lifter=lifter, average=average, optimizer=optimizer)
    if args.resume and state_file.is_file():
        state = torch.load(state_file, weights_only=True)
        first = state['step']
        for name, part in parts.items():
            part.load_state_dict(state[name])
    # Other draws after each interruption, of the same poses.
    random.manual_seed(args.seed + first)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    begin, seen = time.time(), 0
    for step in range(first, args.steps):
        done = max(step / args.steps, (time.time() - begin) / (60 * args.minutes))
        last = done >= 1 or step + 1 == args.steps
        for group, lr in zip(optimizer.param_groups, highest, strict=True):
            group['lr'] = lr * min(1, step / 100) * (1 + math.cos(math.pi * min(done, 1))) / 2
        terms, bodies = losses(step)
        optimizer.zero_grad()
        sum(terms.values()).backward()
        nn.utils.clip_grad_norm_(lifter.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(lifter)
        seen += bodies
        if (step + 1) % 100 == 0 or last:
            values = '  '.join(f'{name} {value:.4f}' for name, value in terms.items())
            rate = seen / (time.time() - begin)
            print(f'step {step + 1}  {values}  {rate:.0f} bodies/s', flush=True)
            with whole_file(state_file) as part:
                states = {name: each.state_dict() for name, each in parts.items()}
                torch.save(dict(states, step=step + 1), part)
            halves = {name: each.half() for name, each in average.module.state_dict().items()}
            save_weights(halves, args.out, NOTE)
        if last:
            break


def posed(points: SkinnedPoints, out: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Joints and points of predicted bodies."""
    return points(torch.cat((out['global_orient'], out['body_pose']), 1), out['betas'])


def faced(batch: Batch, random: torch.Generator | None = None) -> Batch:
    """People as prediction shows them: by a camera that is turned towards each.

    Args:
        random: half of the focal lengths are off, as guesses are; None: they are true.
    """
    keypoints, turns, lens = _turned_to(batch.keypoints, batch.scores, random)
    rotations = batch.rotations.clone()
    rotations[:, 0] = turns.mT @ rotations[:, 0]
    truth = seen_turned(batch.truth * lens, turns) / lens
    return replace(batch, rotations=rotations, truth=truth, keypoints=keypoints)


def faced_shot(
    shot: Shot, keypoints: Tensor, scores: Tensor, random: torch.Generator | None = None
) -> tuple[Shot, Tensor]:
    """As `faced`, by one camera for all frames of a window; shot and keypoints."""
    unit, frames = shot.focal[:, None, None], keypoints.shape[1]
    flat = keypoints.flatten(1, 2) / unit, scores.flatten(1)
    seen, turns, lens = _turned_to(*flat, random)
    rotations = shot.rotations.clone()
    rotations[:, :, 0] = turns.mT[:, None] @ rotations[:, :, 0]
    truth = seen_turned(shot.truth.flatten(1, 2) / unit * lens, turns) / lens
    truth, seen = (each.unflatten(1, (frames, -1)) for each in (truth, seen))
    joints, points = (each @ turns[:, None] for each in (shot.joints, shot.points))
    translation = shot.translation @ turns
    return replace(
        shot, rotations=rotations, truth=truth, joints=joints, points=points,
        translation=translation, focal=torch.ones_like(shot.focal),
    ), seen  # fmt: skip


def _turned_to(keypoints, scores, random):
    """Keypoints of a turned camera, its turns, and true by assumed focal lengths: (B, 1, 1)."""
    lens = torch.ones(len(scores), 1)
    if random is not None:
        guessed = torch.rand(len(scores), 1, generator=random) < 0.5
        off = torch.exp(LENS_ERROR * torch.randn(len(scores), 1, generator=random))
        lens = torch.where(guessed, off, lens)
    seen, turns = facing(keypoints, scores, (1 / lens).expand(-1, 2), torch.zeros(2))
    return seen, turns, lens[:, None]


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
        aligned=10 * _aligned_error(places[:, EXTRA], true_places[:, EXTRA]),
        rotations=F.mse_loss(rotations, batch.rotations),
        betas=0.003 * F.mse_loss(out['betas'], batch.betas),
        keypoints=F.smooth_l1_loss(pixels / spread, batch.truth / spread, beta=0.1),
    )


def write_prior(args: argparse.Namespace) -> None:
    lifter = load_lifter(args.weights)
    batch = faced(KeypointStream(args.seed, args.people, clean=True).batch(args.people))
    out = lifter.lift(batch.keypoints, batch.scores)
    rotations = torch.cat((out['global_orient'], out['body_pose']), 1)
    turns = matrix_to_axis_angle(rotations.transpose(2, 3) @ batch.rotations).flatten(1)
    errors = torch.cat((turns, batch.betas - out['betas']), 1).double()
    covariance = errors.T @ errors / len(errors)
    covariance.diagonal().add_(1e-4)  # also where there is no error, such as of hands
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(args.out) as part, open(part, 'wb') as file:
        np.savez_compressed(file, covariance=covariance.float().numpy())
    degrees = covariance.diagonal()[: turns.shape[1]].sqrt().rad2deg()
    print('degrees of each joint:', ' '.join(f'{each:.0f}' for each in degrees[::3]))


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
    """Of a rendered track: exact and found keypoints, scores, rotations into the camera.

    Keypoints are in focal lengths from the principal point.
    """
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
    center, focal = frames[0].camera.center, frames[0].camera.focal
    rows = [(*((each - center) / focal for each in row[:2]), *row[2:]) for row in rows]
    truth, keypoints, scores, rotations = (
        np.array(each, np.float32) for each in zip(*rows, strict=True)
    )
    return truth, keypoints, scores, rotations


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


def _aligned_error(places, truth):
    """L1 after the similarity that brings places to the truth, which is held fixed."""
    scale, rotation, shift = (each.float() for each in similarity_transform(places.detach(), truth))
    aligned = scale[:, None, None] * places @ rotation.transpose(1, 2) + shift[:, None]
    return F.l1_loss(aligned, truth)


def _centered(places):
    return places - places[:, HIPS].mean(1, keepdim=True)


if __name__ == '__main__':
    main()
