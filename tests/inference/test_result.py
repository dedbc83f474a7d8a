"""A result can be drawn, saved and converted, also a copy of it, and in other processes."""

import copy
import csv
import json
import pickle
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import trimesh
from small_models import noise, write_clip


@pytest.fixture(scope='module')
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp('photo') / '000000000785.png'
    cv2.imwrite(str(path), noise(240, 320))
    return path


@pytest.fixture
def result(infer, photo, boxes):
    (result,) = infer(photo, bboxes=boxes)
    return result


def test_plots_equal_what_the_painter_draws(infer, result, photo):
    assert len(result) == 3
    expected = infer.painter(draw_bbox=True)(noise(240, 320), result)
    np.testing.assert_array_equal(result.plot(draw_bbox=True), expected)
    np.testing.assert_array_equal(result.plot(noise(240, 320), draw_bbox=True), expected)
    for same in (result.clone(), result.numpy(), copy.deepcopy(result)):
        np.testing.assert_array_equal(same.plot(draw_bbox=True), expected)
    data = pickle.dumps(result)
    assert len(data) < 2_000_000  # without the network
    np.testing.assert_array_equal(pickle.loads(data).plot(draw_bbox=True), expected)


def test_frames_of_videos_are_plotted_if_their_images_are_kept(infer, tmp_path, boxes):
    clip = write_clip(tmp_path / 'clip.mp4', frames=2)
    first, _ = infer(clip, bboxes=boxes[:1])
    with pytest.raises(ValueError, match='clip, frame 0: the image was not kept; .*return_image'):
        first.plot()
    first, _ = infer(clip, bboxes=boxes[:1], return_image=True)
    assert first.plot().shape == first.image.shape


def test_images_of_addresses_are_not_fetched_again(result):
    result.set_metainfo(dict(img_path='https://example.com/photo.jpg'))
    with pytest.raises(ValueError, match='the image was not kept; .*return_image'):
        result.plot()


@pytest.mark.parametrize('name', ['a.pdf', 'a', 'a.xyz'])
def test_formats_that_are_not_known_are_named(result, tmp_path, name):
    with pytest.raises(ValueError, match=f'OpenCV does not write .*{name}, '):
        result.save(tmp_path / name)
    assert [*tmp_path.iterdir()] == []


def test_images_and_tables_are_saved_by_suffix(result, tmp_path):
    written = cv2.imread(str(result.save(tmp_path / 'a.png')))
    np.testing.assert_array_equal(written, result.plot())
    with np.load(result.save(tmp_path / 'a.npz')) as arrays:
        np.testing.assert_array_equal(arrays['keypoints'], result.pred_instances.keypoints)
    content = json.loads(result.save(tmp_path / 'a.json').read_text())
    points = [person['keypoints'] for person in content['instance_info']]
    np.testing.assert_allclose(points, result.pred_instances.keypoints, rtol=1e-6)
    assert content['meta_info']['image_size'] == [320, 240]
    with open(result.save(tmp_path / 'a.csv')) as file:
        rows = list(csv.DictReader(file))
    assert [int(row['person']) for row in rows] == [0, 1, 2]
    for row, expected in zip(rows, result.to_rows(), strict=True):
        assert {name: str(value) for name, value in expected.items()} == row


def test_meshes_are_saved_by_suffix(inferencers, photo, boxes, tmp_path):
    (result,) = inferencers['mesh'](photo, bboxes=boxes[:2])
    assert len(trimesh.load(result.save(tmp_path / 'a.glb')).geometry) == 2
    result.save(tmp_path / 'b.obj')
    assert sorted(file.name for file in tmp_path.glob('*.obj')) == ['b_0.obj', 'b_1.obj']
    (pose,) = inferencers['pose'](photo, bboxes=boxes[:2])
    for name in ('a.glb', 'a.obj'):
        with pytest.raises(ValueError, match='requires a mesh model'):
            pose.save(tmp_path / name)


def test_coco_results_are_read_by_pycocotools(inferencers, photo, boxes):
    from pycocotools.coco import COCO

    (result,) = inferencers['pose'](photo, bboxes=boxes)
    people, found = result.to_coco(), result.pred_instances
    truth = COCO()
    truth.dataset = dict(images=[dict(id=785)], categories=[dict(id=1)], annotations=[])
    truth.createIndex()
    loaded = truth.loadRes(people).loadAnns([1, 2, 3])
    for person, each in enumerate(loaded):
        points = np.reshape(each['keypoints'], (17, 3))
        np.testing.assert_allclose(points[:, :2], found.keypoints[person], rtol=1e-6)
        np.testing.assert_allclose(points[:, 2], found.keypoint_scores[person], rtol=1e-6)
        x, y, width, height = people[person]['bbox']
        np.testing.assert_allclose([x, y, x + width, y + height], boxes[person], rtol=1e-6)
        assert each['score'] == pytest.approx(found.keypoint_scores[person].mean())
    assert result.to_coco(image_id=7)[0]['image_id'] == 7


def test_frames_are_told_apart_in_coco_results(inferencers, tmp_path, boxes):
    clip = write_clip(tmp_path / 'CLIP.MP4', frames=2)
    for given in (clip, np.stack([noise(60, 80)] * 2)):
        found = inferencers['pose'](given, bboxes=boxes[:1])
        assert [result.to_coco()[0]['image_id'] for result in found] == [0, 1]
    (result,) = inferencers['pose'](noise(60, 80), bboxes=boxes[:1])
    assert result.to_coco()[0]['image_id'] == int(result.source)


def test_rows_name_frame_track_box_and_keypoints(inferencers, tmp_path, boxes):
    clip = write_clip(tmp_path / 'clip.mp4', frames=2)
    _, second = inferencers['pose'](clip, bboxes=boxes[:2] / 4)
    first, other = second.to_rows()
    assert [first[name] for name in ('source', 'frame', 'person')] == ['clip', 1, 0]
    assert (first['track_id'], other['track_id'], other['person']) == (0, 1, 1)
    np.testing.assert_allclose([first[n] for n in ('x1', 'y1', 'x2', 'y2')], boxes[0] / 4)
    columns = list(first)[9:]
    assert len(columns) == 3 * 17
    values = np.reshape([first[name] for name in columns], (17, 3))
    np.testing.assert_allclose(values[:, :2], second.pred_instances.keypoints[0])
    assert second.to_coco()[0]['image_id'] == 1


def test_a_data_frame_has_the_rows(result, monkeypatch):
    """pandas is optional and not installed here: what it is given decides."""
    made = SimpleNamespace(DataFrame=lambda rows: rows)
    monkeypatch.setitem(sys.modules, 'pandas', made)
    assert result.to_dataframe() == result.to_rows() and len(result.to_rows()) == 3


def test_a_data_frame_needs_pandas_and_says_so(result, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pandas', None)
    with pytest.raises(ImportError, match=r'to_dataframe\(\) needs pandas: .*trunchier\[tables\]'):
        result.to_dataframe()


def test_results_without_people_are_empty_tables(infer, photo):
    (result,) = infer(photo, bboxes=np.empty((0, 4)))
    assert result and len(result) == 0 and result.to_coco() == result.to_rows() == []
    np.testing.assert_array_equal(result.plot(), noise(240, 320))
