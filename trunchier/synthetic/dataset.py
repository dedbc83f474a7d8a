"""Synthetic people for pose estimation and mesh recovery, rendered during training."""

import functools
import random
from collections.abc import Sequence

import cv2
import numpy as np
from mmengine.dataset import Compose
from mmengine.registry import DATASETS
from torch.utils.data import Dataset

from ..conventions import ANNOTATED, ON_DISK
from ..datasets.annotations import check_annotation
from ..datasets.people import People, generator

ENDLESS = 10**9
MIN_KNOWN = 4  # keypoints inside the image; people with fewer are avoided
# What mmpose's data sets add to each record
POSE_META = (
    'upper_body_ids', 'lower_body_ids', 'flip_pairs', 'dataset_keypoint_weights', 'flip_indices',
    'skeleton_links',
)  # fmt: skip


@DATASETS.register_module()
class SyntheticBodies(People):
    """Images rendered on access; one person of each is used.

    In a `MixedPeople` stream no image is repeated, whatever `length` is. Alone or in `ConcatPeople`
    it has `length` images, always the same ones. Requires numba.

    Args:
        seed: evaluation must use another seed than training.
        length: images per epoch.
        size, max_people, backgrounds, plain, regime: see people.SyntheticPeople.
        name, pipeline: see People.
    """

    def __init__(
        self,
        seed: int = 0,
        length: int = 10_000,
        size: int | tuple[int, int] = 256,
        max_people: int = 1,
        backgrounds: str | None = None,
        plain: bool = False,
        regime: dict | None = None,
        name: str = 'synthetic',
        pipeline: Sequence = (),
    ):
        super().__init__(name, pipeline)
        self.seed = seed
        self.length = length
        self.options = dict(
            size=size, max_people=max_people, backgrounds=backgrounds, plain=plain, regime=regime
        )
        self._people = None

    def full_init(self) -> None:
        """Check the options and import the renderer."""
        super().full_init()
        if self._people is None:
            from .people import SyntheticPeople

            self._people = SyntheticPeople(seed=self.seed, **self.options)

    def __len__(self):
        return self.length

    def locate(self, seed: int, position: int) -> int:
        """Each seed of a run has images of its own, beyond the first `length` ones."""
        first = generator('synthetic', seed, self.name).integers(ENDLESS)
        return self.length + int(first) * ENDLESS + position

    def record(self, index: int) -> dict:
        """Image and annotation of a random person of image `index`, see People."""
        self.full_init()
        jpeg, people, _ = self._people.encoded(index)
        person = people[generator('person', self.seed, index).integers(len(people))]
        return dict(
            check_annotation({ON_DISK.get(name, name): person[name] for name in ANNOTATED}),
            image=cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR),
            mask=person['mask'].astype(np.uint8) * 255,
            key=f'{self.seed}/{index}',
            dataset=self.name,
            img_path='',
            id=index,
        )


@DATASETS.register_module()
class SyntheticKeypoints(Dataset):
    """People for mmpose's top-down pipelines, rendered on access: one person of each image.

    With `MixSampler` it is an endless stream in which no image is repeated; with `RevisitSampler`
    hard ones are. With any other sampler it has `length` images, always the same ones. The
    pipeline's random numbers (numpy's global generator) are seeded by the position. Requires numba
    and mmpose.

    Args:
        seed: evaluation must use another seed than training.
        length: images per epoch.
        size, max_people, backgrounds, plain, regime: see people.SyntheticPeople.
        pipeline: transforms as of mmpose's CocoDataset; `LoadImage` keeps the image that is there.
    """

    revisits = True  # an index of three numbers is an image of an earlier position

    def __init__(
        self,
        seed: int = 0,
        length: int = 100_000,
        size: int | tuple[int, int] = 256,
        max_people: int = 1,
        backgrounds: str | None = None,
        plain: bool = False,
        regime: dict | None = None,
        pipeline: Sequence = (),
    ):
        self.seed = seed
        self.length = length
        self.options = dict(
            size=size, max_people=max_people, backgrounds=backgrounds, plain=plain, regime=regime
        )
        self.pipeline = Compose(pipeline)
        self._people = None

    def full_init(self) -> None:
        """Check the options and import the renderer; mmengine's runner calls it."""
        if self._people is None:
            from .people import SyntheticPeople

            self._people = SyntheticPeople(seed=self.seed, **self.options)

    @functools.cached_property
    def metainfo(self) -> dict:
        """That of mmpose's CocoDataset."""
        from mmpose.datasets.datasets.utils import parse_pose_metainfo

        return parse_pose_metainfo(dict(from_file='configs/_base_/datasets/coco.py'))

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        seed, position, *shown = index if isinstance(index, tuple) else (None, index)
        image = shown[0] if shown else position
        if seed is not None:  # images of this run alone, beyond the first `length` ones
            first = self.length + int(generator('keypoints', seed).integers(ENDLESS)) * ENDLESS
            position, image = first + position, first + image
        word = int(generator('keypoints', self.seed, position).integers(1 << 32))
        draw = generator('keypoints', self.seed, image)
        draw.integers(1 << 32)  # that of the augmentation when the image was first shown
        random.seed(word)
        np.random.seed(word)
        return self.pipeline(self.record(image, draw))

    def record(self, index: int, draw: np.random.Generator) -> dict:
        """A person of image `index` in the form of mmpose's data lists, and the image, BGR."""
        self.full_init()
        jpeg, people, _ = self._people.encoded(index)
        known = [person for person in people if (person['keypoints'][:, 2] > 0).sum() >= MIN_KNOWN]
        person = draw.choice(known or people)
        x, y, w, h = person['bbox']
        meta = self.metainfo
        return dict(
            img=cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR),
            img_id=index,
            id=index,
            category_id=1,
            img_path='',
            bbox=np.array([(x, y, x + w, y + h)], np.float32),
            bbox_score=np.ones(1, np.float32),
            keypoints=person['keypoints'][None, :, :2].astype(np.float32),
            keypoints_visible=np.minimum(person['keypoints'][None, :, 2], 1).astype(np.float32),
            **{key: meta[key] for key in POSE_META},
        )
