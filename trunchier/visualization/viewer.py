"""Viewer of predictions in a browser: image or video timeline, meshes in 3D, the camera.

Meshes stand in the frame of the camera (x right, y down, z forward, meters), which does not move
over a video. Poses, and meshes if chosen, are shown as a large image.

The server is viser's (optional). It listens on this machine only, unless told otherwise, and its
address holds a token without which nothing is answered (`Guard`): other web pages in the same
browser and other users of the machine do not see the images. Frames are kept in a temporary folder,
so memory use does not grow with their number.
"""

import bisect
import contextlib
import io
import ipaddress
import re
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import cv2
import numpy as np

from ..files.optional import need
from .overlays import KeypointPainter, MeshPainter, person_colors

if TYPE_CHECKING:
    from mmengine.structures import BaseDataElement

MAX_SIDE = 1280  # pixels of the longer side of images sent to the browser
ORIGINAL, OVERLAY = 'original', 'overlay'
SCENE, PICTURE = '3D', 'image'
VIEW_FROM = np.array([0.55, -0.3, -1.0])  # direction from the people to the first viewpoint
FIELD_OF_VIEW = np.deg2rad(75)  # vertical, viser's default
ASPECT = 1.15  # width / height of the page beside the controls, at least
COVERED = 0.36  # by the controls, of half the height of the page
FAR_STEP = 1.25  # ratio of the distances at which the image may stand behind the people
FOLLOW_SECONDS = 0.2  # between updates while results arrive
PLAY_FPS = 10.0  # of frames whose time is not known, as of a folder's
SHORTEST = 1 / 60  # seconds between frames that are sent
MAX_TARGET = 1024  # bytes of the path and query of a request
STARTING = threading.Lock()  # while viser's server is made, see `Guard.installed`


