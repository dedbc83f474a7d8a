"""Overlays show the right thing in the right place and do not change the input image."""

import json
import sys

import cv2
import numpy as np
import pytest
from mmengine.structures import InstanceData
from mmpose.datasets.datasets.utils import parse_pose_metainfo
from mmpose.structures import PoseDataSample
from small_models import body, noise

from trunchier.visualization import overlays
from trunchier.visualization.overlays import KeypointPainter, MeshPainter, PerspectivePainter

BODY, FACES = body()
FOCAL, CENTER = (300.0, 300.0), (64.0, 64.0)


def sample(**instances):
    result = PoseDataSample()
    result.pred_instances = InstanceData(**instances)
    result.set_metainfo(dict(focal_length=np.array(FOCAL), principal_point=np.array(CENTER)))
    return result


def pose(score=1.0):
    points = np.stack([np.linspace(20, 100, 17), np.linspace(30, 90, 17)], axis=1)
    return sample(
        keypoints=points[None],
        keypoint_scores=np.full((1, 17), score),
        keypoints_visible=np.full((1, 17), score),
        bboxes=np.float32([[10, 20, 110, 100]]),
        bbox_scores=np.ones(1),
        track_ids=np.array([3]),
    )


@pytest.fixture
def meta():
    return parse_pose_metainfo(dict(from_file='configs/_base_/datasets/coco.py'))


# --- keypoints ------------------------------------------------------------------------------------
@pytest.mark.parametrize('style', ['mmpose', 'openpose'])
def test_keypoints_are_drawn_as_by_mmpose_when_asked_for(meta, style):
    from mmpose.visualization import PoseLocalVisualizer

    image = noise(120, 130)
    before = image.copy()
    drawn = KeypointPainter(meta, radius=3, thickness=1, skeleton_style=style)(image, pose())
    np.testing.assert_array_equal(image, before)
    theirs = PoseLocalVisualizer(radius=3, line_width=1)
    theirs.set_dataset_meta(meta, style)
    expected = theirs.add_datasample(
        'a', image[..., ::-1], pose(), draw_gt=False, draw_bbox=False, skeleton_style=style
    )
    np.testing.assert_array_equal(drawn, expected[..., ::-1])


def test_unknown_styles_of_skeletons_are_refused(meta):
    with pytest.raises(ValueError, match="one of person, mmpose, openpose, got 'neon'"):
        KeypointPainter(meta, skeleton_style='neon')


def test_skeletons_have_the_color_of_their_person_or_track(meta):
    image = np.zeros((120, 130, 3), np.uint8)
    drawn = KeypointPainter(meta, radius=4)(image, pose())
    assert drawn[30, 20].tolist() == overlays.LINE_COLORS[3].tolist()  # the nose of track 3
    other = pose()
    other.pred_instances.track_ids = np.array([-1])
    drawn = KeypointPainter(meta, radius=4)(image, other)
    assert drawn[30, 20].tolist() == overlays.LINE_COLORS[0].tolist()


def test_lines_are_anti_aliased(meta):
    """Between background and color there are tones in between."""
    drawn = KeypointPainter(meta)(np.full((200, 200, 3), 255, np.uint8), pose())
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 60


def test_keypoints_below_the_threshold_are_faint_and_those_without_score_absent(meta):
    image = np.zeros((120, 130, 3), np.uint8)
    sure, unsure, none = (
        KeypointPainter(meta)(image, pose(score)).astype(int) for score in (0.9, 0.2, 0.0)
    )
    assert not none.any() and 0.3 < unsure.max() / sure.max() < 0.4
    np.testing.assert_array_equal(unsure.any(-1), sure.any(-1))
    lower = KeypointPainter(meta, kpt_thr=0.1)(image, pose(score=0.2))
    np.testing.assert_array_equal(lower, sure)


