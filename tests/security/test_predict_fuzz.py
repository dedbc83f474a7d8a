"""Random damage to what `predict` reads: it is read, or refused by a documented error.

A failure names the seed: `damaged(data, seed)` makes the input again.
"""

import json
import random

import cv2
import launch
import numpy as np
import pytest
from mmengine.config import Config
from small_models import mesh_config, noise, pose_config, write_clip, write_weights

from trunchier.deploy.runtime import ExportedNetwork, ExportError
from trunchier.inference import detection, sources
from trunchier.inference.mesh import MeshInferencer
from trunchier.inference.pose import PoseInferencer
from trunchier.inference.sources import Frame, Source, Unreadable
from trunchier.weights.find import find_config

VALUES = [
    None, True, 0, -1, 7, 1e38, -1e38, 1e-38, float('nan'), float('inf'), 10**400, '', 'a', '\0',
    'x' * 250, [], {}, [[]], [1], [1, 2, 3, 4], [[0, 0, 9, 9]], {'bbox': [1, 2, 3, 4]}, [[[[[1]]]]],
]  # fmt: skip


def times(fast, slow):
    """Numbers of trials in `make test` and in `make test-slow`."""
    return pytest.mark.parametrize('trials', [fast, pytest.param(slow, marks=pytest.mark.slow)])


def damaged(data, seed):
    """`data` with some bytes changed, moved, repeated, or cut off."""
    chance, data = random.Random(seed), bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 5, 20])):
        start, size = chance.randrange(len(data)), chance.choice([1, 1, 2, 4, 16])
        part = data[start : start + size]
        others = [chance.randbytes(len(part)), b'\xff' * len(part), b'\0' * len(part), part * 3]
        data[start : start + size] = chance.choice([*others, b'' if len(data) > size else part])
    return bytes(data[: chance.randrange(1, len(data) + 1)] if chance.random() < 0.2 else data)


def attempt(function, *expected, seed):
    """What `function` returns; None after one of the `expected` errors."""
    try:
        return function()
    except expected:
        return None
    except BaseException as error:
        raise AssertionError(f'seed {seed}: {type(error).__name__}: {error}') from error


# --- boxes ----------------------------------------------------------------------------------------
def changed(content, chance):
    """A copy with a value somewhere replaced."""
    if isinstance(content, dict | list) and content and chance.random() < 0.8:
        copy = content.copy()
        key = chance.choice(list(content) if isinstance(content, dict) else range(len(content)))
        if chance.random() < 0.1:
            del copy[key]
        else:
            copy[key] = changed(content[key], chance)
        return copy
    return chance.choice(VALUES)


PERSON = {'bbox': [[5, 5, 50, 40]], 'bbox_score': 0.5, 'keypoints': [[1, 2]]}
BOXES = [
    {'photo.jpg': [[1, 2, 30, 40], [5, 6, 70, 80, 0.5]], 'clip': [[[1, 2, 30, 40]], []]},
    {'images': [{'id': 7, 'file_name': 'photo.jpg'}],
     'annotations': [{'image_id': 7, 'bbox': [1, 2, 29, 38], 'category_id': 1, 'score': 0.5}]},
    [{'image_id': 7, 'bbox': [1, 2, 29, 38], 'score': 0.25, 'category_id': 1}],
    [PERSON, PERSON],
    [{'frame_id': 0, 'instances': [PERSON]}, {'frame_id': 1, 'instances': []}],
    [[[1, 2, 30, 40]], [], [[1, 2, 30, 40], [5, 6, 70, 80]]],
]  # fmt: skip


@pytest.fixture(scope='module')
def predictors(tmp_path_factory):
    folder, found = tmp_path_factory.mktemp('models'), []
    for name, kind, config in (
        ('pose', PoseInferencer, pose_config),
        ('mesh', MeshInferencer, mesh_config),
    ):
        write_weights(config(), folder / f'{name}.pth')
        found.append(kind(config(), folder / f'{name}.pth', device='cpu').predictor)
    return found


