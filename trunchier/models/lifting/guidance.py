"""Physical guidance of StarPose (IEEE TCSVT 2025): an energy of joints over time.

No code was published. The four terms are written from a summary of the paper; their exact norms,
the joints' weights and the step lengths are not known, so that these are options. The energy guides
a `DiffusionLifter`, and smooths any track by itself (`smooth`).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from ...conventions import H36M_17_FLIP, H36M_17_PARENTS

Energy = Callable[[Tensor], Tensor]


class View(NamedTuple):
    """What a camera saw.

    Attributes:
        keypoints: (B, T, K, 2), in the units of `focal`, such as widths of the image.
        focal: (B, 2). center: (B, 2), the principal point.
        root: (B, T, 3), meters, camera frame, z forward: what is added to joints.
    """

    keypoints: Tensor
    focal: Tensor
    center: Tensor
    root: Tensor


@MODELS.register_module()
class PhysicalGuidance(nn.Module):
    """Energy of root-relative joints: zero if these are rigid, symmetric, still and seen as said.

    Args:
        reprojection: weight of the mean squared distance of projected joints, needs a `View`.
        symmetry: weight of the mean squared difference of left and right bones' lengths.
        bone_variance: weight of the mean variance of bones' lengths over the frames.
        motion: weight of the mean squared step of joints between frames.
        joint_weights: of `motion`, one a joint; None: 1.
        step: length of the guidance's step, at every diffusion step.
        parents: of each joint, -1 for the root. flip: the joint on the other side of each.
    """

    def __init__(
        self,
        reprojection: float = 1.0,
        symmetry: float = 1.0,
        bone_variance: float = 0.01,
        motion: float = 0.01,
        joint_weights: Sequence[float] | None = None,
        step: float = 0.1,
        parents: Sequence[int] = H36M_17_PARENTS,
        flip: Sequence[int] = H36M_17_FLIP,
    ):
        super().__init__()
        self.reprojection, self.symmetry = reprojection, symmetry
        self.bone_variance, self.motion = bone_variance, motion
        self.step = step
        self.joint_weights = tuple(joint_weights or [1.0] * len(parents))
        self.bones = [joint for joint, parent in enumerate(parents) if parent >= 0]
        self.starts = [parents[joint] for joint in self.bones]
        sides = {joint: place for place, joint in enumerate(self.bones)}
        pairs = [(sides[a], sides[flip[a]]) for a in self.bones if a < flip[a]]
        self.left, self.right = [a for a, _ in pairs], [b for _, b in pairs]

    def forward(self, joints: Tensor, view: View | None = None) -> Tensor:
        """Energy of each track, (B, T, K, 3) meters -> (B,)."""
        return sum(self.terms(joints, view).values())

    def terms(self, joints: Tensor, view: View | None = None) -> dict[str, Tensor]:
        """The weighted terms by name, each (B,); without a view, there is no reprojection."""
        # A bone of length 0 has no gradient, hence the small number.
        lengths = (joints[:, :, self.bones] - joints[:, :, self.starts]).square().sum(-1)
        lengths = (lengths + 1e-12).sqrt()  # (B, T, bones)
        uneven = (lengths[..., self.left] - lengths[..., self.right]).square()
        steps = joints.diff(dim=1).square().sum(-1) * joints.new_tensor(self.joint_weights)
        terms = dict(
            symmetry=self.symmetry * uneven.mean((1, 2)),
            bone_variance=self.bone_variance * lengths.var(1, unbiased=False).mean(1),
            motion=self.motion * (steps.mean((1, 2)) if steps.shape[1] else 0 * steps.sum((1, 2))),
        )
        if view is not None:
            points = joints + view.root[:, :, None]
            seen = points[..., :2] / points[..., 2:].clamp(min=1e-3)
            seen = seen * view.focal[:, None, None] + view.center[:, None, None]
            apart = (seen - view.keypoints[..., :2]).square().sum(-1)
            terms['reprojection'] = self.reprojection * apart.mean((1, 2))
        return terms


def smooth(
    track: Tensor, energy: Energy, pull: float = 1.0, steps: int = 50, rate: float = 1.0
) -> Tensor:
    """Lower an energy of tracks, with a spring to where they are: pull * mean squared distance.

    Gradient descent with a step length for each track, halved when the sum would rise; it never
    does.

    Args:
        track: (B, T, K, D). energy: (B, T, K, D) -> (B,), such as a `PhysicalGuidance`; for tracks
            in 2D, `motion_energy`.
        pull: strength of the spring. rate: first step length, in units of the number of values.

    Returns:
        (B, T, K, D).
    """

    def total(points):
        return energy(points) + pull * (points - track).square().mean((1, 2, 3))

    def wide(values):
        return values[:, None, None, None]

    points = track
    rates = track.new_full((len(track),), rate * track[0].numel())
    for _ in range(steps):
        with torch.enable_grad():
            points = points.detach().requires_grad_()
            now = total(points)
            (gradient,) = torch.autograd.grad(now.sum(), points)
        with torch.no_grad():
            tried = points - wide(rates) * gradient
            falls = total(tried) <= now
            points = torch.where(wide(falls), tried, points)
            rates = torch.where(falls, rates, rates / 2)
    return points.detach()


def motion_energy(order: int = 2, weight: float = 1.0) -> Energy:
    """Energy of any track: mean squared difference of an order, 2 for acceleration."""

    def energy(track: Tensor) -> Tensor:
        steps = track.diff(n=order, dim=1).square().sum(-1)
        return weight * steps.flatten(1).sum(1) / track[0, ..., 0].numel()

    return energy
