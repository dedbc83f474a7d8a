"""Runs keep order, people and files, whatever the input."""

import json
import logging
import threading

import cv2
import numpy as np
import pytest
import torch
from small_models import CONFIGS, mesh_config, noise, write_clip

from trunchier.inference import detection, sources
from trunchier.inference.mesh import MeshInferencer
from trunchier.inference.pipeline import End, FrameTask, Stage
from trunchier.inference.run import Run


def test_results_are_lazy_and_in_order(infer, image):
    asked = []

    def endless():
        for i in range(10**9):
            asked.append(i)
            yield image[: 100 + i % 100]

    results = infer(endless())
    first = [next(results) for _ in range(6)]
    assert [result.ori_shape[0] for result in first] == [100, 101, 102, 103, 104, 105]
    results.close()
    assert len(asked) < 80  # bounded prefetching


def test_only_videos_get_track_ids(infer, image, tmp_path):
    path = write_clip(tmp_path / 'clip.mp4', frames=5)
    for result in infer(path, bboxes=[[10, 10, 60, 90], [70, 5, 120, 90]]):
        assert result.pred_instances.track_ids.tolist() == [0, 1]
        assert result.time == result.frame_id / 10
    (still,) = infer(image)
    assert 'track_ids' not in still.pred_instances


def test_smoothing_keeps_rotations_orthogonal(weights, tmp_path, inferencer_types):
    path = write_clip(tmp_path / 'clip.mp4', frames=8)
    for task, kind in inferencer_types.items():
        found = {}
        for smooth in (False, dict(beta=0.0, min_cutoff=0.3)):
            infer = kind(CONFIGS[task](), weights[task], smooth=smooth, device='cpu')
            results = list(infer(path))
            found[bool(smooth)] = np.stack([r.pred_instances.keypoints[0] for r in results])
        jump = {smooth: np.abs(np.diff(k, axis=0)).mean() for smooth, k in found.items()}
        assert 0 < jump[True] < 0.5 * jump[False]
        np.testing.assert_array_equal(found[True][0], found[False][0])
    last = results[-1].pred_instances
    product = last.body_pose @ last.body_pose.swapaxes(-1, -2)
    np.testing.assert_allclose(product, np.broadcast_to(np.eye(3), (1, 23, 3, 3)), atol=1e-5)
    pose = (torch.from_numpy(a) for a in (last.global_orient, last.body_pose, last.betas))
    np.testing.assert_allclose(last.vertices, infer.predictor.body(*pose)['vertices'], atol=1e-5)


def test_the_report_has_the_seconds_of_each_stage(infer, image):
    list(infer([image] * 3, return_vis=True))
    report = infer.report
    assert (report.frames, report.people, report.skipped) == (3, 3, [])
    assert {'read', 'crop', 'network', 'decode', 'draw'} <= report.seconds.keys()
    assert '3 people in 3 images, ' in str(report) and 'network' in report.stages()


def test_unreadable_input_is_skipped_and_counted(infer, image, tmp_path, caplog):
    for name in ('a.png', 'c.png'):
        cv2.imwrite(str(tmp_path / name), image)
    (tmp_path / 'b.png').write_bytes(b'broken')
    (tmp_path / 'd.mp4').write_bytes(b'broken')
    with caplog.at_level(logging.WARNING):
        assert [result.source for result in infer(tmp_path)] == ['a', 'c']
    assert [where.rsplit('/')[-1] for where, _ in infer.report.skipped] == ['b.png', 'd.mp4']
    assert 'b.png' in caplog.text and '2 skipped' in str(infer.report)


def test_boxes_that_cannot_be_cropped_are_skipped_and_counted(infer, image, boxes):
    boxes = np.vstack([boxes[:1], [[5, 5, 5, 50]], [[np.nan, 0, 9, 9]], [[900, 0, 990, 90]]])
    (result,) = infer(image, bboxes=boxes)
    assert len(result.pred_instances) == 1 and len(infer.report.skipped) == 3


