"""Head of lifters for mmpose's PoseLifter."""

from typing import Any

import torch
from mmpose.models.heads import MotionRegressionHead
from mmpose.structures import PoseDataSample
from torch import Tensor, nn

from .hourglass import KeptFrames, interpolate_frames, take


class LiftingHead(MotionRegressionHead):
    """Linear regression of joints after a norm, as MixSTE has it, or MotionBERT's head.

    Decoding and averaging with the mirrored input are those of mmpose's MotionRegressionHead.

    Args:
        in_channels: of the features.
        embedding_size: of MotionBERT's hidden layer; None: a LayerNorm in its place.
        center: predict the center frame of a window alone. Kept frames without recovery always do.
        options: of MotionRegressionHead: `out_channels`, `loss`, `decoder`, `init_cfg`.
    """

    def __init__(
        self,
        in_channels: int = 512,
        embedding_size: int | None = None,
        center: bool = False,
        **options: Any,
    ):
        super().__init__(in_channels, embedding_size=embedding_size or in_channels, **options)
        if embedding_size is None:
            self.pre_logits = nn.LayerNorm(in_channels)
        self.center = center

    def forward(self, feats: Tensor | KeptFrames) -> Tensor:
        """Features (B, T, K, C) -> joints (B, T, K, 3), or (B, 1, K, 3) of the center frame."""
        joints = self.joints(feats)
        only_kept = isinstance(feats, KeptFrames) and not feats.interpolate
        return _center(joints, feats) if self.center or only_kept else joints

    def joints(self, feats: Tensor | KeptFrames) -> Tensor:
        """Joints (B, T, K, 3); of kept frames without recovery, of these."""
        if not isinstance(feats, KeptFrames):
            return super().forward(feats)
        joints = super().forward(feats.features)
        if not feats.interpolate:
            return joints
        return interpolate_frames(joints, feats.frames, feats.length)

    def loss(
        self,
        feats: Tensor | KeptFrames,
        batch_data_samples: list[PoseDataSample],
        train_cfg: dict | None = None,
    ) -> dict[str, Tensor]:
        """`loss_pose3d`, and `mpjpe` in the unit of labels.

        Labels are of the center frame alone, or of all frames; then, without recovery, the loss is
        that of all kept frames.
        """
        labels = [sample.gt_instance_labels for sample in batch_data_samples]
        targets = torch.stack([each.lifting_target_label for each in labels])
        weights = torch.stack([each.lifting_target_weight for each in labels])[..., None]
        joints = self.joints(feats)
        if targets.shape[1] == 1:
            joints = _center(joints, feats)
        elif isinstance(feats, KeptFrames) and not feats.interpolate:
            targets, weights = (take(each, feats.frames) for each in (targets, weights))
        distance = ((joints - targets) * weights).detach().norm(dim=-1)
        return dict(
            loss_pose3d=self.loss_module(joints, targets, weights),
            mpjpe=distance.sum() / weights.sum().clamp(min=1),
        )


def _center(joints, feats):
    """The center frame of joints of a window, or of kept frames."""
    if isinstance(feats, KeptFrames) and not feats.interpolate:
        place = (feats.frames == (feats.length - 1) // 2).int().argmax(1)
        return take(joints, place[:, None])
    place = (joints.shape[1] - 1) // 2
    return joints[:, place : place + 1]
