import pickle
import re
from collections import Counter
from itertools import islice

import numpy as np
import people
import pytest
import torch
from mmengine.registry import DATASETS
from mmengine.runner import Runner

import trunchier.datasets.people as module
from trunchier.datasets import ConcatPeople, MixedPeople, MixSampler, People, ShardPeople
from trunchier.datasets.annotations import BadRecord

PIPELINE = [
    dict(type='AugmentPerson'),
    dict(type='CropPerson', size=64),
    dict(type='AddRealPoses'),
    dict(type='PackPerson'),
]


class Numbers(People):
    """Records that are only numbers; those in `bad` cannot be used."""

    def __init__(self, size, name='numbers', bad=()):
        super().__init__(name)
        self.size = size
        self.bad = bad

    def __len__(self):
        return self.size

    def record(self, index):
        if index in self.bad:
            raise BadRecord('undecodable image', 'it is bad')
        return dict(index=index, dataset=self.name)


def numbers(dataset, positions, seed=0):
    records = [dataset[seed, position] for position in positions]
    return [(record['dataset'], record['index']) for record in records]


def loader(dataset, batch_size, num_workers=0, **sampler):
    return Runner.build_dataloader(
        dict(
            dataset=dataset,
            sampler=dict(type='MixSampler', **sampler),
            batch_size=batch_size,
            num_workers=num_workers,
        ),
        seed=5,
    )


@pytest.fixture
def mix(tmp_path):
    """Config of a mix of two small sets of shards, 15 and 8 people."""
    sets = [('a', 3, 5), ('b', 2, 4)]
    for name, count, members in sets:
        people.write_shards(tmp_path / name, count, members)
    return dict(
        type='MixedPeople',
        datasets=[dict(type='ShardPeople', urls=str(tmp_path / name)) for name, _, _ in sets],
        weights=[3, 1],
        epoch_size=40,
        pipeline=PIPELINE,
    )


def test_data_sets_are_drawn_by_weight():
    mix = MixedPeople([Numbers(50, 'a'), Numbers(50, 'b'), Numbers(9, 'c')], [0.5, 0.48, 0.02])
    drawn = Counter(name for name, _ in numbers(mix, range(50_000)))
    assert drawn['a'] / 50_000 == pytest.approx(0.5, abs=0.01)
    assert drawn['b'] / 50_000 == pytest.approx(0.48, abs=0.01)
    assert drawn['c'] / 50_000 == pytest.approx(0.02, abs=0.003)


def test_neighbors_in_the_mix_are_independent():
    mix = MixedPeople([Numbers(50, 'a'), Numbers(50, 'b')], [1, 1])
    names = np.array([mix.locate(0, position)[0] for position in range(40_000)])
    repeats = (names[1:] == names[:-1]).mean()
    assert repeats == pytest.approx(0.5, abs=0.01)


def test_no_record_repeats_within_an_epoch():
    mix = MixedPeople([Numbers(70, 'a'), Numbers(30, 'b')], [1, 2])
    drawn = numbers(mix, range(30_000, 40_000))  # across a block's edge, at 32768
    for name, size in (('a', 70), ('b', 30)):
        indices = [index for each, index in drawn if each == name]
        start = -mix.locate(0, 30_000 + next(i for i, d in enumerate(drawn) if d[0] == name))[1]
        first = start % size
        for low in range(first, len(indices) - size, size):
            assert sorted(indices[low : low + size]) == list(range(size))


def test_positions_of_each_stream_are_used_once():
    mix = MixedPeople([Numbers(70, 'a'), Numbers(30, 'b')], [1, 2])
    block = module._Mix.BLOCK
    places = [mix.locate(7, position) for position in range(2 * block + 100)]
    for number in (0, 1):
        own = [place for each, place in places if each == number]
        assert own == list(range(len(own)))
    again = MixedPeople([Numbers(70, 'a'), Numbers(30, 'b')], [1, 2])
    assert again.locate(7, 2 * block + 99) == places[-1]


def test_other_seeds_give_other_streams():
    mix = MixedPeople([Numbers(70, 'a'), Numbers(30, 'b')])
    assert numbers(mix, range(50), seed=1) != numbers(mix, range(50), seed=2)


@pytest.mark.parametrize('weights', [[1], [1, 0], [1, -1], [1, float('nan')]])
def test_invalid_weights_are_an_error(weights):
    with pytest.raises(ValueError, match='each of the 2 data sets requires a weight above 0'):
        MixedPeople([Numbers(1, 'a'), Numbers(1, 'b')], weights)


def test_equal_names_are_an_error():
    with pytest.raises(ValueError, match='must be unique'):
        MixedPeople([Numbers(1), Numbers(1)])


def test_a_bad_record_is_replaced_and_counted():
    mix = MixedPeople([Numbers(50, 'a', bad={3, 4}), Numbers(50, 'b')], max_bad_share=0.1)
    drawn = numbers(mix, range(400))
    assert len(drawn) == 400 and not {('a', 3), ('a', 4)} & set(drawn)
    a, b = mix.bad_counts
    assert a.good + b.good == 400
    assert a.bad['undecodable image'] == pytest.approx(8, abs=2)
    assert b.bad == {}
    assert numbers(mix, range(400)) == drawn


def test_too_many_bad_records_stop_training():
    mix = MixedPeople([Numbers(50, 'a', bad=set(range(5)))], max_bad_share=0.05)
    with pytest.raises(RuntimeError, match='a: .* records are bad .*undecodable image'):
        numbers(mix, range(1000))


