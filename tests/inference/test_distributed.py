"""Rows of a distributed prediction: what the inferencer gives, wherever the images lie."""

import io
import json
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from small_models import noise, pose_config, write_clip, write_weights

from trunchier.inference import distributed, sources
from trunchier.inference.distributed import Predict, done_keys, join_tracks, listed, pieces
from trunchier.inference.inferencer import Inferencer


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    """A small pose model as files."""
    pytest.importorskip('mmpose')
    folder, cfg = tmp_path_factory.mktemp('model'), pose_config()
    cfg.dump(folder / 'model.py')
    write_weights(cfg, folder / 'model.pth')
    return dict(
        model=str(folder / 'model.py'), weights=str(folder / 'model.pth'),
        device='cpu', detector='whole_image', batch_size=1, track=False,
    )  # fmt: skip


@pytest.fixture(scope='module')
def predict(model):
    return Predict(**model)


@pytest.fixture
def photos(tmp_path):
    """Three images, of which the second is broken, as files and in a tar."""
    for index in range(3):
        cv2.imwrite(str(tmp_path / f'{index}.png'), noise(96, 72, seed=index))
    (tmp_path / '1.png').write_bytes(b'no image')
    (tmp_path / 'tars').mkdir()
    with tarfile.open(tmp_path / 'tars/0.tar', 'w') as tar:
        for index in range(3):
            tar.add(tmp_path / f'{index}.png', f'{index}.png')
            info = tarfile.TarInfo(f'{index}.json')
            info.size = 2
            tar.addfile(info, io.BytesIO(b'{}'))
    return tmp_path


def batch_of(found):
    return {name: np.array([row[name] for row in found]) for name in found[0]}


def rows_of(columns):
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def test_rows_are_the_results_of_the_inferencer_with_errors_in_a_column(model, predict, photos):
    expected = {
        r.img_path: r for r in Inferencer(**model)([str(photos / '0.png'), str(photos / '2.png')])
    }
    inputs = list(listed([str(photos / f'{index}.png') for index in range(3)]))
    rows = rows_of(predict(batch_of([row for given in inputs for row in pieces(given)])))
    assert [row['path'] for row in rows] == inputs and [row['rows'] for row in rows] == [1] * 3
    assert 'decode' in rows[1]['error'] and rows[1]['frame'] == -1
    assert rows[1]['keypoints'].shape == (0, 17, 2)
    for row in (rows[0], rows[2]):
        people = expected[row['path']].pred_instances
        assert row['error'] == '' and (row['height'], row['width']) == (96, 72)
        for name in ('bboxes', 'bbox_scores', 'keypoints', 'keypoint_scores'):
            np.testing.assert_array_equal(row[name], np.float32(people[name]))


def test_members_of_a_tar_and_bytes_give_what_the_files_give(predict, photos):
    (tar,) = listed([str(photos / 'tars')])
    found = list(pieces(tar))
    assert [row['member'] for row in found] == ['0.png', '1.png', '2.png']
    rows = rows_of(predict(batch_of(found)))
    names = [str(photos / f'{index}.png') for index in range(3)]
    of_files = rows_of(predict(dict(path=np.array(names))))
    contents = [Path(name).read_bytes() for name in names]
    of_bytes = rows_of(predict(dict(path=np.array(names), bytes=np.array(contents, object))))
    for row, other, third in zip(rows, of_files, of_bytes, strict=True):
        np.testing.assert_array_equal(row['keypoints'], other['keypoints'])
        np.testing.assert_array_equal(row['keypoints'], third['keypoints'])
        assert bool(row['error']) == bool(other['error']) == bool(third['error'])


