"""Where the people are: the whole picture, boxes of the user's, a YOLOX ONNX file, or mmdet.

Each finder is a function of a `Frame` to boxes (P, 5) float32: x1, y1, x2, y2 in pixels of the
picture, and a score. `find_people` picks one by what it is given.
"""

import json
import re
from pathlib import Path

import cv2
import numpy as np

SCORE_THRESHOLD = 0.3
NMS_THRESHOLD = 0.45  # of YOLOX's own demo
PAD_VALUE = 114  # grey, where YOLOX's square input has no picture
PERSON = 0  # in COCO's order of classes


def find_people(
    boxes, device='cpu', weights=None, score_thr=SCORE_THRESHOLD, nms_thr=NMS_THRESHOLD
):
    """The finder that `boxes` asks for.

    Args:
        boxes: 'whole' or None (one person fills the picture); an .onnx file of YOLOX; a .json or
            .npy file, or boxes in memory (see `GivenBoxes`); an mmdet config (.py) or model name.
        device: of mmdet.
        weights: of the mmdet model, see `MmdetDetector`.
        score_thr: detections below it are dropped; the user's own boxes are all kept.
        nms_thr: of two detections that overlap by more (IoU), the weaker one is dropped.

    Raises:
        FileNotFoundError, ValueError, ImportError: naming what is wrong with `boxes`.
    """
    if boxes is None or (isinstance(boxes, str) and boxes in ('whole', 'whole_image')):
        return whole_picture
    if not isinstance(boxes, str | Path):
        return GivenBoxes(boxes)
    suffix = Path(boxes).suffix.lower()
    if suffix in ('.onnx', '.json', '.npy') and not Path(boxes).is_file():
        raise FileNotFoundError(f'no file {boxes} (from {Path.cwd()})')
    if suffix == '.onnx':
        return YoloxDetector(boxes, score_thr, nms_thr)
    if suffix in ('.json', '.npy'):
        return GivenBoxes.from_file(boxes)
    return MmdetDetector(boxes, weights, device, score_thr)


def whole_picture(frame):
    """One box, the picture."""
    height, width = frame.image.shape[:2]
    return np.array([[0, 0, width, height, 1]], np.float32)


# ---------------------------------------------------------------------------------------------
# Boxes of the user's
# ---------------------------------------------------------------------------------------------
class GivenBoxes:
    """Boxes by picture and frame, as a file or the user states them.

    Args:
        boxes: x1, y1, x2, y2[, score] in pixels, as
            an array (P, 4 or 5): the same people in every frame;
            a list of such arrays: one for each picture of the run, or each frame of its video;
            a dict by the name of the picture (with or without folder and suffix), or of a video
            (then a list, one array a frame).

    Raises:
        ValueError: other shapes or content.
    """

    def __init__(self, boxes):
        self.by_name, self.in_order, self.always = {}, None, None
        if isinstance(boxes, dict):
            self.by_name = {name: _one_or_many(each, name) for name, each in boxes.items()}
        else:
            given = _one_or_many(boxes, 'boxes')
            if isinstance(given, list):
                self.in_order = given
            else:
                self.always = given

    @classmethod
    def from_file(cls, path):
        """Read .npy (P, 4 or 5), or .json: what the constructor takes; COCO annotations or

        detections (boxes in x, y, w, h; pictures by file name, or by the number in it); or the
        predictions that `--save json` and MMPose write.
        """
        if Path(path).suffix.lower() == '.npy':
            return cls(np.load(path, allow_pickle=False))
        try:
            content = json.loads(Path(path).read_text())
        except ValueError as error:
            raise ValueError(f'{path} is no JSON file: {error}') from error
        if isinstance(content, dict) and 'annotations' in content:
            names = {image['id']: image['file_name'] for image in content.get('images', [])}
            return cls(_coco(content['annotations'], names))
        if isinstance(content, list) and content and isinstance(content[0], dict):
            if 'image_id' in content[0] or 'file_name' in content[0]:
                return cls(_coco(content, {}))
            if 'instances' in content[0]:
                return cls([_of_instances(frame['instances']) for frame in content])
            return cls(_of_instances(content))
        return cls(content)

    def __call__(self, frame):
        if self.always is not None:
            return self.always
        if self.in_order is not None:
            return _at(self.in_order, frame.index if frame.source.moves else frame.source.order)
        given = self._named(frame.source)
        return _at(given, frame.index) if isinstance(given, list) else given

    def _named(self, source):
        path = Path(source.path or source.name)
        number = re.search(r'(\d+)$', path.stem)
        names = [str(path), path.name, path.stem, source.name]
        names += [int(number[1]), str(int(number[1]))] if number else []
        for name in names:
            if name in self.by_name:
                return self.by_name[name]
        # A file may state another folder, or none.
        stems = {Path(str(name)).stem: given for name, given in self.by_name.items()}
        return stems.get(path.stem, _none())


