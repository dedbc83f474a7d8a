"""The page shows people, image and controls, to this machine alone."""

import base64
import contextlib
import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.structures import InstanceData
from mmpose.datasets.datasets.utils import parse_pose_metainfo
from mmpose.structures import PoseDataSample
from small_models import body, noise

from trunchier.visualization.overlays import KeypointPainter, MeshPainter

viser = pytest.importorskip('viser', reason='the viewer is an optional extra: pip install viser')
from trunchier.visualization.viewer import Viewer  # noqa: E402

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
    assert '**Pose-B**' in viewer.about.content and len(viewer.handles) == 2


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
    assert viewer.handles == []


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
        viewer.add(*MESH, result('clip', frame, people=1))
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


# --- in a browser ------------------------------------------------------------------------------

BROWSER = shutil.which('chromium') or shutil.which('chromium-browser')
FLAGS = [
    '--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
    '--disable-background-networking', '--disable-component-update', '--disable-sync',
    '--use-angle=swiftshader', '--enable-unsafe-swiftshader', '--window-size=1400,900',
    '--remote-debugging-port=0',
]  # fmt: skip


class Page:
    """A headless browser with one page, steered by its debugging protocol."""

    def __init__(self, address, profile):
        from websockets.sync.client import connect

        self.process = subprocess.Popen(
            [BROWSER, *FLAGS, f'--user-data-dir={profile}', address],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        told = Path(profile, 'DevToolsActivePort')
        wait_for(lambda: told.exists() and told.read_text().strip())
        port = told.read_text().split()[0]
        pages = json.load(urllib.request.urlopen(f'http://127.0.0.1:{port}/json', timeout=20))
        (page,) = [each for each in pages if each['type'] == 'page']
        self.socket = connect(page['webSocketDebuggerUrl'], max_size=None)
        self.calls = 0

    def call(self, method, **parameters):
        self.calls += 1
        self.socket.send(json.dumps(dict(id=self.calls, method=method, params=parameters)))
        while True:
            answer = json.loads(self.socket.recv(timeout=60))
            if answer.get('id') == self.calls:
                return answer['result']

    def text(self):
        expression = 'document.body ? document.body.innerText : ""'
        return self.call('Runtime.evaluate', expression=expression)['result'].get('value', '')

    def screenshot(self):
        data = base64.b64decode(self.call('Page.captureScreenshot', format='png')['data'])
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)

    def close(self):
        with contextlib.suppress(OSError):
            self.socket.close()
        self.process.terminate()
        self.process.wait(20)


def wait_for(condition, seconds=60):
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < seconds, 'it did not come'
        time.sleep(0.2)


@pytest.mark.skipif(BROWSER is None, reason='no chromium here (apt-get install chromium)')
def test_a_browser_shows_people_in_3d_image_and_controls(viewer, tmp_path):
    viewer.add(*MESH, result())
    page = Page(viewer.address, tmp_path / 'profile')
    try:
        wait_for(lambda: '2 people in photo' in page.text())
        for word in ('model', 'input', 'frame', 'keypoint score', 'mesh', 'opacity', 'people'):
            assert word in page.text()

        def blue():
            """Share of the 3D view in the color of the first person."""
            view = page.screenshot()[150:, :1000].astype(int)
            return ((view[..., 0] - view[..., 2] > 15) & (view[..., 0] > 90)).mean()

        wait_for(lambda: blue() > 0.01)
        viewer.show_people.value = viewer.show_camera.value = False
        wait_for(lambda: blue() < 0.001)
    finally:
        page.close()