def test_people_whose_prediction_is_not_finite_are_left_out(infer, image, monkeypatch, boxes):
    decode = infer.predictor.decode

    def poisoned(output, crops):
        people = decode(output, crops)
        people[1]['keypoints'][3] = np.nan
        return people

    monkeypatch.setattr(infer.predictor, 'decode', poisoned)
    (result,) = infer(image, bboxes=boxes)
    np.testing.assert_array_equal(result.pred_instances.bboxes, boxes[[0, 2]])
    assert 'not finite' in infer.report.skipped[0][1]


def test_results_without_people_have_the_same_form(infer, image, tmp_path, boxes):
    some, nobody = infer([image] * 2, bboxes=[boxes, []], out_dir=tmp_path)
    assert len(nobody.pred_instances) == 0
    for name, value in nobody.pred_instances.items():
        assert value.shape[1:] == some.pred_instances.get(name).shape[1:], name
    content = json.loads((tmp_path / 'predictions/000001.json').read_text())
    assert content['instance_info'] == [] and len(content['meta_info']['keypoint_names'])
    assert cv2.imread(str(tmp_path / 'visualizations/000001.jpg')).shape == image.shape


class Camera:
    """Stands for cv2.VideoCapture: 80 images, then `finished` is set."""

    def __init__(self, finished):
        self.left, self.finished = 80, finished

    def isOpened(self):
        return True

    def read(self):
        self.left -= 1
        if self.left < 0:
            self.finished.set()
        return self.left >= 0, noise(48, 64)

    def release(self):
        pass


def test_frames_of_a_camera_that_arrive_in_the_meantime_are_dropped(infer, monkeypatch, tmp_path):
    finished = threading.Event()

    def slow(frame):
        finished.wait()
        return detection.whole_image(frame)

    monkeypatch.setattr(cv2, 'VideoCapture', lambda number: Camera(finished))
    monkeypatch.setattr(infer, 'detector', slow)
    ids = [result.frame_id for result in infer('camera', out_dir=tmp_path)]
    assert ids == list(range(len(ids))) and 1 <= len(ids) <= 4  # in hand, waiting, last
    assert infer.report.skipped == [('camera0', 'camera 0 sends no more images')]
    saved = json.loads((tmp_path / 'predictions/camera0.json').read_text())
    assert [frame['frame_id'] for frame in saved['instance_info']] == ids
    assert (tmp_path / 'visualizations/camera0.mp4').exists()


def test_frames_of_a_video_beside_a_camera_are_not_dropped(infer, monkeypatch):
    finished = threading.Event()

    def slow(frame):
        if frame.source.kind == 'camera':
            finished.wait()
        elif frame.index == 0:
            threading.Event().wait(0.3)  # enough to read, and drop, all of the video
        return detection.whole_image(frame)

    monkeypatch.setattr(cv2, 'VideoCapture', lambda number: Camera(finished))
    monkeypatch.setattr(infer, 'detector', slow)
    results = list(infer([np.stack([noise(48, 64)] * 12), 'camera']))
    ids = {
        name: [r.frame_id for r in results if r.source == name] for name in ('000000', 'camera0')
    }
    assert ids['000000'] == list(range(12)) and 1 <= len(ids['camera0']) <= 4


def test_a_stopped_camera_leaves_complete_files(infer, monkeypatch, tmp_path):
    monkeypatch.setattr(cv2, 'VideoCapture', lambda number: Camera(threading.Event()))
    results = infer(0, out_dir=tmp_path)
    next(results)
    results.close()
    assert json.loads((tmp_path / 'predictions/camera0.json').read_text())
    assert not list(tmp_path.glob('.*'))


def delayed(items, frames=3):
    """A temporal stage: each frame of a video waits for the three after it."""
    held = []
    for item in items:
        if isinstance(item, FrameTask):
            held.append(item)
            if len(held) > frames:
                yield held.pop(0)
            continue
        if isinstance(item, End):
            yield from held
            held = []
        yield item


