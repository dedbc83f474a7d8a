"""Exported files compute what the model does, and describe their inputs and outputs."""

import copy
import json

import cv2
import numpy as np
import pytest
import small_models
import torch
import torch.nn.functional as F
from mmengine.config import Config
from small_models import ROOT
from torch import nn
from versions import needs_torch, require_torch

import trunchier
from trunchier import zoo
from trunchier.conventions import COCO_17
from trunchier.deploy import export, quantize
from trunchier.deploy.calibration import calibration_crops
from trunchier.deploy.graph import describe, make_graph
from trunchier.deploy.runtime import ExportedNetwork
from trunchier.inference.mesh import MeshPredictor
from trunchier.ops.scan.parallel import plan_tree
from trunchier.ops.windows import window_layout
from trunchier.weights.find import build_model, find, find_config

onnx = pytest.importorskip('onnx', reason='needs onnx, onnxscript and onnxruntime')
onnxruntime = pytest.importorskip('onnxruntime', reason='needs onnx, onnxscript and onnxruntime')


def written(path, task='pose', family='swin', **options):
    """Report of writing a small model to `path`."""
    cfg = small_models.config(task, family)
    if path.suffix in ('.onnx', '.pt2'):
        require_torch('2.6', 'ONNX and torch.export')
    return export.write(small_models.estimator(task, family), path, facts(cfg), **options)


def facts(cfg, **options):
    return describe(find_config(cfg)._replace(name='small'), **options)


@pytest.mark.parametrize('family', small_models.BACKBONES)
def test_onnx_takes_any_number_of_crops(family, tmp_path):
    path = tmp_path / 'model.onnx'
    done = written(path, family=family, dynamic_batch=True)
    assert done.errors['heatmaps'] < 1e-4
    model = onnx.load(path)
    assert [entry.version for entry in model.opset_import if entry.domain == ''] >= [17]
    assert {entry.domain for entry in model.opset_import} == {''}, 'standard operators only'
    assert [p.name for p in tmp_path.iterdir()] == ['model.onnx'], 'nothing unfinished is left'

    run = ExportedNetwork(path)
    crops = torch.randn(5, 3, 256, 192)
    together = run(crops)['heatmaps']
    assert together.shape == (5, 17, 64, 48)
    apart = torch.cat([run(crop[None])['heatmaps'] for crop in crops])
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-5 * float(together.std()))


class Functions(nn.Module):
    """Functions that are exported as several operators."""

    outputs = ('softplus', 'gelu', 'softplus_2', 'gelu_tanh')

    def forward(self, x):
        exact = x.float()
        return F.softplus(exact), F.gelu(x), F.softplus(exact, 2), F.gelu(x, approximate='tanh')


@needs_torch('2.6', 'ONNX')
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
def test_rewritten_functions_are_exact_everywhere(dtype, tmp_path):
    x = torch.cat((torch.linspace(-20, 20, 4001), torch.tensor([-1e4, -88.0, 88, 1e4]))).to(dtype)
    export.WRITERS['.onnx'](Functions(), x, tmp_path / 'functions.onnx', {}, False)
    found = onnxruntime.InferenceSession(tmp_path / 'functions.onnx').run(
        None, {'images': x.numpy()}
    )
    exact = x.double()
    np.testing.assert_allclose(found[0], np.logaddexp(0, exact), rtol=5e-7)
    np.testing.assert_allclose(found[2], np.logaddexp(0, 2 * exact) / 2, rtol=5e-7, atol=1e-45)
    # onnxruntime's tanh near -1 is off by up to 2 eps, times x / 2.
    for index, approximate, eps in ((1, 'none', 2), (3, 'tanh', 5)):
        expected = F.gelu(exact, approximate=approximate)
        rough = eps * torch.finfo(dtype).eps
        np.testing.assert_allclose(found[index], expected, rtol=1e-3, atol=rough)


class WindowAttention(nn.Module):
    """Attention of the windows of an image, as Twins and Hiera compute it."""

    outputs = ('y',)

    def forward(self, x):
        return F.scaled_dot_product_attention(x, x.flip(3), x + 1) + F.scaled_dot_product_attention(
            x, x, x, scale=0.5
        )


