"""Head of lifters for mmpose's PoseLifter."""

from typing import Any

import numpy as np
import torch
from mmengine.structures import InstanceData
from mmpose.models.heads import MotionRegressionHead
from mmpose.structures import PoseDataSample
from torch import Tensor, nn

from .hourglass import KeptFrames, interpolate_frames, take


class LiftingHead(MotionRegressionHead):
    """Linear regression of joints after a norm, as MixSTE has it, or MotionBERT's head.

    Of mmpose's MotionRegressionHead, with decoders that add the root to joints, too, such as
    VideoPoseLifting; these need `target_root` among the samples' meta keys.

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

    def predict(
        self,
        feats: Tensor | KeptFrames | list,
        batch_data_samples: list[PoseDataSample],
        test_cfg: dict | None = None,
    ) -> list[InstanceData]:
        """`keypoints` (T, K, 3) or (1, K, 3), and `keypoint_scores`, of each sample."""
        test_cfg = test_cfg or {}
        meta = batch_data_samples[0].metainfo
        if 'target_root' not in meta:
            return super().predict(feats, batch_data_samples, test_cfg)
        if not test_cfg.get('flip_test', False):
            return self.decoded(self(feats), batch_data_samples)
        joints, mirrored = map(self, feats)
        mirrored = mirrored[:, :, list(meta['flip_indices'])]
        joints = (joints + mirrored * joints.new_tensor([-1, 1, 1])) / 2
        return self.decoded(joints, batch_data_samples)

    def decoded(self, joints: Tensor, samples: list[PoseDataSample]) -> list[InstanceData]:
        """Root-relative joints (B, T, K, 3) as predictions, with the samples' `target_root`."""
        roots = [np.asarray(sample.metainfo['target_root']) for sample in samples]
        roots = joints.new_tensor(np.stack(roots))[:, :, None]  # (B, T, 1, 3)
        if joints.shape[1] == 1:
            roots = _middle(roots)
        return self.decode((joints, roots))

    def loss(
        self,
        feats: Tensor | KeptFrames,
        batch_data_samples: list[PoseDataSample],
        train_cfg: dict | None = None,
    ) -> dict[str, Tensor]:
        """`losses`; without recovery, of the kept frames, if labels are of all frames."""
        joints = self.joints(feats)
        if len(batch_data_samples[0].gt_instance_labels.lifting_target_label) == 1:
            return self.losses(_center(joints, feats), batch_data_samples)
        kept = isinstance(feats, KeptFrames) and not feats.interpolate
        return self.losses(joints, batch_data_samples, feats.frames if kept else None)

    def losses(
        self, joints: Tensor, samples: list[PoseDataSample], frames: Tensor | None = None
    ) -> dict[str, Tensor]:
        """`loss_pose3d`, and `mpjpe` in the unit of labels.

        Args:
            joints: (B, f, K, 3). frames: (B, f), of the labels' T; None: all.
        """
        labels = [sample.gt_instance_labels for sample in samples]
        targets = torch.stack([each.lifting_target_label for each in labels])
        weights = torch.stack([each.lifting_target_weight for each in labels])[..., None]
        if frames is not None:
            targets, weights = take(targets, frames), take(weights, frames)
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
    return _middle(joints)


def _middle(values):
    place = (values.shape[1] - 1) // 2
    return values[:, place : place + 1]
