"""First half of the pose weights that come with the package: small crops, from scratch.

See README.md here for the commands.
"""

_base_ = '../demo/td-hm_vm-t-s2_synthetic-128x96.py'

train_cfg = dict(max_epochs=2, val_interval=2)
optim_wrapper = dict(optimizer=dict(lr=7e-4))
param_scheduler = [
    dict(type='LinearLR', begin=0, end=100, start_factor=0.01, by_epoch=False),
    dict(
        type='CosineAnnealingLR',
        begin=0,
        end=2,
        T_max=2,
        eta_min=1e-5,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]
default_hooks = dict(checkpoint=dict(interval=1), logger=dict(interval=50))
randomness = dict(seed=0)

data_root = 'data/synthetic/'
train_pipeline = [
    dict(type='LoadImage'),
    dict(type='GetBBoxCenterScale'),
    dict(type='RandomFlip', direction='horizontal'),
    dict(type='RandomHalfBody'),
    dict(type='RandomBBoxTransform', rotate_factor=45.0, scale_factor=(0.7, 1.3)),
    dict(type='PhotometricDistortion'),
    dict(type='TopdownAffine', input_size=(96, 128), use_udp=True),
    dict(type='GenerateTarget', encoder={{_base_.codec}}),
    dict(type='PackPoseInputs'),
]
train_dataloader = dict(
    batch_size=16,
    dataset=dict(data_root=data_root, pipeline=train_pipeline),
)
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = val_dataloader
annotations = f'{data_root}test/annotations.json'
val_evaluator = [
    dict(type='CocoMetric', ann_file=annotations),
    dict(type='PCKAccuracy', thr=0.1, prefix='@0.1'),
    dict(type='PCKAccuracy', thr=0.05, prefix='@0.05'),
]
test_evaluator = val_evaluator
