"""Training losses of HMR2.0 (Goel et al., ICCV 2023, section 3.3).

They equal compute_loss and the adversarial terms of shubham-goel/4D-Humans (hmr2/models/losses.py,
hmr2.py), values and gradients. Everything is summed over joints, coordinates and the batch; only
the adversarial terms are means over the batch. With reduction='mean' all of them are.
"""

import torch
from mmengine.registry import MODELS
from torch import nn

from ...conventions import PELVIS
from ...geometry import axis_angle_to_matrix

REDUCTIONS = {'sum': torch.sum, 'mean': torch.mean}


@MODELS.register_module()
class MeshLoss(nn.Module):
    """The losses of a mesh model against annotations, each gated by what is annotated.

    Args:
        keypoints_2d, keypoints_3d, global_orient, body_pose, betas: weights.
        reduction: 'sum' over the batch, as official, or 'mean'.
    """

    def __init__(
        self,
        keypoints_2d=0.01,
        keypoints_3d=0.05,
        global_orient=0.001,
        body_pose=0.001,
        betas=0.0005,
        reduction='sum',
    ):
        super().__init__()
        self.weights = {
            'keypoints_2d': keypoints_2d,
            'keypoints_3d': keypoints_3d,
            'global_orient': global_orient,
            'body_pose': body_pose,
            'betas': betas,
        }
        if reduction not in REDUCTIONS:
            raise ValueError(f'reduction {reduction!r}; choose from {list(REDUCTIONS)}')
        self.reduce = REDUCTIONS[reduction]

    def forward(self, pred, target):
        """Weighted losses by name: loss_keypoints_2d, ..., loss_betas.

        Args:
            pred: dict of keypoints_2d (B, 44, 2), fractions of the crop's side from its centre;
                joints (B, 44, 3), metres; global_orient (B, 1, 3, 3); body_pose (B, 23, 3, 3);
                betas (B, 10).
            target: dict of keypoints_2d (B, 44, 3) and keypoints_3d (B, 44, 4), the last number
                the confidence; axis-angle global_orient (B, 3) and body_pose (B, 69);
                betas (B, 10); has_global_orient, has_body_pose and has_betas (B,), 0 or 1.

        Returns:
            dict of scalars.
        """
        return {
            f'loss_{name}': self.weights[name] * self.reduce(value)
            for name, value in self.per_sample(pred, target).items()
        }

    def per_sample(self, pred, target):
        """Losses by name before weights and reduction, (B,) each: whose loss is not finite?"""
        values = {
            'keypoints_2d': keypoint_2d_loss(pred['keypoints_2d'], target['keypoints_2d']),
            'keypoints_3d': keypoint_3d_loss(pred['joints'], target['keypoints_3d']),
        }
        for name in ('global_orient', 'body_pose'):
            matrices = axis_angle_to_matrix(target[name].unflatten(1, (-1, 3)))
            values[name] = parameter_loss(pred[name], matrices, target[f'has_{name}'])
        values['betas'] = parameter_loss(pred['betas'], target['betas'], target['has_betas'])
        return values


def keypoint_2d_loss(pred, target):
    """L1 times confidence: pred (B, N, 2), target (B, N, 3) -> (B,)."""
    return (target[..., 2:] * (pred - target[..., :2]).abs()).sum((1, 2))


def keypoint_3d_loss(pred, target, centre=PELVIS):
    """L1 times confidence, both sets centred on the joint `centre`, whatever its confidence.

    Args:
        pred: (B, N, 3), metres.
        target: (B, N, 4), metres, confidence.
        centre: joint index.

    Returns:
        (B,)
    """
    points, confidence = target[..., :3], target[..., 3:]
    pred = pred - pred[:, centre, None]
    points = points - points[:, centre, None]
    return (confidence * (pred - points).abs()).sum((1, 2))


def parameter_loss(pred, target, has):
    """Squared error of the samples that have the parameter: (B, ...), (B, ...), (B,) -> (B,)."""
    return has * (pred - target).square().flatten(1).sum(1)


def generator_loss(scores):
    """Least squares towards 'real', mean over the batch.

    Args:
        scores: (B, 25), the discriminator's of predictions.
    """
    return (scores - 1).square().sum() / len(scores)


def discriminator_loss(fake, real):
    """Least squares: predictions towards 0, real bodies towards 1; over the predictions' number.

    4D-Humans draws 96 real bodies for 48 predictions and divides both sums by 48.

    Args:
        fake: (B, 25), scores of detached predictions.
        real: (R, 25), scores of real bodies.
    """
    return (fake.square().sum() + (real - 1).square().sum()) / len(fake)
