"""Weights & Biases without a network: `wandb sync` uploads the run later, if at all."""

_base_ = '../pose2d/td-hm_swin-t-s3_8xb64-210e_coco-256x192.py'

visualizer = dict(
    vis_backends=[
        dict(type='LocalVisBackend'),
        dict(type='WandbVisBackend', init_kwargs=dict(project='trunchier', mode='offline')),
    ]
)