def test_bad_records_are_counted_over_all_workers(mix, tmp_path):
    shard = tmp_path / 'b' / '000000.tar'
    data = shard.read_bytes()
    assert data.count(b'\xff\xd9') == 4  # half of the pictures of b
    shard.write_bytes(data.replace(b'\xff\xd9', b'\0\0'))
    batches = loader(mix, 4, num_workers=2)
    with pytest.raises(RuntimeError, match=r'b: \d+ of 2\d\d records are bad .*undecodable image'):
        for _ in batches:
            pass
    assert batches.dataset.bad_counts[1].bad['undecodable image'] >= 100


# --- The sampler, and the loader that mmengine builds --------------------------------------------
def summary(batch):
    """What identifies each sample of a batch: who, and how it was augmented."""
    return [
        (s.dataset, s.key, s.warp.tobytes(), int(x.sum()), s.gt_instances.real_body_pose.tobytes())
        for x, s in zip(batch['inputs'], batch['data_samples'], strict=True)
    ]


def first_batches(batches, number):
    iterator = iter(batches)
    return [summary(next(iterator)) for _ in range(number)]


def test_samples_do_not_depend_on_the_number_of_workers(mix):
    alone = first_batches(loader(mix, 4), 6)
    assert first_batches(loader(mix, 4, num_workers=2), 6) == alone
    assert len({sample[2] for batch in alone for sample in batch}) == 24


def test_resuming_continues_where_it_stopped(mix):
    straight = first_batches(loader(mix, 4), 6)
    resumed = loader(mix, 4)
    resumed.sampler.position = 3 * 4
    assert first_batches(resumed, 3) == straight[3:]


def test_another_seed_is_another_stream(mix):
    straight = first_batches(loader(mix, 4), 2)
    other = loader(mix, 4, num_workers=1)
    other.sampler.seed = 6
    assert first_batches(other, 2) != straight
    other.sampler.seed = 5
    assert first_batches(other, 2) == straight


def ranks(monkeypatch, world):
    for rank in range(world):
        monkeypatch.setattr(module, 'get_dist_info', lambda rank=rank: (rank, world))
        yield rank


def test_two_ranks_see_the_samples_of_one_rank_with_the_joint_batch(mix, monkeypatch):
    joint = first_batches(loader(mix, 6), 4)
    dataset = DATASETS.build(mix)
    parts = [first_batches(loader(dataset, 3), 4) for _ in ranks(monkeypatch, 2)]
    for whole, *halves in zip(joint, *parts, strict=True):
        assert sorted(sum(halves, [])) == sorted(whole)


def test_ranks_split_the_stream_evenly(monkeypatch):
    dataset = MixedPeople([Numbers(10)], epoch_size=11)
    seen = []
    for _ in ranks(monkeypatch, 3):
        sampler = MixSampler(dataset, seed=1)
        assert len(sampler) == 3
        seen += [position for _, position in islice(sampler, 3)]
    assert sorted(seen) == list(range(9))


def test_an_endless_sampler_does_not_end_with_the_epoch():
    sampler = iter(MixSampler(MixedPeople([Numbers(10)], epoch_size=3), seed=1))
    assert [next(sampler) for _ in range(5)] == [(1, position) for position in range(5)]


@pytest.mark.slow
def test_a_mix_is_usable_in_spawned_workers(mix):
    dataset = DATASETS.build(mix)
    dataset.full_init()
    batches = torch.utils.data.DataLoader(
        dataset,
        4,
        sampler=MixSampler(dataset, seed=5),
        num_workers=1,
        multiprocessing_context='spawn',
        collate_fn=summary_of_samples,
    )
    iterator = iter(batches)
    assert [next(iterator) for _ in range(2)] == first_batches(loader(mix, 4), 2)


def summary_of_samples(samples):
    return summary({name: [s[name] for s in samples] for name in ('inputs', 'data_samples')})


# --- One after the other -------------------------------------------------------------------------
def test_concatenated_data_sets_keep_their_order():
    joined = ConcatPeople([Numbers(2, 'a'), Numbers(3, 'b')])
    joined.full_init()
    found = [(joined[i]['dataset'], joined[i]['index']) for i in range(len(joined))]
    assert found == [('a', 0), ('a', 1), ('b', 0), ('b', 1), ('b', 2)]


def test_a_missing_data_set_is_an_error(tmp_path):
    sets = [ShardPeople(str(tmp_path / 'none.tar'), name='none'), Numbers(2)]
    with pytest.raises(FileNotFoundError, match='1 of 1 shards are missing'):
        ConcatPeople(sets).full_init()


def test_metainfo_names_the_44_joints():
    info = Numbers(1, 'a').metainfo
    assert info['dataset_name'] == 'a' and info['num_keypoints'] == 44
    assert info['keypoint_name2id']['extra_pelvis_mpii'] == 39
    names = info['keypoint_id2name']
    for a, b in info['skeleton_links']:
        # A limb never joins a left and a right joint.
        sides = {re.sub(r'.*(left|right).*', r'\1', names[j]) for j in (a, b)}
        assert not {'left', 'right'} <= sides


def test_a_pickled_mix_keeps_its_counts():
    mix = MixedPeople([Numbers(5)])
    numbers(mix, range(3))
    assert pickle.loads(pickle.dumps(mix)).bad_counts[0].good == 3
