"""Frames of images, videos and cameras: paths, folders, globs, URLs, arrays, PIL images, tensors.

`find(inputs)` lists the sources without opening them; `read(source)` yields their frames, in order.
Images are read as in OpenMMLab (OpenCV's IMREAD_COLOR): three channels in BGR, the EXIF
orientation applied, alpha dropped, 16 bits reduced to 8. Files may come from strangers: what cannot
be read is `Unreadable`, whatever the decoder raises, and sizes are checked before decoding.
"""

import glob
import hashlib
import http.client
import io
import math
import os
import re
import stat
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import chain, count
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from ..files import need
from ..files.images import MAX_PIXELS, ImageError, declared_size, decode_image, exif_focal

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

IMAGE_SUFFIXES = (
    '.jpg', '.jpeg', '.jpe', '.jp2', '.png', '.bmp', '.dib', '.tif', '.tiff', '.webp', '.ppm',
    '.pgm', '.pbm', '.pnm', '.exr', '.hdr', '.avif', '.sr', '.ras',
)  # fmt: skip
VIDEO_SUFFIXES = (
    '.mp4', '.m4v', '.mov', '.avi', '.mkv', '.webm', '.mpg', '.mpeg', '.wmv', '.flv', '.ts', '.3gp',
    '.gif', '.ogv', '.mts', '.m2ts',
)  # fmt: skip
KINDS = dict.fromkeys(IMAGE_SUFFIXES, 'image') | dict.fromkeys(VIDEO_SUFFIXES, 'video')
# Demuxers of FFmpeg that read one file only: a playlist named .mp4 could name others.
CONTAINERS = (
    'mov,avi,matroska,mpeg,mpegts,mpegvideo,asf,flv,gif,ogg,h264,hevc,m4v,mjpeg,ivf,obu,mxf'
)
NETWORK = 'http,https,tcp,tls,udp,rtp,srtp,rtmp,rtmps,srt'  # protocols of streams; no files
STREAMS = ('rtsp', 'rtsps', 'rtmp', 'rtmps', 'tcp', 'udp', 'srt')
TIMEOUT = 20.0  # seconds that a server may be silent
MAX_BYTES = 1 << 30  # of an image of the network, or of standard input
RESULTS = ('predictions', 'visualizations', 'meshes')  # folders beside a run.json
EVERY_FRAME = range(sys.maxsize)
MAX_NAME = 200  # bytes of a source's name, which leaves room for suffixes
DEFAULT_FPS = 30.0
CAMERA = re.compile(r'(?:camera|webcam)(?::(\d+))?', re.IGNORECASE)


class Unreadable(RuntimeError):
    """A source, or a frame of it, cannot be read; others may be readable."""


@dataclass(frozen=True)
class Source:
    """An image, video or camera.

    Attributes:
        name: unique among the sources of a run; names of result files begin with it.
        kind: 'image', 'video' or 'camera' (also a live stream).
        path: of the file, or URL, or None.
        content: array, PIL image, tensor, bytes of a file or number of a camera, or None.
        order: index in the run.
    """

    name: str
    kind: str
    path: str | None = None
    content: Any = field(default=None, repr=False, compare=False)
    order: int = 0

    @property
    def moves(self) -> bool:
        """Whether it is a sequence of frames in time."""
        return self.kind != 'image'


@dataclass(frozen=True)
class Frame:
    """An image of a source.

    Attributes:
        image: (H, W, 3) uint8 BGR.
        index: in the source.
        time: seconds, or None.
        focal: focal length by EXIF, pixels, or None.
    """

    image: np.ndarray
    source: Source
    index: int = 0
    time: float | None = None
    focal: float | None = None


