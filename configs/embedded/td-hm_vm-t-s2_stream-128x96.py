"""First part of weights v2: as td-hm_vm-t-s2_stream-256x192.py on small crops, four times as fast.

See README.md here for the commands.
"""

_base_ = './td-hm_vm-t-s2_stream-256x192.py'

codec = dict(type='UDPHeatmap', input_size=(96, 128), heatmap_size=(24, 32), sigma=1.5)
model = dict(head=dict(decoder=codec))
train_cfg = dict(max_iters=20000)
optim_wrapper = dict(optimizer=dict(lr=5e-4))
default_hooks = dict(checkpoint=dict(interval=100), logger=dict(interval=100))

train_pipeline = [
    dict(type='LoadImage'),
    dict(type='JitterBox'),
    dict(type='GetBBoxCenterScale'),
    dict(type='RandomFlip', direction='horizontal'),
    dict(type='RandomHalfBody', prob=0.2),
    dict(type='RandomBBoxTransform', rotate_factor=45.0, scale_factor=(0.75, 1.25)),
    dict(type='TopdownAffine', input_size=codec['input_size'], use_udp=True),
    dict(type='CorruptImage'),
    dict(type='CutOut'),
    dict(type='GenerateTarget', encoder=codec),
    dict(type='PackPoseInputs'),
]
val_pipeline = [
    dict(type='LoadImage'),
    dict(type='GetBBoxCenterScale'),
    dict(type='TopdownAffine', input_size=codec['input_size'], use_udp=True),
    dict(type='PackPoseInputs'),
]
train_dataloader = dict(batch_size=32, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=val_pipeline))
test_dataloader = val_dataloader