class Viewer:
    """The page and the frames that it shows.

    Args:
        host: address to listen on: '127.0.0.1' for this machine only, '0.0.0.0' for the network.
        port: of the page; if it is in use, the next free one.
        follow: show the newest frame while frames arrive, as of a camera.

    Attributes:
        port: of the page.
        address: of the page, with its token.

    Raises:
        ImportError: viser is not installed.
        RuntimeError: a viser whose requests cannot be checked.
    """

    def __init__(self, host: str = '127.0.0.1', port: int = 8080, follow: bool = False):
        viser = need('viser', 'the viewer')
        guard = Guard(host)
        with _no_output(), guard.installed():
            self.server = viser.ViserServer(host, port, label='trunchier', verbose=False)
        self.port = self.server.get_port()
        if not guard.serves:
            self.server.stop()
            raise RuntimeError(
                f'viser {viser.__version__} does not let its requests be checked; take 1.1'
            )
        self.address = f'http://{host}:{self.port}/?token={guard.token}'
        self.folder = tempfile.TemporaryDirectory(prefix='trunchier-viewer-')
        self.painters = {}  # by model
        self.frames = {}  # (model, source) -> files, one per frame
        self.times = {}  # (model, source) -> seconds of each frame
        self.far = {}  # (model, source) -> distance of the image behind the people
        self.handles = {}  # name -> object in the 3D scene, and what it cannot change
        self.framed = None  # model, source and view that the browsers' cameras were set to
        self.shown_at = 0.0
        self.lock = threading.RLock()
        self.closed = threading.Event()
        self._build_page(follow)
        threading.Thread(target=self._play, daemon=True).start()

    # --- controls ------------------------------------------------------------------------------

    def _build_page(self, follow):
        gui, scene = self.server.gui, self.server.scene
        gui.configure_theme(show_share_button=False)  # it would open a tunnel to the internet
        scene.set_up_direction('-y')  # a camera's y points down
        self.server.initial_camera.fov = FIELD_OF_VIEW
        self.image = gui.add_image(np.zeros((9, 16, 3), np.uint8), format='jpeg')
        self.model = gui.add_dropdown('model', ['-'])
        self.source = gui.add_dropdown('input', ['-'])
        self.view = gui.add_dropdown('view', [SCENE, PICTURE])
        self.frame = gui.add_slider('frame', 0, 1, 1, 0)
        self.playing = gui.add_checkbox('play', False)
        self.follow = gui.add_checkbox('follow', follow, hint='show the newest frame')
        with gui.add_folder('overlay'):
            self.content = gui.add_dropdown('image', [OVERLAY, ORIGINAL])
            self.boxes = gui.add_checkbox('boxes and track ids', True)
            self.threshold = gui.add_slider('keypoint score', 0.0, 1.0, 0.05, 0.3)
            self.style = gui.add_dropdown('mesh', ['solid', 'wireframe', 'both'])
            self.opacity = gui.add_slider('opacity', 0.1, 1.0, 0.05, 0.9)
        with gui.add_folder('3D') as self.scene_folder:
            self.show_people = gui.add_checkbox('people', True)
            self.show_camera = gui.add_checkbox('camera and image', True)
        self.about = gui.add_markdown('')
        for control in (self.model, self.source):
            control.on_update(lambda _: self._choose())
        # By name in the painters.
        self.options = dict(draw_bbox=self.boxes, kpt_thr=self.threshold)
        self.options |= dict(style=self.style, alpha=self.opacity)
        controls = self.view, self.frame, self.content, self.show_people, self.show_camera
        for control in (*controls, *self.options.values()):
            control.on_update(lambda _: self.show())

    def _update_timeline(self):
        """Fit the timeline to the chosen model and input."""
        last = len(self._files()) - 1
        self.frame.max = max(last, 1)
        self.frame.disabled = last < 1
        if self.frame.value > max(last, 0):
            self.frame.value = max(last, 0)

    def _choose(self):
        with self.lock:
            self._update_timeline()
        self.show()

    def _take_options(self, painter):
        """Set the controls to the options of the first painter of each kind."""
        if any(type(other) is type(painter) for other in self.painters.values()):
            return
        for name, control in self.options.items():
            if hasattr(painter, name):
                control.value = getattr(painter, name)

    def _painter(self, model):
        """The painter of `model` with the options of the controls."""
        painter = self.painters[model]
        options = {n: each.value for n, each in self.options.items() if hasattr(painter, n)}
        return replace(painter, **options)

    def _files(self):
        return self.frames.get((self.model.value, self.source.value), [])

    def _play(self):
        """Move the timeline at the speed of the video; frames that are too late are left out."""
        wait, began = 1 / PLAY_FPS, None
        while not self.closed.wait(wait):
            with self.lock:
                times = self._times()
                if not self.playing.value or len(times) < 2 or self.closed.is_set():
                    wait, began = 1 / PLAY_FPS, None
                    continue
                now, shown = time.monotonic(), min(self.frame.value, len(times) - 1)
                if began is None or began[1:] != (shown, len(times)):  # play, or somebody moved it
                    began = (now - times[shown], shown, len(times))
                following, wait = next_frame(times, shown, now - began[0])
                if following != shown:
                    self.frame.value = following  # also shows it
                    again = time.monotonic() - times[0]  # after the last frame
                    began = (again if following < shown else began[0], following, len(times))

    def _times(self):
        return self.times.get((self.model.value, self.source.value), [])

    # --- frames --------------------------------------------------------------------------------

    def add(
        self, model: str, painter: KeypointPainter | MeshPainter, result: 'BaseDataElement'
    ) -> None:
        """Add the result of one frame.

        Args:
            model: name, by which results are grouped.
            painter: of the model's results; the controls start with its options.
            result: PoseDataSample with its image (`return_image=True`).
        """
        with self.lock:
            source = result.source
            files = self.frames.setdefault((model, source), [])
            file = Path(self.folder.name, f'{len(self.frames)}-{len(files)}.npz')
            _save(result, file)
            files.append(file)
            times = self.times.setdefault((model, source), [])
            known = result.get('time')
            late = times[-1] + 1 / PLAY_FPS if times else 0.0
            times.append(late if known is None or known <= (times or [-1])[-1] else known)
            before = self.far.get((model, source), 0.0)
            if isinstance(painter, MeshPainter) and len(result.pred_instances):
                depth = _people(result)[..., 2].max() + 0.5
                step = FAR_STEP ** np.ceil(np.log(max(depth, 1e-3)) / np.log(FAR_STEP))
                self.far[model, source] = max(step, before)
            if model not in self.painters:
                self._take_options(painter)
                self.painters[model] = painter
            _set_choices(self.model, self.painters)
            _set_choices(self.source, dict.fromkeys(source for _, source in self.frames))
            selected = (self.model.value, self.source.value) == (model, source)
            if selected:
                self._update_timeline()
            due = time.monotonic() - self.shown_at > FOLLOW_SECONDS
            if selected and self.follow.value and due:
                self.frame.value = len(files) - 1
            moved = self.far.get((model, source), 0.0) > before
        if selected and (len(files) == 1 or moved):
            self.show()

    def show(self) -> None:
        """Send the selected frame to the browser."""
        with self.lock:
            files = self._files()
            if not files or self.closed.is_set():
                return
            self.shown_at = time.monotonic()
            model = self.model.value
            painter = self._painter(model)
            original, result = _load(files[min(self.frame.value, len(files) - 1)])
            drawn = painter(original, result) if self.content.value == OVERLAY else original
            drawn, original = (_for_browser(image) for image in (drawn, original))
            has_meshes = isinstance(painter, MeshPainter)
            flat = not has_meshes or self.view.value == PICTURE
            self._show_controls(has_meshes, flat)
            self.image.image = drawn
            with self.server.atomic():
                self._show_scene(painter, result, drawn if flat else original, flat)
            count = len(result.pred_instances)
            people, source = 'person' if count == 1 else 'people', _plain(result.source)
            text = f'**{_plain(model)}**: {count} {people} in {source}'
            if len(files) > 1:
                text += f', {self._times()[min(self.frame.value, len(files) - 1)]:.2f} s'
            if has_meshes:
                text += f', focal length {result.focal_length[0]:.0f} pixels'
            self.about.content = text

    def _show_controls(self, has_meshes, flat):
        """Those that do something for this model."""
        for control in (self.view, self.scene_folder, self.style, self.opacity):
            control.visible = has_meshes
        self.threshold.visible = not has_meshes
        self.image.visible = not flat

    def _show_scene(self, painter, result, image, flat):
        """Update the objects, and remove the others."""
        chosen, shown = (self.model.value, self.source.value), set()

        def put(name, make, fixed, **changing):
            handle, before = self.handles.get(name, (None, None))
            shown.add(name)
            if handle is not None and before == fixed:
                for property_, value in changing.items():
                    setattr(handle, property_, value)
                return
            if handle is not None:
                handle.remove()
            self.handles[name] = make(name, **changing), fixed

        scene, (height, width) = self.server.scene, result.ori_shape
        people = [] if flat else _people(result)
        colors = person_colors(result.pred_instances)[:, ::-1].astype(int)
        if flat:
            focal, center, far = (
                np.repeat(max(height, width), 2),
                np.array([width, height]) / 2,
                1.0,
            )
        else:
            focal, center = result.focal_length, result.principal_point
            far = self.far.get(chosen, 3.0)
        # The image stands behind the people and fills the camera's view there.
        corners = np.array([[0, 0], [width, 0], [width, height], [0, height]])
        corners = np.hstack([(corners - center) / focal, np.ones((4, 1))]) * far
        wireframe = self.style.value == 'wireframe'
        for person, vertices in enumerate(people if self.show_people.value else ()):
            add = partial(scene.add_mesh_simple, faces=painter.faces, wireframe=wireframe)
            color = tuple(colors[person].tolist())
            put(f'/people/{person}', add, (chosen, wireframe), vertices=vertices, color=color)
        if self.show_camera.value or flat:
            size, style = (corners[2] - corners[0])[:2], dict(format='jpeg', receive_shadow=False)
            place = (*size.tolist(), *corners.mean(0).tolist())
            add = partial(
                scene.add_image, render_width=size[0], render_height=size[1],
                position=corners.mean(0), **style,
            )  # fmt: skip
            put('/camera/image', add, (place, image.shape), image=image)
        if self.show_camera.value and not flat:
            edges = [[np.zeros(3), corner] for corner in corners]
            edges = np.array(edges + [[corners[i], corners[i - 1]] for i in range(4)])
            style = dict(thickness=1.5, thickness_units='screen')
            add = partial(scene.add_line_segments, points=edges, colors=(90, 90, 90), **style)
            put('/camera/frustum', add, (place, 'lines'))
        for name in self.handles.keys() - shown:
            self.handles.pop(name)[0].remove()
        if self.framed != (*chosen, flat) and (flat or len(people)):
            self.framed = (*chosen, flat)
            self._look(*(_at_image(corners) if flat else _at_people(people)))

    def _look(self, position, target):
        """Set the cameras of browsers that are open, and of those that open later."""
        # Beside the controls, which cover the right of the page.
        ahead = target - position
        right = np.cross([0, 1, 0], ahead)
        aside = COVERED * np.tan(FIELD_OF_VIEW / 2) * np.linalg.norm(ahead)
        aside = aside * right / np.linalg.norm(right)
        position, target = position + aside, target + aside
        start = self.server.initial_camera
        start.position, start.look_at = position, target
        for client in self.server.get_clients().values():
            with contextlib.suppress(AssertionError):  # it has just come, and takes the initial one
                client.camera.position, client.camera.look_at = position, target

    def wait(self) -> None:
        """Serve the page until it is closed, or Ctrl-C."""
        try:
            with contextlib.suppress(KeyboardInterrupt):
                self.closed.wait()
        finally:
            self.close()

    def close(self) -> None:
        """Stop the server and delete the temporary files."""
        with self.lock:
            self.closed.set()
        with _no_output():
            self.server.stop()
        self.folder.cleanup()