# --- Sources --------------------------------------------------------------------------------------
def find(inputs: Any) -> Iterator[Source]:
    """Sources of `inputs`, in order; folders and globs in natural order (2 before 10).

    Args:
        inputs: path of an image, a video or a folder of them, with the folders below it; a glob; an
            http(s) URL of an image or video; the URL of a live stream (rtsp, rtmp, srt, udp, tcp);
            '-', standard input; 'camera' or 'camera:1', or the camera's number; a numpy array
            (H, W[, C]) in BGR, or (N, H, W, C) for a clip; a PIL image; a torch tensor (3, H, W) in
            RGB, or (N, 3, H, W) for a clip; a Source; or an iterable of these.

    Raises:
        FileNotFoundError: no such file, an empty folder, a glob that matches nothing.
        ValueError, TypeError: a URL of another kind; an array or object that is no image.
    """
    taken = set()
    for order, source in enumerate(_flat(inputs)):
        name = _short(source.name) or f'{order:06d}'
        names = chain([name], (f'{name}_{copy}' for copy in count(2)))
        unique = next(each for each in names if each not in taken)
        taken.add(unique)
        yield replace(source, name=unique, order=order)


def _short(name):
    """`name` in at most MAX_NAME bytes; a hash replaces the end of a longer one."""
    data = os.fsencode(name)
    if not name.strip('.'):  # of '...mp4'
        return name.replace('.', '_')
    if len(data) <= MAX_NAME:
        return name
    return f'{os.fsdecode(data[: MAX_NAME - 17])}~{hashlib.sha256(data).hexdigest()[:16]}'


def _flat(inputs):
    if isinstance(inputs, Source):
        yield inputs
    elif isinstance(inputs, str | Path):
        yield from _from_text(str(inputs))
    elif isinstance(inputs, bool):
        raise TypeError(f'{inputs} is no image; give a path, an array or a list of them')
    elif isinstance(inputs, int | np.integer):
        yield Source(f'camera{inputs}', 'camera', content=int(inputs))
    elif isinstance(inputs, np.ndarray) or _is_tensor(inputs):
        yield _from_array(inputs)
    elif hasattr(inputs, 'getexif') and hasattr(inputs, 'convert'):  # PIL, without importing it
        path = getattr(inputs, 'filename', None) or None
        yield Source(Path(path).stem if path else '', 'image', path, inputs)
    elif isinstance(inputs, Iterable) and not isinstance(inputs, dict | bytes):
        for each in inputs:
            yield from _flat(each)
    else:
        raise TypeError(
            f'{type(inputs).__name__} is no image; give a path, a numpy array, a PIL image, a '
            "torch tensor, a camera's number, or a list of these"
        )


def _from_text(text):
    if camera := CAMERA.fullmatch(text):
        yield from _flat(int(camera[1] or 0))
        return
    if re.match(r'[a-z][a-z0-9+.-]+://', text, re.IGNORECASE):
        yield _from_url(text)
        return
    if text == '-':
        yield _from_bytes(sys.stdin.buffer.read(MAX_BYTES))
        return
    path = Path(text).expanduser()
    if path.is_dir():
        none = f'the folder {path} and those below it hold no image and no video'
        for source in _from_files(_media(path), none):
            below = Path(source.path).relative_to(path).with_suffix('')
            yield replace(source, name='_'.join(below.parts))
    elif path.exists():
        yield _from_file(path)
    elif glob.has_magic(text):
        files = map(Path, glob.glob(str(path), recursive=True))
        yield from _from_files(files, f'no file matches {text} (from {Path.cwd()})')
    else:
        raise FileNotFoundError(f'no file {text} (from {Path.cwd()})')


def _from_url(url):
    parts = urllib.parse.urlsplit(url)
    path = Path(urllib.parse.unquote(parts.path))
    name = path.stem or parts.hostname or ''
    if parts.scheme.lower() in STREAMS:
        return Source(name, 'camera', url)
    if parts.scheme.lower() not in ('http', 'https'):
        raise ValueError(
            f'{url}: {parts.scheme} is not supported; give http(s), {", ".join(STREAMS)}, or a path'
        )
    return Source(name, KINDS.get(path.suffix.lower(), 'image'), url)


def _from_bytes(data):
    """A file of standard input."""
    image = declared_size(data) is not None and not data.startswith(b'GIF8')
    return Source('stdin', 'image' if image else 'video', content=data)


def _media(folder):
    """Images and videos in a folder and below, but hidden ones and those that a run has written."""
    entries = [entry for entry in folder.iterdir() if not entry.name.startswith('.')]
    results = RESULTS if any(entry.name == 'run.json' for entry in entries) else ()
    for entry in entries:
        if entry.is_dir():
            if entry.name not in results and not entry.is_symlink():  # links may form a loop
                yield from _media(entry)
        elif entry.suffix.lower() in KINDS:
            yield entry


