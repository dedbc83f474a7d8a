"""Training and evaluation data released with 4D-Humans: names, files, weights. Data only.

Source: shubham-goel/4D-Humans (hmr2/configs/datasets_tar.yaml, datasets_eval.yaml,
configs_hydra/data/mix_all.yaml, datasets/image_dataset.py).
"""

from pathlib import Path
from typing import NamedTuple


class Training(NamedTuple):
    folder: str
    shards: int
    weight: float  # in the mix
    epoch_size: int  # samples, as released; unused by the mix


# Under hmr2_training_data/dataset_tars/.
TRAINING = {
    'h36m':         Training('h36m-train',                        313, .10,   314_000),
    'mpii':         Training('mpii-train',                         10, .10,   100_000),
    'coco':         Training('coco-train-2014-pruned',             18, .10,    18_000),
    'coco-vitpose': Training('coco-train-2014-vitpose-pruned',     45, .10,    45_000),
    'mpi-inf':      Training('mpi-inf-train-pruned',                7, .02,    12_000),
    'ava':          Training('ava-train-midframes-1fps-vitpose',   93, .19,   200_000),
    'aic':          Training('aic-train-vitpose',                 105, .19,   200_000),
    'insta':        Training('insta-train-vitpose-replicate',    3658, .20, 4_000_000),
}  # fmt: skip
MOCAP = 'cmu_mocap.npz'  # under hmr2_training_data/
POSE_HISTOGRAM = 'amass_poses_hist100_SMPL+H_G.npy'


class Evaluation(NamedTuple):
    file: str
    images: str  # folder that imgname is relative to
    dimensions: int  # 3: MPJPE and PA-MPJPE; 2: PCK


# Under hmr2_evaluation_data/.
EVALUATION = {
    'lsp-extended':  Evaluation('hr-lspet_train.npz',     'hr-lspet',     2),
    'coco-val':      Evaluation('coco_val.npz',           'coco',         2),
    'posetrack-val': Evaluation('posetrack_2018_val.npz', 'posetrack',    2),
    '3dpw-test':     Evaluation('3dpw_test.npz',          '3DPW',         3),
    'h36m-val-p2':   Evaluation('h36m_val_p2.npz',        'h36m/images',  3),
}  # fmt: skip


def training_sets(
    root: str | Path = 'data/hmr2_training_data', pose_histogram: bool = True
) -> dict:
    """Arguments of `MixedPeople`: dict(datasets=..., weights=...).

    Args:
        root: folder of the unpacked 4D-Humans training data.
        pose_histogram: remove improbable poses by the histogram in `root`.
    """
    filters = dict(pose_histogram=f'{root}/{POSE_HISTOGRAM}') if pose_histogram else dict()
    datasets = [
        dict(
            type='ShardPeople',
            name=name,
            urls=f'{root}/dataset_tars/{row.folder}/{{000000..{row.shards - 1:06}}}.tar',
            filters=filters,
        )
        for name, row in TRAINING.items()
    ]
    return dict(datasets=datasets, weights=[row.weight for row in TRAINING.values()])


def evaluation_sets(
    root: str | Path = 'data/hmr2_evaluation_data', images: str | Path = 'data'
) -> list[dict]:
    """Configs of the five evaluation sets for `ConcatPeople`, those of PCK first."""
    return [
        dict(
            type='NpzPeople',
            name=name,
            ann_file=f'{root}/{row.file}',
            img_dir=f'{images}/{row.images}',
        )
        for name, row in EVALUATION.items()
    ]
