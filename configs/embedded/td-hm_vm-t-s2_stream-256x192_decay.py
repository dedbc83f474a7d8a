"""As td-hm_vm-t-s2_stream-256x192.py for a run of a fixed length: the learning rate decays.

Boxes and people are closer to those of a test: without cut-out, turned by less.
"""

_base_ = './td-hm_vm-t-s2_stream-256x192.py'

max_iters = 1100
train_cfg = dict(max_iters=max_iters)
optim_wrapper = dict(optimizer=dict(lr=4e-4))
param_scheduler = [
    dict(type='LinearLR', begin=0, end=50, start_factor=0.01, by_epoch=False),
    dict(type='CosineAnnealingLR', begin=50, end=max_iters, eta_min=1e-6, by_epoch=False),
]
train_pipeline = [
    dict(type='LoadImage'),
    dict(type='JitterBox'),
    dict(type='GetBBoxCenterScale'),
    dict(type='RandomFlip', direction='horizontal'),
    dict(type='RandomHalfBody', prob=0.1),
    dict(type='RandomBBoxTransform', rotate_factor=30.0, scale_factor=(0.8, 1.25)),
    dict(type='TopdownAffine', input_size={{_base_.codec.input_size}}, use_udp=True),
    dict(type='CorruptImage'),
    dict(type='GenerateTarget', encoder={{_base_.codec}}),
    dict(type='PackPoseInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
