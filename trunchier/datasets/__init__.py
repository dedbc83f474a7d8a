"""Data sets, transforms and the sampler of mesh recovery; see `people` for the training stream."""

from mmengine.registry import DATASETS

from .npz import NpzPeople
from .people import ConcatPeople, MixedPeople, MixSampler, People
from .shards import ShardPeople
from .transforms import AddRealPoses, AugmentPerson, CropPerson, PackPerson

__all__ = [
    'AddRealPoses', 'AugmentPerson', 'ConcatPeople', 'CropPerson', 'MixSampler', 'MixedPeople',
    'NpzPeople', 'PackPerson', 'People', 'ShardPeople',
]  # fmt: skip


@DATASETS.register_module(name='CheckedCocoDataset')
def checked_coco_dataset(**kwargs: object) -> People:
    """Build `coco.CheckedCocoDataset`, whose base class needs mmpose; importing this does not."""
    from .coco import CheckedCocoDataset

    return CheckedCocoDataset(**kwargs)
