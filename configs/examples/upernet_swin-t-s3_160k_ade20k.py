"""mmseg's UPerNet on three stages of Swin-T."""

_base_ = 'mmseg::upernet/upernet_r50_4xb4-160k_ade20k-512x512.py'
from trunchier.zoo import backbone_cfg, encoder

custom_imports = dict(imports=['trunchier'], allow_failed_imports=False)

channels = [*encoder('swin-t-s3').backbone.channels[:3]]
model = dict(
    pretrained=None,
    backbone=dict(backbone_cfg('swin-t-s3'), _delete_=True, out_indices=(0, 1, 2)),
    decode_head=dict(in_channels=channels, in_index=(0, 1, 2)),
    auxiliary_head=dict(in_channels=channels[1], in_index=1),
)
