"""Data sets, transforms and the sampler of mesh recovery; see `people` for the training stream."""

from typing import Any

from mmengine.registry import DATASETS
from torch.utils.data import Dataset

from .corruption import CorruptImage, CutOut, JitterBox
from .features import FeaturePeople
from .heatmaps import LoadTeacherHeatmaps
from .npz import NpzPeople
from .partial import CropBodyPart
from .people import ConcatPeople, MixedPeople, MixSampler, People
from .revisits import RevisitSampler
from .shards import ShardPeople
from .transforms import AddRealPoses, AugmentPerson, CropPerson, PackPerson
from .weighing import WeighPerson

__all__ = [
    'AddRealPoses', 'AugmentPerson', 'ConcatPeople', 'CorruptImage', 'CropBodyPart', 'CropPerson',
    'CutOut', 'FeaturePeople', 'JitterBox', 'LoadTeacherHeatmaps', 'MixSampler', 'MixedPeople',
    'NpzPeople', 'PackPerson', 'People', 'RevisitSampler', 'ShardPeople', 'WeighPerson',
]  # fmt: skip


@DATASETS.register_module(name='CheckedCocoDataset')
def checked_coco_dataset(**kwargs: Any) -> Dataset:
    """Build `coco.CheckedCocoDataset`; its base class is mmpose's, which is imported only here."""
    from .coco import CheckedCocoDataset

    return CheckedCocoDataset(**kwargs)


@DATASETS.register_module(name='MPIInf3dhpSequences')
def mpi_inf_3dhp_sequences(**kwargs: Any) -> Dataset:
    """Build `sequences.MPIInf3dhpSequences`; its base class is mmpose's, imported only here."""
    from .sequences import MPIInf3dhpSequences

    return MPIInf3dhpSequences(**kwargs)


@DATASETS.register_module(name='APT36KDataset')
def apt36k_dataset(**kwargs: Any) -> Dataset:
    """Build `coco.APT36KDataset`, see above."""
    from .coco import APT36KDataset

    return APT36KDataset(**kwargs)
