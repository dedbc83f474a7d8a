_base_ = '../_base_/bottomup.py'
from trunchier.zoo import model_cfg, optim_cfg

model = model_cfg('vm-t-s3')
optim_wrapper = optim_cfg('vm-t-s3')