class Guard:
    """Decides which requests the page answers: those of its own origin, with its token.

    The token is in the address that is printed; the page then keeps it in a cookie, which the
    browser sends with what the page loads and with its websocket. A page of another origin has
    neither; the names in Host keep a name that is rebound to this machine from being an origin.

    Args:
        host: that the server listens on.
    """

    def __init__(self, host: str):
        self.token = secrets.token_urlsafe(24)
        self.names = {host.lower(), 'localhost', socket.gethostname().lower()}
        self.cookie = f'trunchier-{secrets.token_hex(4)}'  # cookies do not know ports
        self.serves = False

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """A server that viser starts meanwhile asks this guard first."""
        import websockets.asyncio.server as module

        serve = module.serve

        def guarded(*args: Any, process_request: Callable | None = None, **options: Any) -> Any:
            self.serves = True
            answer = process_request or (lambda connection, request: None)
            return serve(
                *args, process_request=lambda c, request: self(c, request, answer), **options
            )

        with STARTING:
            module.serve = guarded
            try:
                yield
            finally:
                module.serve = serve

    def __call__(self, connection: Any, request: Any, answer: Callable) -> Any:
        """The response to a request; None opens its websocket."""
        try:
            status = self.refusal(request.path, request.headers)
            if status is not None:
                return connection.respond(status, f'{status}: open the address that was printed\n')
            response = answer(connection, request)
        except (OSError, ValueError):  # of an address, or a path that no file can have
            return connection.respond(404, 'not found\n')
        if response is not None:
            response.headers['Set-Cookie'] = (
                f'{self.cookie}={self.token}; HttpOnly; SameSite=Strict; Path=/'
            )
            response.headers['Referrer-Policy'] = 'no-referrer'
            response.headers['X-Frame-Options'] = 'DENY'
        return response

    def refusal(self, target: str, headers: Any) -> int | None:
        """Status that refuses a request, or None.

        Args:
            target: path and query. headers: with `get_all(name)`, of any case.
        """
        if len(target) > MAX_TARGET:
            return 414
        hosts, origins = headers.get_all('Host'), headers.get_all('Origin')
        if len(hosts) != 1 or not self._is_here(hosts[0]):
            return 421
        if len(origins) > 1 or any(urlsplit(each).netloc != hosts[0] for each in origins):
            return 403
        given = parse_qs(urlsplit(target).query).get('token', [])
        with contextlib.suppress(CookieError):
            cookies = SimpleCookie('; '.join(headers.get_all('Cookie')))
            given += [cookies[self.cookie].value] if self.cookie in cookies else []
        known = (secrets.compare_digest(each.encode(), self.token.encode()) for each in given)
        return None if any(known) else 403

    def _is_here(self, host):
        """Whether a Host header names an address, which cannot be rebound, or this machine."""
        try:
            name = urlsplit(f'//{host}').hostname or ''
            if name in self.names:
                return True
            return bool(ipaddress.ip_address(name))
        except ValueError:
            return False


