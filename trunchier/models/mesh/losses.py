"""Training losses of HMR2.0 (Goel et al., ICCV 2023, section 3.3).

Equal to compute_loss and the adversarial terms of shubham-goel/4D-Humans (hmr2/models/losses.py,
hmr2.py), values and gradients. Losses are summed over joints, coordinates and the batch, except
that adversarial losses are means over the batch; with reduction='mean', all are. `AttentionGuide`
is our own.
"""

from collections.abc import Sequence

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from ...conventions import JOINTS_44, PELVIS
from ...geometry import axis_angle_to_matrix

REDUCTIONS = {'sum': torch.sum, 'mean': torch.mean}


@MODELS.register_module()
class MeshLoss(nn.Module):
    """Losses of a mesh model against annotations; what is not annotated is ignored.

    Args:
        keypoints_2d, keypoints_3d, global_orient, body_pose, betas: weights.
        reduction: over the batch, 'sum' (as official) or 'mean'.
    """

    def __init__(
        self,
        keypoints_2d: float = 0.01,
        keypoints_3d: float = 0.05,
        global_orient: float = 0.001,
        body_pose: float = 0.001,
        betas: float = 0.0005,
        reduction: str = 'sum',
    ):
        super().__init__()
        self.weights = dict(keypoints_2d=keypoints_2d, keypoints_3d=keypoints_3d)
        self.weights |= dict(global_orient=global_orient, body_pose=body_pose, betas=betas)
        if reduction not in REDUCTIONS:
            raise ValueError(f'expected reduction in {list(REDUCTIONS)}, got {reduction!r}')
        self.reduce = REDUCTIONS[reduction]

    def forward(self, pred: dict[str, Tensor], target: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weighted losses by name, scalars: loss_keypoints_2d, ..., loss_betas.

        Args:
            pred: crop_keypoints, joints, global_orient, body_pose and betas, (B, ...) each, as in
                `conventions.person`.
            target: `conventions.TARGETS`, (B, ...) each.
        """
        return {
            f'loss_{name}': self.weights[name] * self.reduce(value)
            for name, value in self.per_sample(pred, target).items()
        }

    def per_sample(self, pred: dict[str, Tensor], target: dict[str, Tensor]) -> dict[str, Tensor]:
        """Losses by name before weights and reduction, (B,) each."""
        matrices = axis_angle_to_matrix(target['pose'].unflatten(1, (-1, 3)))
        orient, pose, has_pose = matrices[:, :1], matrices[:, 1:], target['has_pose']
        return {
            'keypoints_2d': keypoint_2d_loss(pred['crop_keypoints'], target['crop_keypoints_2d']),
            'keypoints_3d': keypoint_3d_loss(pred['joints'], target['keypoints_3d']),
            'global_orient': parameter_loss(pred['global_orient'], orient, has_pose),
            'body_pose': parameter_loss(pred['body_pose'], pose, has_pose),
            'betas': parameter_loss(pred['betas'], target['betas'], target['has_betas']),
        }


# Those that say most about a pose first: a small decoder has twelve attention heads.
GUIDED = (
    *('right_wrist', 'left_wrist', 'right_elbow', 'left_elbow'),
    *('right_ankle', 'left_ankle', 'right_knee', 'left_knee'),
    *('right_shoulder', 'left_shoulder', 'right_hip', 'left_hip'),
)


@MODELS.register_module()
class AttentionGuide(nn.Module):
    """Cross entropy of a decoder's attention with a dot on a keypoint: one keypoint for each head.

    A single query learns only slowly where to look. Told so during training, it learns from a
    quarter of the samples (docs/train.md). Prediction is the same. HMR2.0 has no such loss.

    Args:
        weight: of the loss.
        keypoints: names of `conventions.JOINTS_44`, for the attention heads of the first layer,
            then of the second and so on; further heads look where they like.
        sigma: of the dots, cells of the map.

    Raises:
        ValueError: an unknown keypoint.
    """

    def __init__(self, weight: float = 1.0, keypoints: Sequence[str] = GUIDED, sigma: float = 0.6):
        super().__init__()
        if unknown := sorted(set(keypoints) - set(JOINTS_44)):
            raise ValueError(f'no keypoints {unknown}; there are {", ".join(JOINTS_44)}')
        self.weight, self.sigma = weight, sigma
        self.joints = [JOINTS_44.index(name) for name in keypoints]

    def forward(self, attention: Tensor, points: Tensor) -> Tensor:
        """The weighted mean over the keypoints that are annotated and inside of the map; scalar.

        Args:
            attention: logarithms, (B, H, h, w), over the middle columns of square crops of h cells.
            points: `crop_keypoints_2d`, (B, 44, 3).
        """
        count = min(len(self.joints), attention.shape[1])
        chosen, (height, width) = points[:, self.joints[:count]], attention.shape[2:]
        x = height * chosen[..., 0] + (width - 1) / 2
        y = height * chosen[..., 1] + (height - 1) / 2
        inside = (x > -0.5) & (x < width - 0.5) & (y > -0.5) & (y < height - 0.5)
        counts = (inside & (chosen[..., 2] > 0)).float()
        columns = torch.arange(width, device=x.device) - x[..., None]
        rows = torch.arange(height, device=x.device) - y[..., None]
        distance = rows.square()[..., None] + columns.square()[..., None, :]
        dots = (distance.flatten(2) / (-2 * self.sigma**2)).softmax(-1)
        entropy = -(dots * attention[:, :count].flatten(2)).sum(-1)
        return self.weight * (entropy * counts).sum() / counts.sum().clamp(min=1)


def keypoint_2d_loss(pred: Tensor, target: Tensor) -> Tensor:
    """L1 times confidence: pred (B, N, 2), target (B, N, 3) -> (B,)."""
    return (target[..., 2:] * (pred - target[..., :2]).abs()).sum((1, 2))


def keypoint_3d_loss(pred: Tensor, target: Tensor) -> Tensor:
    """L1 times confidence, relative to the pelvis, whose confidence is ignored.

    pred (B, 44, 3), meters, target (B, 44, 4), meters and confidence -> (B,).
    """
    points, confidence = target[..., :3], target[..., 3:]
    pred, points = (each - each[:, PELVIS, None] for each in (pred, points))
    return (confidence * (pred - points).abs()).sum((1, 2))


def parameter_loss(pred: Tensor, target: Tensor, has: Tensor) -> Tensor:
    """Squared error of samples with this parameter: (B, ...), (B, ...), 0 or 1 (B,) -> (B,)."""
    return has * (pred - target).square().flatten(1).sum(1)


def generator_loss(scores: Tensor) -> Tensor:
    """Least squares of predictions' scores (B, 25) towards 1 (real), mean over the batch."""
    return (scores - 1).square().sum() / len(scores)


def discriminator_loss(fake: Tensor, real: Tensor) -> Tensor:
    """Least squares of predictions towards 0 and of real bodies towards 1, divided by B.

    4D-Humans draws 96 real bodies for 48 predictions and divides both sums by 48.

    Args:
        fake, real: (B, 25) and (R, 25), scores of detached predictions and of real bodies.
    """
    return (fake.square().sum() + (real - 1).square().sum()) / len(fake)