def test_what_cannot_be_opened_is_a_row_with_its_error(predict, photos):
    whole = (photos / 'tars/0.tar').read_bytes()
    (photos / 'tars/0.tar').write_bytes(whole[:1000])
    (photos / 'clip.mp4').write_bytes(b'no video')
    found = [
        row for name in ('tars/0.tar', 'clip.mp4', 'none.png') for row in pieces(str(photos / name))
    ]
    assert [bool(row['error']) for row in found] == [True] * 3
    rows = rows_of(predict(batch_of(found)))
    assert [row['error'] for row in rows] == [row['error'] for row in found]


def test_keys_change_with_the_content_and_the_settings(photos):
    def keys(**options):
        return [
            row['key'] for name in '02' for row in pieces(str(photos / f'{name}.png'), **options)
        ]

    before = keys()
    assert len({*before, *keys(state='other model')}) == 4 and before == keys()
    cv2.imwrite(str(photos / '2.png'), noise(90, 72))
    assert [a == b for a, b in zip(before, keys(), strict=True)] == [True, False]


def test_chunks_of_a_video_join_to_the_whole(model, tmp_path):
    pytest.importorskip('av')
    pytest.importorskip('trackers')
    predict = Predict(**dict(model, track=True))
    path = str(write_clip(tmp_path / 'clip.mp4', frames=11))
    parts = list(pieces(path, range(1, 11, 2), chunk=2, overlap=1))
    assert [(row['start'], row['stop'], row['lead']) for row in parts] == [
        (1, 5, 0),
        (5, 9, 1),
        (9, 11, 1),
    ]
    rows = rows_of(predict(batch_of(parts)))
    assert [row['frame'] for row in rows] == [1, 3, 3, 5, 7, 7, 9]
    joined = join_tracks(rows)
    results = list(predict.infer(path, frames=slice(1, 11, 2)))
    assert [row['frame'] for row in joined] == [r.frame_id for r in results] == [1, 3, 5, 7, 9]
    for row, result in zip(joined, results, strict=True):
        expected = np.float32(result.pred_instances.keypoints)
        np.testing.assert_array_equal(row['keypoints'], expected)
        np.testing.assert_array_equal(row['bboxes'], result.pred_instances.bboxes)


def test_tracks_go_on_across_chunks_by_the_boxes_that_both_have():
    def row(key, frame, people, lead=False):
        boxes = np.float32([[x, 0, x + 10, 20] for x, _ in people]).reshape(-1, 4)
        ids = np.array([number for _, number in people], np.int64)
        return dict(key=key, frame=frame, lead=lead, bboxes=boxes, track_ids=ids)

    rows = [
        row(7, 0, [(0, 0), (50, 1)]), row(7, 1, [(1, 0), (50, 1)]),
        # The second part numbers them the other way round, and meets a third.
        row(5, 1, [(1, 1), (50, 0)], lead=True), row(5, 2, [(2, 1), (50, 0), (90, 2)]),
        row(5, 3, [(90, 2), (4, -1)]),
    ]  # fmt: skip
    expected = [[0, 1], [0, 1], [0, 1, 2], [2, -1]]
    assert [each['track_ids'].tolist() for each in join_tracks(rows)] == expected
    broken = row(5, -1, [])  # of a frame that cannot be read
    assert [each['track_ids'].tolist() for each in join_tracks([*rows, broken])] == expected


def write_tar(folder, rows):
    """Write (key, frame, rows) of each row; returns the file."""
    names = 'key', 'frame', 'rows'
    batch = {name: np.array(each) for name, each in zip(names, np.transpose(rows), strict=True)}
    pictures = np.empty(len(rows), object)
    pictures[:] = [b'x'] * len(rows)
    known = {*folder.iterdir()}
    distributed.write_tar(batch | dict(time=np.full(len(rows), np.nan), jpg=pictures), str(folder))
    (path,) = {*folder.iterdir()} - known
    return path


