"""Recipe of HMR2.0 (4D-Humans) on its mix of data: 8 GPUs x 48, AdamW 1e-5, adversarial loss.

The paper's 1 M steps count both optimizers; here an iteration updates the generator and the
discriminator once, hence 500 000 iterations. The official run trains in float16: `tools/train.py
--amp`.
"""

_base_ = './runtime.py'
from trunchier.zoo import datasets as released

# model: backbone, neck and head sizes are filled in by trunchier.zoo.model_cfg
model = dict(
    type='MeshEstimator',
    data_preprocessor=dict(
        type='PoseDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
    ),
    head=dict(type='HMR2Head'),
    discriminator=dict(type='HMRDiscriminator'),
    test_cfg=dict(with_vertices=False),
)
model_wrapper_cfg = dict(type='MMSeparateDistributedDataParallel')
sync_bn = 'torch'

# schedule
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-5, weight_decay=1e-4),
    constructor='TwoOptimWrapperConstructor',
)
train_cfg = dict(type='StreamTrainLoop', max_iters=500_000, val_interval=10_000)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=384)
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=10_000, max_keep_ckpts=3))
log_processor = dict(by_epoch=False)

# data
data_root = 'data/'
train_pipeline = [
    dict(type='AugmentPerson'),
    dict(type='CropPerson'),
    dict(type='AddRealPoses', path=f'{data_root}hmr2_training_data/cmu_mocap.npz'),
    dict(type='PackPerson'),
]
val_pipeline = [dict(type='CropPerson', aspect=(192, 256)), dict(type='PackPerson')]
train_dataloader = dict(
    batch_size=48,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type='MixSampler'),
    dataset=dict(
        type='MixedPeople',
        pipeline=train_pipeline,
        **released.training_sets(f'{data_root}hmr2_training_data'),
    ),
)
val_dataloader = dict(
    batch_size=48,
    num_workers=8,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False, round_up=False),
    dataset=dict(
        type='ConcatPeople',
        datasets=released.evaluation_sets(f'{data_root}hmr2_evaluation_data'),
        pipeline=val_pipeline,
    ),
)
test_dataloader = val_dataloader
sets = released.EVALUATION
val_evaluator = [
    dict(type='MeshPCK', datasets=[name for name in sets if sets[name].dimensions == 2]),
    dict(type='MeshJointError', datasets=[name for name in sets if sets[name].dimensions == 3]),
]
test_evaluator = val_evaluator
del sets  # a dumped config with it could not be read
