"""KTPFormer: 35.2 M parameters, 153.9 GMAC."""

_base_ = './mixste_243frm_h36m.py'

model = dict(backbone=dict(type='KTPFormer'))
train_cfg = dict(max_epochs=200)
optim_wrapper = dict(optimizer=dict(lr=8e-5))