@times(400, 20_000)
def test_boxes_are_used_or_refused(trials, predictors, tmp_path):
    image = noise(48, 64)
    frames = [
        Frame(image, Source('photo', 'image', '/a/photo.jpg')),
        Frame(image, Source('clip', 'video', '/a/clip.mp4'), 1),
        Frame(image, Source('x7', 'image', f'/a/{"x" * 250}7.jpg', order=2)),
    ]
    path, arrays, used = tmp_path / 'boxes.json', tmp_path / 'boxes.npy', 0
    np.save(arrays, np.float32([[1, 2, 30, 40]]))
    array = arrays.read_bytes()
    for seed in range(trials):
        chance = random.Random(seed)
        if seed % 4 == 0:
            given = arrays
            given.write_bytes(damaged(array, seed))
        else:
            given, content = path, chance.choice(BOXES)
            for _ in range(chance.choice([1, 1, 2, 4])):
                content = changed(content, chance)
            text = json.dumps(content).encode()
            given.write_bytes(damaged(text, seed) if seed % 4 == 1 else text)
        boxes = attempt(lambda: detection.GivenBoxes.of(given), ValueError, seed=seed)  # noqa: B023
        for frame in frames if boxes is not None else ():
            found = attempt(lambda: boxes(frame), seed=seed)  # noqa: B023
            assert found.ndim == 2 and found.shape[1] == 5, seed
            for box in found[detection.usable(found, image.shape[:2])][:3]:
                for predictor in predictors:
                    crop = attempt(lambda: predictor.crop(image, box), seed=seed)  # noqa: B023
                    assert np.isfinite(crop.center).all() and np.isfinite(crop.size).all(), seed
                    used += 1
    assert used > trials / 4  # most of them are used


@pytest.mark.parametrize(
    'box', [[0, 0, 1e38, 1e38], [-1e38, -1e38, 1e38, 1e38], [5, 5, 5 + 1e-6, 9], [0, 0, 3e7, 40],
            [float('nan')] * 4, [0, 0, float('inf'), 9]],
)  # fmt: skip
def test_boxes_that_no_crop_can_be_computed_of_are_not_used(box):
    assert not detection.usable(np.float32([[*box, 1]]), (48, 64)).any()


@pytest.mark.parametrize(
    'content', ['[' * 100_000, '[1e400, 1, 2, 3]', f'[{10**400}, 1, 2, 3]', '{"a": {"b": 1}}', '5',
                '{"annotations": 5}', '[{"image_id": [], "bbox": [1, 2, 3, 4]}]', '[{}]', '"text"',
                '{"annotations": [{"image_id": 1, "bbox": [1]}]}', '[{"instances": 5}]', 'null',
                '{"a": "b"}'],
)  # fmt: skip
def test_boxes_of_another_structure_are_refused_by_name(tmp_path, content):
    (tmp_path / 'boxes.json').write_text(content)
    if content == '[1e400, 1, 2, 3]':  # infinite: refused where it is used
        assert not detection.GivenBoxes.of(tmp_path / 'boxes.json').boxes[0, 0] < np.inf
        return
    with pytest.raises(ValueError, match=r'boxes\.json'):
        detection.GivenBoxes.of(tmp_path / 'boxes.json')


def test_the_declared_size_of_an_array_allocates_nothing(tmp_path):
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 4), }"
    body = b'\x93NUMPY\x01\x00' + (len(header) + 1).to_bytes(2, 'little') + header + b'\n'
    for content in (body, b'', b'\x93NUMPY'):
        (tmp_path / 'boxes.npy').write_bytes(content)
        with pytest.raises(ValueError, match=r'boxes\.npy'):
            detection.GivenBoxes.of(tmp_path / 'boxes.npy')


