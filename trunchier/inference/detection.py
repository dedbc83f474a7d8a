"""Person boxes: the whole image, given boxes, YOLOX or RTMDet (ONNX), or mmdet.

A detector is a function of a `Frame` to boxes (P, 5) float32: x1, y1, x2, y2 in pixels of the
image, and a score.
"""

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from tokenize import TokenError
from typing import Any

import cv2
import numpy as np

from ..files import DownloadError, need
from ..weights.official import fetch, installed, release
from .sources import Frame, Source

# Official detectors by name, the best first: 'auto' takes the first that is on this machine, and
# else downloads the last.
OFFICIAL = ('yolox-s', 'rtmdet-m', 'rtmdet-tiny', 'yolox-tiny', 'rtmdet-nano', 'yolox-nano')
PATIENCE = 5.0  # seconds that 'auto' waits for a server, as behind a firewall
SCORE_THRESHOLD = 0.3
NMS_THRESHOLD = 0.45  # of YOLOX's own demo
MAX_INPUT = 4096  # pixels per side that a model may declare
PAD_VALUE = 114  # gray of YOLOX's input outside of the image
MIN_SIDE, MAX_COORDINATE = 1e-2, 1e7  # pixels, of boxes that are used
PERSON = 0  # index among COCO's classes
NO_BOXES = np.empty((0, 5), np.float32)
RTMDET_MEAN, RTMDET_STD = (103.53, 116.28, 123.675), (57.375, 57.12, 58.395)  # BGR
MALFORMED = (  # raised by content of another structure, and by numpy's parser of .npy headers
    ArithmeticError, AttributeError, EOFError, LookupError, RecursionError, SyntaxError, TokenError,
    TypeError,
)  # fmt: skip

log = logging.getLogger('trunchier')


def make_detector(
    detector: str | Path = 'auto',
    device: str = 'cpu',
    weights: str | Path | None = None,
    score_thr: float = SCORE_THRESHOLD,
    nms_thr: float = NMS_THRESHOLD,
) -> Callable[[Frame], np.ndarray]:
    """The detector that a name or file stands for.

    Args:
        detector: 'auto' (see `automatic`); one of OFFICIAL, which is downloaded the first time;
            'whole_image' (one person fills the image); an .onnx file of YOLOX, or of RTMDet if its
            name says so; an mmdet config (.py) or model name.
        weights: of an mmdet config.
        score_thr: minimum score of detections.
        nms_thr: overlap (IoU) above which the weaker of two detections is dropped.

    Raises:
        FileNotFoundError, ValueError: no such file or name, another kind of file, or a config
            without weights.
        ImportError: onnxruntime or mmdet is not installed.
        DownloadError: a detector of OFFICIAL could not be downloaded.
    """
    if detector == 'whole_image':
        return whole_image
    if detector == 'auto':
        return automatic(device, score_thr, nms_thr)
    name = str(detector).lower().replace('_', '-')
    if name in OFFICIAL and (installed(name) or release(name)[1].urls):
        detector = fetch(name)
    suffix = Path(detector).suffix.lower()
    if suffix in ('.json', '.npy'):
        raise ValueError(f'{detector} is no detector; give boxes with bboxes= or --boxes')
    if suffix != '.onnx':
        return _mmdet_detector(detector, weights, device, score_thr)
    if not Path(detector).is_file():
        raise FileNotFoundError(f'no file {detector} (from {Path.cwd()})')
    kind = RtmdetDetector if 'rtmdet' in Path(detector).stem.lower() else YoloxDetector
    return kind(detector, score_thr, nms_thr, device)


def automatic(device: str, score_thr: float, nms_thr: float) -> Callable[[Frame], np.ndarray]:
    """The best detector of OFFICIAL that is on this machine; else the smallest, downloaded.

    Without a network, with $TRUNCHIER_OFFLINE or without onnxruntime, it is `whole_image`, and a
    warning says so.
    """
    try:
        need('onnxruntime', 'finding people')
        here = (installed(name) for name in OFFICIAL)
        path = next(filter(None, here), None) or fetch(OFFICIAL[-1], patience=PATIENCE)
    except (DownloadError, ImportError) as error:
        remedy = f'run "trunchier download {OFFICIAL[-1]}" once with a network'
        if isinstance(error, ImportError):
            remedy = 'pip install onnxruntime'
        log.warning(
            'no person detector: each image is taken for ONE person who fills it. To find '
            f'everybody, {remedy}, or give --detector FILE.onnx or --boxes FILE'
        )
        log.debug('%s', error)
        return whole_image
    return make_detector(path, device, None, score_thr, nms_thr)


