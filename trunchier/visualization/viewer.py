"""A local web page that shows predictions: photo or timeline, people in 3D, the camera.

The server is viser's (an optional extra). It listens on this machine alone unless it is told
otherwise. What is shown lies in a temporary folder, so that memory stays bounded.
"""

import contextlib
import io
import tempfile
import threading
import time
from pathlib import Path

import cv2
import numpy as np

from .overlays import person_colours

SHOWN_SIDE = 1280  # pixels of the longer side of pictures sent to the browser
PHOTO, DRAWN = 'photo', 'drawn'
FOLLOW_SECONDS = 0.2  # between pictures while results come in
PLAYED_FPS = 10.0


class Viewer:
    """The page, and what is on it.

    Args:
        host: address to listen on; '127.0.0.1' is this machine only, '0.0.0.0' the whole network.
        port: of the page; the next free one where it is taken.
        follow: show the newest frame while frames come in, as of a camera.

    Raises:
        ImportError: without viser.
    """

    def __init__(self, host='127.0.0.1', port=8080, follow=False):
        try:
            import viser
        except ImportError as error:
            raise ImportError('the viewer needs viser: pip install viser') from error
        with _silence():
            self.server = viser.ViserServer(host, port, label='trunchier', verbose=False)
        self.address = f'http://{host}:{self.server.get_port()}'
        self.folder = tempfile.TemporaryDirectory(prefix='trunchier-viewer-')
        self.inferencers = {}  # by name
        self.frames = {}  # (model, source) -> list of files, one a frame
        self.bodies = []  # handles of what is in the scene for one frame
        self.shown_at = 0.0
        self.lock = threading.RLock()
        self.closed = threading.Event()
        self._build_page(follow)
        threading.Thread(target=self._play, daemon=True).start()

    # --- the page ------------------------------------------------------------------------------

    def _build_page(self, follow):
        gui, scene = self.server.gui, self.server.scene
        scene.set_up_direction('-y')  # a camera's y points down
        self.server.initial_camera.position = (2.2, -0.6, -3.2)
        self.server.initial_camera.look_at = (0.0, 0.0, 0.0)
        self.picture = gui.add_image(np.zeros((9, 16, 3), np.uint8), format='jpeg')
        self.model = gui.add_dropdown('model', ['-'])
        self.source = gui.add_dropdown('input', ['-'])
        self.frame = gui.add_slider('frame', 0, 1, 1, 0)
        self.playing = gui.add_checkbox('play', False)
        self.follow = gui.add_checkbox('follow', follow, hint='show the newest frame')
        with gui.add_folder('overlay'):
            self.shown = gui.add_dropdown('picture', [DRAWN, PHOTO])
            self.boxes = gui.add_checkbox('boxes and track ids', True)
            self.threshold = gui.add_slider('keypoint score', 0.0, 1.0, 0.05, 0.3)
            self.style = gui.add_dropdown('mesh', ['solid', 'wireframe', 'both'])
            self.opacity = gui.add_slider('opacity', 0.1, 1.0, 0.05, 0.9)
        with gui.add_folder('3D'):
            self.show_people = gui.add_checkbox('people', True)
            self.show_camera = gui.add_checkbox('camera and picture', True)
        self.about = gui.add_markdown('')
        for control in (self.model, self.source):
            control.on_update(lambda _: self._pick())
        for control in (
            self.frame, self.shown, self.boxes, self.threshold, self.style, self.opacity,
            self.show_people, self.show_camera,
        ):  # fmt: skip
            control.on_update(lambda _: self.show())

    def _pick(self):
        """Another model or input was chosen: fit the timeline to it, and show it."""
        with self.lock:
            last = len(self._files()) - 1
            self.frame.max = max(last, 1)
            self.frame.disabled = last < 1
            self.frame.value = min(self.frame.value, max(last, 0))
        self.show()

    def _files(self):
        return self.frames.get((self.model.value, self.source.value), [])

    def _play(self):
        while not self.closed.wait(1 / PLAYED_FPS):
            if self.playing.value:
                with self.lock:
                    count = len(self._files())
                    if count > 1 and not self.closed.is_set():
                        self.frame.value = (self.frame.value + 1) % count  # shows it too

    # --- what is on it -------------------------------------------------------------------------

    def add(self, inferencer, result):
        """Add a frame's result, with its picture (`return_image=True`)."""
        model, source = inferencer.name, result.source
        with self.lock:
            files = self.frames.setdefault((model, source), [])
            file = Path(self.folder.name, f'{len(self.frames)}-{len(files)}.npz')
            _store(result, file)
            files.append(file)
            self.inferencers[model] = inferencer
            self._offer(self.model, self.inferencers)
            self._offer(self.source, dict.fromkeys(s for _, s in self.frames))
            here = (self.model.value, self.source.value) == (model, source)
            first = here and len(files) == 1
            if here:
                self.frame.max = max(len(files) - 1, 1)
                self.frame.disabled = len(files) < 2
            due = time.monotonic() - self.shown_at > FOLLOW_SECONDS
            if here and self.follow.value and due:
                self.frame.value = len(files) - 1
        if first:
            self.show()

    def _offer(self, dropdown, names):
        names = tuple(names)
        if tuple(dropdown.options) != names:
            value = dropdown.value
            dropdown.options = names
            dropdown.value = value if value in names else names[0]

    def show(self):
        """Send the chosen frame to the browser."""
        with self.lock:
            files = self._files()
            if not files or self.closed.is_set():
                return
            self.shown_at = time.monotonic()
            inferencer = self.inferencers[self.model.value]
            image, result = _load(files[min(self.frame.value, len(files) - 1)])
            picture = image
            if self.shown.value == DRAWN:
                picture = inferencer.painter(**self._painting(inferencer))(image, result)
            picture = cv2.cvtColor(_shrunk(picture), cv2.COLOR_BGR2RGB)
            self.picture.image = picture
            with self.server.atomic():
                self._show_scene(inferencer, result, _shrunk(image)[..., ::-1], picture)
            self.about.content = _describe(inferencer, result)

    def _painting(self, inferencer):
        if inferencer.task == 'pose':
            return dict(draw_bbox=self.boxes.value, kpt_thr=self.threshold.value)
        return dict(draw_bbox=self.boxes.value, style=self.style.value, alpha=self.opacity.value)

    def _show_scene(self, inferencer, result, photo, picture):
        scene = self.server.scene
        for handle in self.bodies:
            handle.remove()
        self.bodies = []
        instances = result.pred_instances
        meshes = inferencer.faces is not None and len(instances) > 0
        height, width = result.ori_shape
        if meshes:
            people = instances.vertices + instances.translation[:, None]
            focal, centre = result.focal_length, result.principal_point
            middle, far = people.mean((0, 1)), people[..., 2].max() + 0.5
        else:  # no body says how far away anything is
            people, focal = [], np.repeat(1.2 * max(height, width), 2)
            centre, middle, far = np.array([width, height]) / 2, np.array([0, 0, 1.2]), 1.2
        if self.show_people.value:
            for person, vertices in enumerate(people):
                colour = person_colours(instances)[person][::-1].astype(int)
                self.bodies.append(
                    scene.add_mesh_simple(
                        f'/people/{person}',
                        vertices - middle,
                        inferencer.faces,
                        color=tuple(colour.tolist()),
                        wireframe=self.style.value == 'wireframe',
                    )
                )
        if self.show_camera.value:
            # The picture stands behind the people, as large as the camera sees it there.
            corners = np.array([[0, 0], [width, 0], [width, height], [0, height]])
            rays = np.hstack([(corners - centre) / focal, np.ones((4, 1))])
            corners = rays * far - middle
            edges = [[-middle, corner] for corner in corners]
            edges += [[corners[i], corners[i - 1]] for i in range(4)]
            self.bodies.append(
                scene.add_line_segments(
                    '/camera/frustum',
                    np.array(edges),
                    (90, 90, 90),
                    thickness=1.5,
                    thickness_units='screen',
                )  # fmt: skip
            )
            self.bodies.append(
                scene.add_image(
                    '/camera/picture',
                    np.ascontiguousarray(photo if meshes else picture),
                    *(corners[2] - corners[0])[:2],
                    format='jpeg',
                    position=corners.mean(0),
                    receive_shadow=False,
                )
            )

    def wait(self):
        """Serve the page until Ctrl-C."""
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            self.close()

    def close(self):
        with self.lock:
            self.closed.set()
        with _silence():
            self.server.stop()
        self.folder.cleanup()


