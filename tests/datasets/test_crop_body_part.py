"""Crops of people to a part of the body."""

import numpy as np
import pytest

from trunchier.conventions import COCO_17
from trunchier.datasets import CropBodyPart
from trunchier.datasets.partial import PARTS
from trunchier.metrics import extent

# A standing person, pixels: x, y of COCO's 17 keypoints.
STANDING = np.array(
    [
        *((50, 20), (52, 18), (48, 18), (54, 20), (46, 20), (60, 35), (40, 35), (65, 55), (35, 55)),
        *((68, 75), (32, 75), (56, 80), (44, 80), (57, 110), (43, 110), (58, 140), (42, 140)),
    ],
    np.float32,
)


def person(number=0, visible=range(17)):
    rows, columns = np.mgrid[:160, :100]
    return dict(
        id=number,
        img=np.stack([columns, rows, columns], axis=2).astype(np.uint8),
        img_shape=(160, 100),
        ori_shape=(160, 100),
        keypoints=STANDING[None].copy(),
        keypoints_visible=np.isin(np.arange(17), visible).astype(np.float32)[None],
        bbox=np.float32([[25, 10, 75, 150]]),
    )


@pytest.mark.parametrize('number, part', [*enumerate(PARTS)])
def test_each_part_is_left_alone_in_the_picture(number, part):
    crop = CropBodyPart(tuple(PARTS), by_id=True, margin=0.05)
    given = person(number)
    found = crop(given)
    seen = found['keypoints_visible'][0] > 0
    assert extent(seen) == part
    height, width = found['img'].shape[:2]
    assert found['img_shape'] == (height, width)
    for joint in np.flatnonzero(seen):  # colors of the picture are its coordinates
        x, y = found['keypoints'][0, joint].astype(int)
        assert tuple(found['img'][y, x, :2]) == tuple(STANDING[joint].astype(int))
    box = found['bbox'][0]
    assert (box >= 0).all() and box[2] <= width and box[3] <= height
    inside = ((found['keypoints'][0] >= 0) & (found['keypoints'][0] < (width, height))).all(1)
    assert (inside == seen).all() and (person(number)['keypoints'] == given['keypoints']).all()


def test_limbs_take_turns_by_the_id_of_the_person():
    crop = CropBodyPart(('limb',), by_id=True, margin=0.01)
    seen = [tuple(np.flatnonzero(crop(person(i))['keypoints_visible'][0])) for i in range(8)]
    assert len(set(seen)) == 4 and seen[:4] == seen[4:]


def test_in_training_parts_are_drawn_with_their_chance():
    crop = CropBodyPart(('upper', 'lower'), chance=0.5)
    np.random.seed(0)
    seen = [extent(crop(person())['keypoints_visible'][0] > 0) for _ in range(400)]
    assert 160 < seen.count('whole') < 240 and min(seen.count('upper'), seen.count('lower')) > 50


def test_a_person_without_the_part_stays_whole():
    given = person(visible=range(7))
    assert CropBodyPart(('lower',), chance=1.0)(given) is given
    feet = person(visible=[COCO_17.index('left_ankle')])
    assert CropBodyPart(('limb',), by_id=True)(feet) is feet


@pytest.mark.parametrize(
    'options, words',
    [
        (dict(parts=('head',)), 'give a tuple of whole, upper, lower, limb'),
        (dict(parts='upper'), 'give a tuple of'),
        (dict(chance=2), 'chance=2, margin=0.15'),
    ],
)
def test_options_out_of_range_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        CropBodyPart(**options)


def test_the_wrong_place_in_a_pipeline_is_named():
    with pytest.raises(KeyError, match='between LoadImage and GetBBoxCenterScale'):
        CropBodyPart(chance=1.0)(dict(person(), bbox_center=np.zeros((1, 2))))
