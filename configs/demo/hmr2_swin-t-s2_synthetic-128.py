"""What `make demo` trains next: a mesh model, from the pose model, on the same people."""

_base_ = '../_base_/mesh.py'
from trunchier.zoo import model_cfg

model = model_cfg('swin-t-s2', 'mesh')
model['backbone'].update(drop_path_rate=0.0)
model['init_cfg'].update(checkpoint='demo/pose/epoch_4.pth')
model['loss'] = dict(reduction='mean')

train_cfg = dict(max_iters=300, val_interval=300)
optim_wrapper = dict(
    optimizer=dict(lr=3e-4), clip_grad=dict(max_norm=1.0), discriminator=dict(lr=1e-4)
)
param_scheduler = None
default_hooks = dict(checkpoint=dict(interval=300), logger=dict(interval=20))

size = 128
train_pipeline = [
    dict(type='AugmentPerson', part_rate=0.0),
    dict(type='CropPerson', size=size),
    dict(type='AddRealPoses'),
    dict(type='PackPerson'),
]
val_pipeline = [
    dict(type='CropPerson', size=size, aspect=(192, 256)),
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
