"""Synthetic people as a data set of mesh recovery, drawn while training runs."""

import cv2
import numpy as np
from mmengine.registry import DATASETS

from ..datasets.annotations import FORM, check_annotation
from ..datasets.people import People, generator

ENDLESS = 10**9


@DATASETS.register_module()
class SyntheticBodies(People):
    """Pictures made when they are asked for, one person of each.

    In a `MixedPeople` stream no picture comes twice, whatever `length` is; by itself, or in
    `ConcatPeople`, it has `length` pictures, always the same ones. Needs numba.

    Args:
        seed (int): another seed, other pictures: keep that of an evaluation apart.
        length (int): pictures of a pass.
        size (int or tuple): side, or (W, H), pixels.
        max_people (int): at most so many in a picture, of whom one is picked.
        backgrounds (str): folder of images; None for procedural ones.
        plain (bool): everybody whole, seen from eye level, with nothing in front.
        name, pipeline: see People.
    """

    def __init__(
        self,
        seed=0,
        length=10_000,
        size=256,
        max_people=1,
        backgrounds=None,
        plain=False,
        name='synthetic',
        pipeline=(),
    ):
        super().__init__(name, pipeline)
        self.seed = seed
        self.length = length
        self.options = dict(size=size, max_people=max_people, backgrounds=backgrounds, plain=plain)
        self._pictures = None

    def full_init(self):
        """Check the options and load the renderer."""
        super().full_init()
        if self._pictures is None:
            from .people import SyntheticPeople

            self._pictures = SyntheticPeople(seed=self.seed, **self.options)

    def __len__(self):
        return self.length

    def locate(self, seed, position):
        """Every run seed has pictures of its own, after those that `length` counts."""
        first = generator('synthetic', seed, self.name).integers(ENDLESS)
        return self.length + int(first) * ENDLESS + position

    def record(self, index):
        self.full_init()
        jpeg, people, _ = self._pictures.picture(index)
        person = people[generator('person', self.seed, index).integers(len(people))]
        return dict(
            check_annotation({name: person[name] for name in FORM}),
            image=cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR),
            mask=person['mask'].astype(np.uint8) * 255,
            key=f'{self.seed}/{index}',
            dataset=self.name,
            img_path='',
            id=index,
        )
