"""Boxes are read from every form, and YOLOX's from every kind of export."""

import hashlib
import io
import json
import socket
import sys
import zipfile
from types import SimpleNamespace

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
from mmengine.structures import InstanceData

from trunchier.files import DownloadError
from trunchier.inference import detection
from trunchier.inference.sources import Frame, Source
from trunchier.weights.official import fetch
from trunchier.zoo.releases import RELEASES

BOX, OTHER = [1, 2, 30, 40], [5, 6, 70, 80]


def frame(name='photo', index=0, kind='image', order=0, shape=(48, 64), path=None):
    image = np.zeros((*shape, 3), np.uint8)
    return Frame(image, Source(name, kind, path or f'/somewhere/{name}.jpg', order=order), index)


def boxes_of(finder, *frames):
    return [finder(each)[:, :4].tolist() for each in frames]


# --- the whole image, and given boxes -------------------------------------------------------------
def test_the_whole_image_is_one_person():
    found = detection.make_detector('whole_image')(frame(shape=(48, 64)))
    np.testing.assert_array_equal(found, [[0, 0, 64, 48, 1]])


@pytest.mark.parametrize('given', [BOX, [BOX], np.array([BOX]), np.array([[*BOX, 0.5]])])
def test_boxes_in_memory_hold_for_every_frame(given):
    finder = detection.GivenBoxes.of(given)
    assert boxes_of(finder, frame('a'), frame('b', order=1)) == [[BOX], [BOX]]


def test_scores_default_to_one():
    assert detection.GivenBoxes.of([[*BOX, 0.5]])(frame())[0, 4] == 0.5
    assert detection.GivenBoxes.of([BOX])(frame())[0, 4] == 1


def test_a_list_of_boxes_is_indexed_by_image_or_frame():
    finder = detection.GivenBoxes.of([[BOX], [], [BOX, OTHER]])
    images = [frame(str(i), order=i) for i in range(4)]
    assert boxes_of(finder, *images) == [[BOX], [], [BOX, OTHER], []]
    video = [frame('clip', index=i, kind='video') for i in (2, 0)]
    assert boxes_of(finder, *video) == [[BOX, OTHER], [BOX]]


@pytest.mark.parametrize('name', ['photo', 'photo.jpg', '/somewhere/photo.jpg', 'else/photo.png'])
def test_boxes_by_name_find_their_image(name):
    finder = detection.GivenBoxes.of({name: [BOX]})
    assert boxes_of(finder, frame('photo'), frame('other')) == [[BOX], []]


def test_boxes_of_a_video_by_name_are_indexed_by_frame():
    finder = detection.GivenBoxes.of({'clip': [[BOX], [OTHER]]})
    assert boxes_of(finder, *(frame('clip', i, 'video') for i in range(3))) == [[BOX], [OTHER], []]


def test_boxes_of_other_images_are_an_error():
    inputs = [frame(name).source for name in ('a', 'b')]
    assert detection.GivenBoxes.of({'b': [BOX]}).missing(inputs) == ['a']
    assert detection.GivenBoxes.of([BOX]).missing(inputs) == []
    assert detection.GivenBoxes.of({}).missing(inputs) == []  # nobody on any of them
    with pytest.raises(ValueError, match=r"1 other images \('x.jpg'...\), not of /somewhere/a.jpg"):
        detection.GivenBoxes.of({'x.jpg': [BOX]}).missing(inputs)


def test_coco_annotations_and_detections_are_read(tmp_path):
    xywh = [1, 2, 29, 38]
    annotations = {
        'images': [{'id': 7, 'file_name': 'folder/photo.jpg'}],
        'annotations': [
            {'image_id': 7, 'bbox': xywh, 'category_id': 1},
            {'image_id': 7, 'bbox': [9, 9, 9, 9], 'category_id': 2},  # no person
        ],
    }
    detections = [{'image_id': 785, 'bbox': xywh, 'score': 0.25, 'category_id': 1}]
    for content, name in ((annotations, 'photo'), (detections, '000000000785')):
        (tmp_path / 'boxes.json').write_text(json.dumps(content))
        finder = detection.GivenBoxes.of(tmp_path / 'boxes.json')
        assert boxes_of(finder, frame(name), frame('other')) == [[BOX], []]
    assert finder(frame(name))[0, 4] == 0.25


