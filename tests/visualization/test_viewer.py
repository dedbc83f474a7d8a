"""The page shows people, image and controls, to this machine alone."""

import socket
import threading
import urllib.request

import cv2
import numpy as np
import pytest
from browser import Page, needs_browser, wait_for
from mmengine.structures import InstanceData
from mmpose.datasets.datasets.utils import parse_pose_metainfo
from mmpose.structures import PoseDataSample
from small_models import body, noise

from trunchier.visualization.overlays import KeypointPainter, MeshPainter

viser = pytest.importorskip('viser', reason='the viewer is an optional extra: pip install viser')
from trunchier.visualization.viewer import SHORTEST, Viewer, next_frame  # noqa: E402

BODY, FACES = body()


MESH = ('Mesh-A', MeshPainter(FACES, draw_bbox=True))


def pose(**options):
    meta = parse_pose_metainfo(dict(from_file='configs/_base_/datasets/coco.py'))
    return 'Pose-B', KeypointPainter(meta, **options)


def result(source='photo', frame=0, size=(240, 320), people=2):
    height, width = size
    sample = PoseDataSample()
    sample.pred_instances = InstanceData(
        vertices=np.float32([BODY] * people),
        translation=np.float32([[0.9 * i - 0.4, 0, 5 + i + 0.2 * frame] for i in range(people)]),
        bboxes=np.float32([[20, 20, 100, 120]] * people),
        bbox_scores=np.ones(people, np.float32),
        keypoints=np.random.default_rng(0).uniform(20, 200, (people, 17, 2)),
        keypoint_scores=np.ones((people, 17)),
        keypoints_visible=np.ones((people, 17)),
    )
    sample.set_metainfo(
        dict(
            source=source,
            frame_id=frame,
            ori_shape=size,
            focal_length=np.array([400.0, 400.0]),
            principal_point=np.array([width / 2, height / 2]),
        )
    )
    sample.set_field(noise(*size, seed=frame), 'image')
    return sample


@pytest.fixture
def viewer():
    made = Viewer(port=8471)
    yield made
    made.close()


