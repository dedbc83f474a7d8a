"""Stage 1 of token distillation: a knowledge token of VMPose-T-S4, 10 epochs, all else frozen."""

_base_ = '../pose2d/td-hm_vm-t-s4_8xb64-210e_coco-256x192.py'

model = dict(
    _delete_=True,
    type='TeacherToken',
    teacher='VMPose-T-S4',
    teacher_weights='data/checkpoints/VMPose-T-S4.pth',
    stage=1,  # the last one of the student
)
train_cfg = dict(max_epochs=10)
optim_wrapper = dict(paramwise_cfg=dict(_delete_=True))
param_scheduler = None
