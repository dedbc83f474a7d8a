import io
import os
import pickle
import tarfile
from collections import Counter

import cv2
import numpy as np
import people
import pytest

from trunchier.datasets import ShardPeople, shard_index, shards
from trunchier.datasets.annotations import BadRecord


def ready(urls, **kwargs):
    dataset = ShardPeople(urls, **kwargs)
    dataset.full_init()
    return dataset


def test_records_are_those_that_webdataset_reads(tmp_path):
    from webdataset import WebDataset

    folder = people.write_shards(tmp_path / 'set', shards=2, members=4)
    dataset = ready(folder, filters=None)
    urls = [str(path) for path in sorted(folder.glob('*.tar'))]
    wanted = list(WebDataset(urls, shardshuffle=False))
    assert len(dataset) == len(wanted) == 8
    for index, member in enumerate(wanted):
        record = dataset.record(index)
        (data,) = pickle.loads(member['data.pyd'])
        assert record['key'] == member['__key__']
        assert record['dataset'] == 'set'
        np.testing.assert_array_equal(record['keypoints_3d'], data['keypoints_3d'])
        image = cv2.imdecode(np.frombuffer(member['jpg'], np.uint8), cv2.IMREAD_COLOR)
        np.testing.assert_array_equal(record['image'], image)


def test_every_person_of_an_image_is_a_record(tmp_path):
    group = [people.annotation(n, betas=np.full(10, n / 10)) for n in range(3)]
    group[1]['keypoints_2d'][4:, 2] = 0  # dropped: four keypoints
    path = people.write_shard(tmp_path / 'a.tar', [people.sample('k', group)])
    dataset = ready(path)
    assert [round(float(dataset.record(i)['betas'][0]) * 10) for i in range(2)] == [0, 2]
    assert len(dataset) == 2
    assert dataset.facts['dropped'] == {'few keypoints': 1}


@pytest.mark.parametrize('suffix', ['jpg', 'JPG', 'jpeg', 'png'])
def test_images_may_be_jpeg_or_png(tmp_path, suffix):
    picture = people.ramp()
    data = cv2.imencode('.' + suffix.lower(), picture)[1].tobytes()
    sample = people.sample('k', [people.annotation()])
    del sample['jpg']
    sample[suffix] = data
    dataset = ready(people.write_shard(tmp_path / 'a.tar', [sample]))
    difference = dataset.record(0)['image'].astype(int) - picture
    assert np.abs(difference).max() <= (0 if suffix == 'png' else 12)


def test_masks_belong_to_their_person(tmp_path):
    masks = np.zeros((2, 96, 128), bool)
    masks[1, 10:20, 30:40] = True
    file = io.BytesIO()
    np.savez(file, masks=masks)
    data = people.annotation(extra_info={'detection_npz_idx': 1})
    sample = {**people.sample('k', [data]), 'detection.npz': file.getvalue()}
    path = people.write_shard(tmp_path / 'a.tar', [sample])
    np.testing.assert_array_equal(ready(path, masks=True).record(0)['mask'], masks[1] * 255)
    assert ready(path).record(0)['mask'] is None


def test_filters_apply_to_records_as_they_are_read(tmp_path):
    data = people.annotation()
    data['keypoints_2d'][7, 2] = 0.2
    path = people.write_shard(tmp_path / 'a.tar', [people.sample('k', [data])])
    assert ready(path).record(0)['keypoints_2d'][7, 2] == 0
    assert ready(path, filters=None).record(0)['keypoints_2d'][7, 2] == pytest.approx(0.2)


def test_the_corrupt_images_of_aic_are_skipped(tmp_path):
    known = sorted(shard_index.CORRUPT_KEYS)
    assert len(known) == 9
    keys = [f'aic-train-vitpose/{known[0]}', f'aic-train/{known[1]}', 'aic-train/fine']
    keys += [f'other/{known[2]}']
    path = people.write_shard(
        tmp_path / 'a.tar', [people.sample(key, [people.annotation()]) for key in keys]
    )
    dataset = ready(path)
    assert [dataset.record(i)['key'] for i in range(len(dataset))] == keys[2:]


# --- What is bad ---------------------------------------------------------------------------------
class Forbidden:
    def __reduce__(self):
        return os.system, ('echo never',)


GOOD = 199


def shard_with(tmp_path, *bad):
    """One in which 199 people are good; at 1 % bad, one or two more are tolerated."""
    samples = [people.sample(f'good{n}', [people.annotation(n % 3)]) for n in range(GOOD)]
    return people.write_shard(tmp_path / 'a.tar', [*samples[:100], *bad, *samples[100:]])


