"""Backbones, necks, estimators, and models by name."""

from . import optional
from .backbones.groupmixformer import TruncatedGMF
from .backbones.stored import StoredFeatures
from .backbones.swin import TruncatedSwin
from .backbones.vmamba import TruncatedVMamba
from .bottomup import MaskedMSELoss
from .create import build_model, create_backbone, create_model
from .distillers import BodyDistiller, HeatmapDistiller, TokenDistiller
from .lifting.guidance import PhysicalGuidance
from .lifting.hourglass import HourglassTokenizer
from .lifting.ktpformer import KTPFormer
from .lifting.losses import LiftingLoss
from .lifting.mixste import MixSTE
from .lifting.motionagformer import MotionAGFormer
from .mesh.body import BodyModel
from .mesh.discriminator import HMRDiscriminator
from .mesh.estimator import MeshEstimator
from .mesh.hmr2_head import HMR2Head
from .mesh.losses import AttentionGuide, MeshLoss
from .necks.stage_adapter import StageAdapter
from .teachers import TeacherToken

__all__ = [
    'AttentionGuide', 'BodyDistiller', 'BodyModel', 'HMR2Head', 'HMRDiscriminator',
    'HeatmapDistiller', 'HourglassTokenizer', 'KTPFormer', 'LiftingLoss', 'MaskedMSELoss',
    'MeshEstimator', 'MeshLoss', 'MixSTE', 'MotionAGFormer', 'PhysicalGuidance', 'StageAdapter',
    'StoredFeatures', 'TeacherToken', 'TokenDistiller', 'TruncatedGMF', 'TruncatedSwin',
    'TruncatedVMamba', 'build_model', 'create_backbone', 'create_model', 'optional',
]  # fmt: skip
