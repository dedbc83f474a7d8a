"""Offsets of annotated keypoints: their frames, their symmetry, and whether they are found."""

import json

import fit_offsets
import pytest
import torch

from trunchier.conventions import COCO_17, COCO_17_FLIP
from trunchier.geometry import axis_angle_to_matrix, coco_points
from trunchier.synthetic.keypoints import KeypointStream, size_of

WRIST = COCO_17.index('left_wrist')


@pytest.fixture(scope='module')
def fit():
    return fit_offsets.OffsetFit(0.03)


def people(count, offsets=None, seed=0):
    """Keypoints of bodies whose points are offset, known, area."""
    stream = KeypointStream(seed, 100, clean=True)
    if offsets is not None:
        stream.points = fit_offsets.shifted(stream.points, offsets)
    keypoints = 1000 * stream.batch(count).keypoints
    known = torch.ones(keypoints.shape[:2])
    return keypoints, known, fit_offsets.AREA * size_of(keypoints)[:, 0, 0].square()


def test_an_offset_moves_one_keypoint_and_turns_with_its_bone():
    points, offsets = coco_points(extra=False), torch.zeros(17, 3)
    offsets[WRIST] = torch.tensor([0.02, 0, 0])
    moved = fit_offsets.shifted(points, offsets)
    rest = torch.eye(3).expand(1, 24, 3, 3)
    turned = rest.clone()
    turned[:, 0] = axis_angle_to_matrix(torch.tensor([0, 0, torch.pi / 2]))
    for rotations, direction in ((rest, [0.02, 0, 0]), (turned, [0, 0.02, 0])):
        betas = torch.zeros(1, 10)
        change = moved(rotations, betas)[1] - points(rotations, betas)[1]
        expected = torch.zeros(17, 3)
        expected[WRIST] = torch.tensor(direction)
        torch.testing.assert_close(change[0], expected, atol=1e-6, rtol=0)


def test_mirrored_people_have_the_same_offsets(fit):
    keypoints, known, area = people(8, 0.03 * torch.ones(17, 3))
    mirrored = keypoints[:, list(COCO_17_FLIP)] * torch.tensor([-1.0, 1.0])
    found, _ = fit.offsets(*fit.evidence(keypoints, known, area))
    other, _ = fit.offsets(*fit.evidence(mirrored, known, area))
    # The prior of bodies was measured, hence nearly symmetric only.
    assert (found - other).norm() < 0.1 * found.norm()
    left_and_right = found[list(COCO_17_FLIP)] * torch.tensor([-1.0, 1.0, 1.0])
    torch.testing.assert_close(found, left_and_right)


def test_offsets_that_many_people_have_are_found_and_help_others(fit):
    truth = torch.zeros(17, 3)
    truth[1:5, 1] = 0.04  # eyes and ears, up
    offsets, deviation = fit.offsets(*fit.evidence(*people(60, truth)))
    assert 0.02 < offsets[1:5, 1].mean() < 0.06
    assert deviation.max() <= 0.03
    before, after = fit.held_out(*people(12, truth))
    assert after.mean() < before.mean()


def test_without_offsets_little_is_found(fit):
    offsets, _ = fit.offsets(*fit.evidence(*people(60)))
    assert offsets.abs().mean() < 0.01


def test_a_report_names_every_kind_of_keypoint(tmp_path, capsys):
    keypoints, known, area = people(3)
    rows = torch.cat((keypoints, 2 * known[..., None]), 2).flatten(1).tolist()
    annotations = [dict(keypoints=row, area=float(a)) for row, a in zip(rows, area, strict=True)]
    path = tmp_path / 'people.json'
    path.write_text(json.dumps(dict(annotations=annotations)))
    fit_offsets.main([str(path)])
    said = capsys.readouterr().out
    assert '3 people, 51 keypoints' in said and 'people not seen' in said
    assert all(f'| {name} |' in said for name in ('nose', 'hip', 'ankle'))


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('{}', 'has no keypoints and areas'),
        ('{"annotations": [{"keypoints": [1, 2], "area": 3}]}', 'has no keypoints and areas'),
        (json.dumps(dict(annotations=[dict(keypoints=[0] * 51, area=3)])), "0 people with 8"),
        ('no JSON', 'has no keypoints and areas'),
    ],
)  # fmt: skip
def test_other_files_are_refused(tmp_path, content, message):
    path = tmp_path / 'people.json'
    path.write_text(content)
    with pytest.raises(SystemExit, match=message):
        fit_offsets.main([str(path)])


def test_wrong_options_are_named():
    with pytest.raises(SystemExit, match='give a file of annotations, or --simulate'):
        fit_offsets.main([])
    with pytest.raises(SystemExit, match='--prior above 0'):
        fit_offsets.main(['--simulate', '1'])
