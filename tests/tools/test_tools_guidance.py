"""tools/guidance.py: a diffusion lifter with and without physical guidance."""

import sys

import pytest
import torch

pytest.importorskip('mmpose')
import guidance

from trunchier.synthetic.keypoints import size_of
from trunchier.synthetic.sequences import KeypointSequences


def test_the_view_of_a_track_projects_its_joints_onto_the_keypoints():
    keypoints, joints, view = guidance.draw(KeypointSequences(3, 500, clean=True), 2)
    assert keypoints.shape == (2, guidance.FRAMES, 17, 2) and not joints[:, :, 0].any()
    places = joints + view.root[:, :, None]
    seen = places[..., :2] / places[..., 2:] * view.focal[:, None, None]
    apart = (seen - keypoints).flatten(0, 1)
    spread = (apart / size_of(seen.flatten(0, 1))).std()
    torch.testing.assert_close(spread, torch.tensor(guidance.NOISE), rtol=0.1, atol=0)


@pytest.mark.slow
def test_a_lifter_is_trained_and_measured(tmp_path, monkeypatch, capsys):
    for command in (
        ['train', '--out', tmp_path / 'a.pth', '--minutes', '0.05', '--batch-size', '2'],
        ['test', tmp_path / 'a.pth', '--num', '2', '--steps', '30'],
    ):
        monkeypatch.setattr(sys, 'argv', ['guidance.py', *map(str, command)])
        guidance.main()
    rows = capsys.readouterr().out.splitlines()[-3:]
    assert [row.split('  ')[0] for row in rows] == [
        'off', 'without a camera, step 30', 'with the true camera, step 30'
    ]  # fmt: skip
    assert len({row.split()[-1] for row in rows}) == 3