def _one_or_many(boxes, name):
    """(P, 5) for boxes of one picture; a list of such for a list of frames."""
    try:
        array = np.asarray(boxes, np.float32)
    except ValueError:
        array = None  # frames with unequal numbers of people
    if array is not None and array.size in (4, 5) and array.ndim == 1:
        array = array[None]
    if array is not None and array.ndim == 2 and array.shape[1] in (4, 5):
        return _with_score(array)
    if array is not None and array.shape == (0,):
        return _none()
    nested = isinstance(boxes, list | tuple) and array is None
    if nested or (array is not None and (array.ndim == 3 or array.shape[1:] == (0,))):
        frames = [_one_or_many(frame, f'{name}[{i}]') for i, frame in enumerate(boxes)]
        if not any(isinstance(frame, list) for frame in frames):
            return frames
    shape = 'ragged' if array is None else array.shape
    raise ValueError(
        f'{name} has shape {shape}; wanted x1, y1, x2, y2[, score] of each person, (P, 4 or 5)'
    )


def _with_score(array):
    if array.shape[1] == 5:
        return array
    return np.hstack([array, np.ones((len(array), 1), np.float32)])


def _at(frames, index):
    return frames[index] if index < len(frames) else _none()


def _none():
    return np.empty((0, 5), np.float32)


def _coco(annotations, names):
    """Boxes by picture of COCO annotations or detections, in xyxy; people only."""
    by_name = {}
    for each in annotations:
        if each.get('category_id', 1) != 1 or 'bbox' not in each:
            continue
        image = each.get('file_name', names.get(each.get('image_id'), each.get('image_id')))
        x, y, width, height = each['bbox']
        by_name.setdefault(image, []).append([x, y, x + width, y + height, each.get('score', 1.0)])
    return by_name


def _of_instances(instances):
    boxes = []
    for each in instances:
        box = each['bbox']
        box = box[0] if len(box) == 1 else box  # MMPose writes [[x1, y1, x2, y2]]
        boxes.append([*box[:4], each.get('bbox_score', 1.0)])
    return np.array(boxes, np.float32).reshape(-1, 5)


def usable(boxes, shape):
    """Which boxes a crop can be made of: finite, with an area, and touching the picture.

    Args:
        boxes: (P, 5); shape: (H, W) of the picture.

    Returns:
        (P,) bool.
    """
    x1, y1, x2, y2 = boxes[:, :4].T
    inside = (x1 < shape[1]) & (y1 < shape[0]) & (x2 > 0) & (y2 > 0)
    return np.isfinite(boxes).all(1) & (x2 > x1) & (y2 > y1) & inside


# ---------------------------------------------------------------------------------------------
# YOLOX
# ---------------------------------------------------------------------------------------------
class YoloxDetector:
    """People by a YOLOX model (Ge et al., 2021) in ONNX, run by onnxruntime.

    Takes what Megvii-BaseDetection/YOLOX exports (tools/export_onnx.py, with or without
    `--decode_in_inference`), of any size and class count, and what mmdeploy exports (boxes after
    NMS, as rtmlib distributes it). The input is BGR in 0..255, shrunk to fit and padded with grey
    on the right and below.

    Args:
        path: .onnx file.
        score_thr: of objectness times class score.
        nms_thr: IoU.

    Raises:
        ImportError: without onnxruntime. ValueError: no model, or of another layout.
    """

    def __init__(self, path, score_thr=SCORE_THRESHOLD, nms_thr=NMS_THRESHOLD):
        self.path = path
        self.score_thr, self.nms_thr = score_thr, nms_thr
        self.session = _onnx_session(path)
        wanted = self.session.get_inputs()[0]
        if len(wanted.shape) != 4 or wanted.shape[1] != 3:
            raise ValueError(f'{path} takes {wanted.shape}; wanted (1, 3, height, width), as YOLOX')
        self.input_name = wanted.name
        # Dimensions may be symbolic: then the size that YOLOX was trained at.
        self.size = tuple(n if isinstance(n, int) else 640 for n in wanted.shape[2:])

    def __call__(self, frame):
        blob, ratio = letterbox(frame.image, self.size)
        outputs = self.session.run(None, {self.input_name: blob})
        boxes = self._people(outputs)
        boxes[:, :4] /= ratio
        height, width = frame.image.shape[:2]
        boxes[:, :4] = boxes[:, :4].clip(0, [width, height, width, height])
        return boxes

    def _people(self, outputs):
        """(P, 5) in pixels of the input, best first."""
        out = outputs[0][0]
        if out.ndim == 2 and out.shape[1] > 5:
            found = decode_yolox(out, self.size, self.path)
            scores = found[:, 4] * found[:, 5 + PERSON]
            centre, half = found[:, :2], found[:, 2:4] / 2
            boxes = np.hstack([centre - half, centre + half, scores[:, None]])
            boxes = boxes[scores >= self.score_thr]
            return boxes[suppress(boxes, self.nms_thr)]
        if out.ndim == 2 and out.shape[1] == 5 and len(outputs) > 1:  # NMS is in the model
            kept = (outputs[1][0] == PERSON) & (out[:, 4] >= self.score_thr)
            return out[kept].astype(np.float32)
        raise ValueError(
            f'{self.path} gives {[o.shape for o in outputs]}; wanted (1, anchors, 5 + classes), '
            'as YOLOX exports it, or boxes (1, N, 5) and labels (1, N), as mmdeploy does'
        )