def test_keypoints_far_outside_or_without_a_position_are_drawn_as_lines_that_leave(meta):
    image, far = noise(120, 130), pose()
    far.pred_instances.keypoints[0, 3] = [1e9, -1e9]
    far.pred_instances.keypoints[0, 4] = np.nan
    drawn = KeypointPainter(meta)(image, far)
    assert drawn[30, 20].tolist() == overlays.LINE_COLORS[3].tolist()  # the nose
    far.pred_instances.keypoints[:] += 5000
    np.testing.assert_array_equal(KeypointPainter(meta)(image, far), image)


def test_heatmaps_are_blended_where_they_are_high(meta):
    from mmengine.structures import PixelData

    image, hot = np.full((120, 130, 3), 128, np.uint8), pose(score=0.0)
    heatmaps = np.zeros((17, 120, 130), np.float32)
    heatmaps[5, 40:50, 60:70] = 1
    hot.pred_fields = PixelData(heatmaps=heatmaps)
    changed = (KeypointPainter(meta)(image, hot) != image).any(-1)
    np.testing.assert_array_equal(changed, heatmaps[5] > 0)


def test_lines_scale_with_image_and_person(meta):
    def painted(side, box):
        one = pose()
        one.pred_instances.bboxes = np.float32([box])
        drawn = KeypointPainter(meta)(np.zeros((side, side, 3), np.uint8), one)
        return np.count_nonzero(drawn.any(-1))

    assert painted(2000, [0, 0, 900, 900]) > 1.5 * painted(200, [0, 0, 900, 900])
    assert painted(2000, [0, 0, 900, 900]) > 1.5 * painted(2000, [10, 20, 60, 80])


def test_boxes_scores_and_track_ids_are_drawn_when_asked_for(meta):
    image = np.zeros((120, 130, 3), np.uint8)
    plain = KeypointPainter(meta)(image, pose())
    boxed = KeypointPainter(meta, draw_bbox=True)(image, pose())
    assert not plain[100, 15:60].any() and boxed[100, 15:60].any(-1).all()
    assert boxed[100, 15].tolist() == overlays.LINE_COLORS[3].tolist()  # of track 3
    assert (boxed[10:20, 10:40] != plain[10:20, 10:40]).any()
    scored = pose()
    scored.pred_instances.bbox_scores = np.array([0.87])
    wider = KeypointPainter(meta, draw_bbox=True)(image, scored)
    columns = [np.flatnonzero(drawn[10, :].any(-1)) for drawn in (boxed, wider)]
    assert columns[1].max() > columns[0].max() + 10


def test_the_background_may_be_black(meta):
    image = noise(120, 130)
    black = KeypointPainter(meta, black_background=True)(image, pose())
    assert (black.any(-1)).mean() < 0.5


def test_an_image_without_people_is_copied(meta):
    image = noise(120, 130)
    empty = sample(keypoints=np.empty((0, 17, 2)), bboxes=np.empty((0, 4)))
    drawn = KeypointPainter(meta, draw_bbox=True)(image, empty)
    np.testing.assert_array_equal(drawn, image)
    assert drawn is not image


# --- meshes ---------------------------------------------------------------------------------------
def people(count=1, apart=0.0):
    translation = np.float32([[0.4 * i, 0, 6 + apart * i] for i in range(count)])
    return sample(
        vertices=np.float32([BODY] * count).reshape(-1, *BODY.shape),
        translation=translation.reshape(-1, 3),
        bboxes=np.float32([[20, 20, 100, 120]] * count).reshape(-1, 4),
    )


def test_meshes_change_the_pixels_that_they_cover_only():
    image = noise(128, 128)
    before = image.copy()
    drawn = MeshPainter(FACES)(image, people())
    np.testing.assert_array_equal(image, before)
    changed = (drawn != image).any(-1)
    inside = BODY + [0, 0, 6]
    pixels = np.rint(inside[:, :2] / inside[:, 2:] * 300 + 64).astype(int)
    assert changed[pixels[:, 1].clip(0, 127), pixels[:, 0].clip(0, 127)].mean() > 0.9
    assert 0.05 < changed.mean() < 0.4


