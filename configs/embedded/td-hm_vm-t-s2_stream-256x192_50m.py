"""Weights v2 on a GPU: 50 million samples of the same stream, with a decaying learning rate."""

_base_ = './td-hm_vm-t-s2_stream-256x192.py'

batch_size = 512
max_iters = 50_000_000 // batch_size
train_cfg = dict(max_iters=max_iters, val_interval=2000)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(type='LinearLR', begin=0, end=1000, start_factor=0.01, by_epoch=False),
    dict(type='CosineAnnealingLR', begin=0, end=max_iters, eta_min=1e-6, by_epoch=False),
]
custom_hooks = [
    dict(type='SyncBuffersHook'),
    dict(type='WorkerHook'),
    dict(type='EMAHook', momentum=5e-4, priority='ABOVE_NORMAL'),
]
default_hooks = dict(checkpoint=dict(interval=1000))
train_dataloader = dict(batch_size=batch_size, num_workers=15)