def next_frame(times: list[float], shown: int, elapsed: float) -> tuple[int, float]:
    """The frame to show and the seconds until the next one.

    Args:
        times: seconds of the frames, ascending, at least 2. shown: index of that on the screen.
        elapsed: on the clock of `times`. After the last frame follows the first one.
    """
    end = times[-1] + (times[-1] - times[0]) / (len(times) - 1)
    if elapsed >= end:
        return 0, max(times[1] - times[0], SHORTEST)
    frame = max(bisect.bisect_right(times, elapsed) - 1, 0)
    following = times[frame + 1] if frame + 1 < len(times) else end
    return frame, max(following - elapsed, SHORTEST)


def _plain(text):
    """Text of a file or model as markdown that is no markup: it may come from a stranger."""
    text = ''.join(c if c.isprintable() else '?' for c in text)
    return re.sub(r'[!-,/:-@\[-`{-~]', lambda found: f'&#{ord(found[0])};', text)


def _people(result):
    """(P, V, 3), meters, in the camera's frame."""
    instances = result.pred_instances
    return instances.vertices + instances.translation[:, None]


def _at_people(people):
    """Viewpoint and target that show people; those far behind the others may be small."""
    depth = people[..., 2].mean(1)
    near = people[depth <= 2.5 * np.median(depth)]
    low, high = near.min((0, 1)), near.max((0, 1))
    target, radius = (low + high) / 2, max(np.linalg.norm(high - low) / 2, 0.5)
    direction = VIEW_FROM / np.linalg.norm(VIEW_FROM)
    return target + direction * radius / np.sin(FIELD_OF_VIEW / 2), target


