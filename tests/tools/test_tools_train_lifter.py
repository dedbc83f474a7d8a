"""The lifters of the package can be trained on."""

import torch
import train_lifter

from trunchier.geometry import coco_points
from trunchier.models.lifting.track import BodyTrackLifter
from trunchier.synthetic.keypoints import KeypointStream
from trunchier.synthetic.sequences import KeypointSequences


def seen(points):
    return points[..., :2] / points[..., 2:]


def test_people_are_trained_on_as_prediction_shows_them():
    batch = KeypointStream(1, 50).batch(60)
    faced = train_lifter.faced(batch)
    middle = (faced.keypoints * batch.scores[..., None]).sum(1) / batch.scores.sum(1)[:, None]
    before = (batch.keypoints * batch.scores[..., None]).sum(1) / batch.scores.sum(1)[:, None]
    assert middle.norm(dim=1).median() < 0.02 < 0.1 < before.norm(dim=1).median()
    # A body has the same keypoints under the same turn, wherever it stands.
    points = coco_points()
    ours, theirs = (points(each.rotations, each.betas)[1][:, :17] for each in (faced, batch))
    turn = faced.rotations[:, 0] @ batch.rotations[:, 0].mT
    torch.testing.assert_close(
        ours - ours.mean(1, keepdim=True),
        (theirs - theirs.mean(1, keepdim=True)) @ turn.mT,
        atol=1e-5, rtol=1e-4,
    )  # fmt: skip
    rays = torch.cat((batch.truth, torch.ones_like(batch.truth[..., :1])), 2)
    torch.testing.assert_close(faced.truth, seen(rays @ turn.mT), atol=1e-5, rtol=1e-4)


def test_half_of_the_lenses_are_guessed():
    batch = KeypointStream(1, 50).batch(400)
    faced = train_lifter.faced(batch), train_lifter.faced(batch, torch.Generator().manual_seed(0))
    same = torch.isclose(faced[0].truth, faced[1].truth).all(2).all(1)
    assert 150 < same.sum() < 250


def test_windows_are_turned_as_a_whole_and_stay_what_the_camera_sees():
    shot, keypoints, scores = KeypointSequences(2, 500).batch(3, 9)
    ours, found = train_lifter.faced_shot(shot, keypoints, scores)
    torch.testing.assert_close(seen(ours.points[:, :, :17]), ours.truth, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.joints[:, :, 0], ours.translation, atol=1e-4, rtol=1e-4)
    middle = (ours.truth.mean((1, 2)).norm(dim=1), (shot.truth / shot.focal[:, None, None, None]))
    assert (middle[0] < 0.1).all() and middle[1].mean((1, 2)).norm(dim=1).max() > 0.1
    turns = ours.rotations[:, :, 0] @ shot.rotations[:, :, 0].mT
    torch.testing.assert_close(turns, turns[:, :1].expand_as(turns), atol=1e-5, rtol=0)
    errors, before = found - ours.truth, keypoints - shot.truth
    known = (scores > 0) & (before.norm(dim=3) > 0)
    size = (errors.norm(dim=3) / before.norm(dim=3) * shot.focal[:, None, None])[known]
    assert 0.8 < size.median() < 1.25


def test_the_moments_of_a_training_that_goes_on_belong_to_its_parameters():
    first, second = BodyTrackLifter(), BodyTrackLifter()
    optimizer = train_lifter.track_optimizer(first, 1e-3)
    for parameter in first.parameters():
        parameter.grad = parameter.detach().clone()
    optimizer.step()
    resumed = train_lifter.track_optimizer(second, 1e-3)
    resumed.load_state_dict(optimizer.state_dict())
    gradients = [parameter.grad for parameter in first.parameters()]
    for gradient, parameter in zip(gradients, second.parameters(), strict=True):
        torch.testing.assert_close(resumed.state[parameter]['exp_avg'], 0.1 * gradient)
    assert [group['lr'] for group in resumed.param_groups] == [0.3e-3, 1e-3]