def _silence():
    """viser prints a banner and a farewell, asked for or not."""
    return contextlib.redirect_stdout(io.StringIO())


# ---------------------------------------------------------------------------------------------
# Frames on the disk
# ---------------------------------------------------------------------------------------------
META = ('ori_shape', 'frame_id', 'source', 'focal_length', 'principal_point', 'img_path')


def _store(result, file):
    arrays = {f'instances_{n}': np.asarray(a) for n, a in result.pred_instances.items()}
    arrays |= {f'meta_{n}': np.asarray(result.get(n)) for n in META if result.get(n) is not None}
    _, jpeg = cv2.imencode('.jpg', result.image, [cv2.IMWRITE_JPEG_QUALITY, 90])
    np.savez(file, jpeg=jpeg, **arrays)


def _load(file):
    """The picture, and its PoseDataSample."""
    from mmengine.structures import InstanceData
    from mmpose.structures import PoseDataSample

    with np.load(file, allow_pickle=False) as arrays:
        image = cv2.imdecode(arrays['jpeg'], cv2.IMREAD_COLOR)
        named = {name: arrays[name] for name in arrays.files}
    result = PoseDataSample()
    result.pred_instances = InstanceData(
        **{n.removeprefix('instances_'): a for n, a in named.items() if n.startswith('instances_')}
    )
    meta = {n.removeprefix('meta_'): a for n, a in named.items() if n.startswith('meta_')}
    result.set_metainfo({n: a.item() if a.ndim == 0 else a for n, a in meta.items()})
    return image, result


def _shrunk(image):
    ratio = SHOWN_SIDE / max(image.shape[:2])
    if ratio >= 1:
        return image
    return cv2.resize(image, None, fx=ratio, fy=ratio, interpolation=cv2.INTER_AREA)


def _describe(inferencer, result):
    instances = result.pred_instances
    text = f'**{inferencer.name}**: {len(instances)} people in {result.source}'
    if 'vertices' in instances:
        text += f', focal length {result.focal_length[0]:.0f} pixels'
    return text
