"""Agreement is 1 for a teacher that treats all views alike, and low for one that does not."""

import cv2
import numpy as np
import pytest
import torch
from benchmark.annotation import TrivialTeacher

from trunchier.annotation.views import Views, mirrored
from trunchier.conventions import COCO_17
from trunchier.inference.pose import PosePredictor
from trunchier.inference.predictor import Crop
from trunchier.weights.find import find

BOX = np.float32([40, 20, 100, 120, 0.9])
SIDES = np.array([name.startswith('right') for name in COCO_17])


class DotTeacher(TrivialTeacher):
    """Keypoints of one side are at the first bright column of a crop, of the other at the last.

    Args:
        by_color: the right side is what is brighter, wherever it is.
    """

    def __init__(self, by_color=False):
        self.by_color = by_color

    def crop(self, image, box, focal=None):
        x1, y1, x2, y2 = np.rint(box[:4]).astype(int)
        pixels = torch.from_numpy(image[y1:y2, x1:x2].transpose(2, 0, 1).copy())
        center, size = np.array([x1 + x2, y1 + y2]) / 2, np.array([x2 - x1, y2 - y1])
        return Crop(pixels, center, size, image.shape[:2])

    def decode(self, output, crops):
        people = super().decode(output, crops)
        for person, crop in zip(people, crops, strict=True):
            columns = crop.pixels.float().mean((0, 1))
            ends = np.flatnonzero(columns > 0)[[0, -1]]
            if self.by_color and columns[ends[0]] > columns[ends[1]]:
                ends = ends[::-1]
            left = crop.center[0] - crop.size[0] / 2
            person['keypoints'][:, 0] = left + ends[SIDES.astype(int)] + 0.5
            person['keypoints'][0, 0] = left + ends.mean() + 0.5  # the nose has no side
        return people


@pytest.fixture
def image():
    image = np.zeros((160, 160, 3), np.uint8)
    image[60:64, 50] = 120
    image[60:64, 85] = 250
    return image


def look(teacher, image, **options):
    views = Views(teacher, **options)
    crops = [views.crop(image, BOX)]
    (person,) = views.decode(views.forward(crops), crops)
    return person


@pytest.mark.parametrize('options', [{}, dict(mirrored=False), dict(scaled=False)])
def test_a_teacher_that_knows_left_from_right_agrees_with_itself(image, options):
    person = look(DotTeacher(), image, **options)
    assert sorted({*person['keypoints'][:, 0].tolist()}) == [50.5, 68, 85.5]
    np.testing.assert_allclose(person['agreement'], 1)


def test_a_teacher_that_mixes_them_up_in_the_mirror_does_not(image):
    assert look(DotTeacher(by_color=True), image)['agreement'][COCO_17.index('left_wrist')] < 1e-3
    assert look(DotTeacher(by_color=True), image, mirrored=False)['agreement'].min() == 1


def test_a_teacher_that_moves_with_the_box_does_not(image):
    class Corner(TrivialTeacher):
        def decode(self, output, crops):
            people = super().decode(output, crops)
            for person, crop in zip(people, crops, strict=True):
                person['keypoints'] -= np.float32(crop.size / 2)
            return people

    assert look(Corner(), image, mirrored=False)['agreement'].max() < 0.8


def test_the_mirrored_view_is_that_of_the_mirrored_image():
    """Bodies are seen in perspective: it matters on which side of the image a person is."""
    noise = np.random.default_rng(0).integers(0, 255, (120, 200, 3), np.uint8)
    image = cv2.GaussianBlur(noise, (0, 0), 2)  # places in it are rounded to 1/32 pixel
    box = np.float32([10, 20, 60, 110])
    there = np.float32([199 - 60, 20, 199 - 10, 110])
    pose = PosePredictor.load(find('VMPose-T-S2'))
    seen = mirrored(pose.crop(image, box), box)
    expected = pose.crop(image[:, ::-1].copy(), there)
    np.testing.assert_allclose(seen.center, expected.center)
    np.testing.assert_allclose(seen.box, expected.box)
    np.testing.assert_allclose(seen.pixels, expected.pixels, atol=1)


def test_a_teacher_that_finds_people_itself_is_refused():
    teacher = DotTeacher()
    teacher.finds_people = True
    with pytest.raises(ValueError, match='take a top-down model, not a bottom-up one'):
        Views(teacher)
