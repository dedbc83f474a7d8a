"""Synthetic people for mesh recovery, rendered during training."""

from collections.abc import Sequence

import cv2
import numpy as np
from mmengine.registry import DATASETS

from ..conventions import ANNOTATED, ON_DISK
from ..datasets.annotations import check_annotation
from ..datasets.people import People, generator

ENDLESS = 10**9


@DATASETS.register_module()
class SyntheticBodies(People):
    """Images rendered on access; one person of each is used.

    In a `MixedPeople` stream no image is repeated, whatever `length` is. Alone or in `ConcatPeople`
    it has `length` images, always the same ones. Requires numba.

    Args:
        seed: evaluation must use another seed than training.
        length: images per epoch.
        size, max_people, backgrounds, plain: see people.SyntheticPeople.
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
        name: str = 'synthetic',
        pipeline: Sequence = (),
    ):
        super().__init__(name, pipeline)
        self.seed = seed
        self.length = length
        self.options = dict(size=size, max_people=max_people, backgrounds=backgrounds, plain=plain)
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
