from .body import BodyModel
from .discriminator import HMRDiscriminator
from .groupmixformer import TruncatedGMF
from .losses import MeshLoss
from .mesh_estimator import MeshEstimator
from .smpl_head import HMR2Head
from .stage_adapter import StageAdapter
from .swin import TruncatedSwin
from .vmamba import TruncatedVMamba

__all__ = [
    'BodyModel',
    'HMR2Head',
    'HMRDiscriminator',
    'MeshEstimator',
    'MeshLoss',
    'StageAdapter',
    'TruncatedGMF',
    'TruncatedSwin',
    'TruncatedVMamba',
]
