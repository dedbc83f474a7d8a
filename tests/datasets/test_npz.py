import os
import pickle

import cv2
import numpy as np
import people
import pytest
from golden_rule import golden_tensor, load_golden

from trunchier.datasets import NpzPeople
from trunchier.datasets.npz import read_people_npz

PIPELINE = [dict(type='CropPerson', aspect=(192, 256)), dict(type='PackPerson')]


def arrays(count=3, **changes):
    """A small evaluation file."""
    rng = np.random.default_rng(0)
    content = dict(
        imgname=np.array([f'{n}.png' for n in range(count)]),
        center=rng.uniform(40, 60, (count, 2)),
        scale=rng.uniform(50, 90, (count, 2)),
        body_pose=rng.normal(0, 0.2, (count, 72)),
        has_body_pose=np.ones(count),
        betas=rng.normal(0, 1, (count, 10)),
        has_betas=np.ones(count),
        body_keypoints_2d=rng.uniform(0, 90, (count, 25, 3)),
        extra_keypoints_2d=rng.uniform(0, 90, (count, 19, 3)),
        body_keypoints_3d=rng.uniform(0.1, 1, (count, 25, 4)),
        extra_keypoints_3d=rng.uniform(0.1, 1, (count, 19, 4)),
    )
    content.update(changes)
    return {name: value for name, value in content.items() if value is not None}


@pytest.fixture
def folder(tmp_path):
    for number in range(3):
        cv2.imwrite(str(tmp_path / f'{number}.png'), people.ramp())
    return tmp_path


def dataset(folder, content=None, **kwargs):
    np.savez(folder / 'set.npz', **(arrays() if content is None else content))
    made = NpzPeople(str(folder / 'set.npz'), str(folder), **kwargs)
    made.full_init()
    return made


@pytest.mark.parametrize('item', load_golden('hmr2_datasets')['image_dataset'])
def test_items_equal_the_official_image_dataset(item, shared, tmp_path):
    def array(record):
        return golden_tensor(record).numpy()

    official = item['outputs']
    content = {name: array(record) for name, record in item['npz'].items()}
    np.savez(tmp_path / 'set.npz', imgname=np.array([item['image']]), **content)
    people_ = NpzPeople(
        str(tmp_path / 'set.npz'),
        str(shared / 'golden'),
        pipeline=[dict(type='CropPerson', aspect=item['bbox_shape']), dict(type='PackPerson')],
    )
    packed = people_[0]
    sample = packed['data_samples']
    instances = sample.gt_instances
    for ours, name in (('crop_keypoints_2d', 'keypoints_2d'), ('keypoints_3d', 'keypoints_3d')):
        np.testing.assert_allclose(instances.get(ours)[0], array(official[name]), atol=1e-6)
    np.testing.assert_allclose(sample.box_center, array(official['box_center']))
    np.testing.assert_allclose(sample.box_scale, array(official['_scale']))
    assert sample.box_size == pytest.approx(official['box_size'])
    assert sample.ori_shape[::-1] == tuple(official['img_size'])
    assert instances.has_pose[0] == official['has_body_pose']
    assert instances.has_betas[0] == official['has_betas']

    mean = np.array([123.675, 116.28, 103.53])[:, None, None]
    std = np.array([58.395, 57.12, 57.375])[:, None, None]
    image = (packed['inputs'].flip(0).numpy() - mean) / std
    index = np.linspace(0, image.size - 1, 256).astype(np.int64)
    errors = np.abs(image.reshape(-1)[index] - np.array(official['img']['samples']))
    assert errors.max() < 1e-5


def test_3d_joints_1_to_14_have_no_confidence(folder):
    confidence = dataset(folder).record(0)['keypoints_3d'][:, 3]
    assert (confidence[1:15] == 0).all()
    assert (confidence[[0, *range(15, 44)]] > 0).all()


def test_both_halves_of_the_keypoints_are_concatenated(folder):
    content = arrays()
    record = dataset(folder, content).record(1)
    np.testing.assert_allclose(record['keypoints_2d'][:25], content['body_keypoints_2d'][1])
    np.testing.assert_allclose(record['keypoints_2d'][25:], content['extra_keypoints_2d'][1])


@pytest.mark.parametrize('scale', [np.array([80.0, 90, 99]), np.array([[80.0], [90], [99]])])
def test_a_scalar_scale_is_a_square_box(folder, scale):
    record = dataset(folder, arrays(scale=scale)).record(1)
    np.testing.assert_allclose(record['scale'] * 200, [90, 90])


def test_absent_arrays_are_zero(folder):
    gone = ('body_pose', 'betas', 'body_keypoints_3d', 'extra_keypoints_3d', 'body_keypoints_2d')
    record = dataset(folder, arrays(**dict.fromkeys(gone))).record(0)
    assert not record['has_pose'] and not record['has_betas']
    assert not record['keypoints_3d'].any() and not record['keypoints_2d'][:25].any()
    assert record['keypoints_2d'][25:].any()


