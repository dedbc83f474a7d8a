"""Metrics of mesh recovery and of partly visible people; the scores of the paper."""

from .mesh import MeshJointError, MeshPCK, joint_errors, mean_pck, phi_scores
from .partial import PartialPCK, extent

__all__ = [
    'MeshJointError', 'MeshPCK', 'PartialPCK', 'extent', 'joint_errors', 'mean_pck', 'phi_scores',
]  # fmt: skip
