"""The weights that come with the package are small, labelled, and know people."""

import logging

import numpy as np
import pytest

from trunchier.conventions import EVAL_14_IN_44, PELVIS
from trunchier.files import shipped
from trunchier.inference.mesh import MeshInferencer
from trunchier.inference.pose import PoseInferencer
from trunchier.models.lifting.body import LIFTER
from trunchier.models.lifting.track import TRACK_LIFTER
from trunchier.synthetic.people import SyntheticPeople
from trunchier.weights.find import find, weights_note

MODELS = dict(pose='VMPose-T-S2', mesh='VMHMR2.0-T-S2')
PEOPLE = 24


@pytest.fixture(scope='module')
def people():
    """Pictures that no training saw, and who is on them."""
    drawn = [one for one in SyntheticPeople(seed=1234, plain=True, length=PEOPLE)]
    return [one['image'][..., ::-1] for one in drawn], [one['people'][0] for one in drawn]


@pytest.mark.parametrize('name', [*MODELS.values(), LIFTER, TRACK_LIFTER])
def test_they_are_small_and_labelled(name):
    lifter = name in (LIFTER, TRACK_LIFTER)
    path = shipped.asset(name) if lifter else find(name).weights
    assert path.stat().st_size <= (6e6 if lifter else 10e6)
    assert 'synthetic people only' in weights_note(path)


def test_a_warning_names_the_training_data(caplog):
    with caplog.at_level(logging.WARNING, logger='trunchier'):
        PoseInferencer(MODELS['pose'])
    origin = 'weights that come with trunchier; trained on synthetic people only'
    assert f'VMPose-T-S2: {origin}' in caplog.text


def test_keypoints_are_where_they_are(people):
    images, truth = people
    boxes = [xyxy(person['bbox']) for person in truth]
    results = PoseInferencer(MODELS['pose'], flip_test=True)(images, bboxes=boxes)
    right = []
    for result, person in zip(results, truth, strict=True):
        error = result.pred_instances.keypoints[0] - person['keypoints'][:, :2]
        right.append(np.linalg.norm(error, axis=1) < 0.1 * max(person['bbox'][2:]))
    assert np.mean(right) > 0.8  # always the same pose: less than 0.5


@pytest.mark.parametrize('model', [MODELS['mesh'], 'lift'])
def test_bodies_are_nearer_than_the_mean_body(people, model):
    images, truth = people
    boxes = [xyxy(person['bbox']) for person in truth]
    results = MeshInferencer(model)(images, bboxes=boxes)
    found = np.stack([centred(result.pred_instances.joints[0]) for result in results])
    wanted = np.stack([centred(person['keypoints_3d'][:, :3]) for person in truth])
    error = np.linalg.norm(found - wanted, axis=-1).mean()
    constant = np.linalg.norm(wanted.mean(0) - wanted, axis=-1).mean()  # of these very people
    assert error < 0.8 * constant


def xyxy(box):
    return np.array([[box[0], box[1], box[0] + box[2], box[1] + box[3]]], np.float32)


def centred(joints):
    return (joints - joints[PELVIS])[list(EVAL_14_IN_44)]
