"""Head of lifters for mmpose's PoseLifter."""

from typing import Any

from mmpose.models.heads import MotionRegressionHead
from torch import nn


class LiftingHead(MotionRegressionHead):
    """Linear regression of joints after a norm, as MixSTE has it, or MotionBERT's head.

    Loss, decoding and averaging with the mirrored input are those of mmpose's
    MotionRegressionHead.

    Args:
        in_channels: of the features.
        embedding_size: of MotionBERT's hidden layer; None: a LayerNorm in its place.
        options: of MotionRegressionHead: `out_channels`, `loss`, `decoder`, `init_cfg`.
    """

    def __init__(self, in_channels: int = 512, embedding_size: int | None = None, **options: Any):
        super().__init__(in_channels, embedding_size=embedding_size or in_channels, **options)
        if embedding_size is None:
            self.pre_logits = nn.LayerNorm(in_channels)
