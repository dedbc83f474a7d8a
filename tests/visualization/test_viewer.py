"""The page shows people, picture and controls, to this machine alone."""

import base64
import contextlib
import json
import shutil
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.structures import InstanceData
from mmpose.structures import PoseDataSample
from small_models import body, noise

from trunchier.visualization.overlays import KeypointPainter, MeshPainter

viser = pytest.importorskip('viser', reason='the viewer is an optional extra: pip install viser')
from trunchier.visualization.viewer import Viewer  # noqa: E402

BODY, FACES = body()


class Inferencer:
    """What the viewer asks of one."""

    def __init__(self, task, name):
        self.task, self.name = task, name
        self.faces = FACES if task == 'mesh' else None

    def painter(self, **options):
        if self.task == 'mesh':
            return MeshPainter(self.faces, **options)
        from mmpose.datasets.datasets.utils import parse_pose_metainfo

        return KeypointPainter(
            parse_pose_metainfo(dict(from_file='configs/_base_/datasets/coco.py')), **options
        )


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
    port = int(viewer.address.rsplit(':', 1)[1])
    assert viewer.address == f'http://127.0.0.1:{port}'
    assert urllib.request.urlopen(viewer.address, timeout=20).status == 200
    others = {each[4][0] for each in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    for address in others - {'127.0.0.1', '127.0.1.1'}:
        with pytest.raises(OSError):
            socket.create_connection((address, port), timeout=2).close()


def test_a_port_that_is_taken_is_left_alone(viewer):
    other = Viewer(port=int(viewer.address.rsplit(':', 1)[1]))
    assert other.address != viewer.address
    other.close()


def test_models_inputs_and_frames_can_be_chosen(viewer):
    mesh, pose = Inferencer('mesh', 'Mesh-A'), Inferencer('pose', 'Pose-B')
    for frame in range(3):
        viewer.add(mesh, result('clip', frame))
    viewer.add(mesh, result('photo', people=1))
    viewer.add(pose, result('photo'))
    assert tuple(viewer.model.options) == ('Mesh-A', 'Pose-B')
    assert tuple(viewer.source.options) == ('clip', 'photo')
    assert viewer.frame.max == 2 and '2 people in clip' in viewer.about.content
    first = viewer.picture.image.copy()
    viewer.frame.value = 2
    viewer.show()
    assert (viewer.picture.image != first).any()
    assert len(viewer.bodies) == 2 + 2  # people; frustum and picture
    viewer.source.value = 'photo'
    viewer._pick()
    assert viewer.frame.disabled and '1 people in photo' in viewer.about.content
    viewer.model.value = 'Pose-B'
    viewer.show()
    assert '**Pose-B**' in viewer.about.content and len(viewer.bodies) == 2


def test_overlays_can_be_switched(viewer):
    viewer.add(Inferencer('mesh', 'Mesh-A'), result())
    drawn = viewer.picture.image.copy()
    viewer.boxes.value = False
    viewer.show()
    without = viewer.picture.image.copy()
    viewer.shown.value = 'photo'
    viewer.show()
    photo = viewer.picture.image
    assert (drawn != without).any() and (without != photo).any()
    assert np.abs(photo[..., ::-1].astype(int) - noise(240, 320)).mean() < 3
    viewer.show_people.value = viewer.show_camera.value = False
    viewer.show()
    assert viewer.bodies == []


def test_the_timeline_plays(viewer):
    for frame in range(4):
        viewer.add(Inferencer('mesh', 'Mesh-A'), result('clip', frame, people=1))
    viewer.playing.value = True
    seen = set()
    begin = time.monotonic()
    while len(seen) < 4 and time.monotonic() - begin < 20:
        seen.add(viewer.frame.value)
        time.sleep(0.02)
    assert seen == {0, 1, 2, 3}


def test_the_newest_frame_is_followed_when_asked_for(viewer, monkeypatch):
    monkeypatch.setattr('trunchier.visualization.viewer.FOLLOW_SECONDS', 0)
    for follow, shown in ((False, 0), (True, 5)):
        viewer.follow.value = follow
        for frame in range(3):
            viewer.add(Inferencer('mesh', 'Mesh-A'), result('camera0', frame, people=1))
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
def test_a_browser_shows_people_in_3d_picture_and_controls(viewer, tmp_path):
    viewer.add(Inferencer('mesh', 'Mesh-A'), result())
    page = Page(viewer.address, tmp_path / 'profile')
    try:
        wait_for(lambda: '2 people in photo' in page.text())
        for word in ('model', 'input', 'frame', 'keypoint score', 'mesh', 'opacity', 'people'):
            assert word in page.text()

        def blue():
            """Share of the 3D view in the colour of the first person."""
            view = page.screenshot()[150:, :1000].astype(int)
            return ((view[..., 0] - view[..., 2] > 15) & (view[..., 0] > 90)).mean()

        wait_for(lambda: blue() > 0.01)
        viewer.show_people.value = False
        viewer.show()
        viewer.show_camera.value = False
        viewer.show()
        wait_for(lambda: blue() < 0.001)
    finally:
        page.close()
