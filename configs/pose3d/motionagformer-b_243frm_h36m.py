"""MotionAGFormer-B: 11.7 M parameters, 95.9 G; by HoT's recipe. Keypoints have scores."""

_base_ = '../_base_/lifting.py'

codec = dict(_base_.codec, concat_vis=True)
model = dict(
    backbone=dict(type='MotionAGFormer'),
    head=dict(in_channels=128, embedding_size=512, decoder=codec),
)
target = dict(type='GenerateTarget', encoder=codec)
train_dataloader = dict(dataset=dict(pipeline=[target, *_base_.train_pipeline[1:]]))
val_dataloader = dict(dataset=dict(pipeline=[target, *_base_.val_pipeline[1:]]))
test_dataloader = val_dataloader
