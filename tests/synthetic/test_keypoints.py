"""Streams of synthetic keypoints repeat, and carry a model's errors over to other people."""

import numpy as np
import pytest
import torch

from trunchier.conventions import COCO_17_FLIP
from trunchier.geometry import axis_angle_to_matrix, coco_points
from trunchier.models.mesh.body import EMBEDDED_BODY, BodyModel
from trunchier.synthetic.keypoints import ERRORS, KeypointStream, size_of


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(vars(a).values(), vars(b).values(), strict=True))


@pytest.fixture
def errors(tmp_path):
    """Two people of whom a model finds the nose wrong by a tenth of their size."""
    rng = np.random.default_rng(0)
    arrays = {name: np.zeros((2, *shape), np.float32) for name, shape in ERRORS.items()}
    arrays['errors'][:, 0] = 0.1
    arrays['scores'][:] = 0.5
    arrays['truth'] = rng.uniform(-1, 1, (2, 17, 2)).astype(np.float32)
    np.savez(tmp_path / 'errors.npz', **arrays)
    return tmp_path / 'errors.npz'


def test_points_equal_those_of_the_body_model():
    """Without computing a vertex."""
    torch.manual_seed(0)
    rotations = axis_angle_to_matrix(torch.randn(4, 24, 3))
    betas = torch.randn(4, 10)
    posed = BodyModel()(rotations[:, :1], rotations[:, 1:], betas)
    joints, points = coco_points()(rotations, betas)
    torch.testing.assert_close(joints, posed['skeleton'], atol=2e-6, rtol=0)
    torch.testing.assert_close(points[:, 17:], posed['joints'][:, 25:], atol=2e-6, rtol=0)
    with np.load(EMBEDDED_BODY) as file:
        regressor = torch.from_numpy(file['coco17_regressor'][:17])
    coco = torch.einsum('kv,bvc->bkc', regressor, posed['vertices'])
    torch.testing.assert_close(points[:, :17], coco, atol=2e-6, rtol=0)


def test_a_stream_repeats_with_its_seed():
    assert same(KeypointStream(1, 20).batch(30), KeypointStream(1, 20).batch(30))
    assert not same(KeypointStream(1, 20).batch(30), KeypointStream(2, 20).batch(30))


def test_clean_keypoints_are_the_truth_and_all_known():
    batch = KeypointStream(1, 20, clean=True).batch(30)
    assert torch.equal(batch.keypoints, batch.truth) and (batch.scores == 1).all()


def test_some_keypoints_are_missing_but_never_nearly_all():
    known = KeypointStream(1, 20).batch(400).scores > 0
    assert 0.7 < known.float().mean() < 0.95 and known.sum(1).min() >= 5


def test_errors_of_a_model_are_carried_over(errors):
    stream = KeypointStream(1, 20, errors)
    batch = stream.batch(80)
    assert len(batch.truth) == 80
    relative = (batch.keypoints - batch.truth) / size_of(batch.truth)
    expected = torch.zeros(17, 2)
    expected[0] = 0.1
    mirrored = expected * torch.tensor([-1.0, 1.0])
    as_found = [(relative - each).abs().amax((1, 2)) < 1e-4 for each in (expected, mirrored)]
    taken = as_found[0] | as_found[1]
    assert as_found[0].any() and as_found[1].any()
    assert 0.35 < taken.float().mean() < 0.8  # half of seven eighths, and the last eighth
    assert taken[-10:].all() and (batch.betas[-10:] == 0).all()
    scores = batch.scores[taken]
    assert ((scores == 0.5) | (scores == 0)).all()


def test_people_of_the_file_keep_their_bodies_mirrored_or_not(errors):
    with np.load(errors) as file:
        arrays = dict(file)
    arrays['pose'][:, 3 * 16] = 1.0  # the left shoulder
    np.savez(errors, **arrays)
    batch = KeypointStream(1, 20, errors).batch(80)
    eye = torch.eye(3)
    for rotations, truth in zip(batch.rotations[-10:], batch.truth[-10:], strict=True):
        left = not torch.equal(rotations[16], eye)
        assert left != (not torch.equal(rotations[17], eye))
        flip = list(COCO_17_FLIP)
        shown = truth if left else truth[flip] * torch.tensor([-1.0, 1.0])
        assert any(torch.equal(shown, torch.from_numpy(each)) for each in arrays['truth'])


def test_people_of_the_file_are_tilted_with_their_bodies(errors):
    with np.load(errors) as file:
        before = torch.from_numpy(file['truth'])
    stream = KeypointStream(1, 20, errors, found_share=0.25, tilt=20.0)
    batch = stream.batch(40)
    angles = []
    for rotations, truth in zip(batch.rotations[-10:], batch.truth[-10:], strict=True):
        cos, sin = rotations[0, :2, 0]
        angles.append(torch.atan2(sin, cos))
        straight = truth @ rotations[0, :2, :2]
        flip, left = list(COCO_17_FLIP), torch.tensor([-1.0, 1.0])
        mirrored = straight[flip] * left
        known = [(each - one).abs().max() < 1e-3 for each in (straight, mirrored) for one in before]
        assert any(known)
    assert 5 < torch.stack(angles).rad2deg().std() < 40
    with pytest.raises(ValueError, match=r'found_share is 1.5; expected a share from 0 to 1'):
        KeypointStream(1, 20, errors, found_share=1.5)


def test_several_files_are_one_set(errors, tmp_path):
    with np.load(errors) as file:
        arrays = dict(file)
    np.savez(tmp_path / 'more.npz', **{**arrays, 'betas': arrays['betas'] + 1})
    batch = KeypointStream(1, 20, [errors, tmp_path / 'more.npz']).batch(80)
    assert batch.betas[-10:].unique().tolist() == [0, 1]
    with pytest.raises(ValueError, match='no file of errors; tools/train_lifter.py errors'):
        KeypointStream(1, 20, [])


def test_a_file_of_something_else_is_refused(errors):
    with np.load(errors) as file:
        arrays = dict(file)
    np.savez(errors, **{**arrays, 'betas': np.zeros((2, 9))})
    with pytest.raises(ValueError, match=r'betas of .*expected \(2, 10\), found \(2, 9\)'):
        KeypointStream(1, 20, errors)
    np.savez(errors, **{**arrays, 'truth': 100 * arrays['truth']})
    with pytest.raises(ValueError, match='up to .* focal lengths .*files of pixels.*anew'):
        KeypointStream(1, 20, errors)
    del arrays['errors']
    np.savez(errors, **arrays)
    with pytest.raises(ValueError, match=r'errors of .*found nothing; tools/train_lifter.py'):
        KeypointStream(1, 20, errors)
