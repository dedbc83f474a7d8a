"""The models of the paper as tables, and the configs made of them. Data only."""

from .configs import (
    LIFTED,
    config_path,
    known_name,
    lifted_of,
    list_models,
    model_cfg,
    models,
    names,
    optim_cfg,
    paper_name,
    simple_decoder,
    timm_cfg,
    timm_name,
)
from .encoders import ARCHS, BACKBONES, ENCODERS, backbone_cfg, encoder, neck_cfg, plain_arch
from .pose_sets import POSE_SETS, mixed_data_cfg, mixed_model_cfg
from .releases import BY_HAND, SHIPPED, WEIGHTS
from .tasks import MESH_DECODERS, TASKS, Task, task

__all__ = [
    'ARCHS', 'BACKBONES', 'BY_HAND', 'ENCODERS', 'LIFTED', 'MESH_DECODERS', 'POSE_SETS', 'SHIPPED',
    'TASKS', 'Task', 'WEIGHTS', 'backbone_cfg', 'config_path', 'encoder', 'known_name', 'lifted_of',
    'list_models', 'mixed_data_cfg', 'mixed_model_cfg', 'model_cfg', 'models', 'names', 'neck_cfg',
    'optim_cfg', 'paper_name', 'plain_arch', 'simple_decoder', 'task', 'timm_cfg', 'timm_name',
]  # fmt: skip