def test_meshes_are_drawn_alike_with_every_lens():
    image = np.zeros((128, 128, 3), np.uint8)
    near, far = people(2, apart=1.5), people(2, apart=1.5)
    far.set_metainfo(dict(focal_length=3 * near.focal_length))
    far.pred_instances.translation[:, 2] *= 3
    drawn = [MeshPainter(FACES)(image, each).astype(int) for each in (near, far)]
    assert drawn[0].any() and np.abs(drawn[0] - drawn[1]).mean() < 0.05


def test_bodies_with_a_lens_of_their_own_are_drawn_through_it():
    image, two = np.zeros((128, 128, 3), np.uint8), people(2, apart=1.5)
    two.pred_instances.translation[:, 2] -= 4.5  # 1.5 and 3 m away
    placed = two.pred_instances.vertices + two.pred_instances.translation[:, None]
    colors = overlays.person_colors(two.pred_instances)
    expected = overlays.draw_bodies(image, placed, FACES, FOCAL, CENTER, colors)
    np.testing.assert_array_equal(PerspectivePainter(FACES)(image, two), expected)
    assert (MeshPainter(FACES)(image, two) != expected).any()


def test_colors_follow_track_ids():
    three = people(3).pred_instances
    colors = overlays.person_colors(three)
    assert len(np.unique(colors, axis=0)) == 3
    three.track_ids = np.array([5, -1, 0])
    tracked = overlays.person_colors(three)
    np.testing.assert_array_equal(tracked, overlays.PALETTE[[5, 1, 0]])


def test_the_side_view_turns_people_and_shows_all_of_them():
    """A T-pose is narrow from the side; the nearer person stands on the left."""
    front = overlays.draw_bodies(
        np.zeros((200, 200, 3), np.uint8), BODY[None] + np.float32([0, 0, 6]), FACES, (600, 600),
        (100, 100), overlays.PALETTE[:1],
    )  # fmt: skip
    people = BODY[None] + np.float32([0, 0, 6])
    side = overlays.side_view(people, FACES, (200, 200), overlays.PALETTE[:1])

    def extent(image):
        rows, cols = np.nonzero(image)
        return np.ptp(cols) / np.ptp(rows)

    shown = (side != 255).any(-1)
    assert extent(front.any(-1)) > 0.8 > 0.5 > extent(shown)
    assert not shown[[0, -1]].any() and not shown[:, [0, -1]].any()  # no one is cut off
    both = np.float32([BODY + [0, 0, 6], BODY + [0, 0, 8]])
    colors = np.array([(255, 0, 0), (0, 0, 255)])
    side = overlays.side_view(both, FACES, (200, 300), colors)
    columns = [np.nonzero((side[..., c] < 100).any(0))[0].mean() for c in (2, 0)]
    assert columns[0] < columns[1]


@pytest.mark.parametrize('depth', [8, 200])
def test_the_nearest_fills_the_side_view_however_far_others_stand(depth):
    people = np.float32([BODY + [0, 0, 6], BODY + [0, 0, depth]])
    shown = (overlays.side_view(people, FACES, (200, 200), overlays.PALETTE[:2]) != 255).any(-1)
    rows, cols = np.nonzero(shown)
    assert np.ptp(rows) > 0.85 * 200 and np.ptp(cols) < 200


def test_people_are_as_high_in_the_side_view_as_in_the_image():
    """One stands half as near, and higher in the image."""
    people = np.float32([BODY + [0, 5, 40], BODY + [0, -10, 80]])
    rows = people[..., 1] / people[..., 2]
    colors = np.array([(255, 0, 0), (0, 0, 255)])
    side = overlays.side_view(people, FACES, (400, 400), colors).astype(int)
    found = [np.nonzero((side[..., 2 - 2 * i] < side[..., 2 * i]).any(1))[0] for i in range(2)]
    unit = (rows.max() - rows.min()) / (max(map(max, found)) - min(map(min, found)))
    for seen, expected in zip(found, rows, strict=True):
        np.testing.assert_allclose(np.ptp(seen) * unit, np.ptp(expected), atol=2 * unit)
    assert abs((found[0].min() - found[1].min()) * unit - rows[0].min() + rows[1].min()) < 2 * unit