def name_of(detector: Callable[[Frame], np.ndarray]) -> str:
    """What a detector is called: the name of its file, or of the function."""
    return Path(getattr(detector, 'path', '')).name or getattr(detector, '__name__', 'detector')


def whole_image(frame: Frame) -> np.ndarray:
    """One box, the image."""
    height, width = frame.image.shape[:2]
    return np.array([[0, 0, width, height, 1]], np.float32)


def usable(boxes: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(P,) which of `boxes` (P, 5) can be cropped out of an image of `shape` (H, W).

    Those that are finite, have an area of numbers that crops can be computed with, and touch the
    image.
    """
    x1, y1, x2, y2 = boxes[:, :4].T
    inside = (x1 < shape[1]) & (y1 < shape[0]) & (x2 > 0) & (y2 > 0)
    with np.errstate(invalid='ignore', over='ignore'):
        wide = (x2 - x1 >= MIN_SIDE) & (y2 - y1 >= MIN_SIDE)
        near = (np.abs(boxes[:, :4]) <= MAX_COORDINATE).all(1)
    return np.isfinite(boxes).all(1) & wide & near & inside


# --- Given boxes ----------------------------------------------------------------------------------
class GivenBoxes:
    """Boxes by image and frame.

    Args:
        boxes: x1, y1, x2, y2[, score] in pixels, as
            an array (P, 4 or 5): the same people in every frame;
            a list of such arrays: one per image of the run, or per frame of its video;
            a dict by the name of the image (with or without folder and suffix) or video (then a
            list with one array per frame).

    Raises:
        ValueError: another shape or content.
    """

    def __init__(self, boxes: Any):
        self.by_stem: dict[str, list] = {}  # names of the same stem, of any folder
        if isinstance(boxes, dict):
            self.boxes = {name: _one_or_many(each, name) for name, each in boxes.items()}
            for name in boxes:
                self.by_stem.setdefault(Path(str(name)).stem, []).append(name)
        else:
            self.boxes = _one_or_many(boxes, 'boxes')

    @classmethod
    def of(cls, boxes: Any) -> 'GivenBoxes':
        """Boxes in memory, or the path of a file.

        Files: .npy of (P, 4 or 5); .json of what the constructor takes, of COCO annotations or
        detections (boxes in x, y, w, h; images by file name or by the number in it), or of
        predictions that `--save json` or MMPose wrote.

        Raises:
            FileNotFoundError, ValueError: no such file, or another content.
        """
        if not isinstance(boxes, str | Path):
            return cls(boxes)
        path = Path(boxes)
        if path.suffix.lower() not in ('.json', '.npy'):
            raise ValueError(f'boxes come from a .json or .npy file, got {boxes}')
        if not path.is_file():
            raise FileNotFoundError(f'no file {boxes} (from {Path.cwd()})')
        try:
            if path.suffix.lower() == '.npy':  # mapped: a declared size allocates nothing
                return cls(np.load(path, mmap_mode='r', allow_pickle=False))
            return cls(_read_json(path))
        except ValueError as error:
            raise ValueError(f'{path}: {error}') from error
        except MALFORMED as error:
            reason = f'{type(error).__name__}: {error}'
            raise ValueError(f'{path} does not hold boxes ({reason})') from error

    def __call__(self, frame: Frame) -> np.ndarray:
        given, index = self.boxes, frame.index if frame.source.moves else frame.source.order
        if isinstance(given, dict):
            given, index = self._named(frame.source), frame.index
        if given is None:
            return NO_BOXES
        if isinstance(given, list):
            return given[index] if index < len(given) else NO_BOXES
        return given

    def missing(self, sources: list[Source]) -> list[str]:
        """Names of sources that boxes by name do not name; ValueError if these are all."""
        if not isinstance(self.boxes, dict) or not self.boxes or not sources:
            return []
        without = [source.name for source in sources if self._named(source) is None]
        if len(without) == len(sources):
            theirs = ', '.join(map(repr, list(self.boxes)[:3]))
            raise ValueError(
                f'the boxes are of {len(self.boxes)} other images ({theirs}...), not of '
                f'{sources[0].path or sources[0].name}; name images as their files are named'
            )
        return without

    def _named(self, source):
        """What is given for a source, or None."""
        path = Path(source.path or source.name)
        number = re.search(r'(\d+)$', path.stem)
        names = [str(path), path.name, path.stem, source.name]
        names += [int(number[1]), str(int(number[1]))] if number else []
        for name in names:
            if name in self.boxes:
                return self.boxes[name]
        # A file may give another folder, or none: the one with most of the folders in common.
        alike = self.by_stem.get(path.stem, ())
        best = max(reversed(alike), key=lambda name: _common_end(path, name), default=None)
        return self.boxes.get(best)


def _common_end(path, name):
    """Number of folders, from the last one on, that two paths share."""
    folders = zip(path.parts[-2::-1], Path(str(name)).parts[-2::-1], strict=False)
    return next((n for n, (one, other) in enumerate(folders) if one != other), len(path.parts))


def _read_json(path):
    """What the constructor takes, of the content of a file."""
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        raise ValueError(f'no JSON file: {error}') from error
    if isinstance(content, dict) and 'instance_info' in content:
        content = content['instance_info']
    if isinstance(content, dict) and 'annotations' in content:
        names = {image['id']: image['file_name'] for image in content.get('images', [])}
        return _coco(content['annotations'], names)
    if isinstance(content, list) and content and isinstance(content[0], dict):
        if 'image_id' in content[0] or 'file_name' in content[0]:
            return _coco(content, {})
        if 'instances' in content[0]:
            return [_of_instances(frame['instances']) for frame in content]
        return _of_instances(content)
    return content


def _one_or_many(boxes, name):
    """(P, 5) of one image, or a list of these for a list of frames."""
    try:
        array = np.asarray(boxes, np.float32)
        shape, nested = array.shape, array.ndim == 3 or array.shape[1:] == (0,)
    except ValueError:  # frames with unequal numbers of people
        shape, nested = 'ragged', isinstance(boxes, list | tuple)
    if shape == (0,):
        return NO_BOXES
    if shape in ((4,), (5,)):
        array, shape = array[None], (1, *shape)
    if len(shape) == 2 and shape[1] in (4, 5):
        return np.pad(array, ((0, 0), (0, 5 - shape[1])), constant_values=1)
    if nested:
        frames = [_one_or_many(frame, f'{name}[{i}]') for i, frame in enumerate(boxes)]
        if not any(isinstance(frame, list) for frame in frames):
            return frames
    raise ValueError(
        f'{name} has shape {shape}; expected x1, y1, x2, y2[, score] per person, (P, 4 or 5)'
    )


def _coco(annotations, names):
    """Boxes (xyxy) by image of COCO annotations or detections; people only."""
    by_name = {}
    for each in annotations:
        if each.get('category_id', 1) != 1 or 'bbox' not in each:
            continue
        image = each.get('file_name', names.get(each.get('image_id'), each.get('image_id')))
        x, y, width, height = each['bbox']
        by_name.setdefault(image, []).append([x, y, x + width, y + height, each.get('score', 1.0)])
    return by_name


def _of_instances(instances):
    # MMPose writes [[x1, y1, x2, y2]].
    boxes = [[*np.ravel(each['bbox'])[:4], each.get('bbox_score', 1.0)] for each in instances]
    return np.array(boxes, np.float32).reshape(-1, 5)


# --- YOLOX ----------------------------------------------------------------------------------------
class YoloxDetector:
    """YOLOX (Ge et al., 2021) in ONNX, run by onnxruntime.

    Supports what Megvii-BaseDetection/YOLOX exports (tools/export_onnx.py, with or without
    `--decode_in_inference`), with any input size and number of classes, and what mmdeploy exports
    (boxes after NMS, as rtmlib distributes it). The input is BGR in 0..255, shrunk to fit and
    padded with gray on the right and below.

    Args:
        score_thr, nms_thr: see `make_detector`; the score is objectness times class score.
        device: 'cpu', 'cuda', 'cuda:1'; the CPU where onnxruntime does not support it.

    Raises:
        ImportError: onnxruntime is not installed.
        ValueError: no ONNX model, or another layout.
    """

    def __init__(
        self,
        path: str | Path,
        score_thr: float = SCORE_THRESHOLD,
        nms_thr: float = NMS_THRESHOLD,
        device: str = 'cpu',
    ):
        self.path, self.score_thr, self.nms_thr = path, score_thr, nms_thr
        self.session = onnx_session(path, device)
        inputs = self.session.get_inputs()
        shape = list(inputs[0].shape) if inputs else []
        # Symbolic dimensions stand for the size that the network was trained at.
        trained = 320 if isinstance(self, RtmdetDetector) and 'nano' in Path(path).stem else 640
        self.size = tuple(n if isinstance(n, int) else trained for n in shape[2:])
        if len(shape) != 4 or shape[1] != 3 or not all(0 < n <= MAX_INPUT for n in self.size):
            raise ValueError(f'{path} takes {shape}; YOLOX takes (1, 3, height, width)')
        self.input_name = inputs[0].name

    def __call__(self, frame: Frame) -> np.ndarray:
        blob, scale = self.fit(frame.image)
        try:
            outputs = self.session.run(None, {self.input_name: blob})
        except Exception as error:  # onnxruntime's exceptions have no common class
            raise ValueError(f'onnxruntime cannot run {self.path}: {error}') from error
        boxes = self._people(outputs)
        boxes[:, :4] /= scale
        height, width = frame.image.shape[:2]
        boxes[:, :4] = boxes[:, :4].clip(0, [width, height, width, height])
        return boxes

    def fit(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """An image (H, W, 3) as input (1, 3, *size), and the scale (4,) of boxes in it."""
        ratio = min(self.size[0] / image.shape[0], self.size[1] / image.shape[1])
        return letterbox(image, self.size)[0], np.full(4, ratio)

    def _people(self, outputs):
        """(P, 5) in pixels of the input, best first."""
        arrays = [each for each in outputs if getattr(each, 'dtype', np.dtype('O')).kind in 'fiu']
        shapes = [each.shape for each in arrays]
        if shapes and len(shapes[0]) == 3 and shapes[0][0] == 1:
            out = np.float32(arrays[0][0])
            if out.shape[1] > 5:
                found = decode_yolox(out, self.size, self.path)
                scores = found[:, 4] * found[:, 5 + PERSON]
                center, half = found[:, :2], found[:, 2:4] / 2
                boxes = np.hstack([center - half, center + half, scores[:, None]])
                boxes = boxes[scores >= self.score_thr]
                return boxes[suppress(boxes, self.nms_thr)]
            if out.shape[1] == 5 and shapes[1:2] == [shapes[0][:2]]:  # NMS is in the model
                return out[(arrays[1][0] == PERSON) & (out[:, 4] >= self.score_thr)]
        given = [getattr(each, 'shape', type(each).__name__) for each in outputs]
        raise ValueError(
            f'{self.path} gives {given}; expected (1, anchors, 5 + classes) as from YOLOX, or '
            'boxes (1, N, 5) and labels (1, N) as from mmdeploy'
        )


class RtmdetDetector(YoloxDetector):
    """RTMDet (Lyu et al., 2022) as mmdeploy exports it, boxes after NMS.

    It differs from YOLOX by normalized input, and by sides that are rounded, as by mmdet, whose
    boxes are scaled by each of them. Arguments: see `YoloxDetector`.
    """

    def fit(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        blob, (width, height) = letterbox(image, self.size, 0.5)
        mean, std = (np.float32(each).reshape(3, 1, 1) for each in (RTMDET_MEAN, RTMDET_STD))
        scale = width / image.shape[1], height / image.shape[0]
        return (blob - mean) / std, np.array(scale * 2)


def onnx_session(path: str | Path, device: str) -> Any:
    """onnxruntime's session of a file; ValueError if it is no ONNX model that runs."""
    onnxruntime = need('onnxruntime', 'finding people with an ONNX model')
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # A thread that waits by spinning would take a core from the network.
    options.add_session_config_entry('session.intra_op.allow_spinning', '0')
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=_providers(device))
    except Exception as error:  # onnxruntime's exceptions have no common class
        raise ValueError(f'{path} is no ONNX model that onnxruntime loads: {error}') from error


