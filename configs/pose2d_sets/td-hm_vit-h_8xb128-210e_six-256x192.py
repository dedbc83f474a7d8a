_base_ = '../_base_/pose2d_six_sets.py'
from trunchier.zoo import mixed_model_cfg

model = mixed_model_cfg('vit-h', _base_.sets, _base_.model.head, experts=True)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.8))  # ViTPose-H has 0.85
