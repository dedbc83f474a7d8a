"""Data sets, transforms and the sampler of mesh recovery; see `people` for how training draws."""

from . import coco
from .npz import NpzPeople
from .people import ConcatPeople, MixedPeople, MixSampler, People
from .shards import ShardPeople
from .transforms import AddRealPoses, AugmentPerson, CropPerson, PackPerson

__all__ = [
    'AddRealPoses', 'AugmentPerson', 'ConcatPeople', 'CropPerson', 'MixSampler', 'MixedPeople',
    'NpzPeople', 'PackPerson', 'People', 'ShardPeople', 'coco',
]  # fmt: skip
