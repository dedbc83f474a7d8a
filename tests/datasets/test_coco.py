"""Bad records of a COCO file are skipped and counted in training and reported in testing."""

import json
import pickle

import cv2
import numpy as np
import pytest
from mmengine.registry import DATASETS, init_default_scope

import trunchier.datasets  # noqa: F401  registers it

pytest.importorskip('mmpose')
PIPELINE = [dict(type='LoadImage'), dict(type='GetBBoxCenterScale'), dict(type='PackPoseInputs')]


def person(number, **changes):
    keypoints = np.tile([20.0, 30.0, 2.0], 17).tolist()
    fields = dict(
        id=number,
        image_id=number,
        category_id=1,
        bbox=[10, 10, 30, 40],
        area=1200,
        iscrowd=0,
        num_keypoints=17,
        keypoints=keypoints,
    )
    return dict(fields, **changes)


def dataset(folder, people, **options):
    images = [dict(id=n, file_name=f'{n}.jpg', width=64, height=64) for n in range(1, 5)]
    for image in images:
        cv2.imwrite(str(folder / image['file_name']), np.full((64, 64, 3), 99, np.uint8))
    content = dict(images=images, annotations=people, categories=[dict(id=1, name='person')])
    (folder / 'people.json').write_text(json.dumps(content))
    init_default_scope('mmpose')
    cfg = dict(
        type='CheckedCocoDataset',
        ann_file='people.json',
        data_root=str(folder),
        data_prefix=dict(img=''),
        pipeline=PIPELINE,
        max_bad_share=0.5,
    )
    return DATASETS.build(cfg | options)


NAN_POINTS = [float('nan'), 30.0, 2.0] * 17


@pytest.mark.parametrize('changes', [dict(keypoints=NAN_POINTS), dict(bbox=[10, 10, 0, 40])])
def test_bad_people_are_skipped(tmp_path, changes):
    data = dataset(tmp_path, [person(1), person(2, **changes), person(3)])
    assert [data.get_data_info(i)['id'] for i in range(len(data))] == [1, 3]


def test_bottom_up_a_bad_person_costs_no_other_and_empty_images_are_tested(tmp_path):
    people = [person(1), person(2, image_id=1, keypoints=NAN_POINTS), person(3)]
    data = dataset(tmp_path, people, data_mode='bottomup', test_mode=True, pipeline=[])
    entries = [data.get_data_info(i) for i in range(len(data))]
    assert [entry['id'] for entry in entries] == [[1], [3], [], []]


def test_bad_boxes_of_a_detector_are_skipped(tmp_path):
    boxes = [dict(image_id=1, category_id=1, score=0.9, bbox=[5, 5, side, 9]) for side in (8, 0)]
    (tmp_path / 'boxes.json').write_text(json.dumps(boxes))
    options = dict(test_mode=True, bbox_file=str(tmp_path / 'boxes.json'))
    data = dataset(tmp_path, [person(1)], **options)
    assert [data.get_data_info(i)['bbox'].tolist() for i in range(len(data))] == [[[5, 5, 13, 14]]]


def test_too_many_bad_people_are_an_error(tmp_path):
    people = [person(1), person(2, keypoints=NAN_POINTS)]
    with pytest.raises(RuntimeError, match=r'1 of 2 records are bad .*max_bad_share=0\.1'):
        dataset(tmp_path, people, max_bad_share=0.1)


@pytest.mark.parametrize(
    'people', [[], [person(1, num_keypoints=0)], [person(1, bbox=[9, 9, 0, 0])]]
)
def test_a_file_without_a_person_is_an_error(tmp_path, people):
    with pytest.raises(ValueError, match=r'people\.json has no usable person'):
        dataset(tmp_path, people)


def test_an_absent_file_says_where_to_look(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'absent\.json; see "Data" in docs'):
        dataset(tmp_path, [person(1)], ann_file='absent.json')


@pytest.fixture(params=['corrupt', 'absent'])
def broken(tmp_path, request):
    def build(**options):
        data = dataset(tmp_path, [person(1), person(2)], **options)
        (tmp_path / '1.jpg').unlink()
        if request.param == 'corrupt':
            (tmp_path / '1.jpg').write_bytes(b'\xff\xd8 no picture')
        return data

    return build


def test_in_training_an_unreadable_image_is_replaced_by_another_person(broken):
    data = broken()
    assert data[0]['data_samples'].img_path.endswith('2.jpg')
    assert data.bad_count.bad.keys() == {'undecodable image'} and data.bad_count.good == 1


def test_in_testing_an_unreadable_image_is_an_error(broken):
    data = broken(test_mode=True)
    with pytest.raises(OSError, match=r'cannot read .*1\.jpg'):
        data[0]


def test_other_errors_are_not_hidden(tmp_path):
    data = dataset(tmp_path, [person(1)])
    data.pipeline.transforms.insert(1, lambda results: results['nothing'])
    with pytest.raises(KeyError, match='nothing'):
        data[0]


def test_the_class_is_picklable_for_worker_processes(tmp_path):
    data = dataset(tmp_path, [person(1)])
    assert pickle.loads(pickle.dumps(type(data))) is type(data)
    assert type(data).__name__ == 'CheckedCocoDataset'
