"""SimCC's head and recipe on three stages of VMamba-T."""

_base_ = 'mmpose::body_2d_keypoint/simcc/coco/simcc_res50_8xb64-210e_coco-256x192.py'
from trunchier.zoo import backbone_cfg, encoder

custom_imports = dict(imports=['trunchier'], allow_failed_imports=False)

row = encoder('vm-t-s3')
model = dict(
    backbone=dict(backbone_cfg('vm-t-s3'), _delete_=True),
    head=dict(in_channels=row.channels, in_featuremap_size=(192 // row.stride, 256 // row.stride)),
)
del row  # a dumped config with it could not be read