def test_the_side_view_has_the_background_of_the_picture():
    painter = MeshPainter(FACES, side=True, black_background=True)
    drawn = painter(noise(128, 160), people())
    assert not drawn[0].any() and drawn[:, 160:].any()


def test_the_painter_adds_the_side_boxes_and_styles():
    image = noise(128, 160)
    assert MeshPainter(FACES, side=True)(image, people()).shape == (128, 288, 3)
    boxed = MeshPainter(FACES, draw_bbox=True)(image, people())
    assert (boxed[20, 30:90] == overlays.LINE_COLORS[0].astype(int)).all()
    black = MeshPainter(FACES, black_background=True)(image, people())
    assert not black[0, 0].any()
    wire = MeshPainter(FACES, style='wireframe')(image, people())
    assert (wire != MeshPainter(FACES)(image, people())).any()


def test_an_image_without_meshes_keeps_its_pixels_beside_a_white_side_view():
    image = noise(128, 128)
    drawn = MeshPainter(FACES, side=True, draw_bbox=True)(image, people(0))
    np.testing.assert_array_equal(drawn[:, :128], image)
    assert (drawn[:, 128:] == 255).all()


# --- contact sheets -------------------------------------------------------------------------------
def test_a_contact_sheet_places_images_side_by_side_under_titles():
    tall, wide = np.full((300, 100, 3), 50, np.uint8), np.full((100, 300, 3), 90, np.uint8)
    sheet = overlays.contact_sheet([[tall, wide], [wide, None]], ['one', 'two'], height=100)
    assert sheet.shape[1] == 8 + 300 + 8 + 300 + 8
    assert sheet.shape[0] == 12 + 8 + 2 * (100 + 8)
    head = sheet[8:20]
    assert (head[:, 8:308] < 255).any() and (head[:, 316:616] < 255).any()  # titles
    first, second = sheet[20:120], sheet[128:228]
    assert (first[:, 316:616] == 90).all() and (second[:, 8:308] == 90).all()
    assert (second[:, 316:616] == 255).all()  # an empty cell
    columns = np.nonzero((first[50, 8:308] == 50).all(-1))[0]
    assert len(columns) == 33 and abs(columns.mean() - 149.5) < 1  # in the middle


def test_contact_sheets_reject_missing_images_and_uneven_rows():
    with pytest.raises(ValueError, match='at least one image'):
        overlays.contact_sheet([[None]], ['one'])
    with pytest.raises(ValueError, match=r"2 images for 1 titles \['one'\]"):
        overlays.contact_sheet([[None, None]], ['one'])


def test_drawing_meshes_without_numba_names_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, 'numba', None)
    with pytest.raises(ImportError, match='drawing meshes needs numba: pip install numba'):
        overlays.draw_bodies(noise(8, 8), BODY[None], FACES, FOCAL, CENTER, overlays.PALETTE[:1])


def test_annotated_keypoints_are_drawn_over_the_people_of_photos(shared, meta):
    """The image changes where the keypoints are, and only there."""
    annotations = json.loads((shared / 'data/photos/keypoints_ccby.json').read_text())
    names = {image['id']: image['file_name'] for image in annotations['images']}
    for each in annotations['annotations'][:3]:
        image = cv2.imread(str(shared / 'data/photos' / names[each['image_id']]))
        points = np.array(each['keypoints'], float).reshape(1, 17, 3)
        x, y, width, height = each['bbox']
        drawn = KeypointPainter(meta)(
            image,
            sample(
                keypoints=points[..., :2],
                keypoint_scores=(points[..., 2] > 0) * 1.0,
                keypoints_visible=(points[..., 2] > 0) * 1.0,
                bboxes=np.float32([[x, y, x + width, y + height]]),
            ),
        )
        rows, cols = np.nonzero((drawn != image).any(-1))
        assert len(rows) > 100
        seen = points[points[..., 2] > 0]
        np.testing.assert_allclose([cols.min(), rows.min()], seen[:, :2].min(0), atol=8)
        np.testing.assert_allclose([cols.max(), rows.max()], seen[:, :2].max(0), atol=8)
