"""mmdet's RTMDet-tiny on GroupMixFormer-T.

Training runs on mmcv-lite; validation calls nms, a compiled op of the full mmcv.
"""

_base_ = 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py'
from trunchier.zoo import backbone_cfg, encoder

custom_imports = dict(imports=['trunchier'], allow_failed_imports=False)

channels = [*encoder('gmf-t-s4').backbone.channels[1:]]
model = dict(
    backbone=dict(backbone_cfg('gmf-t-s4'), _delete_=True, out_indices=(1, 2, 3)),
    neck=dict(in_channels=channels),
)