def _from_files(paths, none):
    """Sources of those paths that are files, in natural order; FileNotFoundError(none)."""
    files = sorted(filter(Path.is_file, paths), key=_natural_order)
    if not files:
        raise FileNotFoundError(none)
    yield from map(_from_file, files)


def _from_file(path):
    return Source(path.stem, KINDS.get(path.suffix.lower(), 'image'), str(path))


def _natural_order(path):
    """Sorting key that puts frame2 before frame10."""
    parts = re.split(r'(\d+)', str(path))
    return [(int(part), '') if part.isdecimal() else (-1, part) for part in parts]


def _is_tensor(given):
    """Of torch, without importing it."""
    return 'torch' in sys.modules and isinstance(given, sys.modules['torch'].Tensor)


def _from_array(array):
    if _is_tensor(array) and (array.ndim not in (3, 4) or array.shape[-3] not in (1, 3, 4)):
        raise ValueError(
            f'a tensor of shape {tuple(array.shape)} is no image; expected (3, H, W) or '
            '(N, 3, H, W) in RGB, as torchvision reads it'
        )
    return Source('', 'video' if array.ndim == 4 else 'image', content=array)


# --- Frames ---------------------------------------------------------------------------------------
def read(
    source: Source, frames: range = EVERY_FRAME, max_pixels: int = MAX_PIXELS
) -> Iterator[Frame | Unreadable]:
    """Frames of a source.

    Args:
        frames: indices of those of a video, clip or camera that are wanted.
        max_pixels: width times height of the largest image or video that is read.

    Yields:
        Frame; or Unreadable (yielded, not raised) for missing frames of a video.

    Raises:
        Unreadable: the source cannot be opened or decoded, or is truncated.
        ImportError: a video without PyAV.
    """
    if not source.moves:
        yield _read_still(source, max_pixels)
    elif source.path is not None or isinstance(source.content, bytes):
        yield from _read_video(source, frames, max_pixels)
    elif source.kind == 'camera':
        yield from _read_camera(source, frames)
    else:
        for index in range(len(source.content))[frames.start : frames.stop : frames.step]:
            yield Frame(to_bgr(source.content[index], max_pixels), source, index)


def _read_still(source, max_pixels):
    if source.content is not None and not isinstance(source.content, bytes):
        return Frame(to_bgr(source.content, max_pixels), source)
    name = source.path or source.name
    try:
        if source.content is not None:
            data = source.content
        elif is_url(source.path):
            data = _fetch(source.path)
        else:
            _check_regular(source.path)
            data = np.fromfile(source.path, np.uint8)
        image = decode_image(data, max_pixels=max_pixels)
    except (OSError, ImageError, http.client.HTTPException) as error:
        raise Unreadable(f'{name}: {error}') from error
    return Frame(image, source, focal=exif_focal(data, image.shape[:2]))


def is_url(path: str | None) -> bool:
    """Whether the `path` of a source is on the network."""
    return path is not None and '://' in path


def _fetch(url):
    """Content of an http(s) address; OSError if it is larger than MAX_BYTES."""
    # Browsers show addresses decoded: text is encoded, and what is encoded stays.
    url = urllib.parse.quote(url, safe="%/:?#[]@!$&'()*+,;=")
    request = urllib.request.Request(url, headers={'User-Agent': 'trunchier'})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        if answer.headers.get_content_type() == 'text/html':
            raise OSError('the server sends a web page, not an image')
        data = answer.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise OSError(f'more than {MAX_BYTES} bytes')
    return data


def frame_range(frames: slice | range) -> range:
    """Indices that a slice of all frames has; ValueError if it counts from the end or back."""
    start, stop, step = frames.start or 0, frames.stop, frames.step or 1
    stop = EVERY_FRAME.stop if stop is None else stop
    if start < 0 or stop <= start or step < 1:
        raise ValueError(
            f'frames {frames.start}:{frames.stop}:{frames.step} are none; expected start:stop:step '
            'with 0 <= start < stop and step >= 1'
        )
    return range(start, stop, step)


