"""What `make demo` trains: two stages of VMamba-T, from scratch, on synthetic people."""

_base_ = '../_base_/pose2d.py'
from trunchier.zoo import model_cfg

codec = dict(type='UDPHeatmap', input_size=(96, 128), heatmap_size=(24, 32), sigma=1.5)
model = model_cfg('vm-t-s2')
model['backbone'].update(init_cfg=None, drop_path_rate=0.0)
model['head'].update(decoder=codec)

train_cfg = dict(max_epochs=2, val_interval=2)
optim_wrapper = dict(
    optimizer=dict(lr=7e-4, weight_decay=0.05), paramwise_cfg=dict(layer_decay_rate=1.0)
)
param_scheduler = [
    dict(type='LinearLR', begin=0, end=100, start_factor=0.01, by_epoch=False),
    dict(
        type='CosineAnnealingLR',
        begin=0,
        end=2,
        T_max=2,
        eta_min=2e-5,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]
default_hooks = dict(checkpoint=dict(interval=2), logger=dict(interval=20))

data_root = 'demo/'
train_pipeline = [
    dict(type='LoadImage'),
    dict(type='GetBBoxCenterScale'),
    dict(type='RandomFlip', direction='horizontal'),
    dict(type='RandomBBoxTransform', rotate_factor=20.0, scale_factor=(0.75, 1.25)),
    dict(type='TopdownAffine', input_size=codec['input_size'], use_udp=True),
    dict(type='GenerateTarget', encoder=codec),
    dict(type='PackPoseInputs'),
]
val_pipeline = [
    dict(type='LoadImage'),
    dict(type='GetBBoxCenterScale'),
    dict(type='TopdownAffine', input_size=codec['input_size'], use_udp=True),
    dict(type='PackPoseInputs'),
]
train_dataloader = dict(
    batch_size=16,
    num_workers=1,
    dataset=dict(
        data_root=data_root,
        ann_file='train/annotations.json',
        data_prefix=dict(img='train/images/'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    num_workers=1,
    dataset=dict(
        data_root=data_root,
        ann_file='test/annotations.json',
        bbox_file=None,
        data_prefix=dict(img='test/images/'),
        pipeline=val_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = [
    dict(type='CocoMetric', ann_file=f'{data_root}test/annotations.json'),
    dict(type='PCKAccuracy', thr=0.1, prefix='@0.1'),
    dict(type='PCKAccuracy', thr=0.05, prefix='@0.05'),
]
test_evaluator = val_evaluator
