"""VMHMR2.0-T-S4 teaches VMHMR2.0-T-S2: annotations and the teacher's bodies."""

_base_ = '../mesh/hmr2_vm-t-s2_8xb48-1000k_mix-256x192.py'

model = dict(
    _delete_=True,
    type='BodyDistiller',
    student=_base_.model,  # noqa: F821
    teacher='VMHMR2.0-T-S4',
    teacher_weights='data/checkpoints/VMHMR2.0-T-S4.pth',
)
