"""Second half of the mesh weights that come with the package: full crops, a small learning rate.

See README.md here for the commands.
"""

_base_ = './hmr2_vm-t-s2_synthetic-128.py'

model = dict(init_cfg=None)
load_from = 'work_dirs/hmr2_vm-t-s2_synthetic-128/iter_1500.pth'

train_cfg = dict(max_iters=160, val_interval=160)
optim_wrapper = dict(optimizer=dict(lr=2e-4))
param_scheduler = [
    dict(type='LinearLR', begin=0, end=30, start_factor=0.01, by_epoch=False),
    dict(type='CosineAnnealingLR', begin=30, end=160, T_max=130, eta_min=1e-6, by_epoch=False),
]
default_hooks = dict(checkpoint=dict(interval=160), logger=dict(interval=20))

train_pipeline = [
    dict(type='AugmentPerson', part_rate=0.05),
    dict(type='CropPerson', aspect=(192, 256)),
    dict(type='AddRealPoses'),
    dict(type='PackPerson'),
]
val_pipeline = [dict(type='CropPerson', aspect=(192, 256)), dict(type='PackPerson')]
train_dataloader = dict(batch_size=16, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=val_pipeline))
test_dataloader = val_dataloader