def test_predictions_and_arrays_are_read_back(tmp_path):
    person = {'keypoints': [[0, 0]], 'bbox': [BOX], 'bbox_score': 0.5}
    video = [{'frame_id': 0, 'instances': [person]}, {'frame_id': 1, 'instances': []}]
    (tmp_path / 'image.json').write_text(json.dumps([person]))
    (tmp_path / 'video.json').write_text(json.dumps(video))
    np.save(tmp_path / 'boxes.npy', np.array([BOX]))
    for name in ('image.json', 'boxes.npy'):
        assert boxes_of(detection.GivenBoxes.of(tmp_path / name), frame()) == [[BOX]]
    clip = (frame('clip', 0, 'video'), frame('clip', 1, 'video'))
    assert boxes_of(detection.GivenBoxes.of(tmp_path / 'video.json'), *clip) == [[BOX], []]


@pytest.mark.parametrize(
    'given, says',
    [
        ([[1, 2, 3]], r'boxes has shape \(1, 3\); expected x1, y1, x2, y2'),
        ({'photo.jpg': [[1, 2, 3]]}, r'photo.jpg has shape \(1, 3\)'),
        ([[BOX], [[1, 2, 3]]], r'boxes\[1\] has shape \(1, 3\)'),
        ([BOX, [1, 2, 3]], r'boxes\[1\] has shape \(3,\)'),
        ([[[[BOX]]]], 'expected x1, y1, x2, y2'),
        ([['a', 'b', 'c', 'd']], 'expected x1, y1, x2, y2'),
    ],
)
def test_boxes_of_another_shape_are_refused(given, says):
    with pytest.raises(ValueError, match=says):
        detection.GivenBoxes.of(given)


def test_missing_and_malformed_files_are_named(tmp_path):
    (tmp_path / 'broken.json').write_text('{')
    with pytest.raises(ValueError, match='broken.json: no JSON file'):
        detection.GivenBoxes.of(tmp_path / 'broken.json')
    for name in ('absent.json', 'absent.npy'):
        with pytest.raises(FileNotFoundError, match=name):
            detection.GivenBoxes.of(str(tmp_path / name))
    for name in ('absent.onnx', 'absent.py'):
        with pytest.raises(FileNotFoundError, match=name):
            detection.make_detector(str(tmp_path / name))


def test_detectors_and_files_of_boxes_are_not_confused(tmp_path):
    with pytest.raises(ValueError, match='give boxes with bboxes= or --boxes'):
        detection.make_detector('boxes.json')
    with pytest.raises(ValueError, match='boxes come from a .json or .npy file, got yolox.onnx'):
        detection.GivenBoxes.of('yolox.onnx')


@pytest.mark.parametrize(
    'box, good',
    [
        ([1, 2, 3, 4], True),
        ([-5, -5, 1, 1], True),
        ([1, 2, 1, 4], False),
        ([3, 2, 1, 4], False),
        ([1, 2, np.nan, 4], False),
        ([1, 2, np.inf, 4], False),
        ([64, 2, 70, 9], False),
        ([-9, 2, 0, 9], False),
    ],
)
def test_only_boxes_with_an_area_on_the_image_are_used(box, good):
    assert detection.usable(np.array([[*box, 1.0]], np.float32), (48, 64)).tolist() == [good]


