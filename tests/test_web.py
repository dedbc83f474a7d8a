"""The page of examples/web finds in a browser what Python finds."""

import base64
import json
import shutil
import subprocess
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest
from browser import Page, needs_browser, wait_for

from trunchier.datasets.transforms import CropPerson
from trunchier.geometry import seen_columns
from trunchier.inference import topdown
from trunchier.inference.exported import ExportedPose, exported_models

WEB = Path(__file__).resolve().parents[1] / 'examples' / 'web'
BUILT = WEB / 'dist'
NODE = shutil.which('node')
POSE = dict(input_size=[48, 64], box_padding=1.25, mean=[0] * 3, std=[1] * 3, channels='RGB')
MESH = POSE | dict(box_padding=1.2, box_aspect=[3, 4], crop_size=64)
BOXES = [[30.5, 20, 90, 139], [-20, 60, 70, 100]]
SCRIPT = """
import { readFileSync } from 'node:fs';
const { cropMesh, cropPose, decode } = await import(process.argv[1]);
const { data, width, height, boxes, pose, mesh, maps, dims } = JSON.parse(readFileSync(0));
const image = { data: Uint8ClampedArray.from(data), width, height };
const crops = boxes.map((box) => cropPose(image, box, pose));
console.log(JSON.stringify({
  pose: crops.map(({ crop }) => [...crop]),
  mesh: boxes.map((box) => [...cropMesh(image, box, mesh).crop]),
  points: decode(Float32Array.from(maps), dims, crops[0]),
}));
"""
needs_build = pytest.mark.skipif(
    not (BUILT / 'models.json').is_file(), reason='examples/web is not built (make web)'
)