def read_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """An image file as (H, W, 3) uint8 BGR.

    Raises:
        Unreadable: no such file, no permission, a pipe or device, a format that OpenCV does not
            decode or that is refused, or more than `max_pixels`.
    """
    return _read_still(Source('', 'image', str(Path(path))), max_pixels).image


def _check_regular(path):
    """Reading a pipe or a device may wait for ever."""
    try:
        regular = stat.S_ISREG(os.stat(path).st_mode)
    except OSError as error:
        raise Unreadable(f'{path}: {error.strerror}') from error
    if not regular:
        raise Unreadable(f'{path} is no regular file')


def _check_size(what, width, height, max_pixels):
    if width * height > max_pixels:
        raise Unreadable(
            f'{what} has {width} x {height} pixels, more than {max_pixels} '
            '(--max-pixels, max_pixels=)'
        )


def to_bgr(image: 'np.ndarray | torch.Tensor | Image', max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """An image in memory as (H, W, 3) uint8 BGR.

    Args:
        image: numpy array (H, W), (H, W, 1), BGR or BGRA, as in OpenCV; PIL image, whose EXIF
            orientation is applied; tensor (1, 3 or 4, H, W) in RGB. uint8; uint16, of which the
            upper byte is kept; or float in [0, 1].
        max_pixels: of a PIL image, which may not be decoded yet.

    Raises:
        Unreadable: another shape or type, or values that are not finite.
    """
    if _is_tensor(image):
        array = image.detach().cpu()
        array = (array.float() if str(array.dtype) == 'torch.bfloat16' else array).numpy()
        return _three_channels(array.transpose(1, 2, 0), rgb=True)
    if isinstance(image, np.ndarray):
        return _three_channels(image, rgb=False)

    from PIL import ImageOps

    width, height = image.size
    _check_size('the PIL image', width, height, max_pixels)
    try:
        image = ImageOps.exif_transpose(image)
        deep = image.mode.startswith('I')  # 16 bits, which convert('RGB') would clip
        array = np.asarray(image).astype(np.uint16) if deep else np.asarray(image.convert('RGB'))
    except Exception as error:  # each of PIL's decoders raises what it likes
        raise Unreadable(f'the PIL image cannot be decoded: {error}') from error
    return _three_channels(array, rgb=True)


def _three_channels(array, rgb):
    shape = array.shape
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or 0 in array.shape:
        raise Unreadable(f'an array of shape {shape} is no image; expected (H, W[, 1, 3 or 4])')
    if array.dtype == np.uint16:
        array = (array >> 8).astype(np.uint8)
    elif array.dtype.kind == 'f':
        if not ((array >= 0) & (array <= 1)).all():  # NaN is neither
            raise Unreadable('a float image must have finite values in [0, 1], or be uint8')
        array = np.rint(array.astype(np.float32) * 255).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise Unreadable(f'an image of {array.dtype}; expected uint8, uint16 or float')
    if array.shape[2] == 1:
        return np.repeat(array, 3, axis=2)
    return np.ascontiguousarray(array[..., 2::-1] if rgb else array[..., :3])


def _read_video(source, frames, max_pixels):
    name = source.path or source.name
    # PyAV's own is kept for ever, with threads that a forked process would wait for in vain.
    converter = import_av().video.reformatter.VideoReformatter()

    def read(frame):
        with _unreadable(f'{name}: frame {index}'):
            # By the display matrix, as players and OpenCV do.
            image = converter.reformat(frame, format='bgr24').to_ndarray()
            turned = np.rot90(image, round(frame.rotation / 90))
            return Frame(np.ascontiguousarray(turned), source, index, frame.time)

    with _opened(source) as stream:
        _check_size(name, stream.width, stream.height, max_pixels)
        # Frames may be larger than declared.
        stream.codec_context.options = {'max_pixels': str(max_pixels)}
        stream.thread_type = 'AUTO'
        packets = stream.container.demux(stream)
        index = broken = 0
        while True:
            with _unreadable(f'{name} is truncated'):
                packet = next(packets, None)
            if packet is None:
                break
            try:
                with _unreadable(f'{name}: broken frame after frame {index}'):
                    decoded = packet.decode()
            except Unreadable as error:
                broken += 1
                if index >= frames.start:
                    yield error
                continue
            for frame in decoded:
                if index >= frames.stop:
                    return
                if index in frames:
                    try:
                        yield read(frame)
                    except Unreadable as error:
                        yield error
                index += 1
        if index == 0:
            raise Unreadable(f'{name}: no frame could be decoded')
        # An edit list may drop a few frames of a whole file.
        if index + broken < 0.99 * stream.frames - 2:
            yield Unreadable(f'{name}: only {index} of {stream.frames} frames could be read')


@contextmanager
def _opened(source):
    """The video stream of a file, a URL or bytes."""
    av, name = import_av(), source.path or source.name
    options = dict(format_whitelist=CONTAINERS, protocol_whitelist='file')
    given, timeout = name, None
    if is_url(source.path):
        options = dict(format_whitelist=f'{CONTAINERS},rtsp,rtp', protocol_whitelist=NETWORK)
        timeout = TIMEOUT
    elif source.content is not None:
        given = io.BytesIO(source.content)
    else:
        _check_regular(source.path)
        given = str(Path(source.path).absolute())  # no name of a protocol
    with _unreadable(f'{name} cannot be opened as a video'):
        # Of PyAV 19 on, text that is not UTF-8 is replaced in any case.
        lenient = dict(metadata_errors='replace') if int(av.__version__.split('.')[0]) < 19 else {}
        container = av.open(given, options=options, timeout=timeout, **lenient)
    with container:
        streams = [each for each in container.streams.video if each.codec_context is not None]
        if not streams:
            raise Unreadable(f'{name} has no video stream that can be decoded')
        yield streams[0]


@contextmanager
def _unreadable(what):
    """PyAV raises FFmpeg's errors, which have many classes, and those of Python and Cython."""
    try:
        yield
    except Exception as error:
        raise Unreadable(f'{what}: {error}') from error


def video_info(source: Source) -> tuple[float, int | None]:
    """Frames per second of a video or camera, and the number of frames.

    The rate is DEFAULT_FPS if it is unknown or absurd. The number is an estimate, or None.

    Raises:
        Unreadable, ImportError: as `read`.
    """
    if source.kind == 'camera':
        return DEFAULT_FPS, None
    if source.path is None and not isinstance(source.content, bytes):
        return DEFAULT_FPS, len(source.content)
    with _opened(source) as stream, _unreadable(f'{source.path or source.name} has no rate'):
        fps = float(stream.average_rate or stream.guessed_rate or DEFAULT_FPS)
        duration = stream.container.duration  # microseconds
        frames = stream.frames or (round(duration / 1e6 * fps) if duration else None)
        return fps if 0.01 <= fps <= 1000 else DEFAULT_FPS, frames


def count_frames(found: Iterable[Source], frames: range) -> float:
    """How many there are, about; of a camera infinitely many.

    Args:
        frames: those of videos that are asked for.
    """
    total = 0.0
    for source in found:
        number: float | None = 1
        if source.kind == 'camera':
            number = math.inf
        elif source.moves and not is_url(source.path):
            with suppress(Unreadable, ImportError):
                asked = slice(frames.start, frames.stop, frames.step)
                number = len(range(*asked.indices(video_info(source)[1] or 0)))
        total += number
    return total


def import_av() -> ModuleType:
    """PyAV, silent: its exceptions say what is wrong with a file.

    With any level of logging, even PANIC, a decoder's thread that has a message waits for Python's
    lock, which the thread that closes this decoder holds: both wait for ever.
    """
    av = need('av', 'reading and writing videos')
    av.logging.set_level(None)
    return av


def _read_camera(source, frames):
    camera = cv2.VideoCapture(source.content)
    try:
        if not camera.isOpened():
            raise Unreadable(
                f'cannot open camera {source.content}; is it connected, free, and readable by you '
                '(on Linux: the group video)? Others are camera:1, camera:2...'
            )
        for index in range(frames.stop):
            arrived, image = camera.read()
            if not arrived:
                raise Unreadable(f'camera {source.content} sends no more images')
            if index in frames:
                yield Frame(image, source, index)
    finally:
        camera.release()