def test_a_stage_may_hold_frames_back(infer, tmp_path):
    clip = write_clip(tmp_path / 'clip.mp4', frames=5)
    expected = [result.pred_instances.keypoints for result in infer([clip, clip])]
    run = Run(infer.predictor, batch_size=2)
    names = [stage.name for stage in run.stages]
    run.stages.insert(names.index('track') + 1, Stage('delay', delayed))
    tasks = list(run(sources.find([clip, clip])))
    assert [(task.frame.source.name, task.frame.index) for task in tasks] == [
        (name, index) for name in ('clip', 'clip_2') for index in range(5)
    ]
    for task, keypoints in zip(tasks, expected, strict=True):
        np.testing.assert_allclose(task.result.pred_instances.keypoints, keypoints, atol=1e-2)
    assert run.report.frames == 10


# --- some of the frames ---------------------------------------------------------------------------
def moving(frame):
    """One person, 4 pixels further right in each frame; from frame 6 on another one, too."""
    x = 4 * frame.index
    boxes = [[x, 10, x + 40, 90, 0.9], [100, 5, 125, 60, 0.5]]
    return np.float32(boxes[: 1 + (frame.index >= 6)])


def test_boxes_between_two_detections_are_interpolated(infer, monkeypatch, tmp_path):
    asked = []
    clip = write_clip(tmp_path / 'clip.mp4', frames=12)
    monkeypatch.setattr(infer, 'detector', lambda frame: asked.append(frame.index) or moving(frame))
    boxes = [result.pred_instances.bboxes for result in infer(clip, detector_every=5)]
    assert asked == [0, 5, 10, 11]  # the last frame, too
    for index, found in enumerate(boxes):
        np.testing.assert_allclose(found[0], moving(sources.Frame(None, None, index))[0, :4])
    assert [len(found) for found in boxes] == [1] * 8 + [2] * 4  # from the nearer detection


def test_an_interrupted_run_goes_on_with_the_same_interpolation(infer, monkeypatch, tmp_path):
    clip = write_clip(tmp_path / 'clip.mp4', frames=12)
    monkeypatch.setattr(infer, 'detector', moving)
    options = dict(save='json', detector_every=5, frames=slice(1, None, 2))
    whole = [result.pred_instances.bboxes for result in infer(clip, **options)]
    first = infer(clip, out_dir=tmp_path, **options)
    next(first)
    first.close()
    rest = list(infer(clip, out_dir=tmp_path, resume=True, **options))
    assert 0 < len(rest) < 6 and infer.report.done_before == 6 - len(rest)
    saved = json.loads((tmp_path / 'predictions/clip.json').read_text())
    assert [frame['frame_id'] for frame in saved['instance_info']] == [1, 3, 5, 7, 9, 11]
    assert saved['meta_info']['fps'] == 5
    for found, frame in zip(whole, saved['instance_info'], strict=True):
        np.testing.assert_allclose(found, [each['bbox'][0] for each in frame['instances']])


def test_the_frames_of_a_video_can_be_chosen(infer, tmp_path):
    clip = write_clip(tmp_path / 'clip.mp4', frames=9)
    results = list(infer(clip, frames=slice(2, 8, 3)))
    assert [(result.frame_id, result.time) for result in results] == [(2, 0.2), (5, 0.5)]
    for wrong in (slice(-3, None), slice(4, 4), slice(0, 9, -1)):
        with pytest.raises(ValueError, match='expected start:stop:step'):
            infer(clip, frames=wrong)


def test_a_network_of_nan_predicts_nobody(weights, image, tmp_path, boxes):
    content = torch.load(weights['mesh'])
    content['state_dict']['head.camera_out.bias'][:] = float('nan')
    torch.save(content, tmp_path / 'nan.pth')
    infer = MeshInferencer(mesh_config(), tmp_path / 'nan.pth', device='cpu')
    (result,) = infer(image, bboxes=boxes, return_vis=True)
    assert len(result.pred_instances) == 0 and len(infer.report.skipped) == 1
    np.testing.assert_array_equal(result.visualization, image)
