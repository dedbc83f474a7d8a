"""Loss of lifters: position, smoothness and velocity, as HoT and KTPFormer train with."""

from collections.abc import Sequence

from mmengine.registry import MODELS
from torch import Tensor, nn

# fmt: off
JOINT_WEIGHTS = (  # of Human3.6M's 17 joints: limbs' ends count more
    1, 1, 2.5, 2.5, 1, 2.5, 2.5, 1, 1, 1, 1.5, 1.5, 4, 4, 1.5, 4, 4,
)
# fmt: on


@MODELS.register_module()
class LiftingLoss(nn.Module):
    """Weighted distance of joints, plus the prediction's own motion, plus the error of velocity.

    The authors set the target's root to zero, and so do codecs that subtract it. KTPFormer's code
    scales the gradient by the loss (`loss.backward(loss)`); here it is not scaled.

    Args:
        joint_weights: of the distance; one a joint.
        smoothness: weight of mean (p[t] - p[t-1])^2, in which motion has the joints' weights, too.
        velocity: weight of the distance between the steps of prediction and target.
    """

    def __init__(
        self,
        joint_weights: Sequence[float] = JOINT_WEIGHTS,
        smoothness: float = 0.5,
        velocity: float = 2.0,
    ):
        super().__init__()
        self.joint_weights = tuple(joint_weights)
        self.smoothness, self.velocity = smoothness, velocity

    def forward(
        self, output: Tensor, target: Tensor, target_weight: Tensor | None = None
    ) -> Tensor:
        """The loss.

        Args:
            output, target: (B, T, K, 3). target_weight: (B, T, K, 1); 0 for joints to leave out.
        """
        known = 1 if target_weight is None else target_weight
        weights = output.new_tensor(self.joint_weights)
        distance = ((output - target) * known).norm(dim=-1)
        loss = (weights * distance).mean()
        if output.shape[1] > 1:
            steps, wanted = output.diff(dim=1), target.diff(dim=1)
            if target_weight is not None:
                known = target_weight[:, 1:] * target_weight[:, :-1]
            motion = weights[:, None] * (steps * known).square()
            loss = loss + self.smoothness * motion.mean()
            loss = loss + self.velocity * ((steps - wanted) * known).norm(dim=-1).mean()
        return loss
