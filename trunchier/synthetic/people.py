"""Images of synthetic people with exact annotations, rendered from a seed.

    people = SyntheticPeople(seed=0, size=256)
    sample = people[7]
    sample['image'], sample['people'][0]['keypoints']

Image 7 does not depend on order, process or time (given equal versions of numpy, OpenCV and numba:
rendering is in floating point).
"""

import itertools
from dataclasses import fields
from pathlib import Path

import cv2
import numpy as np

from .backdrop import Folder
from .regime import Regime
from .scene import Camera, Scene, make_scene
from .shading import BACKGROUND

MIN_AREA = 60  # visible pixels of a person that is annotated
MIN_SIDE, MAX_SIDE = 32, 1000  # pixels

# Largest depth of each visible COCO keypoint below the visible surface, meters: about the radius of
# the limb and its clothes.
MAX_DEPTH = np.array(
    (0.030, 0.030, 0.030, 0.045, 0.045)  # nose, eyes, ears
    + (0.130, 0.130, 0.100, 0.100, 0.075, 0.075)  # shoulders, elbows, wrists
    + (0.200, 0.200, 0.110, 0.110, 0.090, 0.090)  # hips, knees, ankles
)
BOX_PADDING = 1.2  # of `scale`, as in HMR's data sets


class SyntheticPeople:
    """Sequence of images; each depends only on the seed, its index and the options.

    Args:
        seed: >= 0.
        size: side, or (W, H), pixels.
        max_people, min_people: per image, of whom some may be hidden; with min_people=1 about two
            of three images show one person.
        backgrounds: folder of images; None: procedural backgrounds.
        plain: whole people at eye level without occluders, which is easier to learn from.
        length: len() of the sequence; None: endless, len() raises TypeError.
        regime: how difficult the images are, fields of `regime.Regime`.

    Raises:
        ValueError, FileNotFoundError: invalid options.
    """

    def __init__(
        self,
        seed: int = 0,
        size: int | tuple[int, int] = 256,
        max_people: int = 1,
        backgrounds: str | Path | None = None,
        plain: bool = False,
        length: int | None = None,
        min_people: int = 1,
        regime: dict | None = None,
    ):
        self.size = (size, size) if np.ndim(size) == 0 else tuple(size)
        if len(self.size) != 2 or not all(MIN_SIDE <= side <= MAX_SIDE for side in self.size):
            raise ValueError(
                f'size is {size}; expected a side, or (width, height), of {MIN_SIDE} to {MAX_SIDE} '
                'pixels'
            )
        for name, value, least in (
            ('seed', seed, 0), ('min_people', min_people, 1),
            ('max_people', max_people, min_people), ('length', length, 1),
        ):  # fmt: skip
            if value is not None and value < least:
                raise ValueError(f'{name} is {value}; expected {least} or more')
        self.seed = int(seed)
        self.max_people, self.min_people = int(max_people), int(min_people)
        self.plain = bool(plain)
        self.length = length
        known = {field.name for field in fields(Regime)}
        if unknown := set(regime or ()) - known:
            raise ValueError(f'no options {sorted(unknown)} of a regime; there are {sorted(known)}')
        self.regime = Regime(**(regime or {}))
        self._folder = None if backgrounds is None else Folder(backgrounds)

    @property
    def unreadable(self) -> set[Path]:
        """Background files that could not be decoded so far."""
        return set() if self._folder is None else self._folder.unreadable

    def __len__(self):
        if self.length is None:
            raise TypeError('this sequence is endless; give `length` for a len()')
        return self.length

    def __getitem__(self, index):
        """Image `index` and its annotations.

        Returns:
            dict: image (H, W, 3) uint8 RGB, decoded from JPEG; people, see `annotate`; focal,
            pixels; principal_point (2,), pixels, x before y.
        """
        jpeg, people, camera = self.encoded(index)
        image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        return dict(image=image, people=people, focal=camera.focal, principal_point=camera.center)

    def encoded(self, index: int) -> tuple[bytes, list[dict], Camera]:
        """Image `index` as JPEG, its people (see `annotate`) and camera."""
        index = int(index)
        if index < 0 or (self.length is not None and index >= self.length):
            raise IndexError(f'image {index} of {self.length or "an endless sequence"}')
        for attempt in itertools.count():  # in rare cases nobody is visible
            rng = np.random.default_rng((self.seed, index, attempt))
            scene = make_scene(
                rng, self.size, self.max_people, self._folder, self.plain, self.min_people,
                self.regime,
            )  # fmt: skip
            people = annotate(scene)
            if people:
                break
        quality = [cv2.IMWRITE_JPEG_QUALITY, scene.jpeg_quality]
        done, jpeg = cv2.imencode('.jpg', cv2.cvtColor(scene.image, cv2.COLOR_RGB2BGR), quality)
        if not done:
            raise RuntimeError(f'OpenCV could not encode image {index} of {self.size} as JPEG')
        return jpeg.tobytes(), people, scene.camera


def annotate(scene: Scene) -> list[dict]:
    """Exact annotations of everyone with at least MIN_AREA visible pixels.

    Returns:
        dicts of the fields of `conventions.person` that ANNOTATED names, and
            keypoints (17, 3): COCO's x, y, and 2 visible, 1 occluded, 0 outside (then all zero).
            bbox (4,): xywh of the mask. area: pixels of the mask. mask (H, W) bool: visible pixels.
            translation (3,): meters, to be added to the body model's output.
    """
    people = []
    height, width = scene.owners.shape
    for k, figure in enumerate(scene.figures):
        mask = scene.owners == k
        area = int(mask.sum())
        if area < MIN_AREA:
            continue
        x, y, w, h = cv2.boundingRect(mask.view(np.uint8))
        pixels = scene.camera.project(figure.joints.astype(np.float64))
        inside = _inside(pixels, width, height)
        people.append(
            dict(
                keypoints=_coco_keypoints(scene, figure, k),
                bbox=np.array((x, y, w, h), np.float64),
                area=float(area),
                mask=mask,
                keypoints_2d=np.column_stack((pixels, inside)).astype(np.float32),
                keypoints_3d=np.pad(figure.joints, ((0, 0), (0, 1)), constant_values=1),
                pose=np.array([cv2.Rodrigues(r)[0] for r in figure.rotations], np.float32).ravel(),
                betas=figure.betas,
                translation=figure.translation.astype(np.float32),
                center=np.array((x + (w - 1) / 2, y + (h - 1) / 2), np.float32),
                scale=np.array((w, h), np.float32) * np.float32(BOX_PADDING / 200),
                has_pose=np.float32(1),
                has_betas=np.float32(1),
            )
        )
    return people


def _inside(pixels, width, height):
    nearest = np.round(pixels)
    return ((nearest >= 0) & (nearest < (width, height))).all(1)


def _coco_keypoints(scene, figure, index):
    """(17, 3): x, y, v; visible: the z-buffer shows the same body at most MAX_DEPTH in front."""
    height, width = scene.owners.shape
    pixels = scene.camera.project(figure.coco.astype(np.float64))
    inside = _inside(pixels, width, height)
    column, row = np.round(pixels[inside]).astype(int).T
    owner = scene.owners[row, column]
    near = figure.coco[inside, 2] - scene.depth[row, column] < MAX_DEPTH[inside]
    # Seen, too, at the silhouette with nothing in front
    seen = np.where(owner == index, near, owner == BACKGROUND)
    out = np.zeros((len(inside), 3))
    out[inside] = np.column_stack((pixels[inside], 1 + seen))
    return out
