r"""Synthetic crowds, from the pose weights that come with the package: everybody, without boxes.

python tools/make_synthetic.py --num 1200 --min-people 2 --max-people 5 --out data/crowds/train
python tools/make_synthetic.py --num 60 --min-people 2 --max-people 5 --seed 1000003 \
    --out data/crowds/test
python tools/train.py configs/bottomup/ae_vm-t-s2_synthetic-192x192.py --amp
"""

_base_ = '../_base_/bottomup.py'
from trunchier.files import shipped
from trunchier.zoo import model_cfg

codec = dict(_base_.codec, input_size=(192, 192), heatmap_size=(48, 48), sigma=1.5)
model = model_cfg('vm-t-s2')
model['backbone'].update(init_cfg=None, drop_path_rate=0.0, frozen_stages=1)
model['head'].update(deconv_out_channels=(128, 128), decoder=codec, tag_loss=dict(loss_weight=3e-4))
model['init_cfg'] = dict(
    type='OfficialPretrained',
    checkpoint=str(shipped.asset('VMPose-T-S2.safetensors')),
    parts=['backbone', 'neck'],
)

train_cfg = dict(max_epochs=8, val_interval=8)
optim_wrapper = dict(
    optimizer=dict(lr=1e-3, weight_decay=0.05), paramwise_cfg=dict(layer_decay_rate=1.0)
)
param_scheduler = [
    dict(type='LinearLR', begin=0, end=100, start_factor=0.01, by_epoch=False),
    dict(
        type='CosineAnnealingLR',
        begin=0,
        end=8,
        T_max=8,
        eta_min=1e-5,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]
default_hooks = dict(checkpoint=dict(interval=1), logger=dict(interval=10))
randomness = dict(seed=0)

data_root = 'data/crowds/'
train_pipeline = [
    dict(type='LoadImage'),
    dict(
        type='BottomupRandomAffine',
        input_size=codec['input_size'],
        scale_factor=(0.8, 1.25),
        rotate_factor=20.0,
    ),
    dict(type='RandomFlip', direction='horizontal'),
    dict(type='GenerateTarget', encoder=codec),
    dict(type='BottomupGetHeatmapMask'),
    dict(type='PackPoseInputs'),
]
val_pipeline = [
    dict(type='LoadImage'),
    dict(type='BottomupResize', input_size=codec['input_size']),
    _base_.val_pipeline[-1],
]
train_dataloader = dict(
    batch_size=16,
    num_workers=1,
    dataset=dict(
        data_root=data_root,
        ann_file='train/annotations.json',
        data_prefix=dict(img='train/images/'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    num_workers=1,
    dataset=dict(
        data_root=data_root,
        ann_file='test/annotations.json',
        data_prefix=dict(img='test/images/'),
        pipeline=val_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=f'{data_root}test/annotations.json')
test_evaluator = val_evaluator
