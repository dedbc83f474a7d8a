#!/usr/bin/env python
"""Draw the pictures of the gallery: what the package's own weights make of synthetic people.

    python tools/gallery.py                        all, into docs/gallery
    python tools/gallery.py views --out pictures   one of them

People are the first ones of a seed, not chosen; boxes and cameras are true ones.
"""

import argparse
import tempfile
from pathlib import Path

import cv2
import demo_video
import idle_threads  # noqa: F401  before torch
import numpy as np
from mmengine.structures import BaseDataElement, InstanceData

from trunchier.inference.camera import Lens
from trunchier.inference.inferencer import Inferencer
from trunchier.inference.mesh import MeshPredictor
from trunchier.inference.result import Result
from trunchier.synthetic.figure import body
from trunchier.synthetic.people import annotate
from trunchier.synthetic.poses import rotation_about_axis
from trunchier.synthetic.regime import HARD, USUAL, Regime
from trunchier.synthetic.scene import Camera, Scene, make_scene
from trunchier.visualization.overlays import PALETTE, WHITE, contact_sheet, draw_bodies

SEED, SIZE = 2026, (320, 320)
FRAMES = (0, 15, 30, 45, 59)
GRAY = np.array([(170, 170, 170)])
LONG = 20.0  # focal length in sides of the picture: nearly no perspective
TURNS = dict(  # of the camera's frame: x right, y down, z forward
    front=np.eye(3),
    side=rotation_about_axis(1, np.pi / 2),
    above=rotation_about_axis(0, np.pi / 2),
)


def main(arguments: list[str] | None = None) -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument('names', nargs='*', metavar='NAME', help=f'of {", ".join(PICTURES)}')
    parser.add_argument('--out', default='docs/gallery', type=Path, help='folder')
    args = parser.parse_args(arguments)
    if unknown := set(args.names) - set(PICTURES):
        parser.error(f'no picture {", ".join(sorted(unknown))}; there are {", ".join(PICTURES)}')
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.names or PICTURES:
        path = args.out / f'{name}.webp'
        cv2.imwrite(str(path), PICTURES[name](), [cv2.IMWRITE_WEBP_QUALITY, 72])
        print(f'{path}: {path.stat().st_size / 1e3:.0f} kB', flush=True)


# --- Pictures: (H, W, 3) uint8, BGR ---------------------------------------------------------------
def models(count: int = 4) -> np.ndarray:
    """One person an image: the truth, and each of the package's three models."""
    scenes = draw(range(count), 1, 1, USUAL)
    columns = [truth(scenes)]
    columns += [[each.visualization for each in predict(name, scenes)] for name in MODELS]
    return contact_sheet([*zip(*columns, strict=True)], ['truth', *MODELS])


def crowds(count: int = 4) -> np.ndarray:
    """Images of the stream of harder people: the truth, keypoints, bodies."""
    scenes = draw(range(count), 2, 3, HARD)
    columns = [truth(scenes)]
    columns += [[each.visualization for each in predict(name, scenes)] for name in MODELS[::2]]
    return contact_sheet([*zip(*columns, strict=True)], ['truth', *MODELS[::2]])


def views(count: int = 4) -> np.ndarray:
    """Lifted bodies beside true ones, from the front, the side and above."""
    scenes = draw(range(count), 1, 1, USUAL)
    rows = []
    for scene, result in zip(scenes, predict('lift', scenes), strict=True):
        rows.append([bgr(scene)])
        for turn in TURNS:
            rows[-1].append(view(bodies(scene), turn, GRAY))
            rows[-1].append(view(result.pred_instances.vertices, turn, PALETTE))
    titles = [f'{who}, {turn}' for turn in TURNS for who in ('true', 'lifted')]
    return contact_sheet(rows, ['image', *titles], height=200)


def world(count: int = 3) -> np.ndarray:
    """Several people, over the image and from above, where the camera is below."""
    scenes = draw(range(count), 3, 4, USUAL)
    rows = []
    for scene, result in zip(scenes, predict('lift', scenes), strict=True):
        people = result.pred_instances
        placed = people.vertices + people.translation[:, None]
        tops = [view(each, 'above', PALETTE) for each in (bodies(scene), placed)]
        rows.append([bgr(scene), result.visualization, *tops])
    return contact_sheet(rows, ['image', 'lift', 'true, above', 'lifted, above'])


