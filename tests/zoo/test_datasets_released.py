import pytest
from mmengine.registry import DATASETS

import trunchier.datasets  # noqa: F401
from trunchier.zoo import datasets as released

# 4D-Humans, hmr2_training_facts of its configs: last shard and weight of each set.
OFFICIAL = {
    'h36m-train/000312.tar': 0.1,
    'mpii-train/000009.tar': 0.1,
    'coco-train-2014-pruned/000017.tar': 0.1,
    'coco-train-2014-vitpose-pruned/000044.tar': 0.1,
    'mpi-inf-train-pruned/000006.tar': 0.02,
    'ava-train-midframes-1fps-vitpose/000092.tar': 0.19,
    'aic-train-vitpose/000104.tar': 0.19,
    'insta-train-vitpose-replicate/003657.tar': 0.2,
}


def test_the_mix_is_the_official_one_and_builds_without_data():
    mix = DATASETS.build(dict(type='MixedPeople', **released.training_sets('somewhere')))
    last = [dataset.paths[-1] for dataset in mix.datasets]
    assert last == [f'somewhere/dataset_tars/{path}' for path in OFFICIAL]
    assert mix.weights == pytest.approx(list(OFFICIAL.values()))
    assert all(dataset.paths[0].endswith('/000000.tar') for dataset in mix.datasets)
    assert sum(len(dataset.paths) for dataset in mix.datasets) == 4249


def test_missing_training_data_says_what_to_do():
    mix = DATASETS.build(
        dict(type='MixedPeople', **released.training_sets('somewhere', pose_histogram=False))
    )
    with pytest.raises(FileNotFoundError, match='313 of 313 shards are missing.*check_data.py'):
        mix.full_init()


def test_the_five_evaluation_sets_build_without_data():
    sets = released.evaluation_sets()
    joined = DATASETS.build(dict(type='ConcatPeople', datasets=sets))
    dimensions = {name: row.dimensions for name, row in released.EVALUATION.items()}
    assert [dataset.name for dataset in joined.datasets] == list(dimensions)
    assert sorted(dimensions.values()) == [2, 2, 2, 3, 3]
