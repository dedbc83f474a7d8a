"""Classes of results: mmpose's and mmengine's where the process uses mmengine, else of numpy alone.

The command imports this module before torch: it needs neither mmpose, whose import takes long, nor
torch, which an exported model runs without.
"""

from __future__ import annotations

import copy
import sys
from importlib.util import find_spec
from typing import Any

import numpy as np


class People:
    """Arrays with an entry per person, by name: what prediction uses of mmengine's InstanceData."""

    def __init__(self, **fields: np.ndarray):
        vars(self).update(fields)

    def __len__(self) -> int:
        return len(next(iter(vars(self).values()), ()))

    def __contains__(self, name: str) -> bool:
        return name in vars(self)

    def __getitem__(self, index: str | int | slice | np.ndarray) -> Any:
        if isinstance(index, str):
            return vars(self)[index]
        index = [index] if isinstance(index, int) else index
        return type(self)(**{name: array[index] for name, array in vars(self).items()})

    def keys(self) -> list[str]:
        return list(vars(self))

    def items(self) -> list[tuple[str, np.ndarray]]:
        return list(vars(self).items())

    def get(self, name: str, default: Any = None) -> Any:
        return vars(self).get(name, default)

    def set_field(self, value: np.ndarray, name: str) -> None:
        setattr(self, name, value)


class Sample:
    """Fields and metainfo of a frame: what prediction uses of mmpose's PoseDataSample."""

    def __init__(self, *, metainfo: dict[str, Any] | None = None, **fields: Any):
        self.set_metainfo(metainfo or {})
        vars(self).update(fields)

    def set_metainfo(self, metainfo: dict[str, Any]) -> None:
        vars(self).update(metainfo)

    def set_field(self, value: Any, name: str) -> None:
        setattr(self, name, value)

    def get(self, name: str, default: Any = None) -> Any:
        return vars(self).get(name, default)

    def __contains__(self, name: str) -> bool:
        return name in vars(self)

    def new(self, *, metainfo: dict[str, Any] | None = None, **fields: Any) -> Any:
        return type(self)(metainfo=vars(self) | (metainfo or {}), **fields)

    def clone(self) -> Any:
        return copy.deepcopy(self)


class Heatmaps(Sample):
    """`heatmaps` (K, H, W) of an image."""


if 'mmengine' in sys.modules:
    from mmengine.structures import BaseDataElement, InstanceData, PixelData

    InstancesOfFrame, HeatmapsOfFrame = InstanceData, PixelData
    if find_spec('mmpose') is not None:
        from mmpose.structures import PoseDataSample as SampleOfFrame
    else:  # what it derives from
        SampleOfFrame = BaseDataElement
else:
    InstancesOfFrame, HeatmapsOfFrame, SampleOfFrame = People, Heatmaps, Sample
