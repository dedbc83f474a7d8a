"""Pictures of synthetic people with exact annotations, made one by one from a seed.

    people = SyntheticPeople(seed=0, size=256)
    sample = people[7]
    sample['image'], sample['people'][0]['keypoints']

Picture 7 is the same in any order, in any process, at any time (with the same versions of numpy,
OpenCV and numba: pictures are drawn in floating point).
"""

import cv2
import numpy as np

from . import kernels
from .backdrop import Folder
from .scene import make_scene

MIN_AREA = 60  # pixels of a person that must be seen for an annotation
SMALLEST, LARGEST = 32, 1000  # pixels of a picture's side

# How far below the surface that one sees each COCO keypoint may lie and still be visible, metres:
# about the radius of the limb and of what it wears.
REACH = np.array(
    (0.030, 0.030, 0.030, 0.045, 0.045)  # nose, eyes, ears
    + (0.130, 0.130, 0.100, 0.100, 0.075, 0.075)  # shoulders, elbows, wrists
    + (0.200, 0.200, 0.110, 0.110, 0.090, 0.090)  # hips, knees, ankles
)
BOX_PADDING = 1.2  # of `scale`, as the data sets of HMR have it


class SyntheticPeople:
    """A sequence of pictures; number i depends on the seed, on i and on the options alone.

    Args:
        seed: whole number >= 0.
        size: side of a square picture, or (W, H), pixels.
        max_people: at most so many people in a picture.
        backgrounds: folder with images, or None for procedural backgrounds.
        plain: everybody whole, seen from eye level, with nothing in front.
        length: len() of the sequence; None: endless, len() raises TypeError.

    Attributes:
        unreadable: background files that could not be decoded so far.

    Raises:
        ValueError, FileNotFoundError: options that cannot work.
    """

    def __init__(self, seed=0, size=256, max_people=1, backgrounds=None, plain=False, length=None):
        self.size = (size, size) if np.ndim(size) == 0 else tuple(size)
        if len(self.size) != 2 or not all(SMALLEST <= side <= LARGEST for side in self.size):
            raise ValueError(
                f'size is {size}; wanted a side, or width and height, of {SMALLEST} to {LARGEST} '
                'pixels'
            )
        if seed < 0:
            raise ValueError(f'seed is {seed}; wanted a whole number >= 0')
        if max_people < 1:
            raise ValueError(f'max_people is {max_people}; wanted 1 or more')
        if length is not None and length < 1:
            raise ValueError(f'length is {length}; wanted 1 or more, or None for no end')
        self.seed = int(seed)
        self.max_people = int(max_people)
        self.plain = bool(plain)
        self.length = length
        self._folder = None if backgrounds is None else Folder(backgrounds)

    @property
    def unreadable(self):
        return set() if self._folder is None else self._folder.unreadable

    def __len__(self):
        if self.length is None:
            raise TypeError('this sequence has no end; give `length` for a len()')
        return self.length

    def __getitem__(self, index):
        """Picture number `index`.

        Returns:
            dict: image (H, W, 3) uint8 RGB, as it comes out of a JPEG; people, see `annotate`;
            focal, pixels; centre (2,), the principal point, pixels, x before y.
        """
        jpeg, people, camera = self.picture(index)
        image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
        return dict(
            image=cv2.cvtColor(image, cv2.COLOR_BGR2RGB),
            people=people,
            focal=camera.focal,
            centre=camera.centre,
        )

    def picture(self, index):
        """Picture number `index` as (JPEG bytes, list of people, scene.Camera)."""
        index = int(index)
        if index < 0 or (self.length is not None and index >= self.length):
            raise IndexError(f'picture {index} of {self.length or "an endless sequence"}')
        attempt = 0
        while True:  # once, but for the rare picture in which nobody is to be seen
            rng = np.random.default_rng((self.seed, index, attempt))
            scene = make_scene(rng, self.size, self.max_people, self._folder, self.plain)
            people = annotate(scene)
            if people:
                break
            attempt += 1
        quality = [cv2.IMWRITE_JPEG_QUALITY, scene.jpeg_quality]
        done, jpeg = cv2.imencode('.jpg', cv2.cvtColor(scene.image, cv2.COLOR_RGB2BGR), quality)
        if not done:
            raise RuntimeError(f'OpenCV could not encode picture {index} of {self.size} as JPEG')
        return jpeg.tobytes(), people, scene.camera