def _at_image(corners):
    """Viewpoint and target that fill the page with an image."""
    width, height = (corners[2] - corners[0])[:2]
    target = corners.mean(0)
    distance = 0.52 * max(height, width / ASPECT) / np.tan(FIELD_OF_VIEW / 2)
    return target - [0, 0, distance], target


def _set_choices(dropdown, names):
    names = tuple(names)
    if tuple(dropdown.options) != names:
        value = dropdown.value
        dropdown.options = names
        dropdown.value = value if value in names else names[0]


def _no_output():
    """Suppress the banners that viser prints regardless of `verbose`."""
    return contextlib.redirect_stdout(io.StringIO())


# --- Frames on disk -------------------------------------------------------------------------------
META = ('ori_shape', 'frame_id', 'source', 'focal_length', 'principal_point', 'img_path')


def _save(result, file):
    arrays = {f'instances_{n}': np.asarray(a) for n, a in result.pred_instances.items()}
    arrays |= {f'meta_{n}': np.asarray(result.get(n)) for n in META if result.get(n) is not None}
    _, jpeg = cv2.imencode('.jpg', result.image, [cv2.IMWRITE_JPEG_QUALITY, 90])
    np.savez(file, jpeg=jpeg, **arrays)


def _load(file):
    """The image (BGR) and its result."""
    from mmengine.structures import BaseDataElement, InstanceData

    groups = {'instances': {}, 'meta': {}}
    with np.load(file, allow_pickle=False) as arrays:
        image = cv2.imdecode(arrays['jpeg'], cv2.IMREAD_COLOR)
        for name in set(arrays.files) - {'jpeg'}:
            group, _, field = name.partition('_')
            groups[group][field] = arrays[name] if arrays[name].ndim else arrays[name].item()
    result = BaseDataElement(metainfo=groups['meta'])
    result.pred_instances = InstanceData(**groups['instances'])
    return image, result


def _for_browser(image):
    """RGB, shrunk to MAX_SIDE."""
    ratio = MAX_SIDE / max(image.shape[:2])
    if ratio < 1:
        image = cv2.resize(image, None, fx=ratio, fy=ratio, interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
