"""Errors of lifters from 2D keypoints to bodies, on people and motions that were never seen.

  python tools/test_lifter.py frames --errors errors.npz --people h36m.npz --images h36m
  python tools/test_lifter.py tracks --num 150 --rendered 12

From exact keypoints, with errors that are drawn, and from those that a 2D model finds: of the
people of `tools/train_lifter.py errors`, of annotated people, of rendered tracks. `tracks` has the
lifter of windows beside that of frames. Where the true camera is known, it is turned towards the
person in a further row, as in prediction.
"""

import argparse
from pathlib import Path
from typing import Any

import cv2
import idle_threads  # noqa: F401  before torch
import numpy as np
import torch
from train_lifter import EXTRA, posed, predict_track, run

from trunchier.conventions import COCO_17, EVAL_14_IN_44, JOINTS_44
from trunchier.datasets.npz import read_people_npz
from trunchier.files import read_npz
from trunchier.geometry import (
    align_similarity,
    axis_angle_to_matrix,
    coco_points,
    rotation_6d_to_matrix,
)
from trunchier.inference.camera import Lens
from trunchier.inference.mesh import MeshInferencer
from trunchier.inference.pose import PosePredictor
from trunchier.models.lifting.body import load_lifter
from trunchier.models.lifting.facing import facing, facing_track, turned
from trunchier.models.lifting.fit import FRAMES, KeypointFit
from trunchier.models.lifting.track import WINDOW, load_track_lifter
from trunchier.models.mesh.hmr2_head import EMBEDDED_MEAN_PARAMS, read_mean_params
from trunchier.synthetic.keypoints import KeypointStream, read_errors, size_of
from trunchier.synthetic.motion import Motion, Motions
from trunchier.synthetic.people import BOX_PADDING
from trunchier.synthetic.sequences import KeypointSequences, film
from trunchier.weights.find import find

SEED = 77


def main(arguments: list[str] | None = None) -> None:
    run(__doc__, add_commands, arguments)


def add_commands(commands: Any) -> None:
    frames = commands.add_parser('frames', help='errors of bodies')
    frames.add_argument('--errors', help='also from the keypoints of a file of train_lifter.py')
    frames.add_argument(
        '--focal',
        type=float,
        default=1.0,
        help='assumed focal length of synthetic people: 1 is true',
    )
    frames.set_defaults(run=test_frames)
    tracks = commands.add_parser('tracks', help='errors of tracks and of motion')
    tracks.add_argument('--rendered', type=int, default=0, help='tracks to render for a 2D model')
    tracks.add_argument('--motions', metavar='NPZ', help='poses (N, 72) and lengths, 10 fps')
    tracks.set_defaults(run=test_tracks)
    for command, num in ((frames, 2000), (tracks, 300)):
        command.add_argument('weights', nargs='?', help='default: those of the package')
        command.add_argument('--num', type=int, default=num, help='synthetic people, or tracks')
        command.add_argument('--people', nargs='+', default=[], metavar='NPZ', help='annotated')
        command.add_argument('--images', help='folder of their images, to lift what is found there')


def test_frames(args: argparse.Namespace) -> None:
    lifter, points, fit = load_lifter(args.weights), coco_points(), KeypointFit()
    clean = KeypointStream(SEED, args.num, clean=True).batch(args.num)
    noise = 0.04 / 2**0.5 * size_of(clean.truth) * torch.randn(
        clean.truth.shape, generator=torch.Generator().manual_seed(SEED)
    )  # fmt: skip
    limbs = clean.scores * (torch.arange(17) > 4)
    sets = {
        'exact keypoints': (clean.truth, clean.scores, clean.rotations, clean.betas),
        'without the face, as of MPII': (clean.truth, limbs, clean.rotations, clean.betas),
        'with 4 % noise': (clean.truth + noise, clean.scores, clean.rotations, clean.betas),
    }
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
        out, truth = lifter.lift(keypoints, scores), points(*body)[1][:, EXTRA]
        _print(name, posed(points, out)[1][:, EXTRA], truth)
        _print('  fitted', posed(points, fit(out, keypoints, scores))[1][:, EXTRA], truth)
        # All seen by a camera of unit focal length.
        seen, turns = facing(keypoints, scores, torch.full((2,), args.focal), torch.zeros(2))
        out = turned(fit(lifter.lift(seen, scores), seen, scores), turns)
        _print('  facing, fitted', posed(points, out)[1][:, EXTRA], truth)
        _print('  the mean body', mean.expand_as(truth), truth)
    for file in args.people:
        people = read_people_npz(file)
        truth = torch.from_numpy(people['keypoints_3d'])[:, EVAL_14_IN_44, :3]
        keypoints, scores = _coco_of(torch.from_numpy(people['keypoints_2d']))
        out, name = lifter.lift(keypoints, scores), Path(file).stem
        _print(f'{name}, annotated', posed(points, out)[1][:, EXTRA], truth)
        _print('  fitted', posed(points, fit(out, keypoints, scores))[1][:, EXTRA], truth)
        _print('  the mean body', mean.expand_as(truth), truth)
        if args.images is None:
            continue
        infer = MeshInferencer('lift', device='cpu', detector='whole_image', lifter=args.weights)
        title = f'{name}, found by {infer.name.partition("+")[0]}'
        _print(title, _lifted_in(people, args.images, infer), truth)
        if cameras := _cameras(args.images):
            _print('  with true cameras', _lifted_in(people, args.images, infer, cameras), truth)


