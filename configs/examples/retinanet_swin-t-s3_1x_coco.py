"""mmdet's RetinaNet on three stages of Swin-T.

Training runs on mmcv-lite; validation calls nms, a compiled op of the full mmcv.
"""

_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
from trunchier.zoo import backbone_cfg, encoder

custom_imports = dict(imports=['trunchier'], allow_failed_imports=False)

channels = [*encoder('swin-t-s3').backbone.channels[:3]]
model = dict(
    backbone=dict(backbone_cfg('swin-t-s3'), _delete_=True, out_indices=(0, 1, 2), frozen_stages=1),
    # strides 8 and 16 of the backbone, then 32, 64 and 128
    neck=dict(in_channels=channels, start_level=1, num_outs=5),
)
