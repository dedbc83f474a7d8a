"""MixSTE on the sequences of MPI-INF-3DHP; the root is the pelvis, joint 14."""

_base_ = './mixste_243frm_h36m.py'

codec = dict(_base_.codec, root_index=14)
model = dict(head=dict(decoder=codec))
target = dict(type='GenerateTarget', encoder=codec)
train_dataloader = dict(
    dataset=dict(
        type='MPIInf3dhpSequences',
        ann_file='annotations/mpi_inf_3dhp_train.npz',
        camera_param_file=None,
        data_root='data/mpi_inf_3dhp/',
        pipeline=[target, *_base_.train_pipeline[1:]],
    )
)
val_dataloader = dict(
    dataset=dict(
        type='MPIInf3dhpSequences',
        ann_file='annotations/mpi_inf_3dhp_test_valid.npz',
        camera_param_file=None,
        data_root='data/mpi_inf_3dhp/',
        pipeline=[target, *_base_.val_pipeline[1:]],
    )
)
test_dataloader = val_dataloader
val_evaluator = [
    dict(type='MPJPE', mode='mpjpe'),
    dict(type='MPJPE', mode='p-mpjpe'),
    dict(type='TrackErrors', kind='3d'),
]
test_evaluator = val_evaluator
