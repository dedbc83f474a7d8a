"""The models' configs to inherit from with `read_base`, mmengine's new style of configs.

    from mmengine.config import read_base

    with read_base():
        from trunchier.configs.pose2d.vm_t_s3 import *

    model.backbone.drop_path_rate = 0.1
    train_dataloader.batch_size = 32

There is a module per model, `pose2d.ENCODER` and `mesh.ENCODER`. It reads the model's text config,
so that both styles are one config. Reading imports this package: `custom_imports` is not needed.
"""

from typing import Any

from ..weights.find import find_config


def variables(name: str, task: str) -> dict[str, Any]:
    """The variables of a model's text config, with those of its bases.

    mmengine's parser of new-style configs calls no function that a config imports; hence the
    `__import__` in each module.

    Args:
        name, task: keys of `zoo.ENCODERS` and `zoo.TASKS`; ValueError if unknown.
    """
    return find_config(name, task).cfg.to_dict()
