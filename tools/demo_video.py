#!/usr/bin/env python
"""Predict a video from pixels to animation files: what `make demo-video` runs.

Draws a clip of two synthetic people who walk, one of them towards the camera, finds their
keypoints, lifts them to bodies, and writes MP4 (the picture, and the bodies from the side), BVH,
animated GLB and JSON in world coordinates. Prints the errors of the bodies against the truth. With
--video, your clip is predicted instead, and nothing is compared.

    python tools/demo_video.py [--video FILE] [--model lift] [--out demo-video]
    python tools/demo_video.py --smoothing      errors of smoothers on noisy joints of that walk
"""

import argparse
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import idle_threads  # noqa: F401  before torch
import numpy as np

from trunchier.conventions import EVAL_14_IN_44, H36M_17_FLIP, H36M_17_IN_44, PELVIS, SMPL_24
from trunchier.geometry import align_similarity
from trunchier.inference.inferencer import Inferencer
from trunchier.inference.smoothing import Smoother
from trunchier.inference.tracking import OneEuro
from trunchier.inference.writers import VideoWriter
from trunchier.metrics.tracks import step_errors, step_lengths
from trunchier.synthetic.figure import Figure, build_figure
from trunchier.synthetic.poses import rotation_about_axis
from trunchier.synthetic.scene import Camera, Room, render
from trunchier.synthetic.wardrobe import Outfit, sample_outfit

FPS, FRAMES, SIZE = 15.0, 60, (480, 360)
HEIGHT, PITCH = 1.6, 7.0  # meters of the camera above the ground, degrees that it looks down
# Start on the ground and steps per second, x right and z towards the camera; meters.
WALKS = (((-0.9, -7.0), (0.1, 0.9)), ((1.3, -5.5), (-0.6, 0.05)))
STRIDE = 1.4  # meters of two steps


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument('--video', metavar='FILE', help='a clip of yours')
    parser.add_argument('--detector', default='auto', help='of people in it, as of predict')
    parser.add_argument('--model', default='lift', help='of bodies (default: lift)')
    parser.add_argument('--out', default='demo-video', type=Path, help='folder of all outputs')
    parser.add_argument('--picture', type=Path, help='.webp, animated, of the MP4')
    parser.add_argument('--smoothing', action='store_true', help='compare smoothers, and end')
    args = parser.parse_args()
    if args.smoothing:
        compare_smoothers()
        return
    begin, boxes, truth = time.time(), None, []
    clip = Path(args.video or args.out / 'walk.mp4')
    if args.video is None:
        args.out.mkdir(parents=True, exist_ok=True)
        boxes, truth = draw_clip(clip)
        print(f'{clip}: {FRAMES} frames drawn in {time.time() - begin:.0f} s')
    own = dict(detector=args.detector, focal=None if boxes is None else focal())
    infer = Inferencer(args.model, smooth='offline', **own)
    formats = 'json,npz,video,animation,bvh'
    results = list(infer(clip, bboxes=boxes, out_dir=args.out, save=formats, world=True, side=True))
    print(infer.report)
    if args.picture:
        write_picture(args.out / 'visualizations' / clip.name, args.picture)
    for file in sorted(path for path in args.out.rglob('*') if path.is_file()):
        print(f'  {file}')
    if truth:
        print_errors(results, np.array(truth))
    print(f'done in {time.time() - begin:.0f} s')


def write_picture(video: Path, picture: Path) -> None:
    """Write the frames of a video as an animated picture."""
    with av.open(str(video)) as file:
        first, *others = (frame.to_image() for frame in file.decode(video=0))
    options = dict(save_all=True, append_images=others, duration=round(1000 / FPS), loop=0)
    first.save(picture, quality=55, method=6, **options)


# --- The clip -------------------------------------------------------------------------------------
def focal() -> float:
    """Focal length, pixels."""
    return 1.1 * max(SIZE)