@needs_torch('2.6', 'ONNX')
def test_attention_of_more_than_four_dimensions_is_written(tmp_path):
    x = torch.randn(2, 3, 4, 5, 8, generator=torch.Generator().manual_seed(0))
    export.WRITERS['.onnx'](WindowAttention(), x, tmp_path / 'attention.onnx', {}, False)
    session = onnxruntime.InferenceSession(tmp_path / 'attention.onnx')
    (found,) = session.run(None, {'images': x.numpy()})
    np.testing.assert_allclose(found, WindowAttention()(x), atol=1e-6)


@pytest.mark.parametrize(
    ('family', 'format'),
    [
        ('swin', 'torchscript'),
        ('gmf', 'torchscript'),
        ('vmamba', 'torchscript'),
        ('swin', 'torch-export'),
        pytest.param('gmf', 'torch-export', marks=pytest.mark.slow),
        pytest.param('vmamba', 'torch-export', marks=pytest.mark.slow),
    ],
)
def test_formats_of_torch_take_any_number_of_crops(family, format, tmp_path):
    for plan in (window_layout, plan_tree):  # as in a new process
        plan.plans.clear()
    path = tmp_path / f'model{export.FORMATS[format]}'
    done = written(path, family=family, dynamic_batch=True)
    assert done.errors['heatmaps'] < 1e-4
    run = ExportedNetwork(path, trust=True)
    assert run(torch.zeros(4, 3, 256, 192))['heatmaps'].shape == (4, 17, 64, 48)
    assert run.metadata['keypoint_names'] == list(COCO_17)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ('format', 'precision'),
    [
        pytest.param('onnx', 'fp16', marks=SLOW),
        ('torchscript', 'fp16'),
        pytest.param('torchscript', 'bf16', marks=SLOW),
        pytest.param('torch-export', 'fp16', marks=SLOW),
        pytest.param('torch-export', 'bf16', marks=SLOW),
    ],
)
def test_low_precision_halves_the_weights_and_not_the_outputs(format, precision, tmp_path):
    if format != 'torchscript':
        require_torch('2.6', 'ONNX and torch.export')
    if precision == 'fp16':
        require_torch('2.4', 'float16 convolutions on CPU')
    sizes = []
    cfg = small_models.config('pose')
    cfg.model.head.deconv_out_channels = (96, 96)
    model = small_models.lively(build_model(cfg))
    for each in ('fp32', precision):
        path = tmp_path / f'{each}{export.FORMATS[format]}'
        done = export.write(model, path, facts(cfg), precision=each)
        assert done.network(torch.zeros(1, 3, 256, 192))['heatmaps'].dtype == torch.float32
        sizes.append(done.bytes)
    weights = sum(4 * param.numel() for param in model.parameters())
    assert sizes[0] - sizes[1] > 0.45 * weights


@pytest.fixture(scope='module')
def meshes(tmp_path_factory):
    """Folder of a small mesh model as bare.onnx, one crop at a time, and body.onnx, any number."""
    folder = tmp_path_factory.mktemp('mesh')
    for name, with_body in (('bare', False), ('body', True)):
        path = folder / f'{name}.onnx'
        written(path, 'mesh', dynamic_batch=with_body, with_body=with_body)
    return folder


def test_mesh_files_return_parameters_and_camera(meshes):
    found = ExportedNetwork(meshes / 'bare.onnx')(torch.ones(1, 3, 256, 192))
    assert {name: array.shape for name, array in found.items()} == dict(
        global_orient=(1, 1, 3, 3), body_pose=(1, 23, 3, 3), betas=(1, 10), camera=(1, 3)
    )
    rotations = found['body_pose'][0]
    identity = torch.eye(3).expand(23, 3, 3)
    torch.testing.assert_close(rotations @ rotations.mT, identity, rtol=0, atol=1e-5)


def test_files_take_one_crop_unless_dynamic(meshes):
    sessions = (onnxruntime.InferenceSession(meshes / f'{n}.onnx') for n in ('bare', 'body'))
    assert [s.get_inputs()[0].shape[0] for s in sessions] == [1, 'batch']


