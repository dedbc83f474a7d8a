"""What `make demo` trains next: a mesh model, from the pose model, on the same people."""

_base_ = '../_base_/mesh.py'
from trunchier.zoo import model_cfg

model = model_cfg('vm-t-s2', 'mesh')
model['backbone'].update(drop_path_rate=0.0, frozen_stages=2)
model['init_cfg'].update(checkpoint='demo/pose/epoch_2.pth')
# Means over the batch, and more of what 3D pose depends on: it has to learn fast.
model['loss'] = dict(reduction='mean', keypoints_2d=0.05, global_orient=0.1, body_pose=0.2)
model['attention_guide'] = dict(weight=1.0)  # a single query learns slowly where to look

train_cfg = dict(max_iters=1000, val_interval=1000)
optim_wrapper = dict(
    optimizer=dict(lr=1e-3), clip_grad=dict(max_norm=1.0), discriminator=dict(lr=1e-4)
)
param_scheduler = [
    dict(type='LinearLR', begin=0, end=50, start_factor=0.01, by_epoch=False),
    dict(type='CosineAnnealingLR', begin=50, end=1000, T_max=950, eta_min=1e-5, by_epoch=False),
]
default_hooks = dict(checkpoint=dict(interval=1000), logger=dict(interval=20))

size = 128
train_pipeline = [
    dict(type='AugmentPerson', scale=0.1, rotation_rate=0.0, part_rate=0.0),
    dict(type='CropPerson', size=size, aspect=(192, 256)),
    dict(type='AddRealPoses'),
    dict(type='PackPerson'),
]
val_pipeline = [
    dict(type='CropPerson', size=size, aspect=(192, 256), box_padding=1.2),
    dict(type='PackPerson'),
]
train_dataloader = dict(
    batch_size=32,
    num_workers=1,
    dataset=dict(
        datasets=[dict(type='ShardPeople', name='synthetic', urls='demo/shards')],
        weights=[1.0],
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=32,
    num_workers=1,
    dataset=dict(
        datasets=[
            dict(
                type='NpzPeople',
                name='synthetic',
                ann_file='demo/test.npz',
                img_dir='demo/test/images',
            )
        ],
        pipeline=val_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = [dict(type='MeshPCK'), dict(type='MeshJointError')]
test_evaluator = val_evaluator
