"""D3DP: joints by diffusion on MixSTE, 34.8 M parameters."""

_base_ = './mixste_243frm_h36m.py'

model = dict(type='DiffusionLifter', backbone=dict(in_channels=5))
train_cfg = dict(max_epochs=400)
optim_wrapper = dict(optimizer=dict(lr=6e-5))