def video() -> np.ndarray:
    """Frames of the clip of `demo_video.py`, with lifted and smoothed bodies."""
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder, 'walk.mp4')
        boxes, _ = demo_video.draw_clip(clip)
        infer = Inferencer('lift', smooth='offline', focal=demo_video.focal())
        drawn = infer(clip, bboxes=boxes, return_vis=True, side=True)
        frames = [each.visualization for i, each in enumerate(drawn) if i in FRAMES]
    width = demo_video.SIZE[0]  # right of it is the view from the side
    rows = [[each[:, :width] for each in frames], [each[:, width:] for each in frames]]
    return contact_sheet(rows, [f'{i / demo_video.FPS:.1f} s' for i in FRAMES], height=200)


PICTURES = dict(models=models, crowds=crowds, views=views, world=world, video=video)
MODELS = ('VMPose-T-S2', 'VMHMR2.0-T-S2', 'lift')


# --- Their parts ----------------------------------------------------------------------------------
def draw(indices: range, least: int, most: int, regime: Regime) -> list[Scene]:
    """Scenes in which at least `least` people can be seen, of SEED."""
    scenes = []
    for index in indices:
        rng = np.random.default_rng((SEED, least, index))
        scene = make_scene(rng, SIZE, most, min_people=least, regime=regime)
        while len(annotate(scene)) < least:
            scene = make_scene(rng, SIZE, most, min_people=least, regime=regime)
        scenes.append(scene)
    return scenes


def bgr(scene: Scene) -> np.ndarray:
    return np.ascontiguousarray(scene.image[..., ::-1])


def predict(name: str, scenes: list[Scene]) -> list[Result]:
    """Of one of MODELS, with `visualization`."""
    boxes = []
    for scene in scenes:
        corners = np.array([each['bbox'] for each in annotate(scene)], np.float32)
        corners[:, 2:] += corners[:, :2]
        boxes.append(corners)
    infer, results = Inferencer(name), []
    for scene, box in zip(scenes, boxes, strict=True):
        if isinstance(infer.predictor, MeshPredictor):
            infer.predictor.lens = Lens(intrinsics=intrinsics(scene.camera))
        results += infer(bgr(scene), bboxes=box, return_vis=True)
    return results


def intrinsics(camera: Camera) -> np.ndarray:
    """(3, 3) camera matrix."""
    matrix = np.diag((camera.focal, camera.focal, 1.0))
    matrix[:2, 2] = camera.center
    return matrix


def truth(scenes: list[Scene]) -> list[np.ndarray]:
    """Images with the annotated keypoints."""
    paint, drawn = Inferencer('pose').painter(), []
    for scene in scenes:
        points = np.stack([each['keypoints'] for each in annotate(scene)]).astype(np.float32)
        boxes = np.stack([each['bbox'] for each in annotate(scene)]).astype(np.float32)
        boxes[:, 2:] += boxes[:, :2]
        scores = np.float32(points[..., 2] > 0)
        people = InstanceData(keypoints=points[..., :2], keypoint_scores=scores, bboxes=boxes)
        drawn.append(paint(bgr(scene), BaseDataElement(pred_instances=people)))
    return drawn


def bodies(scene: Scene) -> np.ndarray:
    """(P, V, 3), meters, camera frame: the dressed skin of those who can be seen."""
    seen = [int(scene.owners[each['mask']][0]) for each in annotate(scene)]
    return np.stack([scene.figures[k].vertices[: len(body().template)] for k in seen])


def view(people: np.ndarray, turn: str, colors: np.ndarray, side: int = 256) -> np.ndarray:
    """People (P, V, 3), turned about their middle, as large as fits."""
    middle = (people.min((0, 1)) + people.max((0, 1))) / 2
    turned = (people - middle) @ TURNS[turn].T
    turned -= (turned.min((0, 1)) + turned.max((0, 1))) / 2
    focal = LONG * side
    turned[..., 2] += focal * np.ptp(turned[..., :2], axis=(0, 1)).max() / (0.92 * side)
    blank = np.full((side, side, 3), WHITE, np.uint8)
    colors = colors[np.arange(len(people)) % len(colors)]
    return draw_bodies(blank, turned, body().faces, (focal,) * 2, (side / 2,) * 2, colors, 1.0)


if __name__ == '__main__':
    main()