def _providers(device):
    """Those of a device and, for what it does not support, of the CPU."""
    providers = []
    if device != 'cpu':
        from ..deploy.runtime import onnx_providers  # with torch, as models of other devices

        try:
            providers = onnx_providers(device)
        except RuntimeError as error:
            log.info('people are found on the CPU: %s', error)
    return [*providers, 'CPUExecutionProvider']


def letterbox(
    image: np.ndarray, size: tuple[int, int], rounding: float = 0.0
) -> tuple[np.ndarray, tuple[int, int]]:
    """An image shrunk or enlarged to fit, on gray below and to the right.

    Args:
        image: (H, W, 3).
        size: (height, width) of the input.
        rounding: added to the sides of the image before they are truncated: 0 for YOLOX.

    Returns:
        (1, 3, *size) float32, and (width, height) of the image in it.
    """
    height, width = image.shape[:2]
    ratio = min(size[0] / height, size[1] / width)
    fitted = tuple(max(int(side * ratio + rounding), 1) for side in (width, height))
    blob = np.full((*size, 3), PAD_VALUE, np.uint8)
    blob[: fitted[1], : fitted[0]] = cv2.resize(image, fitted, interpolation=cv2.INTER_LINEAR)
    return np.float32(blob.transpose(2, 0, 1)[None]), fitted


