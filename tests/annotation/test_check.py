"""Bodies are dropped whose projected joints are far from the keypoints of another model."""

import json

import cv2
import numpy as np
import pytest
import torch
from benchmark.annotation import TrivialTeacher
from mmengine.utils import ManagerMixin
from small_models import noise, pose_config, write_weights

from trunchier.annotation import command
from trunchier.annotation.annotate import annotate
from trunchier.annotation.check import deviation
from trunchier.annotation.merge import merge
from trunchier.annotation.views import Views
from trunchier.annotation.work import Workplace
from trunchier.conventions import COCO_17
from trunchier.inference.detection import whole_image
from trunchier.inference.windows import WindowModel

BOX = np.float32([10, 20, 50, 110])  # 60 pixels are the square root of its area


class Moved(TrivialTeacher):
    """A pose model with the keypoints in another order; those of wide images are `by` to the right.

    Attributes:
        batches: sizes of those that it has seen.
    """

    keypoint_names = COCO_17[::-1]

    def __init__(self, by):
        self.by, self.batches = by, []

    def forward(self, crops):
        self.batches.append(len(crops))
        return super().forward(crops)

    def decode(self, output, crops):
        people = super().decode(output, crops)
        for person, crop in zip(people, crops, strict=True):
            person['keypoints'][:, 0] += self.by * (crop.shape[1] > crop.shape[0])
        return people


def test_the_deviation_is_a_weighted_mean_in_sizes_of_the_box():
    points = np.zeros((3, 2))
    others = np.array([[3.0, 4], [0, 12], [999, 0]])
    assert deviation(points, others, np.ones(3), BOX) == pytest.approx((5 + 12 + 999) / 3 / 60)
    scores = np.array([0.5, 7, 0])  # at most 1; what it does not see does not count
    assert deviation(points, others, scores, BOX) == pytest.approx((2.5 + 12) / 1.5 / 60, rel=1e-3)
    unseen = deviation(points, others, np.array([0, -1, 0]), BOX)
    assert unseen == pytest.approx((5 + 12 + 999) / 3 / 60)


def test_moved_people_are_dropped_and_agreeing_ones_stay(tmp_path):
    (tmp_path / 'photos').mkdir()
    for index in range(6):
        shape = (40, 30) if index % 3 else (30, 40)
        cv2.imwrite(str(tmp_path / f'photos/{index}.png'), noise(*shape, seed=index))
    check = Moved(by=4)  # of 34.6: 0.115
    work = Workplace(tmp_path / 'out', dict(model='trivial', digest='0', keypoints=list(COCO_17)))
    teacher = Views(TrivialTeacher(), check=check)
    annotate([str(tmp_path / 'photos')], work, teacher, whole_image, batch_size=2)
    assert check.batches == [2, 2, 2]  # no mirrored images, no second scale
    assert merge(work).counts == {'kept': 4, 'pose model disagrees': 2}
    report = (work.out / 'report.html').read_text()
    assert '<td>pose model disagrees</td><td class="n">2</td>' in report
    assert (
        'distance to the pose model, in roots of the area of the box: 0 to 1, median 0<' in report
    )
    kept = json.loads((work.out / 'person_keypoints.json').read_text())['images']
    assert [image['width'] for image in kept] == [30] * 4


def test_models_that_cannot_check_are_refused():
    check = Moved(by=0)
    check.keypoint_names = ('tail', 'left_wing')
    with pytest.raises(ValueError, match=r'\(tail, left_wing\) has no keypoint of the same name'):
        Views(TrivialTeacher(), check=check)
    for what in ('finds_people', 'has_meshes'):
        check = Moved(by=0)
        setattr(check, what, True)
        with pytest.raises(ValueError, match='only a top-down pose model can check'):
            Views(TrivialTeacher(), check=check)


def test_teachers_of_3d_joints_are_refused():
    teacher = TrivialTeacher()
    teacher.windows = WindowModel()
    with pytest.raises(ValueError, match='take the 2D model as teacher'):
        Views(teacher)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Two photos and a pose model, in the working directory."""
    pytest.importorskip('mmpose')
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'photos').mkdir()
    for index in range(2):
        cv2.imwrite(f'photos/{index}.png', noise(120, 90, seed=index))
    cfg = pose_config()
    cfg.dump('pose.py')
    write_weights(cfg, 'pose.pth')
    yield tmp_path
    ManagerMixin._instance_dict = {}


def test_the_command_checks_shipped_bodies_and_refuses_another_pose_model(photos, capsys):
    anything = ('--agreement=0', '--overlap=0', '--excess=999', '--duplicate=-1', '--keypoints=0')
    given = ['photos', '--model', 'mesh', '--out', 'labels', *anything]  # lifts, in videos windows
    given += ['--detector', 'whole_image', '--device', 'cpu', '--no-mirrored', '--no-scaled']
    given += ['--check-pose', 'pose.py', '--check-weights', 'pose.pth']
    assert command.main([*given, '--deviation=99']) == 0, capsys.readouterr().err
    (part, _) = sorted((photos / 'labels/parts').rglob('*.npz'))
    with np.load(part) as file:
        assert file['deviation'].shape == (1,) and 0 < file['deviation'][0] < 99
    assert len(json.loads((photos / 'labels/person_keypoints.json').read_text())['images']) == 2
    assert command.main_of_merge(['labels', *anything, '--deviation=0']) == 0
    assert json.loads((photos / 'labels/person_keypoints.json').read_text())['images'] == []
    state = torch.load('pose.pth', weights_only=True)
    state['state_dict']['head.final_layer.bias'] += 1
    torch.save(state, 'pose.pth')
    assert command.main([*given, '--deviation=99']) == command.EXIT_ERROR
    assert 'check_digest was ' in capsys.readouterr().err
