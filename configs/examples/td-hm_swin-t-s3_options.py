"""Options of mmengine and of the backbones, on a pose model of ours.

Less memory (`with_cp`, frozen stages, accumulated gradients), averaged weights, TensorBoard.
"""

_base_ = '../pose2d/td-hm_swin-t-s3_8xb64-210e_coco-256x192.py'

model = dict(backbone=dict(with_cp=True, frozen_stages=1))
find_unused_parameters = True  # of DistributedDataParallel, for models with such parameters
optim_wrapper = dict(accumulative_counts=4)
custom_hooks = [
    *_base_.custom_hooks,  # noqa: F821
    dict(type='EMAHook', ema_type='ExpMomentumEMA', momentum=2e-4, update_buffers=True),
]
visualizer = dict(vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')])
