"""MixSTE: 33.8 M parameters, 277.2 G."""

_base_ = '../_base_/lifting.py'

model = dict(backbone=dict(type='MixSTE'))
