"""What mmpose's associative embedding lacks to be trained, see `compat.patches` too."""

from mmengine.registry import MODELS
from torch import Tensor, nn


@MODELS.register_module()
class MaskedMSELoss(nn.Module):
    """Mean squared error of the heatmaps of whole images, without the people who are not annotated.

    `keypoint_loss` of mmpose's AssociativeEmbeddingHead. mmpose's KeypointMSELoss takes a weight
    for each image and keypoint; the head has one for each person.
    """

    def forward(self, output: Tensor, target: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
        """The loss of (B, K, H, W) heatmaps.

        Args:
            weights: of people, unused. mask: (B, 1, H, W), 0 where people are not annotated.
        """
        return (mask * (output - target).square()).mean()
