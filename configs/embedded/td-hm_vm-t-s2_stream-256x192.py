"""Weights v2: continues the package's pose weights on people that are rendered during training.

See README.md here for the commands. The learning rate is constant: the moving average of the
weights, which checkpoints hold and evaluation uses, takes the place of its decay, so that the run
may be stopped or continued at any iteration.
"""

_base_ = './td-hm_vm-t-s2_synthetic-256x192.py'

load_from = 'trunchier/assets/VMPose-T-S2.safetensors'
train_cfg = dict(_delete_=True, type='StreamTrainLoop', max_iters=3000, val_interval=500)
optim_wrapper = dict(optimizer=dict(lr=1.5e-4))
param_scheduler = [dict(type='LinearLR', begin=0, end=50, start_factor=0.01, by_epoch=False)]
default_hooks = dict(
    checkpoint=dict(interval=25, by_epoch=False, save_best=None, max_keep_ckpts=2),
    logger=dict(interval=25),
)
custom_hooks = [
    dict(type='SyncBuffersHook'),
    dict(type='WorkerHook'),
    dict(type='EMAHook', momentum=0.01, priority='ABOVE_NORMAL'),
]
log_processor = dict(by_epoch=False)

# Each ingredient is an option of its own: delete one to leave it out.
regime = dict(crowd=0.5, spread=0.6, truncated=0.2, nearest=1.6, natural=0.3, distractors=0.25)
train_pipeline = [
    dict(type='LoadImage'),
    dict(type='JitterBox'),
    dict(type='GetBBoxCenterScale'),
    dict(type='RandomFlip', direction='horizontal'),
    dict(type='RandomHalfBody', prob=0.2),
    dict(type='RandomBBoxTransform', rotate_factor=45.0, scale_factor=(0.75, 1.25)),
    dict(type='TopdownAffine', input_size={{_base_.codec.input_size}}, use_udp=True),
    dict(type='CorruptImage'),
    dict(type='CutOut'),
    dict(type='GenerateTarget', encoder={{_base_.codec}}),
    dict(type='PackPoseInputs'),
]
train_dataloader = dict(
    num_workers=1,
    sampler=dict(_delete_=True, type='MixSampler', seed=0),
    dataset=dict(
        _delete_=True,
        type='SyntheticKeypoints',
        seed=8,
        size=320,
        max_people=3,
        regime=regime,
        pipeline=train_pipeline,
    ),
)
