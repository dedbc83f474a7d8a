"""Broken shards, pictures and indices are counted and passed over, whatever is broken in them.

Each fuzzer prints its seed when it fails.
"""

import contextlib
import io
import pickle
import random
import struct
import tarfile
import zlib

import cv2
import numpy as np
import people
import pytest

from trunchier.datasets import ShardPeople, shard_index
from trunchier.datasets.annotations import BadRecord, check_annotation
from trunchier.files.images import ImageError, decode_image

CASES = 100
MORE = pytest.param(3000, marks=pytest.mark.slow)


def mutated(data, draw):
    """Bytes with some changed, removed, repeated or set to a boundary value."""
    data = bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 5, 20])):
        start = draw.randrange(len(data))
        kind = draw.randrange(5)
        if kind == 0:
            data[start] ^= 1 << draw.randrange(8)
        elif kind == 1:
            data[start] = draw.choice([0, 1, 127, 128, 255])
        elif kind == 2:
            number = draw.choice([0, 1, -1, 1 << 31, (1 << 32) - 1]) & 0xFFFFFFFF
            data[start : start + 4] = struct.pack('<I', number)
        elif kind == 3 and len(data) > 64:
            del data[start : start + draw.randrange(1, 64)]
        else:
            data[start:start] = data[start : start + draw.randrange(1, 64)]
    return bytes(data[: draw.randrange(1, len(data) + 1)] if draw.random() < 0.1 else data)


def seeds(count):
    start = random.randrange(1 << 30)
    return range(start, start + count)


# --- Records -------------------------------------------------------------------------------------
def fitting(loss):
    return dict(extra_info={'fitting_loss': loss})


BROKEN = {
    'no dict': [],
    'mixed keys': {1: 2, 'scale': 3, None: 4},
    'extra_info is None': people.annotation(extra_info=None),
    'extra_info is a list': people.annotation(extra_info=[1]),
    'fitting_loss is a number': people.annotation(**fitting(3.0)),
    'fitting_loss is an array of numbers': people.annotation(**fitting(np.zeros(3))),
    'reprojection_loss is text': people.annotation(**fitting(dict(reprojection_loss='big'))),
    'a number beyond floats': people.annotation(center=[10**400, 1]),
    'a pose beyond all angles': people.annotation(body_pose=np.full(72, 1e30)),
    'betas beyond all people': people.annotation(betas=np.full(10, -1e4)),
    'a box beyond all images': people.annotation(center=np.array([1e9, 0.0])),
    'a seen joint beyond all images': people.annotation(keypoints_2d=np.full((44, 3), 1e30)),
}


@pytest.mark.parametrize('name', BROKEN)
def test_a_broken_annotation_is_a_bad_record(name):
    with pytest.raises(BadRecord):
        check_annotation(BROKEN[name])


def test_broken_annotations_of_a_shard_are_counted_and_the_others_kept(tmp_path):
    samples = [people.sample(f'set/{n}', [people.annotation(n)]) for n in range(30)]
    samples += [people.sample(f'set/bad{n}', [data]) for n, data in enumerate(BROKEN.values())]
    people.write_shard(tmp_path / 'a.tar', samples)
    dataset = ShardPeople(str(tmp_path), max_bad_share=0.9)
    dataset.full_init()
    assert dataset.facts['bad'] == {'malformed annotation': len(BROKEN)}
    assert len(dataset) == 30


def test_unseen_joints_may_be_anywhere():
    keypoints = np.full((44, 3), 1e30)
    keypoints[:, 2] = 0
    assert not check_annotation(people.annotation(keypoints_2d=keypoints))['keypoints_2d'].any()


