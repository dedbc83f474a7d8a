"""Metrics: PCK, MPJPE, PA-MPJPE, the paper's scores, errors of motion, partly visible people."""

from .mesh import (
    MeshAngleSpread,
    MeshJointError,
    MeshPCK,
    angle_spread,
    joint_errors,
    mean_pck,
    phi_scores,
)
from .partial import PartialPCK, extent
from .tracks import TrackErrors, step_errors, step_lengths

__all__ = [
    'MeshAngleSpread', 'MeshJointError', 'MeshPCK', 'PartialPCK', 'TrackErrors', 'angle_spread',
    'extent', 'joint_errors', 'mean_pck', 'phi_scores', 'step_errors', 'step_lengths',
]  # fmt: skip