def _lifted_in(people, images, infer, cameras=None):
    """The 14 joints of annotated people, as found in their images."""
    joints = []
    for row in range(len(people['imgname'])):
        image = next(Path(images).rglob(Path(people['imgname'][row]).name))
        center, half = people['center'][row], people['scale'][row] * 100 / BOX_PADDING
        box = np.concatenate((center - half, center + half))[None]
        if cameras:
            infer.predictor.lens = Lens(intrinsics=cameras[image.stem])
        joints.append(next(infer(image, bboxes=box)).pred_instances.joints[0])
    return torch.from_numpy(np.stack(joints))[:, EVAL_14_IN_44]


def _cameras(folder):
    """Camera matrices of images that tools/make_synthetic.py wrote, by their names; or {}."""
    path = Path(folder, 'bodies.npz')
    if not path.is_file():
        return {}
    found = read_npz(path, ('image_id', 'focal', 'principal_point'), 2**28)
    matrices = np.tile(np.eye(3), (len(found['focal']), 1, 1))
    matrices[:, :2, :2] *= found['focal'][:, None, None]
    matrices[:, :2, 2] = found['principal_point']
    names = [f'{index - 1:06d}' for index in found['image_id']]
    return dict(zip(names, matrices, strict=True))


def test_tracks(args: argparse.Namespace) -> None:
    """Errors in mm, of velocity and acceleration in mm a frame, at 30 fps."""
    frames, tracks, points = load_lifter(), load_track_lifter(args.weights), coco_points()
    fit = KeypointFit()
    stream = KeypointSequences(SEED, 500)
    shot = film(stream.motions.draw(args.num, WINDOW), stream.random, stream.points)
    cameras = {'exact keypoints': shot.focal}
    sets = {'exact keypoints': (shot.points[:, :, EXTRA], shot.truth, torch.ones(1, 1, 17))}
    for level, name in ((0.3, 'a better 2D model'), (1.0, 'VMPose-T-S2')):
        found = stream.noise.sample(shot.truth, stream.random, level)
        sets[f'errors of {name}, drawn'] = (shot.points[:, :, EXTRA], *found)
        cameras[f'errors of {name}, drawn'] = shot.focal
    if args.motions:
        shot = film(recorded(args.motions, args.num), stream.random, stream.points)
        sets['recorded motion, exact'] = shot.points[:, :, EXTRA], shot.truth, torch.ones(1, 1, 17)
        found = stream.noise.sample(shot.truth, stream.random, 0.3)
        sets['the same, errors of a better model'] = (shot.points[:, :, EXTRA], *found)
    if args.rendered:
        predictor = PosePredictor.load(find('pose', None, 'pose'))
        motion = stream.motions.draw(args.rendered, WINDOW)
        rows = [predict_track(predictor, motion, index, SEED) for index in range(args.rendered)]
        exact, found, scores, rotations = (
            torch.from_numpy(np.array(each)) for each in zip(*rows, strict=True)
        )
        betas = motion.betas.repeat_interleave(WINDOW, 0)
        truth = points(rotations.flatten(0, 1), betas)[1][:, EXTRA]
        truth = truth.unflatten(0, (-1, WINDOW))
        sets['found by VMPose-T-S2, rendered'] = truth, found, scores
        sets['the same tracks, exact'] = truth, exact, torch.ones(1, 1, 17)
        for name in ('found by VMPose-T-S2, rendered', 'the same tracks, exact'):
            cameras[name] = torch.ones(len(truth))
    print(f'{"":52}{"MPJPE":>8}{"PA-MPJPE":>10}{"MPJVE":>8}{"ACC-ERR":>8}')
    for name, (truth, keypoints, scores) in sets.items():
        scores = scores.expand(keypoints.shape[:3])
        tracked = list(zip(keypoints, scores, strict=True))
        windows = [tracks.lift(*each) for each in tracked]
        methods = {
            'frame by frame': [frames.lift(*each) for each in tracked],
            'windows': windows,
            'windows, fitted': [
                fit(*each, FRAMES) for each in zip(windows, keypoints, scores, strict=True)
            ],
        }
        if name in cameras:
            methods['windows, facing, fitted'] = [
                _lifted_facing(tracks, fit, *each)
                for each in zip(keypoints, scores, cameras[name], strict=True)
            ]
        for method, bodies in methods.items():
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


def _lifted_facing(lifter, fit, keypoints, scores, focal):
    seen, turns = facing_track(keypoints, scores, focal, torch.zeros(2))
    return turned(fit(lifter.lift(seen, scores), seen, scores, FRAMES), turns)


def recorded(path: str, count: int) -> Motion:
    """Tracks of a file of recorded poses, played back at 30 fps."""
    arrays = read_npz(path, ('poses', 'lengths'), 2**28)
    poses = arrays['poses'].reshape(-1, 24, 3).astype(np.float64)
    lengths = arrays['lengths']
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    return Motions(SEED, 600, (poses, starts, lengths)).draw(count, WINDOW, {'clip': 1})


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