def write_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, 'w', format=tarfile.GNU_FORMAT, errors='surrogateescape') as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_a_name_that_is_not_text_is_a_bad_record(tmp_path):
    name, data = (
        b'set/\xff\xfe'.decode(errors='surrogateescape'),
        pickle.dumps([people.annotation()]),
    )
    members = [(name + '.jpg', people.jpeg()), (name + '.data.pyd', data)]
    members += [('set/1.jpg', people.jpeg()), ('set/1.data.pyd', data)]
    dataset = ShardPeople(str(write_tar(tmp_path / 'a.tar', members)), max_bad_share=0.9)
    dataset.full_init()
    assert dataset.facts['bad'] == {'incomplete member': 1}
    assert [dataset.record(i)['key'] for i in range(len(dataset))] == ['set/1']


def npz(**arrays):
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


MASKS = np.ones((2, 96, 128), bool)


@pytest.mark.parametrize(
    ('index', 'masks'),
    [
        (None, npz(masks=MASKS)),
        (2, npz(masks=MASKS)),
        (-1, npz(masks=MASKS)),
        ('first', npz(masks=MASKS)),
        (0, npz(other=MASKS)),
        (0, npz(masks=MASKS[0])),
        (0, npz(masks=MASKS)[:-30]),
        (0, b'no archive'),
    ],
)
def test_a_mask_that_is_not_there_is_a_bad_record(tmp_path, index, masks):
    data = people.annotation(extra_info={} if index is None else dict(detection_npz_idx=index))
    people.write_shard(tmp_path / 'a.tar', [people.sample('k', [data], **{'detection.npz': masks})])
    dataset = ShardPeople(str(tmp_path), masks=True)
    dataset.full_init()
    with pytest.raises(BadRecord) as error:
        dataset.record(0)
    assert error.value.kind == 'unreadable mask'


def test_arrays_above_the_limit_are_refused_before_they_are_read(monkeypatch):
    monkeypatch.setattr(shard_index, 'MAX_MASKS', MASKS.size)
    with pytest.raises(BadRecord, match='more than 24576 bytes'):
        shard_index.read_mask(npz(masks=MASKS), 0)


def huge_png(side):
    def chunk(name, content):
        check = struct.pack('>I', zlib.crc32(name + content))
        return struct.pack('>I', len(content)) + name + content + check

    rows = zlib.compress(bytes(1000))
    header = struct.pack('>IIBBBBB', side, side, 8, 2, 0, 0, 0)
    parts = chunk(b'IHDR', header), chunk(b'IDAT', rows), chunk(b'IEND', b'')
    return b'\x89PNG\r\n\x1a\n' + b''.join(parts)


@pytest.mark.parametrize(
    ('image', 'message'),
    [
        (huge_png(20_000), '20000 x 20000 pixels are above the limit'),
        (b'\0\0\0\x0cjP  \r\n\x87\n' + bytes(99), 'JPEG 2000 is refused'),
    ],
)
def test_pictures_that_no_decoder_may_see_are_bad_records(tmp_path, image, message):
    sample = people.sample('k', [people.annotation()], image=image)
    people.write_shard(tmp_path / 'a.tar', [sample])
    dataset = ShardPeople(str(tmp_path))
    dataset.full_init()
    with pytest.raises(BadRecord, match=message):
        dataset.record(0)


# --- Damaged shards ------------------------------------------------------------------------------
def test_people_that_a_cut_shard_has_lost_are_counted(tmp_path):
    people.write_shards(tmp_path, shards=3, members=20)
    cut = tmp_path / '000001.tar'
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    dataset = ShardPeople(str(tmp_path), max_bad_share=0.9)
    dataset.full_init()
    assert len(dataset) + dataset.facts['bad']['damaged shard'] == 60
    assert len(dataset) < 52
    with pytest.raises(RuntimeError, match='records are bad'):
        ShardPeople(str(tmp_path), max_bad_share=0.1).full_init()


def test_a_shard_of_zeros_counts_for_all_of_its_people(tmp_path):
    people.write_shards(tmp_path, shards=3, members=20)
    zeros = tmp_path / '000002.tar'
    zeros.write_bytes(bytes(zeros.stat().st_size))
    dataset = ShardPeople(str(tmp_path), max_bad_share=0.5)
    dataset.full_init()
    assert dataset.facts['bad'] == {'damaged shard': 20}