def decode_yolox(out: np.ndarray, size: tuple[int, int], path: str | Path = 'model') -> np.ndarray:
    """Anchors as boxes; anchors that the exported model decodes are returned unchanged.

    Args:
        out: (A, 5 + classes): x, y in strides from the cell, log of width and height in strides.
        size: (height, width) of the input.

    Returns:
        (A, 5 + classes), the first four in pixels: center, width and height.

    Raises:
        ValueError: YOLOX has another number of anchors at this size.
    """
    grids = [_grid(size, stride) for stride in (8, 16, 32, 64)]
    grid = next((g for g in map(np.concatenate, (grids[:3], grids)) if len(g) == len(out)), None)
    if grid is None:
        raise ValueError(f'{path}: {len(out)} anchors for an input of {size} is not YOLOX')
    # Decoded centers spread over the image; raw ones stay near their cell.
    if np.median(np.abs(out[:, :2])) > 8:
        return out
    cell, stride = grid[:, :2], grid[:, 2:]
    with np.errstate(over='ignore'):  # infinite boxes are not used
        size = np.exp(out[:, 2:4]) * stride
    return np.hstack([(out[:, :2] + cell) * stride, size, out[:, 4:]])


def _grid(size, stride):
    """(cells, 3): x, y of the cell, and the stride."""
    y, x = np.mgrid[: size[0] // stride, : size[1] // stride].reshape(2, -1)
    return np.stack([x, y, np.full_like(x, stride)], axis=1).astype(np.float32)


def suppress(boxes: np.ndarray, threshold: float) -> np.ndarray:
    """Indices of the boxes (P, 5) that remain after non-maximum suppression, best first."""
    corners = boxes[:, :4].copy()
    corners[:, 2:] -= corners[:, :2]
    kept = cv2.dnn.NMSBoxes(corners.tolist(), boxes[:, 4].tolist(), 0.0, threshold)
    return np.array(kept, dtype=int).reshape(-1)


# --- mmdet ----------------------------------------------------------------------------------------
def _mmdet_detector(model, weights, device, score_thr):
    """A model of mmdet: a config (.py), or a name in its model zoo such as 'rtmdet-tiny'."""
    if Path(model).suffix == '.py':
        if not Path(model).is_file():
            raise FileNotFoundError(f'no mmdet config {model} (from {Path.cwd()})')
        if weights is None:
            raise ValueError(f'{model} is a config; give its checkpoint with detector_weights')
    try:
        from mmdet.apis import DetInferencer
    except ImportError as error:
        raise ImportError(
            f'detector={model!r} is none of auto, whole_image, {", ".join(OFFICIAL)} and .onnx '
            f'files, so it is looked up in mmdet, which cannot be imported: {error}'
        ) from error
    try:
        inferencer = DetInferencer(model, weights, device, show_progress=False)
    except ValueError as error:
        raise ValueError(
            f'detector={model!r}: {error}; expected auto, whole_image, {", ".join(OFFICIAL)}, an '
            '.onnx file, an mmdet config, or a name in its model zoo'
        ) from error

    def detect(frame):
        result = inferencer(frame.image, return_datasamples=True)['predictions'][0]
        found = result.pred_instances.cpu().numpy()
        kept = (found.labels == PERSON) & (found.scores >= score_thr)
        return np.float32(np.hstack([found.bboxes, found.scores[:, None]])[kept])

    return detect