@pytest.mark.parametrize(
    ('content', 'kind'),
    [
        (pickle.dumps([Forbidden()]), 'unreadable annotation'),
        (pickle.dumps([people.annotation()])[:-30], 'unreadable annotation'),
        (b'', 'unreadable annotation'),
        (pickle.dumps('no list'), 'unreadable annotation'),
        ([people.annotation(body_pose=np.zeros(71))], 'malformed annotation'),
        ([people.annotation(betas=np.full(10, np.nan))], 'malformed annotation'),
        ([{'center': np.zeros(2)}], 'malformed annotation'),
        ([people.annotation(scale=np.zeros(2))], 'zero-size box'),
    ],
)
def test_bad_annotations_are_skipped_and_counted(tmp_path, content, kind):
    dataset = ready(shard_with(tmp_path, people.sample('bad', content)))
    assert dataset.facts['bad'] == {kind: 1}
    assert 'bad' in dataset.facts['examples'][0]
    assert len(dataset) == GOOD
    assert 'bad' not in {dataset.record(i)['key'] for i in range(GOOD)}


def test_a_forbidden_class_is_named_and_not_executed(tmp_path, capfd):
    dataset = ready(shard_with(tmp_path, people.sample('bad', pickle.dumps([Forbidden()]))))
    assert 'system' in dataset.facts['examples'][0]
    assert 'never' not in capfd.readouterr().out.splitlines()


@pytest.mark.parametrize('missing', ['jpg', 'data.pyd'])
def test_incomplete_members_are_skipped_and_counted(tmp_path, missing):
    sample = people.sample('bad', [people.annotation()])
    del sample[missing]
    dataset = ready(shard_with(tmp_path, sample))
    assert dataset.facts['bad'] == {'incomplete member': 1}
    assert len(dataset) == GOOD


@pytest.mark.parametrize('cut', [0.5, 0.503, 0.7])
def test_a_truncated_tar_keeps_its_intact_part(tmp_path, cut):
    path = shard_with(tmp_path)
    whole = ready(path)
    keys = [whole.record(i)['key'] for i in range(len(whole))]
    os.truncate(path, int(path.stat().st_size * cut))
    part = ready(path, max_bad_share=0.6)
    assert part.facts['bad']['damaged shard'] == len(part)  # no whole one tells how many are lost
    assert cut * GOOD - 3 < len(part) < cut * GOOD + 1
    assert [part.record(i)['key'] for i in range(len(part))] == keys[: len(part)]


def test_a_tar_truncated_between_members_is_detected(tmp_path):
    path = shard_with(tmp_path)
    with tarfile.open(path) as tar:
        offset = tar.getmembers()[100].offset
    os.truncate(path, offset)
    dataset = ready(path, max_bad_share=0.5)
    assert len(dataset) == 50
    assert 'no end mark' in dataset.facts['examples'][0]


def test_a_file_that_is_not_a_tar_is_an_error(tmp_path):
    (tmp_path / 'a.tar').write_bytes(b'no tar at all' * 1000)
    with pytest.raises(RuntimeError, match='1 of 1 records are bad .1 damaged shard'):
        ready(tmp_path / 'a.tar')


def test_too_many_bad_annotations_are_an_error(tmp_path):
    bad = [people.sample(f'bad{n}', [people.annotation(scale=np.zeros(2))]) for n in range(3)]
    with pytest.raises(RuntimeError, match='3 of 202 records are bad'):
        ready(shard_with(tmp_path, *bad))


def test_a_set_without_people_is_an_error(tmp_path):
    nobody = people.annotation(keypoints_2d=np.zeros((44, 3)))
    path = people.write_shard(tmp_path / 'a.tar', [people.sample('k', [nobody])])
    with pytest.raises(ValueError, match='no person is left.*1 few keypoints'):
        ready(path)


@pytest.mark.parametrize(
    'damage',
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[: len(data) // 2] + b'\0' * (len(data) // 2),
        lambda data: b'',
        lambda data: b'not a picture',
    ],
)
def test_undecodable_images_are_bad_records(damage):
    noise = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)
    for suffix in ('.jpg', '.png'):
        data = cv2.imencode(suffix, noise)[1].tobytes()
        assert shard_index.decode_image(data).shape == (96, 128, 3)
        with pytest.raises(BadRecord, match='bytes') as error:
            shard_index.decode_image(damage(data))
        assert error.value.kind == 'undecodable image'


def test_exif_orientation_is_ignored():
    data = people.jpeg(height=60, width=100)
    exif = b'Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0'
    turned = data[:2] + b'\xff\xe1' + (len(exif) + 2).to_bytes(2, 'big') + exif + data[2:]
    assert cv2.imdecode(np.frombuffer(turned, np.uint8), cv2.IMREAD_COLOR).shape[:2] == (100, 60)
    assert shard_index.decode_image(turned).shape[:2] == (60, 100)


# --- Index ---------------------------------------------------------------------------------------
def test_a_shard_is_indexed_once(tmp_path, monkeypatch):
    folder = people.write_shards(tmp_path / 'set', shards=2)
    first = ready(folder)
    monkeypatch.setattr(shards, 'index_shard', None)
    second = ready(folder)
    assert second.facts == first.facts
    assert second.record(7)['key'] == first.record(7)['key']