def smooth(height, width):
    """Random RGB image without edges, as positions differ by up to 1/64 pixel."""
    noise = np.random.default_rng(0).uniform(0, 255, (height // 12, width // 12, 3))
    image = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    return image.clip(0, 255).astype(np.uint8)


@pytest.mark.skipif(NODE is None, reason='no node here')
def test_crops_and_keypoints_in_javascript_are_those_of_python():
    image = smooth(480, 360)
    rgba = np.dstack([image, np.full(image.shape[:2], 255, np.uint8)])
    boxes = np.array([*BOXES, [0, 0, 360, 480]])  # the last one is reduced with a blur
    y, x = np.mgrid[:16, :12]
    peaks = np.array([[3.3, 5.2], [0.2, 14.6], [10.9, 8.1]])
    maps = [0.8 * np.exp(-((x - u) ** 2 + (y - v) ** 2) / 8) for u, v in peaks]
    given = dict(
        data=rgba.ravel().tolist(), width=360, height=480, boxes=boxes.tolist(), pose=POSE,
        mesh=MESH, maps=np.ravel(maps).tolist(), dims=np.shape(maps),
    )  # fmt: skip
    done = subprocess.run(
        [NODE, '--input-type=module', '-e', SCRIPT, str(WEB / 'crops.js')],
        input=json.dumps(given), capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout)
    crop_pose = topdown.Crops.of(POSE['box_padding'], POSE['input_size'])
    crop_mesh = CropPerson(size=64, aspect=(3, 4), antialias='demo')
    for index, box in enumerate(boxes):
        crop, center, size = crop_pose(image, box)
        ours = np.reshape(found['pose'][index], (3, 64, 48)).transpose(1, 2, 0)
        assert np.abs(ours - crop).max() <= 2
        scale = MESH['box_padding'] * (box[2:] - box[:2]) / 200
        record = dict(image=image, center=(box[:2] + box[2:]) / 2, scale=scale)
        crop = seen_columns(crop_mesh(record)['crop'].transpose(2, 0, 1))
        assert np.abs(np.reshape(found['mesh'][index], (3, 64, 48)) - crop).max() <= 2
    codec = topdown.Codec(dict(input_size=(48, 64), heatmap_size=(12, 16)))
    points, scores = codec.decode(np.float32(maps))
    _, center, size = crop_pose(image, boxes[0])
    points = points[0] / (48, 64) * size + center - size / 2
    np.testing.assert_allclose([[p['x'], p['y']] for p in found['points']], points, atol=1e-3)
    np.testing.assert_allclose([p['score'] for p in found['points']], scores[0], rtol=1e-6)


@pytest.fixture
def server():
    """Address of the page: its sources here, and what `make web` has added."""

    class Handler(SimpleHTTPRequestHandler):
        def translate_path(self, path):
            name = path.partition('?')[0].lstrip('/') or 'index.html'
            return str(WEB / name if (WEB / name).is_file() else BUILT / name)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        server.address = f'http://127.0.0.1:{server.server_port}/index.html?backend=wasm'
        yield server
        server.shutdown()


def error_of(page):
    return page.evaluate('document.getElementById("error")?.innerText')


def wait_ready(page):
    wait_for(lambda: page.evaluate('self.trunchier?.ready') or error_of(page))
    assert not error_of(page)


def click(page, name):
    page.evaluate(f'document.getElementById("{name}").click()')


def check_shown(page):
    """The page's last result is Python's of the same frame and box, within a pixel."""
    url = page.evaluate('trunchier.frame').partition(',')[2]
    image = cv2.imdecode(np.frombuffer(base64.b64decode(url), np.uint8), cv2.IMREAD_COLOR)
    shown = page.evaluate('({box: trunchier.shown.box, keypoints: trunchier.shown.keypoints})')
    (found,) = exported_models([], [BUILT / 'models/VMPose-T-S2.onnx'], 'cpu')
    predictor = ExportedPose.load(found)
    crops = [predictor.crop(image, np.array(shown['box']))]
    (person,) = predictor.decode(predictor.forward(crops), crops)
    points = [[point['x'], point['y']] for point in shown['keypoints']]
    sure = person['keypoint_scores'] > 0.3
    assert sure.sum() >= 12
    assert np.abs(points - person['keypoints'])[sure].max() < 1
    return image, np.array(shown['box'])


@needs_browser
@needs_build
@pytest.mark.slow
def test_a_photo_gives_the_keypoints_and_the_body_of_python_also_without_a_network(
    server, tmp_path
):
    from trunchier.inference.mesh import MeshPredictor
    from trunchier.weights.find import find

    page = Page(server.address, tmp_path / 'profile')
    try:
        wait_ready(page)
        assert page.evaluate('self.crossOriginIsolated')  # else no threads
        click(page, 'mesh')
        click(page, 'sample')
        wait_for(lambda: page.evaluate('!!trunchier.shown?.body && !trunchier.shown.isWhole'))
        image, box = check_shown(page)
        joints = page.evaluate('trunchier.shown.body.joints')
        found = find(None, BUILT / 'models/VMHMR2.0-T-S2.onnx')
        predictor = MeshPredictor.load(found, 'cpu')
        crops = [predictor.crop(image, box)]
        (person,) = predictor.decode(predictor.forward(crops), crops)
        points = [[point['x'], point['y']] for point in joints]
        assert np.abs(points - person['keypoints']).max() < 1
        assert body_pixels(page) > 2000
        cv2.imwrite(str(tmp_path / 'photo.png'), page.screenshot())

        server.shutdown()
        server.socket.close()
        page.call('Page.navigate', url=server.address)
        wait_ready(page)
        click(page, 'sample')
        wait_for(lambda: page.evaluate('!!trunchier.shown && !trunchier.shown.isWhole'))
        check_shown(page)
    finally:
        page.close()


def body_pixels(page):
    """Number of pixels that the body covers."""
    return page.evaluate("""(() => {
        const canvas = document.getElementById('body'), copy = document.createElement('canvas');
        [copy.width, copy.height] = [canvas.width, canvas.height];
        copy.getContext('2d').drawImage(canvas, 0, 0);
        const { data } = copy.getContext('2d').getImageData(0, 0, copy.width, copy.height);
        return data.filter((value, index) => index % 4 === 3 && value > 0).length;
    })()""")


@needs_browser
@needs_build
@pytest.mark.slow
def test_a_camera_is_followed_and_gives_the_keypoints_of_python(server, tmp_path):
    photo = cv2.imread(str(BUILT / 'models/sample.jpg'))
    film = np.zeros((480, 640, 3), np.uint8)
    film[:, 140:500] = cv2.resize(photo, (360, 480), interpolation=cv2.INTER_AREA)
    planes = cv2.cvtColor(film, cv2.COLOR_BGR2YUV_I420).tobytes()
    video = tmp_path / 'camera.y4m'
    video.write_bytes(b'YUV4MPEG2 W640 H480 F15:1 Ip A1:1 C420\n' + 15 * (b'FRAME\n' + planes))
    camera = ['--use-fake-device-for-media-stream', '--use-fake-ui-for-media-stream']
    flags = [*camera, f'--use-file-for-fake-video-capture={video}']
    page = Page(server.address, tmp_path / 'profile', *flags)
    try:
        wait_ready(page)
        click(page, 'camera')
        wait_for(lambda: page.evaluate('trunchier.rate > 0 && !trunchier.shown.isWhole'))
        click(page, 'camera')
        wait_for(lambda: page.evaluate('!trunchier.busy'))
        check_shown(page)
        cv2.imwrite(str(tmp_path / 'camera.png'), page.screenshot())
    finally:
        page.close()


@needs_browser
@needs_build
@pytest.mark.slow
def test_a_missing_camera_and_a_file_that_is_no_image_are_said_in_the_page(server, tmp_path):
    page = Page(server.address, tmp_path / 'profile')
    try:
        wait_ready(page)
        click(page, 'camera')
        wait_for(lambda: error_of(page).startswith('No camera: '))
        page.evaluate('document.getElementById("error").innerText = ""')
        name = page.evaluate(
            "trunchier.openPhoto(new Blob(['no image']), 'notes.txt').catch((e) => e.message)"
        )
        assert name == 'notes.txt is not an image that this browser can read.'
    finally:
        page.close()


@needs_browser
def test_a_page_that_is_not_built_says_how_to_build_it(server, tmp_path, monkeypatch):
    monkeypatch.setattr('test_web.BUILT', tmp_path / 'nothing')
    page = Page(server.address, tmp_path / 'profile')
    try:
        wait_for(lambda: error_of(page))
        assert error_of(page) == 'models.json: 404; build the page with "make web"'
    finally:
        page.close()
