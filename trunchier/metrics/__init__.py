"""Metrics of mesh recovery: PCK, MPJPE, PA-MPJPE, the scores of the paper."""

from .mesh import MeshJointError, MeshPCK, joint_errors, mean_pck, phi_scores

__all__ = ['MeshJointError', 'MeshPCK', 'joint_errors', 'mean_pck', 'phi_scores']