# --- images and videos ----------------------------------------------------------------------------
@times(3000, 100_000)
def test_pictures_are_read_or_unreadable(trials, tmp_path):
    options = dict(webp=[cv2.IMWRITE_WEBP_QUALITY, 101])
    formats = ['jpg', 'png', 'webp', 'bmp', 'tiff', 'ppm', 'pbm', 'sr', 'hdr', 'pfm', 'gif']
    pictures = []
    for name in filter(lambda name: cv2.haveImageWriter(f'a.{name}'), formats):
        picture = noise(23, 31) / np.float32(255) if name in ('hdr', 'pfm') else noise(23, 31)
        written, data = cv2.imencode(f'.{name}', picture, options.get(name, []))
        pictures += [data.tobytes()] if written else []
    path, read = tmp_path / 'a.jpg', 0
    for seed in range(trials):
        path.write_bytes(damaged(pictures[seed % len(pictures)], seed))
        image = attempt(lambda: sources.read_image(path, 500_000), Unreadable, seed=seed)
        if image is not None:
            assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3, seed
            read += 1
    assert read > trials / 10


@times(120, 3000)
def test_videos_are_read_or_unreadable(trials, tmp_path):
    clips = [
        write_clip(tmp_path / f'clip.{suffix}', 6, 32, 48).read_bytes() for suffix in ('mp4', 'mov')
    ]
    path, read = tmp_path / 'a.mp4', 0
    source = Source('a', 'video', str(path))
    for seed in range(trials):
        data = damaged(clips[seed % 2], seed)
        path.write_bytes(data)
        found = attempt(
            lambda: list(sources.read(source, max_pixels=500_000)), Unreadable, seed=seed
        )
        info = attempt(lambda: sources.video_info(source), Unreadable, seed=seed)
        assert info is None or 0.01 <= info[0] <= 1000, seed
        frames = [each for each in found or () if isinstance(each, Frame)]
        assert all(f.image.ndim == 3 and f.image.dtype == np.uint8 for f in frames), seed
        read += len(frames)
    assert read > trials


def test_metadata_that_is_no_text_does_not_matter(tmp_path):
    """What raised UnicodeDecodeError."""
    path = write_clip(tmp_path / 'clip.mp4', 3, 32, 48)
    data = path.read_bytes()
    assert b'Lavf' in data
    path.write_bytes(data.replace(b'Lavf', b'\xff\xfe\xff\xfe'))
    frames = list(sources.read(Source('a', 'video', str(path))))
    assert [frame.index for frame in frames] == [0, 1, 2]


# --- ONNX -----------------------------------------------------------------------------------------
def onnx_model(shape, *outputs, metadata=(), name='images'):
    """A model that ignores its input and returns constants."""
    from onnx import TensorProto, helper, numpy_helper

    kinds = {np.dtype('f4'): TensorProto.FLOAT, np.dtype('i8'): TensorProto.INT64}
    nodes, infos = [], []
    for index, array in enumerate(outputs):
        nodes.append(
            helper.make_node('Constant', [], [f'o{index}'], value=numpy_helper.from_array(array))
        )
        infos.append(helper.make_tensor_value_info(f'o{index}', kinds[array.dtype], array.shape))
    image = helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
    model = helper.make_model(
        helper.make_graph(nodes, 'constants', [image], infos),
        opset_imports=[helper.make_opsetid('', 17)],
        ir_version=8,
    )
    helper.set_model_props(model, dict(metadata))
    return model.SerializeToString()


FACTS = dict(task='pose', model='VMPose-T-S2', dynamic_batch=True, outputs={'heatmaps': {}})


@pytest.fixture(scope='module')
def onnx():
    pytest.importorskip('onnxruntime')
    return pytest.importorskip('onnx')


