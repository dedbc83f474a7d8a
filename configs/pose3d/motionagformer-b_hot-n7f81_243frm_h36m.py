"""HoT on MotionAGFormer-B: 11.8 M parameters, 60.5 G."""

_base_ = './motionagformer-b_243frm_h36m.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='HourglassTokenizer',
        backbone=dict(type='MotionAGFormer', num_heads=4, neighbors=4),
        schedule={7: 81},
        num_heads=4,
    )
)
