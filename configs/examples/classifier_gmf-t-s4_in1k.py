"""mmpretrain's classifier on GroupMixFormer-T, with the learning rates of mmpretrain's ViTs."""

_base_ = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'
from trunchier.zoo import backbone_cfg, encoder

custom_imports = dict(imports=['trunchier'], allow_failed_imports=False)

model = dict(
    backbone=dict(backbone_cfg('gmf-t-s4'), _delete_=True),
    head=dict(in_channels=encoder('gmf-t-s4').channels),
)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=5e-4, weight_decay=0.05),
    constructor='LearningRateDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.8),
)