def test_it_listens_on_this_machine_only(viewer):
    port = viewer.port
    assert viewer.address.startswith(f'http://127.0.0.1:{port}/?token=')
    assert urllib.request.urlopen(viewer.address, timeout=20).status == 200
    others = {each[4][0] for each in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    for address in others - {'127.0.0.1', '127.0.1.1'}:
        with pytest.raises(OSError):
            socket.create_connection((address, port), timeout=2).close()


def test_a_port_that_is_taken_is_left_alone(viewer):
    other = Viewer(port=viewer.port)
    assert other.port != viewer.port
    other.close()


def test_models_inputs_and_frames_can_be_chosen(viewer):
    for frame in range(3):
        viewer.add(*MESH, result('clip', frame))
    viewer.add(*MESH, result('photo', people=1))
    viewer.add(*pose(), result('photo'))
    assert tuple(viewer.model.options) == ('Mesh-A', 'Pose-B')
    assert tuple(viewer.source.options) == ('clip', 'photo')
    assert viewer.frame.max == 2 and '2 people in clip' in viewer.about.content
    first = viewer.image.image.copy()
    viewer.frame.value = 2
    assert (viewer.image.image != first).any()
    assert len(viewer.handles) == 2 + 2  # people; frustum and image
    viewer.source.value = 'photo'
    assert viewer.frame.disabled and '1 person in photo' in viewer.about.content
    viewer.model.value = 'Pose-B'
    assert '**Pose-B**' in viewer.about.content and list(viewer.handles) == ['/camera/image']


def test_overlays_can_be_switched(viewer):
    viewer.add(*MESH, result())
    drawn = viewer.image.image.copy()
    viewer.boxes.value = False
    without = viewer.image.image.copy()
    viewer.content.value = 'original'
    original = viewer.image.image
    assert (drawn != without).any() and (without != original).any()
    assert np.abs(original[..., ::-1].astype(int) - noise(240, 320)).mean() < 3
    viewer.show_people.value = viewer.show_camera.value = False
    assert viewer.handles == {}


def test_a_pose_is_shown_as_a_large_image_with_the_controls_that_it_has(viewer):
    viewer.add(*MESH, result())
    viewer.add(*pose(), result())
    mesh_only = viewer.view, viewer.style, viewer.opacity, viewer.scene_folder, viewer.image
    assert all(each.visible for each in mesh_only) and not viewer.threshold.visible
    viewer.model.value = 'Pose-B'
    assert not any(each.visible for each in mesh_only) and viewer.threshold.visible
    shown, (_, painter) = viewer.handles['/camera/image'][0], pose()
    drawn = painter(viewer_image(viewer), result())[..., ::-1]
    assert np.abs(shown.image.astype(int) - drawn).mean() < 1
    viewer.model.value, viewer.view.value = 'Mesh-A', 'image'
    assert list(viewer.handles) == ['/camera/image']


def viewer_image(viewer):
    """The image of the first frame, as the viewer keeps it."""
    (first, *_) = viewer.frames.values()
    with np.load(first[0]) as arrays:
        return cv2.imdecode(arrays['jpeg'], cv2.IMREAD_COLOR)


@pytest.mark.parametrize('people, depth', [(1, 3.0), (4, 6.0), (6, 90.0)])
def test_people_are_framed_wherever_they_stand(viewer, people, depth):
    """In front of the first camera of the page, inside of its view, and not tiny."""
    shown = result(people=people)
    shown.pred_instances.translation[:, 2] += depth
    viewer.add(*MESH, shown)
    start = viewer.server.initial_camera
    ahead = start.look_at - start.position
    ahead /= np.linalg.norm(ahead)
    right = np.cross([0, 1, 0], ahead)
    right /= np.linalg.norm(right)
    placed = shown.pred_instances.vertices + shown.pred_instances.translation[:, None]
    seen = (placed - start.position).reshape(-1, 3) @ np.stack(
        [right, np.cross(ahead, right), ahead]
    ).T
    tangents = seen[:, :2] / seen[:, 2:] / np.tan(start.fov / 2)
    assert (seen[:, 2] > 0).all() and (np.abs(tangents) < [1.5, 1]).all()
    assert np.ptp(tangents, axis=0).max() > 0.5


def test_the_world_stands_still_over_a_video(viewer):
    """People move, enter and leave; the camera, its image and the viewpoint stay."""
    for frame, count in enumerate((1, 4, 0, 2)):
        shown = result('clip', frame, people=4)
        shown.pred_instances = shown.pred_instances[np.arange(4) < count]
        viewer.add(*MESH, shown)
    start, places, people = viewer.server.initial_camera, set(), []
    for frame in range(4):
        viewer.frame.value = frame
        handle = viewer.handles['/camera/image'][0]
        place = *handle.position, handle.render_width, *start.position, *start.look_at
        places.add(tuple(np.round(place, 6)))
        people.append(len(viewer.handles) - 2)
        if count := people[-1]:
            expected = result('clip', frame, people=count).pred_instances
            first = viewer.handles['/people/0'][0].vertices
            np.testing.assert_allclose(first, expected.vertices[0] + expected.translation[0])
    assert len(places) == 1 and people == [1, 4, 0, 2]


def test_the_image_moves_back_when_somebody_farther_enters(viewer):
    """Also while the first frame is shown, so that the scene does not jump when frames change."""
    depths, image_at = (5.0, 6.0, 40.0, 3.0), []
    for frame, depth in enumerate(depths):
        shown = result('clip', people=1)
        shown.set_metainfo(dict(frame_id=frame))
        shown.pred_instances.translation[:, 2] = depth
        viewer.add(*MESH, shown)
        image_at.append(viewer.handles['/camera/image'][0].position[2])
        assert image_at[-1] > max(depths[: frame + 1]) + BODY[:, 2].max()
    for frame in range(4):
        viewer.frame.value = frame
        assert viewer.handles['/camera/image'][0].position[2] == image_at[-1]
        corners = viewer.handles['/camera/frustum'][0].points[:4, 1]
        np.testing.assert_allclose(corners[:, 2], image_at[-1])


def test_no_tunnel_to_the_internet_is_offered(viewer):
    messages = viewer.server._websock_server._broadcast_buffer.message_from_id.values()
    themes = [each for each in messages if type(each).__name__ == 'ThemeConfigurationMessage']
    assert [each.show_share_button for each in themes] == [False]


def test_controls_start_with_the_options_of_the_painter(viewer):
    viewer.add('Mesh-A', MeshPainter(FACES, style='wireframe', alpha=0.4), result())
    assert (viewer.boxes.value, viewer.style.value, viewer.opacity.value) == (
        False, 'wireframe', 0.4,
    )  # fmt: skip
    painter = pose(kpt_thr=0.7, draw_bbox=True)
    viewer.add(*painter, result())
    assert (viewer.boxes.value, viewer.threshold.value) == (True, 0.7)
    viewer.threshold.value = 0.1
    viewer.add('Pose-C', painter[1], result())
    assert viewer.threshold.value == 0.1  # chosen on the page
    assert painter[1].kpt_thr == 0.7  # the caller's painter is left alone


def test_an_overlay_is_what_the_painter_draws(viewer):
    painter = MeshPainter(FACES, style='both', black_background=True)
    viewer.add('Mesh-A', painter, result())
    expected = painter(noise(240, 320), result())[..., ::-1]
    np.testing.assert_array_equal(viewer.image.image, expected)


def test_the_timeline_plays(viewer):
    for frame in range(4):
        moment = result('clip', frame, people=1)
        moment.set_metainfo(dict(time=7 + 0.4 * frame))
        viewer.add(*MESH, moment)
    assert viewer.times['Mesh-A', 'clip'] == pytest.approx([7, 7.4, 7.8, 8.2])
    seen, all_seen = {viewer.frame.value}, threading.Event()

    @viewer.frame.on_update
    def _(_):
        seen.add(viewer.frame.value)
        if len(seen) == 4:
            all_seen.set()

    viewer.playing.value = True
    assert all_seen.wait(60) and seen == {0, 1, 2, 3}


def test_the_newest_frame_is_followed_when_asked_for(viewer, monkeypatch):
    monkeypatch.setattr('trunchier.visualization.viewer.FOLLOW_SECONDS', 0)
    for follow, shown in ((False, 0), (True, 5)):
        viewer.follow.value = follow
        for frame in range(3):
            viewer.add(*MESH, result('camera0', frame, people=1))
        assert viewer.frame.value == shown


@pytest.mark.parametrize('fps', [5, 25, 60])
def test_frames_are_played_at_the_rate_of_the_video_and_late_ones_left_out(fps):
    times, step = [3 + frame / fps for frame in range(10)], 1 / fps
    for elapsed, frame in ((0.1, 0), (1.1, 1), (4.5, 4), (9.2, 9), (10.1, 0), (55.0, 0)):
        shown, wait = next_frame(times, 0, 3 + elapsed * step)
        expected = step if elapsed > 10 else (frame + 1 - elapsed) * step
        assert shown == frame and wait == pytest.approx(max(expected, SHORTEST))


def test_frames_of_unknown_time_are_a_tenth_of_a_second_apart(viewer):
    for frame in range(3):
        viewer.add(*MESH, result('folder', frame, people=1))
    assert viewer.times['Mesh-A', 'folder'] == pytest.approx([0, 0.1, 0.2])


# --- in a browser ------------------------------------------------------------------------------


@needs_browser
def test_a_browser_shows_people_in_3d_image_and_controls(viewer, tmp_path):
    for frame in range(2):
        moment = result('photo', frame)
        moment.set_metainfo(dict(time=2.5 * frame))
        viewer.add(*MESH, moment)
    page = Page(viewer.address, tmp_path / 'profile')
    try:
        wait_for(lambda: '2 people in photo' in page.text())
        for word in ('model', 'input', 'view', 'frame', 'mesh', 'opacity', 'people'):
            assert word in page.text()

        def blue():
            """Share of the 3D view in the color of the first person."""
            view = page.screenshot()[150:, :1000].astype(int)
            return ((view[..., 0] - view[..., 2] > 15) & (view[..., 0] > 90)).mean()

        wait_for(lambda: blue() > 0.01)
        viewer.playing.value = True
        wait_for(lambda: '2.50 s' in page.text())
        viewer.playing.value = False
        viewer.show_people.value = viewer.show_camera.value = False
        wait_for(lambda: blue() < 0.001)
    finally:
        page.close()
