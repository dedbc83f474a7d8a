"""PCK by how much of a person can be seen."""

import json

import numpy as np
import pytest

from trunchier.conventions import COCO_17
from trunchier.metrics import PartialPCK, extent


def visible(*joints):
    return np.isin(np.arange(17), joints)


@pytest.mark.parametrize(
    'joints, name',
    [
        (range(17), 'whole'),
        ((0, 15), 'whole'),
        (range(13), 'upper'),
        ((0,), 'upper'),
        ((11, 12, 13, 14), 'lower'),
        ((9, 15), 'lower'),
        ((6, 8, 10), 'limb'),
        ((14,), 'limb'),
        ((5, 7, 8), 'upper'),
    ],
)
def test_the_visible_keypoints_say_which_part_of_a_person_is_seen(joints, name):
    assert extent(visible(*joints)) == name


def sample(number, joints, misses, box=(0, 0, 50, 100)):
    """A person of whom all keypoints are found but `misses`, which are just too far away."""
    truth = np.random.default_rng(number).uniform(0, 50, (1, 17, 2))
    found = truth + [0, 9.9]
    found[0, list(misses)] += [0, 0.2]
    return dict(
        id=number,
        gt_instances=dict(
            keypoints=truth, keypoints_visible=visible(*joints)[None] * 1.0, bboxes=np.array([box])
        ),
        pred_instances=dict(keypoints=found),
    )


def test_keypoints_count_alike_in_all_and_in_their_part(tmp_path):
    metric = PartialPCK(thr=0.1, out=str(tmp_path / 'runs' / 'people.json'))
    samples = [
        sample(3, range(17), misses=(0, 1)),
        sample(1, (6, 8, 10), misses=(8, 0)),
        sample(2, range(11), misses=()),
        sample(4, (), misses=()),
    ]
    for each in samples:
        metric.process(None, [each])
    scores = metric.evaluate(4)
    assert scores['partial/PCK'] == (15 + 2 + 11) / (17 + 3 + 11)
    parts = {name: scores[f'partial/PCK/{name}'] for name in ('whole', 'upper', 'limb')}
    assert parts == dict(whole=15 / 17, upper=1.0, limb=2 / 3)
    assert np.isnan(scores['partial/PCK/lower']) and scores['partial/people/lower'] == 0
    written = json.loads((tmp_path / 'runs' / 'people.json').read_text())
    assert written == dict(
        thr=0.1, people=[[1, 'limb', 2, 3], [2, 'upper', 11, 11], [3, 'whole', 15, 17]]
    )


def test_other_keypoints_than_those_of_coco_are_refused():
    wrong = sample(0, range(17), misses=())
    wrong['gt_instances']['keypoints'] = np.zeros((1, 21, 2))
    with pytest.raises(ValueError, match=f"COCO's {len(COCO_17)} keypoints, got"):
        PartialPCK().process(None, [wrong])