@times(150, 3000)
def test_detectors_find_people_or_are_refused(trials, onnx, tmp_path):
    anchors = np.zeros((1, 84, 85), np.float32)
    anchors[0, :9] = 1
    nms = np.float32([[[1, 2, 30, 40, 0.9]]]), np.array([[0]])
    models = [onnx_model([1, 3, 64, 64], *outputs) for outputs in ([anchors], nms)]
    path, frame, found = tmp_path / 'yolox.onnx', Frame(noise(48, 64), Source('a', 'image')), 0
    for seed in range(trials):
        path.write_bytes(damaged(models[seed % 2], seed) if seed > 1 else models[seed])
        boxes = attempt(
            lambda: detection.make_detector(path)(frame), ValueError, ImportError, seed=seed
        )
        if boxes is not None:
            assert boxes.ndim == 2 and boxes.shape[1] == 5, seed
            found += 1
        assert found or seed > 1
    assert found > trials / 20


@pytest.mark.parametrize(
    'shape, outputs',
    [
        ([1, 3, 64, 64], []),
        ([1, 3, 64, 64], [np.zeros(0, 'f4')]),
        ([1, 3, 64, 64], [np.float32(1)]),
        ([1, 3, 64, 64], [np.zeros((1, 84), 'f4')]),
        ([1, 3, 64, 64], [np.zeros((0, 84, 85), 'f4')]),
        ([1, 3, 64, 64], [np.zeros((2, 84, 85), 'f4')]),
        ([1, 3, 64, 64], [np.zeros((1, 83, 85), 'f4')]),
        ([1, 3, 64, 64], [np.zeros((1, 84, 85, 1), 'f4')]),
        ([1, 3, 64, 64], [np.zeros((1, 4, 5), 'f4')]),
        ([1, 3, 64, 64], [np.zeros((1, 4, 5), 'f4'), np.zeros((1, 3), 'i8')]),
        ([1, 3, 64, 64], [np.zeros((1, 4, 5), 'f4'), np.zeros(4, 'i8')]),
        ([1, 3, 100_000, 100_000], [np.zeros((1, 84, 85), 'f4')]),
        ([1, 3, 0, 64], [np.zeros((1, 84, 85), 'f4')]),
        ([1, 3], [np.zeros((1, 84, 85), 'f4')]),
    ],
)
def test_detectors_of_another_layout_are_refused_by_name(onnx, tmp_path, shape, outputs):
    path = tmp_path / 'other.onnx'
    path.write_bytes(onnx_model(shape, *map(np.asarray, outputs)))
    with pytest.raises(ValueError, match=r'other\.onnx'):
        detection.make_detector(path)(Frame(noise(48, 64), Source('a', 'image')))


def test_detections_that_are_not_finite_are_not_used(onnx, tmp_path):
    people = np.float32([[[1, 2, 30, 40, 0.9], [np.nan] * 4 + [0.9], [-np.inf, 0, np.inf, 9, 0.9]]])
    path = tmp_path / 'yolox.onnx'
    path.write_bytes(onnx_model([1, 3, 64, 64], people, np.zeros((1, 3), 'i8')))
    boxes = detection.make_detector(path)(Frame(noise(48, 64), Source('a', 'image')))
    assert detection.usable(boxes, (48, 64)).tolist()[:2] == [True, False]


@times(150, 3000)
def test_metadata_of_exported_files_is_used_or_refused(trials, onnx, tmp_path):
    import torch

    heatmaps, path = np.zeros((2, 17, 8, 6), np.float32), tmp_path / 'a.onnx'
    whole = onnx_model(
        ['B', 3, 32, 24], heatmaps, metadata={k: json.dumps(v) for k, v in FACTS.items()}
    )
    used = 0
    for seed in range(trials):
        chance = random.Random(seed)
        if seed % 2:
            path.write_bytes(damaged(whole, seed))
        else:
            texts = {key: json.dumps(value) for key, value in FACTS.items()}
            key = chance.choice(list(texts))
            value = chance.choice([*VALUES, {'heatmaps': {}, 'more': {}}, 'VMPose-T-S3'])
            texts[key] = chance.choice([json.dumps(value), 'no JSON', '[' * 9999, ''])
            if chance.random() < 0.2:
                del texts[key]
            path.write_bytes(onnx_model(['B', 3, 32, 24], heatmaps, metadata=texts))
        expected = ValueError, ExportError, RuntimeError
        network = attempt(lambda: ExportedNetwork(path, name='VMPose-T-S2'), *expected, seed=seed)
        if network is not None:
            used += 1
            attempt(lambda: network(torch.zeros(2, 3, 32, 24)), ExportError, seed=seed)  # noqa: B023
    assert 0 < used < trials


