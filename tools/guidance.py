#!/usr/bin/env python
"""Physical guidance of a diffusion lifter, on and off: train a small one, print its errors.

    python tools/guidance.py train --out work_dirs/diffusion.pth [--minutes 10]
    python tools/guidance.py test work_dirs/diffusion.pth

Both draw synthetic motions of the embedded body, 27 frames at 30 fps, seen by random cameras;
keypoints are Human3.6M's 17 joints with independent errors of 1 % of the person's size.
"""

import argparse
import time
from pathlib import Path

import idle_threads  # noqa: F401  before torch
import torch
from torch import Tensor

from trunchier.conventions import H36M_17_IN_44
from trunchier.files import whole_file
from trunchier.geometry import align_similarity
from trunchier.metrics.tracks import step_errors
from trunchier.models.lifting.diffusion import DiffusionLifter
from trunchier.models.lifting.guidance import PhysicalGuidance, View
from trunchier.synthetic.keypoints import size_of
from trunchier.synthetic.sequences import KeypointSequences
from trunchier.weights.load import read_weights

FRAMES, NOISE = 27, 0.01
JOINTS = [17 + joint - 25 for joint in H36M_17_IN_44]  # among the 36 points of `coco_points`
SEED, TEST_SEED = 0, 77
BACKBONE = dict(type='MixSTE', in_channels=5, width=64, depth=2, seq_len=FRAMES, num_heads=4)


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    commands = parser.add_subparsers(required=True)
    train = commands.add_parser('train')
    train.add_argument('--out', type=Path, required=True, help='.pth')
    train.add_argument('--minutes', type=float, default=10)
    train.add_argument('--batch-size', type=int, default=16, help='windows')
    train.set_defaults(run=train_lifter)
    test = commands.add_parser('test')
    test.add_argument('weights')
    test.add_argument('--num', type=int, default=100, help='windows')
    test.add_argument('--seed', type=int, default=TEST_SEED)
    test.add_argument('--steps', type=float, nargs='+', default=[100.0], help='of the guidance')
    test.set_defaults(run=test_lifter)
    args = parser.parse_args()
    args.run(args)


def build() -> DiffusionLifter:
    head = dict(type='LiftingHead', in_channels=BACKBONE['width'])
    return DiffusionLifter(BACKBONE, head=head)


def draw(stream: KeypointSequences, count: int) -> tuple[Tensor, Tensor, View]:
    """Keypoints (B, T, 17, 2) as found, joints (B, T, 17, 3) around the root, and the true view."""
    shot, *_ = stream.batch(count, FRAMES)
    places = shot.points[:, :, JOINTS]
    root = places[:, :, :1]
    focal = shot.focal[:, None].expand(-1, 2)
    exact = places[..., :2] / places[..., 2:].clamp_min(0.3) * focal[:, None, None]
    size = size_of(exact.flatten(0, 1)).unflatten(0, exact.shape[:2])
    noise = torch.randn(exact.shape, generator=stream.random)
    found = exact + NOISE * size * noise
    return found, places - root, View(found, focal, torch.zeros_like(focal), root[:, :, 0])


def train_lifter(args: argparse.Namespace) -> None:
    torch.manual_seed(SEED)
    lifter, stream = build().train(), KeypointSequences(SEED, 1000, clean=True)
    optimizer = torch.optim.AdamW(lifter.parameters(), 1e-3, weight_decay=0.1)
    begin, step, done = time.process_time(), 0, 0.0
    while done < 1:
        done = (time.process_time() - begin) / (60 * args.minutes)
        for group in optimizer.param_groups:
            group['lr'] = 1e-3 * min(1, (step + 1) / 100) * max(1 - done, 0.01)
        keypoints, joints, _ = draw(stream, args.batch_size)
        moment = torch.randint(lifter.timesteps, (len(joints),))
        noisy = lifter.add_noise(joints, moment, torch.randn_like(joints)).float().clamp(-1.1, 1.1)
        loss = (lifter.denoise(keypoints, noisy, moment) - joints).norm(dim=-1).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(lifter.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 100 == 0:
            print(f'step {step}, {1000 * loss.item():.1f} mm', flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(args.out) as part:
        torch.save(lifter.state_dict(), part)
    print(f'{args.out}: {step} steps of {args.batch_size} windows')


def test_lifter(args: argparse.Namespace) -> None:
    lifter = build().eval()
    lifter.load_state_dict(read_weights(args.weights))
    keypoints, truth, view = draw(KeypointSequences(args.seed, 500, clean=True), args.num)
    print('guidance'.ljust(34), '    MPJPE  P-MPJPE    MPJVE  ACC-ERR  mm, mm a frame')
    settings = {'off': (None, 0.0)}
    for step in args.steps:
        settings[f'without a camera, step {step:g}'] = (None, step)
        settings[f'with the true camera, step {step:g}'] = (view, step)
    for name, (camera, step) in settings.items():
        lifter.guidance = PhysicalGuidance(step=step) if step else None
        joints = lifter.lift(keypoints, view=camera)
        track, true = (each.transpose(0, 1).flatten(1, 2).numpy() for each in (joints, truth))
        errors = [1000 * step_errors(track, true, order).mean() for order in range(3)]
        aligned = align_similarity(joints.flatten(0, 1), truth.flatten(0, 1))
        errors.insert(1, 1000 * (aligned - truth.flatten(0, 1)).norm(dim=-1).mean())
        print(name.ljust(34), ' '.join(f'{float(each):8.1f}' for each in errors), flush=True)


if __name__ == '__main__':
    main()
