"""In the place of an encoder whose maps were stored."""

from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor


@MODELS.register_module()
class StoredFeatures(BaseModule):
    """A backbone that gives the head what `FeaturePeople` loads; it has no weights."""

    def forward(self, features: Tensor) -> tuple[Tensor]:
        """(B, C, h, w) -> a tuple of it."""
        return (features,)