def test_the_body_is_exported_on_request_only(meshes):
    body = ExportedNetwork(meshes / 'body.onnx')(torch.zeros(3, 3, 256, 192))
    assert body['vertices'].shape == (3, 6890, 3)
    assert body['joints'].shape == (3, 44, 3)
    for name, has_body in (('bare', False), ('body', True)):
        graph = onnx.load(meshes / f'{name}.onnx').graph
        dims = [array.dims for array in graph.initializer]
        assert any(6890 in each or 6890 * 3 in each for each in dims) == has_body
        assert [207, 6890 * 3] not in dims  # zeros, in the embedded body
        assert not any(node.metadata_props for node in graph.node)


def test_torchscript_contains_no_body_by_default(tmp_path):
    done = written(tmp_path / 'model.pt', 'mesh')
    assert done.bytes < 3e6  # the body alone has 6890 x 24 weights and more


def test_metadata_describes_crop_and_decoding(tmp_path):
    written(tmp_path / 'model.pt')
    facts = ExportedNetwork(tmp_path / 'model.pt', trust=True).metadata
    assert facts['input_size'] == [192, 256]
    assert facts['mean'] == [123.675, 116.28, 103.53]
    assert facts['std'] == [58.395, 57.12, 57.375]
    assert facts['channels'] == 'RGB'
    assert facts['codec'] == dict(
        type='UDPHeatmap', input_size=[192, 256], heatmap_size=[48, 64], sigma=2
    )
    assert facts['box_padding'] == 1.25
    assert (facts['task'], facts['model'], facts['weights']) == ('pose', 'small', 'random')


def test_metadata_of_a_mesh_model_gives_the_crop_that_it_was_trained_on(tmp_path):
    # This one sees 96 x 128 pixels, others 192 x 256.
    config = ROOT / 'configs/embedded/hmr2_vm-t-s2_synthetic-128.py'
    small_models.write_weights(Config.fromfile(config), tmp_path / 'mesh.pth')
    found = find(config, tmp_path / 'mesh.pth')
    predictor = MeshPredictor.load(found, 'cpu')
    crop = predictor.crop(np.zeros((300, 300, 3), np.uint8), np.float32([50, 20, 200, 280]))
    facts = describe(found)
    assert facts['input_size'] == [96, 128] == list(crop.pixels.shape[:0:-1])
    assert (facts['crop_size'], facts['focal_length']) == (128, 2500)
    assert facts['box_padding'] == 1.2
    np.testing.assert_allclose(crop.size, 1.2 * 260)


def test_a_model_is_exported_by_its_config_and_weights(tmp_path):
    cfg = small_models.config('mesh')
    small_models.write_weights(cfg, tmp_path / 'mesh.pth')
    done = trunchier.export(cfg, tmp_path / 'mesh.pt', tmp_path / 'mesh.pth', with_body=True)
    assert done.network.metadata['weights'] == 'mesh.pth'
    trained = torch.load(tmp_path / 'mesh.pth')['state_dict']['head.camera_out.bias']
    assert torch.equal(torch.jit.load(tmp_path / 'mesh.pt').model.head.camera_out.bias, trained)
    random = trunchier.export(cfg, tmp_path / 'random.pt', 'random')
    assert random.network.metadata['weights'] == 'random'


def test_models_without_weights_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match='no weights of SwinPose-T-S2 ship'):
        trunchier.export('SwinPose-T-S2', tmp_path / 'model.onnx')
    with pytest.raises(ValueError, match='no body'):
        trunchier.export('SwinPose-T-S2', tmp_path / 'model.onnx', 'random', body_model='a.npz')
    assert not list(tmp_path.iterdir())


def test_keypoints_of_another_data_set_are_refused():
    with pytest.raises(ValueError, match='17 keypoints, its data set 1'):
        facts(small_models.config('pose'), dataset_meta=dict(keypoint_id2name={0: 'nose'}))


def test_a_file_that_computes_something_else_is_not_written(tmp_path, monkeypatch):
    write = export.WRITERS['.pt']

    def other_weights(graph, *args):
        other = copy.deepcopy(graph)
        other.model.head.final_layer.weight.data *= 1.01
        return write(other, *args)

    monkeypatch.setitem(export.WRITERS, '.pt', other_weights)
    with pytest.raises(export.ExportError, match='something else .* nothing was written'):
        written(tmp_path / 'model.pt')
    assert not list(tmp_path.iterdir())


