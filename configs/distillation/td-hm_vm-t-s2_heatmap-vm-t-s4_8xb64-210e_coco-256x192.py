"""VMPose-T-S4 teaches VMPose-T-S2: labels and the teacher's heatmaps, ViTPose's distillation."""

_base_ = '../pose2d/td-hm_vm-t-s2_8xb64-210e_coco-256x192.py'

model = dict(
    _delete_=True,
    type='HeatmapDistiller',
    student=_base_.model,  # noqa: F821
    teacher='VMPose-T-S4',
    teacher_weights='data/checkpoints/VMPose-T-S4.pth',
)