@pytest.mark.parametrize(
    'shape', [(2, 17, 8), (2, 16, 8, 6), (1, 17, 8, 6), (2,), (2, 17, 8, 6, 1), (0, 17, 8, 6)]
)
def test_exported_files_of_another_output_are_refused(onnx, tmp_path, shape):
    cfg, path = pose_config(), tmp_path / 'a.onnx'
    facts = dict(FACTS, model=find_config(cfg).name)
    texts = {key: json.dumps(value) for key, value in facts.items()}
    path.write_bytes(onnx_model(['B', 3, 256, 192], np.zeros(shape, 'f4'), metadata=texts))
    infer = PoseInferencer(cfg, path, device='cpu', flip_test=False)
    boxes = np.float32([[1, 2, 30, 40], [5, 6, 40, 45]])
    with pytest.raises(ValueError, match='the network gives heatmaps of shape .*expected'):
        list(infer(noise(48, 64), bboxes=boxes))


def test_exported_files_without_heatmaps_are_refused(onnx, tmp_path):
    cfg, path = pose_config(), tmp_path / 'a.onnx'
    facts = dict(FACTS, model=find_config(cfg).name, outputs={'other': {}})
    texts = {key: json.dumps(value) for key, value in facts.items()}
    path.write_bytes(
        onnx_model(['B', 3, 256, 192], np.zeros((1, 17, 64, 48), 'f4'), metadata=texts)
    )
    infer = PoseInferencer(cfg, path, device='cpu', flip_test=False)
    with pytest.raises(ValueError, match='heatmaps of shape None'):
        list(infer(noise(48, 64)))


# --- --cfg-options --------------------------------------------------------------------------------
SETTINGS = [
    'model.backbone.depth=3', 'train_dataloader.batch_size=4', 'a.b.c=[1,(2,3),[4,5]]',
    'custom_hooks=[]', 'optim_wrapper.optimizer.lr=1e-3', 'model=None', 'default_hooks=5',
    'test_dataloader.dataset.pipeline.0.type=LoadImage', 'work_dir="x y"',
]  # fmt: skip


@times(200, 20_000)
def test_settings_are_applied_or_refused(trials, capsys):
    applied = 0
    for seed in range(trials):
        chance = random.Random(seed)
        given = [chance.choice(SETTINGS) for _ in range(chance.choice([1, 1, 2, 3]))]
        given = [damaged(each.encode(), seed).decode('latin1') for each in given]
        if seed % 100 == 0:
            given += ['a=' + '[' * 1200 + ']' * 1200]
        parser = launch.parser('test', 'a test')
        args = attempt(
            lambda: parser.parse_args(['config.py', '--cfg-options', *given]),  # noqa: B023
            SystemExit,
            seed=seed,
        )
        if args is not None:
            cfg = Config(
                dict(
                    model=dict(backbone=dict(depth=2)),
                    default_hooks=dict(checkpoint=dict(type='CheckpointHook')),
                    test_dataloader=dict(dataset=dict(pipeline=[dict(type='LoadImage')])),
                )
            )
            attempt(lambda: launch.finish(cfg, args), ValueError, seed=seed)  # noqa: B023
            applied += 1
    assert applied > trials / 4
    capsys.readouterr()
