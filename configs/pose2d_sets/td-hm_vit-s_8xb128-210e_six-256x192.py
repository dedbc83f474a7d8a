_base_ = '../_base_/pose2d_six_sets.py'
from trunchier.zoo import mixed_model_cfg, optim_cfg

model = mixed_model_cfg('vit-s', _base_.sets, _base_.model.head, experts=True)
optim_wrapper = optim_cfg('vit-s')
