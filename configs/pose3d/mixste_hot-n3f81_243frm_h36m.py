"""HoT on MixSTE: 35.0 M parameters, 167.5 G."""

_base_ = './mixste_243frm_h36m.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='HourglassTokenizer',
        backbone=dict(type='MixSTE'),
        schedule={3: 81},
        pruner='TPC',
        recovery='TRA',
    )
)
