"""Transforms of pose pipelines: boxes like a detector's, corrupted and covered crops."""

import numpy as np
import pytest

from trunchier.datasets import CorruptImage, CutOut, JitterBox, corruption


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)


def test_edges_of_a_jittered_box_move_on_their_own_by_a_share_of_its_side():
    np.random.seed(0)
    box = np.array([(100, 200, 300, 800)], np.float32)  # sides 200 and 600
    jitter = JitterBox(deviation=0.05, poor_rate=0)
    moves = np.array([jitter({'bbox': box})['bbox'][0] - box[0] for _ in range(2000)])
    assert np.abs(moves).max() <= 0.1 * 600 + 1e-3  # two deviations
    share = moves.std(0) / (200, 600, 200, 600)
    assert share == pytest.approx(0.048, abs=0.004)  # normal, clipped at two deviations
    assert np.abs(np.corrcoef(moves.T) - np.eye(4)).max() < 0.1


def test_poor_boxes_are_worse_at_their_rate():
    np.random.seed(0)
    box = np.array([(0, 0, 1, 1)], np.float32)
    jitter = JitterBox(deviation=0, poor_rate=0.25, poor=0.1)
    moved = [(jitter({'bbox': box})['bbox'] != box).any() for _ in range(2000)]
    assert np.mean(moved) == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize(
    'change', (*corruption.COLORS, *corruption.DEGRADATIONS), ids=lambda change: change.__name__
)
def test_each_corruption_changes_the_image_but_not_its_form(change, image):
    np.random.seed(1)
    before = image.copy()
    changed = change(image)
    assert changed.shape == image.shape and changed.dtype == np.uint8
    assert (changed != image).any()
    assert (image == before).all()  # the input is left as it was


def test_at_rate_zero_an_image_stays_as_it_is(image):
    results = CutOut(rate=0)(CorruptImage(color_rate=0, degrade_rate=0)({'img': image}))
    assert results['img'] is image


def test_cut_out_covers_rectangles_and_nothing_else(image):
    np.random.seed(2)
    covered = CutOut(rate=1, sides=(0.2, 0.3))({'img': image})['img']
    share = (covered != image).any(2).mean()
    assert 0.01 < share < 2 * 0.35**2  # at most two rectangles, a pixel larger by rounding
