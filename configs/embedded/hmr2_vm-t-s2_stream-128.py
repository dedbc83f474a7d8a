"""The mesh model's part of weights v2: continues on people that are rendered during training.

The encoder is that of the package's pose model, the head its mesh model's. See README.md here for
the commands.
"""

_base_ = './hmr2_vm-t-s2_synthetic-128.py'

model = dict(
    init_cfg=dict(checkpoint='trunchier/assets/VMPose-T-S2.safetensors'),
    head=dict(
        init_cfg=dict(
            type='Pretrained',
            checkpoint='trunchier/assets/VMHMR2.0-T-S2.safetensors',
            prefix='head.',
        )
    ),
)
train_cfg = dict(max_iters=20000, val_interval=1000)
optim_wrapper = dict(
    optimizer=dict(lr=5e-4),
    paramwise_cfg=dict(
        custom_keys={'backbone': dict(lr_mult=0.5), 'neck': dict(lr_mult=0.5)},
    ),
)
# Constant, as the pose run's: checkpoints hold the moving average of the weights.
param_scheduler = [dict(type='LinearLR', begin=0, end=100, start_factor=0.01, by_epoch=False)]
custom_hooks = [
    dict(type='SyncBuffersHook'),
    dict(type='WorkerHook'),
    dict(type='EMAHook', momentum=0.01, priority='ABOVE_NORMAL'),
]
default_hooks = dict(checkpoint=dict(interval=100, max_keep_ckpts=2), logger=dict(interval=100))
regime = dict(crowd=0.5, spread=0.6, truncated=0.2, nearest=1.6, natural=0.3, distractors=0.25)
train_dataloader = dict(
    dataset=dict(
        datasets=[
            dict(type='SyntheticBodies', seed=9, size=320, max_people=3, regime=regime),
        ],
    ),
)