def draw_clip(path: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Write the clip; returns boxes (P, 4) and joints (P, 44, 3), camera frame, of each frame."""
    camera = Camera(focal(), np.array(SIZE) / 2)
    to_camera = rotation_about_axis(0, np.radians(PITCH)) @ np.diag((1.0, -1.0, -1.0))
    room = Room(to_camera, 5.0, -HEIGHT)
    outfits = [sample_outfit(np.random.default_rng(seed), ('', '')) for seed in (4, 9)]
    writer, boxes, joints = VideoWriter(path, FPS, SIZE[::-1]), [], []
    for frame in range(FRAMES):
        people = [person(i, frame, to_camera, outfit) for i, outfit in enumerate(outfits)]
        scene = render(np.random.default_rng(1), SIZE, people, [], camera, room)
        writer.write(np.ascontiguousarray(scene.image[..., ::-1]))
        pixels = [camera.project(each.vertices.astype(np.float64)) for each in people]
        low, high = ([f(each, 0) for each in pixels] for f in (np.min, np.max))
        boxes.append(np.hstack([low, high]).astype(np.float32))
        joints.append(np.stack([each.joints for each in people]))
    writer.close()
    return boxes, joints


def person(index: int, frame: int, to_camera: np.ndarray, outfit: Outfit) -> Figure:
    """One of the people, in a frame, on the ground."""
    start, speed = (np.array(each) for each in WALKS[index])
    place = start + speed * frame / FPS
    phase = 2 * np.pi * np.hypot(*speed) * frame / FPS / STRIDE + index
    rotations = gait(phase)
    rotations[0] = to_camera @ rotation_about_axis(1, np.arctan2(*speed)) @ rotations[0]
    figure = build_figure(rotations, np.zeros(10), outfit)
    level = figure.vertices @ to_camera  # x right, y up, z towards the camera
    move = np.array([place[0], -HEIGHT - level[:, 1].min(), place[1]])
    figure.move(to_camera @ move)
    return figure


def gait(phase: float) -> np.ndarray:
    """Rotations (24, 3, 3) of somebody who walks along +z."""
    turns = dict.fromkeys(SMPL_24, (0.0, 0.0, 0.0))
    for side, sign in (('left', 1), ('right', -1)):
        swing = np.sin(phase) * sign
        bent = np.maximum(0, np.cos(phase) * sign)
        turns[f'{side}_hip'] = (-0.42 * swing - 0.15 * bent, 0, 0)
        turns[f'{side}_knee'] = (0.12 + 0.8 * bent, 0, 0)
        turns[f'{side}_ankle'] = (-0.1 * swing, 0, 0)
        turns[f'{side}_shoulder'] = (0.0, 0.35 * swing, -1.2 * sign)
        turns[f'{side}_elbow'] = (0.0, -0.35 * sign, 0)
    turns['spine2'] = (0.05, 0.08 * np.sin(phase), 0)
    rows = [
        rotation_about_axis(2, z) @ rotation_about_axis(1, y) @ rotation_about_axis(0, x)
        for x, y, z in turns.values()
    ]
    return np.array(rows)


# --- Errors ---------------------------------------------------------------------------------------
def print_errors(results: list, truth: np.ndarray) -> None:
    """Errors of the bodies of each person against (T, P, 44, 3), mm and mm a frame."""
    print(f'\n{"person":<8}{"MPJPE":>8}{"PA":>8}{"MPJVE":>8}{"ACC-ERR":>9}{"distance off":>14}')
    for person in range(truth.shape[1]):
        people = [each.pred_instances for each in results]
        mine = np.stack([each.joints[person] + each.translation[person] for each in people])
        true = truth[:, person].astype(np.float64)
        far = np.abs(mine[:, PELVIS, 2] / true[:, PELVIS, 2] - 1).mean()
        mine, true = ((each - each[:, PELVIS, None])[:, EVAL_14_IN_44] for each in (mine, true))
        numbers = [1000 * step_errors(mine, true, order).mean() for order in range(3)]
        numbers.insert(1, 1000 * step_errors(aligned(mine, true), true, 0).mean())
        print(
            f'{person:<8}' + ''.join(f'{n:{8 + (i == 3)}.1f}' for i, n in enumerate(numbers)),
            end='',
        )
        print(f'{100 * far:>12.1f} %')


def aligned(track: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(T, K, 3), each frame turned, moved and scaled onto the truth."""
    import torch

    return align_similarity(torch.from_numpy(track), torch.from_numpy(truth)).numpy()


def compare_smoothers(noise: float = 0.02) -> None:
    """Errors of smoothers on the joints of Human3.6M of a walk with noise, standard deviation m."""
    rng = np.random.default_rng(0)
    outfit = sample_outfit(rng, ('', ''))
    to_camera = np.diag((1.0, -1.0, -1.0))
    truth = np.stack([person(0, frame, to_camera, outfit).joints for frame in range(FRAMES)])
    truth = truth[:, H36M_17_IN_44].astype(np.float64)
    truth -= truth[:, :1]
    # Of a detector: half of the variance changes slowly.
    slow = rng.normal(0, noise, (FRAMES + 6, 17, 3))
    slow = np.stack([slow[i : i + FRAMES] for i in range(7)]).mean(0) * np.sqrt(7)
    noisy = truth + (rng.normal(0, noise, truth.shape) + slow) / np.sqrt(2)
    lifter: Any = SimpleNamespace(smoothed=('joints',), windows=SimpleNamespace(flip=H36M_17_FLIP))
    euro = OneEuro(FPS, beta=4.0)
    tracks = {'none': noisy, 'one-euro': np.stack([euro(each) for each in noisy])}
    for method in ('offline', 'guidance'):
        smoother = Smoother(method, lifter, FPS)
        known = np.ones((1, FRAMES), bool)
        tracks[method] = smoother(dict(joints=noisy[None]), known, None)['joints'][0]
    print('| `--smooth` | MPJPE | MPJVE | ACC-ERR | jitter |\n|---|---|---|---|---|')
    for name, track in (*tracks.items(), ('(truth)', truth)):
        numbers = [1000 * step_errors(track, truth, order).mean() for order in range(3)]
        numbers.append(1000 * step_lengths(track).mean())
        print(f'| {name} | ' + ' | '.join(f'{number:.1f}' for number in numbers) + ' |')


if __name__ == '__main__':
    main()