def test_interrupted_export_leaves_what_was_there(tmp_path, monkeypatch):
    def interrupted(graph, images, path, *args):
        path.write_bytes(b'half')
        raise KeyboardInterrupt

    (tmp_path / 'model.pt').write_bytes(b'before')
    monkeypatch.setitem(export.WRITERS, '.pt', interrupted)
    with pytest.raises(KeyboardInterrupt):
        written(tmp_path / 'model.pt')
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b'before']


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(path='model.tflite'), r'model.tflite ends in none of \.onnx, \.pt, \.pt2'),
        (dict(precision='int4'), "no precision 'int4'; choose from fp32"),
        (dict(path='model.pt', precision='int8'), 'files in int8 are ONNX; choose --format onnx'),
        (dict(calibrate='photos'), 'calibration is for int8, not fp32'),
        (dict(precision='bf16'), 'choose --precision fp16'),
        (dict(with_body=True), 'no body'),
    ],
)
def test_impossible_requests_are_refused_before_any_work(options, message, tmp_path):
    options = dict(dict(path='model.onnx'), **options)
    path = tmp_path / options.pop('path')
    with pytest.raises(ValueError, match=message):
        written(path, **options)
    assert not list(tmp_path.iterdir())


def test_other_models_are_refused():
    with pytest.raises(ValueError, match='a Linear belongs to no task; supported are Topdown'):
        make_graph(nn.Linear(1, 1))


@pytest.mark.slow
@needs_torch('2.6', 'ONNX')
@pytest.mark.parametrize('task', zoo.TASKS)
@pytest.mark.parametrize('name', zoo.ENCODERS)
def test_every_model_exports_to_onnx(name, task, tmp_path):
    found = find_config(name, task)
    model, path = build_model(found.cfg), tmp_path / 'model.onnx'
    done = export.write(model, path, describe(found), dynamic_batch=True)
    assert max(done.errors.values()) < export.TOLERANCES['fp32']


# --- int8 ----------------------------------------------------------------------------------------
@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    """A folder of pictures, some with boxes in COCO's format."""
    folder = tmp_path_factory.mktemp('photos')
    rng = np.random.default_rng(0)
    for name in 'abc':
        cv2.imwrite(str(folder / f'{name}.png'), rng.integers(0, 255, (64, 80, 3), np.uint8))
    boxes = [dict(image_id=image, bbox=[10 * image, 8, 20, 40]) for image in (1, 1, 2)]
    images = [dict(id=k + 1, file_name=f'{name}.png') for k, name in enumerate('abc')]
    (folder / 'boxes.json').write_text(json.dumps(dict(images=images, annotations=boxes)))
    return folder


@pytest.mark.slow
def test_an_int8_file_is_small_and_computes_nearly_the_same(tmp_path, photos):
    require_torch('2.6', 'ONNX and torch.export')
    cfg = small_models.config('pose')
    cfg.model.head.deconv_out_channels = (256, 256)
    model = small_models.lively(build_model(cfg))
    done = export.write(model, tmp_path / 'a.onnx', facts(cfg), 'int8', True, calibrate=photos)
    assert 0 < max(done.errors.values()) < export.TOLERANCES['int8']
    assert done.network.metadata['precision'] == 'int8'
    assert done.bytes < 0.5 * sum(4 * parameter.numel() for parameter in model.parameters())
    kinds = [node.op_type for node in onnx.load(tmp_path / 'a.onnx').graph.node]
    assert 'QuantizeLinear' in kinds and 'ConvTranspose' not in kinds
    assert [file.name for file in tmp_path.iterdir()] == ['a.onnx']
    with pytest.raises(ValueError, match='is small, not VMPose-T-S2'):
        ExportedNetwork(tmp_path / 'a.onnx', name='VMPose-T-S2')


