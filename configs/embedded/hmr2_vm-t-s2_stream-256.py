"""The mesh model's part of weights v2: 256 x 192, on people that are rendered during training.

Its head starts from what hmr2_vm-t-s2_features-256.py learned. See README.md here for the commands.
"""

_base_ = './hmr2_vm-t-s2_stream-128.py'

train_pipeline = [
    dict(type='AugmentPerson', part_rate=0.05),
    dict(type='CropPerson', aspect=(192, 256)),
    dict(type='AddRealPoses'),
    dict(type='PackPerson'),
]
val_pipeline = [
    dict(type='CropPerson', aspect=(192, 256), box_padding=1.2),
    dict(type='PackPerson'),
]
train_dataloader = dict(batch_size=16, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=val_pipeline))
test_dataloader = val_dataloader