class Forbidden:
    def __reduce__(self):
        return os.system, ('echo never',)


@pytest.mark.parametrize(
    'names',
    [
        np.array(['0.png', '1.png', '2.png'], dtype=object),
        np.array([b'0.png', b'1.png', b'2.png']),
        np.array([b'0.png', b'1.png', b'2.png'], dtype=object),
    ],
)
def test_file_names_may_be_bytes_or_objects(folder, names):
    assert [dataset(folder, arrays(imgname=names)).record(i)['key'] for i in range(3)] == [
        '0.png',
        '1.png',
        '2.png',
    ]


def test_unused_objects_are_not_unpickled(folder, capfd):
    content = arrays(extra_info=np.array([Forbidden()] * 3, dtype=object))
    assert len(dataset(folder, content)) == 3
    assert 'never' not in capfd.readouterr().out.splitlines()


def test_forbidden_objects_are_an_error_and_not_executed(folder, capfd):
    content = arrays(imgname=np.array([Forbidden()] * 3, dtype=object))
    with pytest.raises(pickle.UnpicklingError, match='forbidden class'):
        dataset(folder, content)
    assert 'never' not in capfd.readouterr().out.splitlines()


@pytest.mark.parametrize('name', ['imgname', 'center', 'scale'])
def test_a_missing_array_is_named(folder, name):
    with pytest.raises(ValueError, match=rf"lacks \['{name}'\]; found"):
        dataset(folder, arrays(**{name: None}))


def test_a_file_without_keypoints_is_an_error(folder):
    gone = [f'{half}_keypoints_{d}d' for half in ('body', 'extra') for d in (2, 3)]
    with pytest.raises(ValueError, match='lacks keypoints'):
        dataset(folder, arrays(**dict.fromkeys(gone)))


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(body_pose=np.zeros((3, 69))), r'\(3, 72\) in body_pose, got float64 \(3, 69\)'),
        (dict(center=np.zeros((2, 2))), r'\(3, 2\) in center, got float64 \(2, 2\)'),
        (dict(extra_keypoints_2d=np.zeros((3, 17, 3))), r'\(3, 19, 3\) in .*\(3, 17, 3\)'),
        (dict(scale=np.ones((3, 3))), r'\(3, 1\) or \(3, 2\) in scale, got float64 \(3, 3\)'),
        (dict(betas=np.array([['a'] * 10] * 3)), 'betas, got <U1'),
    ],
)
def test_wrong_shapes_are_an_error(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        dataset(folder, arrays(**changes))


def test_a_file_that_is_not_an_npz_is_an_error(folder):
    (folder / 'set.npz').write_bytes(b'PK nothing')
    with pytest.raises(ValueError, match='is not an npz'):
        read_people_npz(folder / 'set.npz')


@pytest.mark.parametrize('field', ['center', 'body_pose', 'betas', 'extra_keypoints_2d'])
def test_rows_with_nan_are_skipped_and_counted(folder, field):
    content = arrays()
    content[field][1] = np.nan
    kept = dataset(folder, content, max_bad_share=0.5)
    assert [kept.record(i)['key'] for i in range(len(kept))] == ['0.png', '2.png']
    with pytest.raises(RuntimeError, match='1 of 3 records are bad .1 malformed annotation'):
        dataset(folder, content)


def test_rows_with_a_zero_size_box_are_skipped_and_counted(folder):
    scale = np.array([[50.0, 60], [0, 0], [50, 60]])
    assert len(dataset(folder, arrays(scale=scale), max_bad_share=0.5)) == 2
    with pytest.raises(RuntimeError, match='1 zero-size box'):
        dataset(folder, arrays(scale=scale))


def test_training_filters_are_optional(folder):
    content = arrays()
    content['body_keypoints_2d'][1, :, 2] = content['extra_keypoints_2d'][1, :, 2] = 0.1
    assert len(dataset(folder, content)) == 3
    assert len(dataset(folder, content, filters={})) == 2


def test_missing_files_are_named(folder):
    with pytest.raises(FileNotFoundError, match=r'no .*none\.npz'):
        read_people_npz(folder / 'none.npz')
    with pytest.raises(FileNotFoundError, match='no folder .*set img_dir'):
        NpzPeople(str(folder / 'set.npz'), str(folder / 'none')).full_init()


def test_missing_and_damaged_images_are_named(folder):
    (folder / '0.png').unlink()
    (folder / '1.png').write_bytes(b'no picture')
    made = dataset(folder, pipeline=PIPELINE)
    with pytest.raises(ValueError, match=r'no .*0\.png; is img_dir right'):
        made[0]
    with pytest.raises(ValueError, match=r'1\.png: OpenCV cannot decode'):
        made[1]
    assert made[2]['data_samples'].key == '2.png'


def test_items_are_the_same_each_time(folder):
    made = dataset(folder, pipeline=PIPELINE)
    np.testing.assert_array_equal(made[1]['inputs'], made[1]['inputs'])