def test_pieces_are_done_when_all_their_rows_are_there(tmp_path):
    first = write_tar(tmp_path, [(-5, 0, 1), (7, 0, 2)])
    assert done_keys(str(tmp_path)).tolist() == [-5]
    second = write_tar(tmp_path, [(7, 1, 2)])
    assert done_keys(str(tmp_path)).tolist() == [-5, 7]
    second.write_bytes(second.read_bytes()[:700])
    assert done_keys(str(tmp_path)).tolist() == [-5]
    assert [*tmp_path.iterdir()] == [first]
    with tarfile.open(first) as tar:
        names = tar.getnames()
        assert names[:2] == ['fffffffffffffffb-0000000-1.json', 'fffffffffffffffb-0000000-1.jpg']
        content = json.load(tar.extractfile(names[0]))
    assert content == dict(key=-5, frame=0, rows=1, time=None)


def test_files_of_others_beside_the_rows_stay_whatever_they_are(tmp_path):
    ours = write_tar(tmp_path, [(7, 0, 1)])
    for name in ('notes.txt', '.gitignore', 'photo.jpg', '.0.part.tar', 'cut.tar'):
        (tmp_path / name).write_bytes(ours.read_bytes()[:700])
    with tarfile.open(tmp_path / '0123456789abcdef.tar', 'w') as tar:
        tar.addfile(tarfile.TarInfo('people.json'), io.BytesIO())
    before = sorted(tmp_path.iterdir())
    assert done_keys(str(tmp_path)).tolist() == [7]
    assert sorted(tmp_path.iterdir()) == before


def test_rows_at_an_address_have_a_folder_of_their_own():
    memory = pytest.importorskip('fsspec').filesystem('memory')
    memory.pipe('/bucket/out/thesis.pdf', b'mine')
    folder = distributed.rows_folder('memory://bucket/out/')
    assert done_keys(folder).tolist() == []
    batch = dict(key=[7], frame=[0], rows=[1], time=[np.nan])
    distributed.write_tar({name: np.array(each) for name, each in batch.items()}, folder)
    assert done_keys(folder).tolist() == [7]
    (tar,) = memory.ls('/bucket/out/rows', detail=False)
    memory.pipe(tar, memory.cat(tar)[:700])
    assert done_keys(folder).tolist() == []
    assert memory.find('/bucket/out') == ['/bucket/out/thesis.pdf']


def test_rows_that_cannot_be_read_at_the_moment_are_not_deleted(tmp_path, monkeypatch):
    path = write_tar(tmp_path, [(7, 0, 1)])

    def silent(name):
        raise OSError('timed out')

    with monkeypatch.context() as patch:
        patch.setattr(distributed, 'open_anywhere', silent)
        with pytest.raises(OSError, match=f'{path.name} cannot be read: timed out; try again'):
            done_keys(str(tmp_path))
    assert done_keys(str(tmp_path)).tolist() == [7]


def test_rows_in_parquet_are_done_and_a_truncated_file_is_not(tmp_path):
    pytest.importorskip('pyarrow')
    boxes = np.empty(2, object)
    boxes[:] = [np.ones((1, 4), np.float32), np.ones((3, 4), np.float32)]
    batch = dict(key=np.array([-5, 7]), frame=np.array([0, 0]), rows=np.array([1, 2]), bboxes=boxes)
    assert distributed.write_parquet(batch, str(tmp_path)) == dict(rows=np.array([2]))
    (path,) = tmp_path.iterdir()
    (tmp_path / 'table.parquet').write_bytes(b'no table')
    assert done_keys(str(tmp_path)).tolist() == [-5]
    (tmp_path / 'table.parquet').unlink()
    rows = list(distributed.read_rows(tmp_path))
    assert [(row['key'], len(row['bboxes'])) for row in rows] == [(-5, 1), (7, 3)]
    path.write_bytes(path.read_bytes()[:-8])
    assert done_keys(str(tmp_path)).tolist() == [] and not path.exists()


def test_streams_cannot_be_distributed():
    with pytest.raises(ValueError, match='only files and addresses'):
        list(listed(['camera:0']))
    assert sources.KINDS['.mp4'] == 'video'