def annotate(scene):
    """Everybody of whom enough is seen, with exact annotations.

    Returns:
        list of dicts, metres in the camera's frame (x right, y down, z forward), pixels x before y:
            keypoints (17, 3): COCO's, x, y and 2 seen, 1 hidden, 0 outside (then all zero).
            bbox (4,): xywh of the mask. area: pixels of the mask. mask: (H, W) bool, what is seen.
            keypoints_2d (44, 3): conventions.JOINTS_44, with confidence 1 inside the picture.
            keypoints_3d (44, 4): with confidence 1.
            body_pose (72,): axis-angle, the first three turn the body into the camera's frame.
            betas (10,). translation (3,): what to add to the body model's output.
            center (2,), scale (2,): of the box, padded by 1.2; width and height in units of 200
            pixels.
            has_body_pose, has_betas: 1.0.
    """
    people = []
    height, width = scene.owners.shape
    for k, figure in enumerate(scene.figures):
        mask = scene.owners == k
        area = int(mask.sum())
        if area < MIN_AREA:
            continue
        columns, rows = np.nonzero(mask.any(0))[0], np.nonzero(mask.any(1))[0]
        x, y = int(columns[0]), int(rows[0])
        w, h = int(columns[-1]) - x + 1, int(rows[-1]) - y + 1
        pixels = scene.camera.project(figure.joints.astype(np.float64))
        inside = _inside(pixels, width, height)
        people.append(
            dict(
                keypoints=_coco_keypoints(scene, figure, k),
                bbox=np.array((x, y, w, h), np.float64),
                area=float(area),
                mask=mask,
                keypoints_2d=np.column_stack((pixels, inside)).astype(np.float32),
                keypoints_3d=np.column_stack((figure.joints, np.ones(44))).astype(np.float32),
                body_pose=_axis_angle(figure.rotations),
                betas=figure.betas,
                translation=figure.translation.astype(np.float32),
                center=np.array((x + (w - 1) / 2, y + (h - 1) / 2), np.float32),
                scale=np.array((w, h), np.float32) * np.float32(BOX_PADDING / 200),
                has_body_pose=np.float32(1),
                has_betas=np.float32(1),
            )
        )
    return people


def _axis_angle(rotations):
    """(24, 3, 3) -> (72,) float32, radians; OpenCV's, since torch takes six times as long."""
    return np.array([cv2.Rodrigues(rotation)[0] for rotation in rotations], np.float32).reshape(72)


def _inside(pixels, width, height):
    nearest = np.round(pixels)
    return ((nearest >= 0) & (nearest < (width, height))).all(1)


def _coco_keypoints(scene, figure, index):
    """(17, 3): x, y, v. A keypoint is seen where the z-buffer holds its own body near it."""
    height, width = scene.owners.shape
    pixels = scene.camera.project(figure.coco.astype(np.float64))
    inside = _inside(pixels, width, height)
    out = np.zeros((17, 3))
    for k in range(17):
        if not inside[k]:
            continue
        column, row = int(round(pixels[k, 0])), int(round(pixels[k, 1]))
        owner = scene.owners[row, column]
        if owner == index:
            seen = figure.coco[k, 2] - scene.depth[row, column] < REACH[k]
        else:  # beside the body by a hair, with nothing before it
            seen = owner == kernels.NOBODY
        out[k] = pixels[k, 0], pixels[k, 1], 2 if seen else 1
    return out
