"""Stage 2 of token distillation, and heatmaps: VMPose-T-S4 teaches VMPose-T-S2 by both."""

_base_ = './td-hm_vm-t-s2_heatmap-vm-t-s4_8xb64-210e_coco-256x192.py'

model = dict(
    type='TokenDistiller',
    token='work_dirs/td-hm_vm-t-s4_token_8xb64-10e_coco-256x192/epoch_10.pth',
)