def test_layers_that_hurt_are_left_in_float32(tmp_path):
    """Of two layers, one has an input of which one number is ten thousand times the others."""

    class Outlier(nn.Module):
        outputs = ('y',)

        def __init__(self):
            super().__init__()
            self.good, self.bad = nn.Linear(32, 32), nn.Linear(32, 32)

        def forward(self, x):
            x = x.mean((2, 3)).repeat(1, 11)[:, :32]
            large = torch.cat((x[:, :31], torch.full_like(x[:, :1], 1e4)), 1)
            return (self.good(x) + self.bad(large) - self.bad.weight[:, 31] * 1e4,)

    require_torch('2.6', 'ONNX')
    crops = torch.randn(9, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    source = tmp_path / 'float.onnx'
    export.WRITERS['.onnx'](Outlier().eval(), crops[:2], source, {}, True)
    left = quantize.quantize(source, tmp_path / 'int8.onnx', crops.numpy(), 0.3)
    assert len(left) == 1
    weights = [node.input[1] for node in onnx.load(source).graph.node if node.name == left[0]]
    assert 'bad' in weights[0]
    checks = quantize.held_out(crops.numpy())
    found, expected = (quantize.run(tmp_path / f, checks) for f in ('int8.onnx', 'float.onnx'))
    assert 0 < quantize.error_of(found, expected) < 0.3


def test_crops_to_calibrate_on_are_those_of_the_boxes(photos):
    described = dict(facts(small_models.config('pose')), box_padding=1.0, input_size=[20, 40])
    crops = calibration_crops(described, photos)
    assert crops.shape == (3, 3, 40, 20)
    image = cv2.imread(str(photos / 'b.png'))[8:48, 20:40, ::-1]
    exact = (image - np.float32(described['mean'])) / np.float32(described['std'])
    np.testing.assert_allclose(crops[2], exact.transpose(2, 0, 1), atol=1e-5)


def test_crops_are_drawn_evenly_from_the_folder(tmp_path):
    for index in range(13):
        cv2.imwrite(str(tmp_path / f'{index:02d}.png'), np.full((8, 8, 3), 10 * index, np.uint8))
    described = facts(small_models.config('pose'))
    mean, std = (np.float32(described[name])[:, None, None] for name in ('mean', 'std'))
    for num, expected in ((4, [0, 4, 8, 12]), (7, [0, 2, 4, 6, 8, 10, 12]), (50, [*range(13)])):
        crops = calibration_crops(described, tmp_path, num) * std + mean
        middles = crops[:, 0, crops.shape[2] // 2, crops.shape[3] // 2]
        np.testing.assert_allclose(middles, 10 * np.float32(expected), atol=0.01)


def test_crops_are_of_people(tmp_path):
    cv2.imwrite(str(tmp_path / 'a.png'), np.zeros((64, 64, 3), np.uint8))
    boxes = [(62, [1, 2, 30, 40]), (1, [5, 5, 20, 40]), (18, [0, 0, 0, 0])]
    annotations = [dict(image_id=1, category_id=kind, bbox=box) for kind, box in boxes]
    images = [dict(id=1, file_name='a.png')]
    content = json.dumps(dict(images=images, annotations=annotations))
    (tmp_path / 'instances.json').write_text(content)
    assert len(calibration_crops(facts(small_models.config('pose')), tmp_path)) == 1


@pytest.mark.parametrize('number', [1, 2])
def test_too_few_people_to_calibrate_on_are_named(tmp_path, number):
    for index in range(number):
        cv2.imwrite(str(tmp_path / f'{index}.png'), np.zeros((64, 64, 3), np.uint8))
    require_torch('2.6', 'ONNX')
    cfg = small_models.config('pose')
    with pytest.raises(ValueError, match=f'{number} people to calibrate on; 3 or more'):
        model = small_models.estimator('pose')
        export.write(model, tmp_path / 'a.onnx', facts(cfg), 'int8', calibrate=tmp_path)
    assert not (tmp_path / 'a.onnx').exists()


def test_folders_that_calibrate_nothing_are_refused(tmp_path):
    described = facts(small_models.config('pose'))
    with pytest.raises(FileNotFoundError, match='no folder .*absent.* leave it out for synthetic'):
        calibration_crops(described, tmp_path / 'absent')
    with pytest.raises(FileNotFoundError, match='no image of a person in'):
        calibration_crops(described, tmp_path)
    (tmp_path / 'boxes.json').write_text('{"images": [], "annotations": [{"bbox": [1, 2]}]}')
    with pytest.raises(ValueError, match='holds no COCO annotations .*x, y, width, height'):
        calibration_crops(described, tmp_path)
    (tmp_path / 'boxes.json').unlink()
    (tmp_path / 'a.jpg').write_bytes(b'none')
    with pytest.raises(ValueError, match=r'a.jpg: .*remove it from the folder'):
        calibration_crops(described, tmp_path)