def _onnx_session(path):
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(
            'finding people with an ONNX model needs onnxruntime: pip install onnxruntime'
        ) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # A thread that waits by spinning would take a core from the network.
    options.add_session_config_entry('session.intra_op.allow_spinning', '0')
    try:
        return onnxruntime.InferenceSession(
            str(path), options, providers=onnxruntime.get_available_providers()
        )
    except Exception as error:  # its own classes, which derive from Exception alone
        raise ValueError(f'{path} is no ONNX model that onnxruntime loads: {error}') from error


def letterbox(image, size):
    """The picture in YOLOX's input.

    Args:
        image: (H, W, 3) uint8 BGR. size: (height, width) of the input.

    Returns:
        (1, 3, height, width) float32, and the ratio of its pixels to those of the picture.
    """
    height, width = image.shape[:2]
    ratio = min(size[0] / height, size[1] / width)
    shrunk = max(int(width * ratio), 1), max(int(height * ratio), 1)
    blob = np.full((*size, 3), PAD_VALUE, np.uint8)
    blob[: shrunk[1], : shrunk[0]] = cv2.resize(image, shrunk, interpolation=cv2.INTER_LINEAR)
    return np.float32(blob.transpose(2, 0, 1)[None]), ratio


def decode_yolox(out, size, path='model'):
    """Anchors as boxes; those that the export has decoded already are left as they are.

    Args:
        out: (A, 5 + classes): x, y in strides from the cell, log of width and height in strides.
        size: (height, width) of the input.

    Returns:
        (A, 5 + classes), the first four in pixels: centre, width and height.

    Raises:
        ValueError: A is not that of YOLOX at this size.
    """
    strides = next(
        (s for s in ((8, 16, 32), (8, 16, 32, 64)) if sum(map(len, _grids(size, s))) == len(out)),
        None,
    )
    if strides is None:
        raise ValueError(f'{path}: {len(out)} anchors for an input of {size} is not YOLOX')
    # Decoded centres spread over the picture; raw ones stay near their cell.
    if np.median(np.abs(out[:, :2])) > strides[0]:
        return out
    grid = np.concatenate(_grids(size, strides))
    cell, stride = grid[:, :2], grid[:, 2:]
    return np.hstack([(out[:, :2] + cell) * stride, np.exp(out[:, 2:4]) * stride, out[:, 4:]])


def _grids(size, strides):
    """For each stride, (cells, 3): x, y of the cell, and the stride."""
    grids = []
    for stride in strides:
        y, x = np.mgrid[: size[0] // stride, : size[1] // stride].reshape(2, -1)
        grids.append(np.stack([x, y, np.full_like(x, stride)], axis=1).astype(np.float32))
    return grids


def suppress(boxes, threshold):
    """Indices of the boxes (P, 5) that stay after non-maximum suppression, best first."""
    corners = boxes[:, :4].copy()
    corners[:, 2:] -= corners[:, :2]
    kept = cv2.dnn.NMSBoxes(corners.tolist(), boxes[:, 4].tolist(), 0.0, threshold)
    return np.array(kept, dtype=int).reshape(-1)


# ---------------------------------------------------------------------------------------------
# mmdet
# ---------------------------------------------------------------------------------------------
class MmdetDetector:
    """People by an mmdet model.

    Args:
        model: config (.py) or a name of mmdet's model zoo, such as 'rtmdet-tiny'.
        weights: checkpoint; a name of the zoo brings its own.
        device: 'cpu', 'cuda'...
        score_thr: detections below it are dropped.

    Raises:
        FileNotFoundError, ValueError: no such config or name; a config without weights.
        ImportError: without mmdet.
    """

    def __init__(self, model, weights=None, device='cpu', score_thr=SCORE_THRESHOLD):
        if Path(model).suffix == '.py' and not Path(model).is_file():
            raise FileNotFoundError(f'no mmdet config {model} (from {Path.cwd()})')
        if Path(model).suffix == '.py' and weights is None:
            raise ValueError(f'{model} is a config; give its checkpoint with det_weights')
        try:
            from mmdet.apis import DetInferencer
        except ImportError as error:
            raise ImportError(
                f"boxes={model!r} is no file, 'whole' or .onnx, so it is taken for a model of "
                f'mmdet, which cannot be imported: {error}'
            ) from error
        try:
            self.inferencer = DetInferencer(model, weights, device, show_progress=False)
        except ValueError as error:
            raise ValueError(
                f"boxes={model!r}: {error}; wanted 'whole', a .json, .npy or .onnx file, an mmdet "
                'config, or a name of its model zoo'
            ) from error
        self.score_thr = score_thr

    def __call__(self, frame):
        result = self.inferencer(frame.image, return_datasamples=True)['predictions'][0]
        found = result.pred_instances.cpu().numpy()
        kept = (found.labels == PERSON) & (found.scores >= self.score_thr)
        return np.float32(np.hstack([found.bboxes, found.scores[:, None]])[kept])