@pytest.mark.slow
def test_shards_are_indexed_by_several_processes(tmp_path):
    folder = people.write_shards(tmp_path / 'set', shards=3)
    facts = ShardPeople(folder).index(workers=2)
    assert facts['persons'] == 15
    assert len(list((folder / '.trunchier_index').iterdir())) == 3


def test_a_changed_shard_or_filter_renews_the_index(tmp_path):
    path = people.write_shards(tmp_path / 'set', shards=1, members=3) / '000000.tar'
    assert len(ready(path)) == 3
    assert len(ready(path, filters=dict(max_fitting_loss=200.0, min_keypoints=3))) == 3
    people.write_shard(path, [people.sample('k', [people.annotation()])])
    assert len(ready(path)) == 1
    with pytest.raises(ValueError, match='no person is left'):
        ready(path, filters=dict(max_fitting_loss=50.0))


def test_a_damaged_index_is_renewed(tmp_path):
    folder = people.write_shards(tmp_path / 'set', shards=1)
    dataset = ready(folder)
    index = dataset.index_path(dataset.paths[0])
    index.write_bytes(index.read_bytes()[:200])
    assert ready(folder).record(0)['key'] == dataset.record(0)['key']


def test_an_index_that_cannot_be_saved_is_kept_in_memory(tmp_path):
    folder = people.write_shards(tmp_path / 'set', shards=2, members=3)
    (tmp_path / 'file').write_text('in the way')
    dataset = ready(folder, index_dir=str(tmp_path / 'file' / 'folder'))
    assert [dataset.record(i)['key'] for i in (0, 5)] == ['set/00000', 'set/00005']


def test_indices_may_have_a_folder_of_their_own(tmp_path):
    folder = people.write_shards(tmp_path / 'set', shards=1)
    ready(folder, index_dir=str(tmp_path / 'indices'))
    assert len(list((tmp_path / 'indices').iterdir())) == 1
    assert not (folder / '.trunchier_index').exists()


def test_missing_shards_are_named(tmp_path):
    folder = people.write_shards(tmp_path / 'set', shards=2)
    with pytest.raises(FileNotFoundError, match=r'3 of 5 shards are missing.*000002\.tar'):
        ready(f'{folder}/{{000000..000004}}.tar')


@pytest.mark.parametrize(
    ('urls', 'paths'),
    [
        ('a/{000000..00002}.tar', ['a/000000.tar', 'a/000001.tar', 'a/000002.tar']),
        ('a/{8..10}.tar', ['a/08.tar', 'a/09.tar', 'a/10.tar']),
        (['a/x.tar', 'b/{1..2}.tar'], ['a/x.tar', 'b/1.tar', 'b/2.tar']),
        ('a{1..2}/{3..4}', ['a1/3', 'a1/4', 'a2/3', 'a2/4']),
        ('https://a/{0..1}.tar', ['https://a/0.tar', 'https://a/1.tar']),
    ],
)
def test_braces_expand_to_numbers(urls, paths):
    assert shards.expand_urls(urls) == paths


# --- The stream ----------------------------------------------------------------------------------
def test_a_group_has_each_person_once_per_draw_of_its_shard(tmp_path):
    folder = people.write_shards(tmp_path / 'set', shards=3, members=5)
    dataset = ready(folder)
    for start in range(0, 60, 15):  # three visits of five people
        seen = Counter(dataset.locate(1, position) for position in range(start, start + 15))
        times = Counter()
        for index, number in seen.items():
            times[index // 5] = number
        assert all(seen[index] == times[index // 5] for index in range(15))
        assert sum(times.values()) == 3


def test_every_person_is_drawn_equally_often(tmp_path):
    folder = tmp_path / 'set'
    for number, members in enumerate((2, 5, 9)):
        group = [people.sample(f'{number}-{n}', [people.annotation()]) for n in range(members)]
        people.write_shard(folder / f'{number:06}.tar', group)
    dataset = ready(folder)
    draws = 16_000
    seen = np.bincount([dataset.locate(0, p) for p in range(draws)], minlength=16)
    assert seen.min() > 850 and seen.max() < 1150  # 1000 wanted; shards differ by 3 %


def test_positions_may_be_read_in_any_order(tmp_path):
    folder = people.write_shards(tmp_path / 'set', shards=4, members=5)
    there = [ready(folder).locate(3, position) for position in range(200)]
    again = ready(folder)
    back = [again.locate(3, position) for position in reversed(range(200))]
    assert back[::-1] == there
    assert [ready(folder).locate(4, position) for position in range(200)] != there


def test_a_far_position_is_located(tmp_path):
    dataset = ready(people.write_shards(tmp_path / 'set', shards=4, members=5))
    assert 0 <= dataset.locate(0, 50_000_000) < 20


def test_a_data_set_is_picklable(tmp_path):
    dataset = ready(people.write_shards(tmp_path / 'set', shards=1))
    before = dataset.record(2)['key']
    assert pickle.loads(pickle.dumps(dataset)).record(2)['key'] == before
