"""Frames of a synthetic motion, rendered: one person before a camera that stands still."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..render.rasterizer import projected_bounding_box
from .figure import build_figure
from .motion import Motion
from .scene import OCCLUDED, Camera, _furniture, _room, render
from .wardrobe import sample_outfit


@dataclass
class Frame:
    """A rendered frame and its truth."""

    image: np.ndarray  # (H, W, 3) uint8 RGB
    keypoints: np.ndarray  # (17, 2), COCO's, pixels, x before y
    bbox: np.ndarray  # (4,), xyxy, pixels, of the person
    rotations: np.ndarray  # (24, 3, 3), the root's is into the camera frame
    joints: np.ndarray  # (24, 3), meters, camera frame
    camera: Camera


def render_motion(
    motion: Motion, index: int, seed: int, size: tuple[int, int] = (320, 320)
) -> Iterator[Frame]:
    """Frames of sequence `index`: clothes, light, background and camera are those of the seed.

    Args:
        size: (W, H), pixels.
    """
    rng = np.random.default_rng((seed, index))
    rotations = motion.rotations[index].numpy().astype(np.float64)
    path = motion.translation[index].numpy().astype(np.float64)
    middle = (path.max(0) + path.min(0)) / 2
    reach = np.linalg.norm(path - middle, axis=1).max()
    room = _room(rng, False, 2.2 + reach)
    turn, away = room.to_camera, np.array((0.0, 0.0, room.distance))
    room.ground = float((away - turn @ middle) @ room.up)
    outfit, betas = sample_outfit(rng, ('', '')), motion.betas[index].numpy()
    figures = []
    for pose, place in zip(rotations, path, strict=True):
        posed = pose.copy()
        posed[0] = turn @ pose[0]
        figure = build_figure(posed, betas, outfit)
        figure.move(turn @ (place - middle) + away - figure.skeleton[0])
        figures.append(figure)
    boxes = [projected_bounding_box(figure.vertices) for figure in figures]
    low, high = np.min([box[0] for box in boxes], 0), np.max([box[1] for box in boxes], 0)
    focal = rng.uniform(0.6, 0.95) * float((np.array(size) / (high - low)).min())
    camera = Camera(focal, rng.random(2) * (size - focal * (high - low)) - focal * low)
    props = _furniture(rng, room, figures[:1], ['clip'], OCCLUDED)
    look = int(rng.integers(2**31))
    for figure, (low, high), pose in zip(figures, boxes, rotations, strict=True):
        same = np.random.default_rng(look)
        scene = render(same, size, [figure], props, camera, room, OCCLUDED)
        box = np.concatenate((low, high)) * focal + np.tile(camera.center, 2)
        posed = pose.copy()
        posed[0] = turn @ pose[0]
        keypoints = camera.project(figure.coco.astype(np.float64))
        yield Frame(scene.image, keypoints, box, posed, figure.skeleton, camera)
