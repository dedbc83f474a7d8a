"""A body follows from keypoints, wherever they are, and mirrors with them."""

import pytest
import torch

from trunchier.conventions import COCO_17_FLIP, SMPL_24_FLIP
from trunchier.models.lifting.body import load_lifter
from trunchier.synthetic.keypoints import KeypointStream
from trunchier.weights.load import CheckpointError, save_weights

MIRROR = torch.tensor([[1.0, -1, -1], [-1, 1, 1], [-1, 1, 1]])


@pytest.fixture(scope='module')
def lifter():
    return load_lifter()


@pytest.fixture(scope='module')
def people():
    batch = KeypointStream(3, 40).batch(24)
    return batch.keypoints * 500 + 200, batch.scores


def rotations(body):
    return torch.cat((body['global_orient'], body['body_pose']), 1)


@pytest.mark.parametrize('method', ['forward', 'lift'])
def test_bodies_do_not_depend_on_place_and_size(lifter, people, method):
    keypoints, scores = people
    shift = torch.tensor([300.0, -80.0])
    with torch.no_grad():
        here = getattr(lifter, method)(keypoints, scores)
        there = getattr(lifter, method)(keypoints * 2 + shift, scores)
    for name in ('global_orient', 'body_pose', 'betas'):
        torch.testing.assert_close(here[name], there[name], atol=2e-4, rtol=0)
    scale, move = here['camera'].split((1, 2), 1)
    torch.testing.assert_close(there['camera'][:, :1], 2 * scale, rtol=1e-4, atol=0)
    moved = move + shift / (2 * scale)
    torch.testing.assert_close(there['camera'][:, 1:], moved, rtol=1e-3, atol=1e-3)


def test_a_keypoint_without_score_changes_nothing(lifter, people):
    keypoints, scores = people[0].clone(), people[1].clone()
    scores[:, 9] = 0
    before = lifter.lift(keypoints, scores)
    for move in (1000, torch.nan):
        keypoints[:, 9] += move
        after = lifter.lift(keypoints, scores)
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_mirrored_person_is_lifted_to_the_mirrored_body(lifter, people):
    keypoints, scores = people
    flip = list(COCO_17_FLIP)
    body = lifter.lift(keypoints, scores)
    mirrored = lifter.lift(keypoints[:, flip] * torch.tensor([-1.0, 1.0]), scores[:, flip])
    expected = rotations(body)[:, list(SMPL_24_FLIP)] * MIRROR
    torch.testing.assert_close(rotations(mirrored), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        mirrored['camera'], body['camera'] * torch.tensor([1.0, -1.0, 1.0]), rtol=1e-5, atol=1e-5
    )


def test_the_shipped_lifter_puts_bodies_onto_exact_keypoints(lifter):
    """Joints are right to a few centimeters, and the camera puts them where they were."""
    stream = KeypointStream(5, 200, clean=True)
    batch = stream.batch(200)
    body = lifter.lift(batch.keypoints, batch.scores)
    _, found = stream.points(rotations(body), body['betas'])
    _, truth = stream.points(batch.rotations, batch.betas)
    found, truth = (each - each[:, 11:13].mean(1, keepdim=True) for each in (found, truth))
    still = truth.mean(0)  # one body for everybody
    error, constant = ((each - truth).norm(dim=-1).mean() for each in (found, still))
    assert error < 0.15 < 0.3 < constant
    camera = body['camera'][:, None]
    _, points = stream.points(rotations(body), body['betas'])
    shown = camera[..., :1] * (points[:, :17, :2] + camera[..., 1:])
    size = (batch.truth.amax(1) - batch.truth.amin(1)).norm(dim=-1)[:, None]
    assert ((shown - batch.truth).norm(dim=-1) / size).mean() < 0.05


def test_weights_of_something_else_are_refused(tmp_path):
    save_weights(dict(weight=torch.zeros(2)), tmp_path / 'other.safetensors')
    with pytest.raises(CheckpointError, match=r'other.safetensors holds no BodyLifter'):
        load_lifter(tmp_path / 'other.safetensors')
    torch.save([1], tmp_path / 'list.pth')
    with pytest.raises(CheckpointError, match='holds no BodyLifter'):
        load_lifter(tmp_path / 'list.pth')
    with pytest.raises(FileNotFoundError, match=r'nothing.pth'):
        load_lifter(tmp_path / 'nothing.pth')
