"""Associative embedding on COCO: everybody in a whole image, 512 x 512, without boxes.

Heatmaps say where keypoints are, tags of each keypoint which of them are of one person (Newell et
al., 2017). Schedule and augmentation follow mmpose's DEKR, which trains; mmpose's recipe of
associative embedding only predicts.
"""

_base_ = './pose2d.py'

# model: the encoder's part (backbone, neck, channels) comes from trunchier.zoo.bottomup_cfg
codec = dict(
    type='AssociativeEmbedding',
    input_size=(512, 512),
    heatmap_size=(128, 128),
    sigma=2,
    use_udp=True,
    decode_keypoint_order=[0, 1, 2, 3, 4, 5, 6, 11, 12, 7, 8, 9, 10, 13, 14, 15, 16],
    decode_max_instances=30,
)
model = dict(
    type='BottomupPoseEstimator',
    head=dict(
        type='AssociativeEmbeddingHead',
        _delete_=True,
        num_keypoints=17,
        deconv_out_channels=(256, 256),
        deconv_kernel_sizes=(4, 4),
        keypoint_loss=dict(type='MaskedMSELoss'),
        tag_loss=dict(type='AssociativeEmbeddingLoss', loss_weight=0.001),
        decoder=codec,
    ),
)

train_cfg = dict(max_epochs=300)
param_scheduler = [
    dict(type='LinearLR', begin=0, end=500, start_factor=0.001, by_epoch=False),
    dict(type='MultiStepLR', begin=0, end=300, milestones=[200, 260], gamma=0.1, by_epoch=True),
]
auto_scale_lr = dict(base_batch_size=192)

data_mode = 'bottomup'
train_pipeline = [
    dict(type='LoadImage'),
    dict(type='BottomupRandomAffine', input_size=codec['input_size']),
    dict(type='RandomFlip', direction='horizontal'),
    dict(type='GenerateTarget', encoder=codec),
    dict(type='BottomupGetHeatmapMask'),
    dict(type='PackPoseInputs'),
]
val_pipeline = [
    dict(type='LoadImage'),
    dict(type='BottomupResize', input_size=codec['input_size']),
    dict(
        type='PackPoseInputs',
        meta_keys=(
            'id', 'img_id', 'img_path', 'crowd_index', 'ori_shape', 'img_shape', 'input_size',
            'input_center', 'input_scale', 'flip', 'flip_direction', 'flip_indices', 'raw_ann_info',
            'skeleton_links',
        ),
    ),
]  # fmt: skip
train_dataloader = dict(batch_size=24, dataset=dict(data_mode=data_mode, pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=1, dataset=dict(data_mode=data_mode, bbox_file=None, pipeline=val_pipeline)
)
test_dataloader = val_dataloader
val_evaluator = dict(nms_mode='none', score_mode='bbox')
test_evaluator = val_evaluator
