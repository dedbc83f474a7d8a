"""The clip of the video demo, whose people are the truth that its errors are measured against."""

import demo_video
import numpy as np

from trunchier.conventions import SMPL_24
from trunchier.synthetic.wardrobe import sample_outfit


def test_people_of_the_clip_walk_on_the_ground():
    outfit = sample_outfit(np.random.default_rng(0), ('', ''))
    to_world = np.diag((1.0, -1.0, -1.0))
    for index, (start, speed) in enumerate(demo_video.WALKS):
        places = []
        for frame in (0, 6, 30):
            figure = demo_video.person(index, frame, to_world, outfit)
            level = figure.vertices @ to_world
            assert abs(level[:, 1].min() + demo_video.HEIGHT) < 1e-4
            assert np.ptp(level[:, 1]) > 1.5  # upright
            places.append((figure.skeleton @ to_world)[0, [0, 2]])
        walked = (places[2] - places[0]) / (30 / demo_video.FPS)
        np.testing.assert_allclose(walked, speed, atol=0.05)
        np.testing.assert_allclose(places[0], start, atol=0.3)


def test_legs_swing_against_each_other():
    left, right = (SMPL_24.index(f'{side}_hip') for side in ('left', 'right'))
    one, two = demo_video.gait(0.7), demo_video.gait(0.7 + np.pi)
    np.testing.assert_allclose(one[left], two[right], atol=1e-12)
    np.testing.assert_allclose(one @ one.swapaxes(1, 2), np.tile(np.eye(3), (24, 1, 1)), atol=1e-12)


def test_smoothers_are_compared(capsys):
    demo_video.compare_smoothers()
    rows = [line.split('|')[1:-1] for line in capsys.readouterr().out.splitlines()[2:]]
    errors = {name.strip(): [float(each) for each in row] for name, *row in rows}
    for order in range(3):
        assert errors['guidance'][order] < errors['offline'][order] < errors['none'][order]
    assert errors['(truth)'][:3] == [0, 0, 0]
