"""HoT's recipe on Human3.6M, in mmpose's layout of it: windows of 243 frames, joints in meters.

Keypoints are normalized by the image's width; joints are relative to the pelvis, in the camera's
frame. Rates and epochs are the authors'; windows begin every 81 frames, as in mmpose's MotionBERT.
"""

_base_ = './runtime.py'

codec = dict(type='VideoPoseLifting', num_keypoints=17, zero_center=True, reshape_keypoints=False)
model = dict(
    type='PoseLifter',
    head=dict(type='LiftingHead', loss=dict(type='LiftingLoss'), decoder=codec),
    test_cfg=dict(flip_test=True),
)

# schedule
train_cfg = dict(by_epoch=True, max_epochs=160, val_interval=10)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=4e-5, weight_decay=0.1))
param_scheduler = [dict(type='ExponentialLR', gamma=0.99, by_epoch=True)]
auto_scale_lr = dict(base_batch_size=4)
visualizer = dict(_delete_=True, type='Visualizer', vis_backends=[dict(type='LocalVisBackend')])

# data
data_root = 'data/h36m/'
meta_keys = (
    'id', 'category_id', 'target_img_path', 'flip_indices', 'camera_param', 'target_root',
)  # fmt: skip
train_pipeline = [
    dict(type='GenerateTarget', encoder=codec),
    dict(
        type='RandomFlipAroundRoot',
        keypoints_flip_cfg=dict(center_mode='static', center_x=0.0),
        target_flip_cfg=dict(center_mode='static', center_x=0.0),
        flip_label=True,
    ),
    dict(type='PackPoseInputs', meta_keys=meta_keys),
]
val_pipeline = [
    dict(type='GenerateTarget', encoder=codec),
    dict(type='PackPoseInputs', meta_keys=meta_keys),
]
train_dataloader = dict(
    batch_size=4,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='Human36mDataset',
        ann_file='annotation_body3d/fps50/h36m_train.npz',
        camera_param_file='annotation_body3d/cameras.pkl',
        seq_len=1,
        multiple_target=243,
        multiple_target_step=81,
        data_root=data_root,
        data_prefix=dict(img='images/'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=4,
    num_workers=2,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False, round_up=False),
    dataset=dict(
        type='Human36mDataset',
        ann_file='annotation_body3d/fps50/h36m_test.npz',
        camera_param_file='annotation_body3d/cameras.pkl',
        seq_len=1,
        multiple_target=243,
        data_root=data_root,
        data_prefix=dict(img='images/'),
        pipeline=val_pipeline,
        test_mode=True,
    ),
)
test_dataloader = val_dataloader
# Videos whose annotations are shifted, as mmpose leaves them out.
skip_list = ['S9_Greet', 'S9_SittingDown', 'S9_Wait_1', 'S9_Greeting', 'S9_Waiting_1']
val_evaluator = [
    dict(type='MPJPE', mode='mpjpe', skip_list=skip_list),
    dict(type='MPJPE', mode='p-mpjpe', skip_list=skip_list),
    dict(type='TrackErrors', kind='3d', skip_list=skip_list),
]
test_evaluator = val_evaluator
