"""HoT on MotionBERT, 256 wide: 16.3 M parameters, 63.2 G. Keypoints have scores."""

_base_ = '../_base_/lifting.py'

codec = dict(_base_.codec, concat_vis=True)
model = dict(
    backbone=dict(
        type='HourglassTokenizer',
        backbone=dict(
            type='DSTFormer', in_channels=3, feat_size=256, depth=5, num_heads=8, mlp_ratio=4
        ),
        schedule={1: 81},
    ),
    head=dict(in_channels=256, embedding_size=512, decoder=codec),
)
target = dict(type='GenerateTarget', encoder=codec)
train_dataloader = dict(dataset=dict(pipeline=[target, *_base_.train_pipeline[1:]]))
val_dataloader = dict(dataset=dict(pipeline=[target, *_base_.val_pipeline[1:]]))
test_dataloader = val_dataloader
