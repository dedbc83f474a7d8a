"""The mesh weights that come with the package: small crops, from the pose model of such crops.

See README.md here for the commands.
"""

_base_ = '../demo/hmr2_vm-t-s2_synthetic-128.py'

model = dict(
    backbone=dict(frozen_stages=-1),
    init_cfg=dict(checkpoint='work_dirs/td-hm_vm-t-s2_synthetic-128x96/epoch_2.pth'),
)

train_cfg = dict(max_iters=1500, val_interval=1500)
# The head learns from nothing, the rest has learned to find joints.
optim_wrapper = dict(
    optimizer=dict(lr=1e-3),
    paramwise_cfg=dict(
        layer_decay_rate=1.0,
        custom_keys={'backbone': dict(lr_mult=0.2), 'neck': dict(lr_mult=0.2)},
    ),
)
param_scheduler = [
    dict(type='LinearLR', begin=0, end=100, start_factor=0.01, by_epoch=False),
    dict(type='CosineAnnealingLR', begin=100, end=1500, T_max=1400, eta_min=1e-5, by_epoch=False),
]
default_hooks = dict(checkpoint=dict(interval=1500), logger=dict(interval=50))
randomness = dict(seed=0)

train_pipeline = [
    dict(type='AugmentPerson', part_rate=0.05),
    dict(type='CropPerson', size=128, aspect=(192, 256)),
    dict(type='AddRealPoses'),
    dict(type='PackPerson'),
]
train_dataloader = dict(
    dataset=dict(
        datasets=[dict(type='ShardPeople', name='synthetic', urls='data/synthetic/shards')],
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    dataset=dict(
        datasets=[
            dict(
                type='NpzPeople',
                name='synthetic',
                ann_file='data/synthetic/test.npz',
                img_dir='data/synthetic/test/images',
            )
        ],
    ),
)
test_dataloader = val_dataloader
val_evaluator = [
    dict(type='MeshPCK'),
    dict(type='MeshJointError'),
    dict(type='MeshAngleSpread'),
]
test_evaluator = val_evaluator
