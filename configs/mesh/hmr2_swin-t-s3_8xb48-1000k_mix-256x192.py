_base_ = '../_base_/mesh.py'
from trunchier.zoo import model_cfg

model = model_cfg('swin-t-s3', 'mesh')
