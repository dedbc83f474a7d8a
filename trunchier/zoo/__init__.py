"""The models of the paper as tables, and the configs made of them. Data only."""

from .configs import config_path, list_models, model_cfg, models, optim_cfg, paper_name
from .encoders import ARCHS, BACKBONES, ENCODERS, backbone_cfg, encoder, neck_cfg, plain_arch
from .releases import BY_HAND, SHIPPED, WEIGHTS
from .tasks import MESH_DECODERS, TASKS, Task, task

__all__ = [
    'ARCHS', 'BACKBONES', 'BY_HAND', 'ENCODERS', 'MESH_DECODERS', 'SHIPPED', 'TASKS', 'Task',
    'WEIGHTS', 'backbone_cfg', 'config_path', 'encoder', 'list_models', 'model_cfg', 'models',
    'neck_cfg', 'optim_cfg', 'paper_name', 'plain_arch', 'task',
]  # fmt: skip