def test_zeros_in_the_middle_of_a_shard_are_found(tmp_path):
    people.write_shards(tmp_path, shards=2, members=20)
    hole = tmp_path / '000001.tar'
    data = bytearray(hole.read_bytes())
    with tarfile.open(hole) as tar:
        start = tar.getmembers()[20].offset
    data[start : start + 4096] = bytes(4096)
    hole.write_bytes(data)
    dataset = ShardPeople(str(tmp_path), max_bad_share=0.5)
    dataset.full_init()
    assert dataset.facts['bad'] == {'damaged shard': 10}


def test_if_all_shards_are_damaged_half_counts_as_lost(tmp_path):
    for path in sorted(people.write_shards(tmp_path, shards=4, members=20).iterdir()):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(RuntimeError, match='records are bad .*damaged shard'):
        ShardPeople(str(tmp_path), max_bad_share=0.3).full_init()


# --- Fuzzers -------------------------------------------------------------------------------------
@pytest.mark.parametrize('cases', [CASES, MORE])
def test_a_mutated_shard_raises_nothing_but_bad_records(tmp_path, cases):
    good = people.write_shards(tmp_path / 'good', shards=1, members=3) / '000000.tar'
    content = good.read_bytes()
    for seed in seeds(cases):
        path = tmp_path / 'a.tar'
        path.write_bytes(mutated(content, random.Random(seed)))
        dataset = ShardPeople(str(path), name='a', masks=True, max_bad_share=1)
        try:
            dataset.full_init()
            for index in range(len(dataset)):
                with contextlib.suppress(BadRecord):
                    dataset.record(index)
        except ValueError as error:
            assert 'no person is left' in str(error), f'seed {seed}'
        except Exception as error:
            raise AssertionError(f'seed {seed}') from error


@pytest.mark.parametrize('cases', [CASES, MORE])
@pytest.mark.parametrize('suffix', ['.jpg', '.png', '.webp', '.bmp', '.tif'])
def test_a_mutated_picture_raises_nothing_but_image_errors(suffix, cases):
    noise = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    content = cv2.imencode(suffix, noise)[1].tobytes()
    for seed in seeds(cases):
        try:
            image = decode_image(mutated(content, random.Random(seed)), max_pixels=1_000_000)
            assert image.dtype == np.uint8 and image.shape[2] == 3
        except ImageError:
            pass
        except Exception as error:
            raise AssertionError(f'seed {seed}') from error


@pytest.mark.parametrize('cases', [CASES, MORE])
def test_a_mutated_index_is_made_anew(tmp_path, cases):
    people.write_shards(tmp_path, shards=1, members=3)
    dataset = ShardPeople(str(tmp_path), name='a')
    dataset.full_init()
    index = dataset.index_path(dataset.paths[0])
    content = index.read_bytes()
    for seed in seeds(cases):
        index.write_bytes(mutated(content, random.Random(seed)))
        dataset = ShardPeople(str(tmp_path), name='a')
        try:
            dataset.full_init()
            keys = [dataset.record(number)['key'] for number in range(len(dataset))]
        except Exception as error:
            raise AssertionError(f'seed {seed}') from error
        assert keys == ['set/00000', 'set/00001', 'set/00002'], f'seed {seed}'


def test_an_index_of_something_else_is_made_anew(tmp_path):
    people.write_shards(tmp_path, shards=1, members=3)
    dataset = ShardPeople(str(tmp_path), name='a')
    dataset.full_init()
    index = dataset.index_path(dataset.paths[0])
    with np.load(index) as saved:
        arrays = dict(saved)
    members, persons = arrays['members'].copy(), arrays['persons'].copy()
    members['image'] += 1 << 40
    persons[:, 0] += 7
    for changes in (
        dict(members=members),
        dict(persons=persons),
        dict(facts='[]'),
        dict(facts='{}'),
    ):
        np.savez(index, **{**arrays, **changes})
        dataset = ShardPeople(str(tmp_path), name='a')
        dataset.full_init()
        assert [dataset.record(number)['key'] for number in range(3)][0] == 'set/00000'
