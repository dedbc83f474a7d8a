"""The models of the paper as tables, and the configs made of them. Data only."""

from .encoders import (
    BACKBONES,
    BY_HAND,
    DECODER_STRIDE,
    ENCODERS,
    MESH_DECODERS,
    STRIDES,
    TASKS,
    VIT,
    WEIGHTS,
    backbone_cfg,
    config_path,
    encoder,
    model_cfg,
    neck_cfg,
    optim_cfg,
    paper_name,
)

__all__ = [
    'BACKBONES',
    'BY_HAND',
    'DECODER_STRIDE',
    'ENCODERS',
    'MESH_DECODERS',
    'STRIDES',
    'TASKS',
    'VIT',
    'WEIGHTS',
    'backbone_cfg',
    'config_path',
    'encoder',
    'model_cfg',
    'neck_cfg',
    'optim_cfg',
    'paper_name',
]
