"""ViTPose++: COCO, AIC, MPII, AP-10K, APT-36K and COCO-WholeBody, 8 GPUs x 128."""

_base_ = './pose2d.py'
from trunchier.zoo import POSE_SETS, mixed_data_cfg

sets = tuple(POSE_SETS)
train_dataloader = dict(
    batch_size=128,
    dataset=dict(mixed_data_cfg(sets, _base_.train_pipeline), _delete_=True),
)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
auto_scale_lr = dict(base_batch_size=1024)
del POSE_SETS