# --- YOLOX ----------------------------------------------------------------------------------------
def encode(boxes, scores, size, strides=(8, 16, 32), classes=3):
    """What YOLOX would put out for people at `boxes`, by the cell that their center is in."""
    rows = []
    for stride in strides:
        for y in range(size[0] // stride):
            for x in range(size[1] // stride):
                row = np.zeros(5 + classes, np.float32)
                for box, score in zip(boxes, scores, strict=True):
                    cx, cy = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
                    if (cx // stride, cy // stride) == (x, y):
                        row[:2] = cx / stride - x, cy / stride - y
                        row[2:4] = np.log([(box[2] - box[0]) / stride, (box[3] - box[1]) / stride])
                        row[4], row[5] = score, 1
                rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize('size', [(64, 96), (416, 416)])
@pytest.mark.parametrize('strides', [(8, 16, 32), (8, 16, 32, 64)])
def test_anchors_are_decoded_for_any_size_and_strides(size, strides):
    out = encode([BOX], [0.9], size, strides)
    found = detection.decode_yolox(out, size)
    people = found[found[:, 4] > 0]
    assert len(people) == len(strides)
    center, extent = [15.5, 21], [29, 38]
    np.testing.assert_allclose(people[:, :4], [[*center, *extent]] * len(strides), rtol=1e-4)
    np.testing.assert_array_equal(detection.decode_yolox(found, size), found)  # already decoded


def test_another_number_of_anchors_is_refused():
    with pytest.raises(ValueError, match=r'model: 99 anchors for an input of \(64, 96\)'):
        detection.decode_yolox(np.zeros((99, 8)), (64, 96))


def test_of_overlapping_boxes_the_best_remains():
    boxes = np.array([[0, 0, 10, 10, 0.5], [1, 0, 11, 10, 0.9], [20, 0, 30, 10, 0.4]])
    assert detection.suppress(boxes, 0.5).tolist() == [1, 2]
    assert detection.suppress(np.empty((0, 5)), 0.5).tolist() == []


def test_the_image_is_fitted_into_the_input_and_padded_with_gray():
    blob, fitted = detection.letterbox(np.full((20, 40, 3), 7, np.uint8), (64, 96))
    assert blob.shape == (1, 3, 64, 96) and fitted == (96, 48)
    assert (blob[:, :, :48] == 7).all() and (blob[:, :, 48:] == 114).all()


class Session:
    """Stands for an onnxruntime session of a model with given outputs."""

    def __init__(self, outputs, shape=(1, 3, 64, 96)):
        self.outputs, self.shape = outputs, list(shape)

    def get_inputs(self):
        return [SimpleNamespace(name='images', shape=self.shape)]

    def run(self, names, feed):
        assert feed['images'].shape[:2] == (1, 3)
        return self.outputs


def test_boxes_of_every_layout_are_in_pixels_of_the_image(monkeypatch):
    image = frame(shape=(128, 192))  # twice the input
    twice = (2 * np.array(BOX)).tolist()
    raw = encode([BOX], [0.9], (64, 96))
    others = raw.copy()
    others[:, 5:] = others[:, [6, 5, 7]]  # of another class
    end_to_end = [np.float32([[[*BOX, 0.9], [*OTHER, 0.8]]]), np.array([[0, 1]])]
    for outputs, expected in (
        ([raw[None]], [twice]),
        ([others[None]], []),
        ([detection.decode_yolox(raw, (64, 96))[None]], [twice]),
        (end_to_end, [twice]),
    ):
        monkeypatch.setattr(detection, 'onnx_session', lambda path, device, o=outputs: Session(o))
        found = detection.YoloxDetector('yolox.onnx')(image)
        np.testing.assert_allclose(found[:, :4].reshape(-1, 4), np.reshape(expected, (-1, 4)), 1e-4)


@pytest.mark.parametrize('device', ['cpu', 'cuda', 'cuda:1', 'mps'])
def test_the_detector_runs_on_the_device_that_is_named(monkeypatch, caplog, device):
    available = ['TensorrtExecutionProvider', 'CUDAExecutionProvider', 'CPUExecutionProvider']
    monkeypatch.setattr(onnxruntime, 'get_available_providers', lambda: available)
    monkeypatch.setattr(onnxruntime, 'InferenceSession', lambda *_, providers: providers)
    caplog.set_level('INFO', 'trunchier')
    index = {'cuda': 0, 'cuda:1': 1}
    cuda = [('CUDAExecutionProvider', dict(device_id=index[device]))] if device in index else []
    assert detection.onnx_session('a.onnx', device) == [*cuda, 'CPUExecutionProvider']
    assert ('people are found on the CPU' in caplog.text) == (device == 'mps')


def test_rtmdet_gets_normalized_images(tmp_path, monkeypatch):
    fed = []

    class Network(Session):
        def run(self, names, feed):
            fed.append(feed['images'])
            return self.outputs

    outputs = [np.float32([[[*BOX, 0.9]]]), np.array([[0]])]
    network = Network(outputs, (1, 3, 'height', 'width'))
    monkeypatch.setattr(detection, 'onnx_session', lambda path, device: network)
    path = tmp_path / 'rtmdet-nano.onnx'
    path.touch()
    image = np.full((320, 160, 3), (103.53, 116.28, 0), np.uint8)
    finder = detection.make_detector(path)
    found = finder(Frame(image, Source('a', 'image')))
    np.testing.assert_allclose(found, [[*BOX, 0.9]])
    assert fed[0].shape == (1, 3, 320, 320)  # the size that it was trained at
    np.testing.assert_allclose(
        fed[0][0, :, 0, 0], [-0.53 / 57.375, -0.28 / 57.12, -2.118], atol=1e-3
    )
    np.testing.assert_allclose(fed[0][0, :, 0, -1], [0.182, -0.04, -0.166], atol=1e-3)  # gray


def rtmdet_onnx():
    """A network with inputs and outputs of mmdeploy's RTMDet, which boxes what is white.

    Boxes come best first, after NMS, down to low scores, of people and of another class.
    """
    onnx = pytest.importorskip('onnx')
    helper = onnx.helper
    node, constant = helper.make_node, onnx.numpy_helper.from_array
    along = {'x': np.arange(320).reshape(1, 1, 1, 320), 'y': np.arange(320).reshape(1, 1, 320, 1)}
    constants = dict(
        white=np.float32(0.4), side=np.float32(320), first=np.array([0]), one=np.array([1]),
        channel=np.array([1]), shape=np.array([1, 1, 4]), three=np.array([1, 3, 1]),
        scores=np.float32([[[0.9], [0.8], [0.06]]]), labels_=np.array([[0, 41, 0]]),
    )  # fmt: skip
    nodes = [
        node('Slice', ['input', 'first', 'one', 'channel'], ['blue']),
        node('Greater', ['blue', 'white'], ['is_white']),
        node('Cast', ['is_white'], ['mask'], to=onnx.TensorProto.FLOAT),
    ]
    for axis, grid in along.items():
        constants |= {f'{axis}_end': np.float32(grid + 1), f'{axis}_left': np.float32(320 - grid)}
        nodes += [
            node('Mul', ['mask', f'{axis}_end'], [f'{axis}_a']),
            node('ReduceMax', [f'{axis}_a'], [f'{axis}2']),
            node('Mul', ['mask', f'{axis}_left'], [f'{axis}_b']),
            node('ReduceMax', [f'{axis}_b'], [f'{axis}_c']),
            node('Sub', ['side', f'{axis}_c'], [f'{axis}1']),
        ]
    nodes += [
        node('Concat', ['x1', 'y1', 'x2', 'y2'], ['corners'], axis=3),
        node('Reshape', ['corners', 'shape'], ['box']),
        node('Tile', ['box', 'three'], ['boxes']),
        node('Concat', ['boxes', 'scores'], ['dets'], axis=2),
        node('Identity', ['labels_'], ['labels']),
    ]
    graph = helper.make_graph(
        nodes,
        'rtmdet',
        [helper.make_tensor_value_info('input', onnx.TensorProto.FLOAT, [1, 3, 320, 320])],
        [
            helper.make_tensor_value_info('dets', onnx.TensorProto.FLOAT, [1, 3, 5]),
            helper.make_tensor_value_info('labels', onnx.TensorProto.INT64, [1, 3]),
        ],
        [constant(np.asarray(value), name) for name, value in constants.items()],
    )
    opset = [helper.make_opsetid('', 13)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()


def test_rtmdet_by_its_name_from_openmmlabs_archive(web, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('TRUNCHIER_HOME', str(tmp_path / 'home'))
    content, archive = rtmdet_onnx(), io.BytesIO()
    with zipfile.ZipFile(archive, 'w') as file:
        file.writestr('20230831/rtmdet_onnx/rtmdet_nano/detail.json', b'{}')
        file.writestr('20230831/rtmdet_onnx/rtmdet_nano/end2end.onnx', content)
    web.files['/rtmdet_nano.zip'] = archive.getvalue()
    facts = dict(urls=(f'{web.url}/rtmdet_nano.zip',), sha256=hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(RELEASES, 'rtmdet-nano', RELEASES['rtmdet-nano']._replace(**facts))
    image = np.zeros((100, 161, 3), np.uint8)
    image[30:80, 60:100] = 255
    finder = detection.make_detector('RTMDet-nano')
    (person,) = finder(Frame(image, Source('a', 'image')))
    np.testing.assert_allclose(person, [60, 30, 100, 80, 0.9], atol=0.5)
    assert web.asked == ['/rtmdet_nano.zip']
    assert 'rtmdet-nano.onnx (license: Apache-2.0)' in capsys.readouterr().err
    assert detection.name_of(detection.make_detector('auto')) == 'rtmdet-nano.onnx'


def test_rtmdet_gets_what_mmdet_feeds_it(tmp_path, monkeypatch):
    mmcv = pytest.importorskip('mmcv')
    session = Session([], (1, 3, 320, 320))
    monkeypatch.setattr(detection, 'onnx_session', lambda path, device: session)
    image = np.random.default_rng(0).integers(0, 256, (100, 161, 3), np.uint8)
    blob, scale = detection.RtmdetDetector('rtmdet-nano.onnx').fit(image)
    fitted = mmcv.imrescale(image, (320, 320))
    assert fitted.shape == (199, 320, 3)
    padded = mmcv.impad(fitted, shape=(320, 320), pad_val=(114, 114, 114))
    mean, std = np.array(detection.RTMDET_MEAN), np.array(detection.RTMDET_STD)
    expected = mmcv.imnormalize(padded, mean, std, to_rgb=False).transpose(2, 0, 1)
    np.testing.assert_allclose(blob[0], expected, atol=1e-5)
    np.testing.assert_allclose(scale, [320 / 161, 1.99] * 2)


def test_rtmdet_tiny_is_taken_from_a_file_put_there_by_hand(cache, monkeypatch):
    with pytest.raises(FileNotFoundError, match='rtmdet_tiny_8xb32-300e_coco by MMDeploy'):
        fetch('rtmdet-tiny')
    (cache / 'rtmdet-tiny.onnx').touch()
    assert detection.make_detector('rtmdet-tiny').path == cache / 'rtmdet-tiny.onnx'


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of downloads; a detector is its file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('TRUNCHIER_HOME', str(tmp_path / 'home'))
    monkeypatch.setattr(detection, 'onnx_session', lambda path, device: Session([]))
    (tmp_path / 'home').mkdir()
    return tmp_path / 'home'


def test_the_best_detector_of_the_cache_is_taken(cache):
    for name in ('yolox_nano.onnx', 'rtmdet-m.onnx', 'yolox_tiny.onnx'):
        (cache / name).touch()
    for given, expected in (('auto', 'rtmdet-m'), ('YOLOX_nano', 'yolox_nano')):
        assert detection.make_detector(given).path == cache / f'{expected}.onnx'
    assert detection.name_of(detection.make_detector('auto')) == 'rtmdet-m.onnx'


def test_the_smallest_detector_is_downloaded_if_there_is_none(cache, web, monkeypatch, capsys):
    content = b'a detector'
    web.files['/yolox_nano.onnx'] = content
    facts = dict(urls=(f'{web.url}/yolox_nano.onnx',), size=0, sha256='')
    row = RELEASES['yolox-nano']._replace(**facts)
    monkeypatch.setitem(RELEASES, 'yolox-nano', row)
    assert detection.make_detector().path.read_bytes() == content
    assert detection.make_detector().path == cache / 'yolox_nano.onnx'
    assert web.asked == ['/yolox_nano.onnx']
    assert 'yolox_nano.onnx' in capsys.readouterr().err


def test_offline_the_whole_image_is_taken_and_a_warning_says_so(cache, monkeypatch, caplog):
    assert detection.make_detector() is detection.whole_image
    assert 'ONE person' in caplog.text and 'trunchier download yolox-nano' in caplog.text
    caplog.clear()
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    assert detection.make_detector() is detection.whole_image
    assert 'pip install onnxruntime' in caplog.text
    with pytest.raises(DownloadError, match='TRUNCHIER_OFFLINE'):
        detection.make_detector('yolox-s')


def test_models_that_are_not_yolox_are_refused(tmp_path, monkeypatch):
    (tmp_path / 'broken.onnx').write_bytes(b'no model')
    with pytest.raises(ValueError, match='broken.onnx is no ONNX model'):
        detection.make_detector(tmp_path / 'broken.onnx')
    classifier = Session([np.zeros((1, 1000))])
    monkeypatch.setattr(detection, 'onnx_session', lambda path, device: classifier)
    with pytest.raises(ValueError, match=r'gives \[\(1, 1000\)\]; expected'):
        detection.YoloxDetector('classifier.onnx')(frame())
    monkeypatch.setattr(detection, 'onnx_session', lambda path, device: Session([], (1, 10)))
    with pytest.raises(ValueError, match=r'takes \[1, 10\]; YOLOX takes \(1, 3, height, width\)'):
        detection.YoloxDetector('text.onnx')


def test_yolox_nano_finds_the_people_in_photos(shared):
    finder = detection.make_detector(shared / 'data/detector/yolox_nano.onnx')
    annotations = json.loads((shared / 'data/photos/keypoints_ccby.json').read_text())
    names = {image['id']: image['file_name'] for image in annotations['images']}
    overlaps = []
    for each in annotations['annotations']:
        path = shared / 'data/photos' / names[each['image_id']]
        found = finder(Frame(cv2.imread(str(path)), Source(path.stem, 'image', str(path))))
        x, y, width, height = each['bbox']
        overlaps.append(max(overlap(box, [x, y, x + width, y + height]) for box in found))
    assert np.mean(np.array(overlaps) > 0.5) >= 5 / 6


def overlap(a, b):
    """Intersection over union of two boxes xyxy."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


# --- mmdet ----------------------------------------------------------------------------------------
def test_mmdet_models_return_their_people(monkeypatch):
    made = []

    class DetInferencer:
        def __init__(self, model, weights, device, show_progress):
            made.append((model, weights, device))

        def __call__(self, image, return_datasamples):
            found = InstanceData(
                bboxes=torch.tensor([BOX, OTHER, BOX]),
                scores=torch.tensor([0.9, 0.8, 0.1]),
                labels=torch.tensor([0, 1, 0]),
            )
            return {'predictions': [SimpleNamespace(pred_instances=found)]}

    monkeypatch.setitem(sys.modules, 'mmdet.apis', SimpleNamespace(DetInferencer=DetInferencer))
    finder = detection.make_detector('rtmdet-tiny', device='cpu', weights='a.pth')
    assert boxes_of(finder, frame()) == [[BOX]]  # no other class, no weak one
    assert made == [('rtmdet-tiny', 'a.pth', 'cpu')]


def test_a_name_unknown_to_mmdet_is_an_error():
    with pytest.raises(ValueError, match="detector='yolox-pico': .*expected auto, whole_image"):
        detection.make_detector('yolox-pico')


def test_an_mmdet_config_requires_its_weights(tmp_path):
    (tmp_path / 'config.py').write_text('')
    with pytest.raises(ValueError, match='give its checkpoint'):
        detection.make_detector(str(tmp_path / 'config.py'))


def test_behind_a_firewall_auto_waits_once_and_takes_the_whole_image(
    cache, online, monkeypatch, tmp_path, caplog
):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.setattr(detection, 'PATIENCE', 0.1)
    with socket.create_server(('127.0.0.1', 0)) as silent:
        urls = (f'http://127.0.0.1:{silent.getsockname()[1]}/yolox_nano.onnx',)
        row = RELEASES['yolox-nano']._replace(urls=urls)
        monkeypatch.setitem(RELEASES, 'yolox-nano', row)
        assert detection.make_detector('auto') is detection.whole_image
        silent.settimeout(0)
        silent.accept()[0].close()
        with pytest.raises(BlockingIOError):  # it asked once
            silent.accept()
    assert 'trunchier download yolox-nano' in caplog.text


def test_boxes_of_files_with_equal_names_are_told_apart_by_their_folders():
    boxes = {f'../{folder}/a.jpg': [[n, 0, 9, 9]] for n, folder in enumerate(('x/one', 'x/two'))}
    given = detection.GivenBoxes(boxes)
    for n, folder in enumerate(('one', 'two')):
        source = Source('a', 'image', f'/data/x/{folder}/a.jpg')
        assert given(Frame(np.zeros((9, 9, 3), np.uint8), source))[0, 0] == n
