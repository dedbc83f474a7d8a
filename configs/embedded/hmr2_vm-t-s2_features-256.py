"""A head for the mesh model, from what the frozen encoder of the package's pose model finds.

See README.md here for the commands; tools/store_features.py writes data/features.
"""

_base_ = './hmr2_vm-t-s2_synthetic-128.py'

model = dict(
    data_preprocessor=dict(_delete_=True, type='PoseDataPreprocessor'),
    backbone=dict(_delete_=True, type='StoredFeatures'),
    neck=None,
    discriminator=None,
    attention_guide=dict(weight=1.0),
    init_cfg=None,
)
train_cfg = dict(max_iters=12000, val_interval=3000)
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=1e-4),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(type='LinearLR', begin=0, end=200, start_factor=0.01, by_epoch=False),
    dict(type='CosineAnnealingLR', begin=200, end=12000, T_max=11800, eta_min=1e-5, by_epoch=False),
]
default_hooks = dict(checkpoint=dict(interval=1000, max_keep_ckpts=2), logger=dict(interval=100))
train_dataloader = dict(
    _delete_=True,
    batch_size=64,
    num_workers=0,
    sampler=dict(type='MixSampler', seed=0),
    dataset=dict(type='FeaturePeople', folder='data/features/train'),
)
val_dataloader = dict(
    _delete_=True,
    batch_size=64,
    num_workers=0,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False, round_up=False),
    dataset=dict(type='FeaturePeople', folder='data/features/test'),
)
test_dataloader = val_dataloader
