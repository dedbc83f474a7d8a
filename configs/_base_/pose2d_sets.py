"""ViTPose on several data sets: one encoder, a head for each; COCO is validated.

UDP for all of them; the authors' config has it for COCO and MPII alone.
"""

_base_ = './pose2d.py'
from trunchier.zoo import mixed_data_cfg

sets = ('coco', 'aic', 'mpii')
train_dataloader = dict(
    dataset=dict(mixed_data_cfg(sets, _base_.train_pipeline), _delete_=True),
)
