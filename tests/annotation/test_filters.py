"""Measures of a prediction, thresholds, and what counts as the same picture."""

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from trunchier.annotation.filters import Seen, Thresholds, measures, reasons
from trunchier.annotation.report import histogram
from trunchier.annotation.views import difference_hash, joint_excess, overlap, similarity
from trunchier.files.shipped import asset


def test_similarity_is_that_of_oks():
    points = np.array([[0.0, 0], [10, 0]])
    alike = similarity(points, points + [[3, 4], [0, 0]], 100, np.array([0.1, 0.1]))
    np.testing.assert_allclose(alike, [np.exp(-25 / (2 * 53 * 0.04)), 1])


def arrays(**changes):
    people = dict(
        bbox_scores=np.ones(2), agreement=np.ones((2, 8)), keypoint_scores=np.ones((2, 8)),
        overlap=np.ones(2), excess=np.zeros(2), deviation=np.zeros(2),
    )  # fmt: skip
    for name, value in changes.items():
        people[name][1] = value
    return people


@pytest.mark.parametrize(
    ('change', 'reason'),
    [
        (dict(), None),
        (dict(bbox_scores=0.4), 'detector score'),
        (dict(keypoint_scores=0.2), 'few keypoints'),
        (dict(agreement=[1] * 5 + [0.4] * 3), 'few keypoints'),
        (dict(agreement=[0.55] * 6 + [0.1] * 2), 'views disagree'),
        (dict(overlap=0.4), 'reprojection'),
        (dict(excess=1.0), 'joint limits'),
        (dict(deviation=0.09), None),
        (dict(deviation=0.11), 'pose model disagrees'),
        (dict(excess=1.0, bbox_scores=0.1), 'detector score'),
    ],
)
def test_people_are_dropped_for_the_first_reason(change, reason):
    limits = Thresholds()
    assert reasons(measures(arrays(**change), limits), limits) == [None, reason]


def test_shipped_poses_are_within_the_limits_and_broken_ones_are_not():
    with np.load(asset('poses.npz')) as file:
        poses = file['poses'][:, 1:].reshape(-1, 3)
    matrices = Rotation.from_rotvec(poses).as_matrix().reshape(-1, 23, 3, 3)
    assert max(map(joint_excess, matrices)) <= 0
    for joint, turn in ((3, [-1.0, 0, 0]), (14, [0, 2.0, 0]), (17, [0, 0, 3.1])):
        broken = np.tile(np.eye(3), (23, 1, 1))
        broken[joint] = Rotation.from_rotvec(turn).as_matrix()
        assert joint_excess(broken) > 5


def test_overlap_is_one_for_a_body_that_fills_its_box():
    corners = np.array([[-1.0, -2, 10], [1, 2, 10]])
    focal, center = np.array([100.0, 100]), np.array([50.0, 60])
    assert overlap(corners, np.array([40, 40, 60, 80]), focal, center) == pytest.approx(1)
    assert overlap(corners, np.array([40, 40, 60, 120]), focal, center) == pytest.approx(0.5)
    assert overlap(corners * [1, 1, -1], np.array([40, 40, 60, 80]), focal, center) == 0


def picture(seed):
    small = np.random.default_rng(seed).integers(0, 256, (9, 8, 3), np.uint8)
    return cv2.resize(small, (96, 128), interpolation=cv2.INTER_CUBIC)


def test_the_hash_survives_compression_and_tells_pictures_apart():
    hashes = []
    for seed in range(20):
        image = picture(seed)
        again = cv2.imdecode(cv2.imencode('.jpg', image, [1, 60])[1], 1)
        first, second = (int(difference_hash(each.transpose(2, 0, 1))) for each in (image, again))
        assert (first ^ second).bit_count() <= 3
        hashes.append(first)
    distances = [(a ^ b).bit_count() for n, a in enumerate(hashes) for b in hashes[:n]]
    assert min(distances) > 10


@pytest.mark.parametrize('bits', [0, 3, 8])
def test_equal_pictures_are_found_however_their_bits_differ(bits):
    generator, pose = np.random.default_rng(0), np.full((17, 2), 0.5)
    for _ in range(50):
        seen = Seen(bits)
        first = int(generator.integers(2**63))
        places = generator.choice(64, bits + 1, replace=False).tolist()
        near = first ^ sum(1 << place for place in places[:bits])
        assert seen.add(first, pose)
        assert not seen.add(near, pose)
        assert seen.add(near, pose + 0.4)  # another pose
        assert seen.add(near ^ 1 << places[bits], pose) == (bits >= 0)


@pytest.mark.parametrize('values', [np.zeros(0), np.ones(3), np.array([-5.0, 3, np.inf])])
def test_histograms_of_any_values_are_drawn(values):
    assert histogram('<name>', values, 0.5).startswith('<figure><svg')
