"""Exported files and modules predict alike; a file runs on its device, without its modules."""

import copy
import sys

import pytest
import small_models
import torch
from mmengine.registry import MODELS

from trunchier.deploy.runtime import (
    FORMATS,
    ExportedNetwork,
    ExportError,
    ModuleNetwork,
    compute_by,
    is_exported,
    onnx_providers,
)

onnxruntime = pytest.importorskip('onnxruntime')
TASKS = ('pose', 'mesh')


@pytest.mark.parametrize('suffix', FORMATS.values())
@pytest.mark.parametrize('task', TASKS)
def test_a_file_and_its_module_predict_alike(task, suffix, exported):
    model, path = exported(task, suffix)
    images = torch.randn(3, 3, 256, 192)  # the file takes one at a time
    expected, found = ModuleNetwork(model)(images), ExportedNetwork(path, trust=True)(images)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype == torch.float32
        tolerance = 1e-4 * float(tensor.std())
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=tolerance)


@pytest.mark.parametrize('task', TASKS)
@torch.no_grad()
def test_an_estimator_lets_a_network_compute(task):
    """Here one of the same weights: crops, flips, decoding and the body stay the estimator's."""
    model = small_models.estimator(task)
    network, images = ModuleNetwork(copy.deepcopy(model)), torch.randn(2, 3, 256, 192)
    outputs = network.graph.outputs
    with pytest.raises(ValueError, match='the network gives nothing; a .*Estimator needs'):
        compute_by(model, network, ['nothing'])
    run = model.regress if task == 'mesh' else lambda x: model.head.forward(model.extract_feat(x))
    expected = run(images)
    compute_by(model, network, outputs)
    assert not [*model.backbone.parameters()]
    torch.testing.assert_close(run(images), expected)


def test_a_file_of_any_batch_size_runs_all_crops_at_once(exported):
    _, path = exported('mesh', '.onnx', dynamic_batch=True)
    network = ExportedNetwork(path)
    sizes, run = [], network._run
    network._run = lambda images: sizes.append(len(images)) or run(images)
    assert network(torch.zeros(4, 3, 256, 192))['betas'].shape == (4, 10)
    assert sizes == [4]


@pytest.mark.parametrize('suffix', FORMATS.values())
def test_no_module_is_built_to_run_a_file(suffix, exported, monkeypatch):
    _, path = exported('mesh', suffix)

    def refuse(*args, **kwargs):
        raise AssertionError('a module was built')

    monkeypatch.setattr(MODELS, 'build', refuse)
    for kind in {type(module) for module in exported('mesh', suffix)[0].modules()}:
        monkeypatch.setattr(kind, '__init__', refuse, raising=False)
    assert ExportedNetwork(path, trust=True)(torch.zeros(1, 3, 256, 192))['camera'].shape == (1, 3)


def test_files_hold_the_name_of_their_model(exported):
    _, path = exported('pose', '.pt')
    assert ExportedNetwork(path, name='small pose', trust=True).metadata['task'] == 'pose'
    with pytest.raises(ValueError, match='is small pose, not VMPose-T-S2; name the model'):
        ExportedNetwork(path, name='VMPose-T-S2', trust=True)


def test_checkpoints_are_told_from_exported_files(exported, tmp_path):
    assert all(is_exported(exported('pose', suffix)[1]) for suffix in FORMATS.values())
    torch.save(dict(state_dict={}), tmp_path / 'checkpoint.pt')
    (tmp_path / 'text.pt').write_text('no zip')
    for name in ('checkpoint.pt', 'text.pt', 'absent.pt', 'a.pth', 'a.safetensors'):
        assert not is_exported(tmp_path / name)


@pytest.mark.filterwarnings('ignore:.*torch.jit')
def test_files_of_others_are_refused(tmp_path):
    torch.jit.save(torch.jit.trace(torch.nn.Identity(), torch.zeros(1)), tmp_path / 'other.pt')
    with pytest.raises(ValueError, match='not written by trunchier'):
        ExportedNetwork(tmp_path / 'other.pt', trust=True)
    (tmp_path / 'model.tflite').touch()
    with pytest.raises(ValueError, match=r'ends in none of \.onnx'):
        ExportedNetwork(tmp_path / 'model.tflite')
    with pytest.raises(FileNotFoundError, match='no exported model'):
        ExportedNetwork(tmp_path / 'absent.onnx')
    (tmp_path / 'broken.onnx').write_bytes(b'no model')
    with pytest.raises(ExportError, match='onnxruntime cannot run broken.onnx on cpu'):
        ExportedNetwork(tmp_path / 'broken.onnx')


# --- runtimes ------------------------------------------------------------------------------------
@pytest.mark.parametrize('dynamic_batch', [False, True])
@pytest.mark.parametrize('task', TASKS)
def test_openvino_computes_what_onnxruntime_does(task, dynamic_batch, exported):
    pytest.importorskip('openvino', reason='needs openvino')
    _, path = exported(task, '.onnx', dynamic_batch)
    images = torch.randn(3, 3, 256, 192)
    expected, network = ExportedNetwork(path)(images), ExportedNetwork(path, runtime='openvino')
    assert network.runtime == 'openvino'
    assert network.metadata == ExportedNetwork(path).metadata
    found = network(images)
    alone = network(images[:1])  # in a graph of its own; does not overwrite what is found
    for name, tensor in expected.items():
        tolerance = 1e-4 * float(tensor.std())
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=tolerance)
        torch.testing.assert_close(alone[name], tensor[:1], rtol=0, atol=tolerance)
    with pytest.raises(RuntimeError, match='OpenVINO runs on the CPU, not on cuda; take onnxrun'):
        ExportedNetwork(path, 'cuda', runtime='openvino')


@pytest.mark.parametrize(('precision', 'asked'), [('fp32', 'f32'), ('bf16', 'bf16')])
def test_openvino_computes_in_no_lower_precision_than_asked(
    precision, asked, exported, monkeypatch
):
    """By itself it takes bfloat16 or float16 where a CPU has them: here that need not be so."""
    openvino = pytest.importorskip('openvino', reason='needs openvino')
    compile_model, compiled = openvino.Core.compile_model, []

    def recorded(core, model, device, config):
        compiled.append((config, compile_model(core, model, device, config)))
        return compiled[-1][1]

    monkeypatch.setattr(openvino.Core, 'compile_model', recorded)
    monkeypatch.setattr(openvino.Core, 'get_property', lambda *_: ['BF16'])
    path = exported('pose', '.onnx', True)[1]
    network = ExportedNetwork(path, runtime='openvino', precision=precision)
    for batch in (1, 2, 3, 1):
        network(torch.zeros(batch, 3, 256, 192))
    shapes = [[*made.input(0).partial_shape] for _, made in compiled]
    assert [shape[0].is_static for shape in shapes] == [True, False]  # one crop; any number
    for config, made in compiled:
        assert config['INFERENCE_PRECISION_HINT'] == asked
        if precision == 'fp32':
            assert made.get_property('INFERENCE_PRECISION_HINT') == openvino.Type.f32


def test_precisions_that_a_runtime_or_cpu_lacks_are_refused(exported, monkeypatch):
    path = exported('pose', '.onnx')[1]
    remedy = 'not bf16, which onnxruntime cannot change; of .onnx files, OpenVINO computes in bf16'
    with pytest.raises(ValueError, match=remedy):
        ExportedNetwork(path, precision='bf16')
    openvino = pytest.importorskip('openvino', reason='needs openvino')
    with pytest.raises(ValueError, match='computes in fp32 or bf16, not in fp16'):
        ExportedNetwork(path, runtime='openvino', precision='fp16')
    monkeypatch.setattr(openvino.Core, 'get_property', lambda *_: ['FP32', 'INT8'])
    with pytest.raises(RuntimeError, match='no bfloat16 on this CPU; take precision fp32'):
        ExportedNetwork(path, runtime='openvino', precision='bf16')


def test_runtimes_that_are_absent_or_read_other_files_are_refused(exported, monkeypatch):
    monkeypatch.setitem(sys.modules, 'openvino', None)
    _, path = exported('pose', '.onnx')
    with pytest.raises(ImportError, match=r"pip install 'trunchier\[openvino\]', or take onnxrun"):
        ExportedNetwork(path, runtime='openvino')
    with pytest.raises(ValueError, match="does not run in 'torch'; choose onnxruntime or openvino"):
        ExportedNetwork(path, runtime='torch')


# --- devices --------------------------------------------------------------------------------------
def test_onnx_on_cuda_never_falls_back_to_the_cpu(exported, monkeypatch):
    _, path = exported('pose', '.onnx')
    monkeypatch.setattr(onnxruntime, 'get_available_providers', lambda: ['CPUExecutionProvider'])
    with pytest.raises(RuntimeError, match='pip install onnxruntime-gpu'):
        ExportedNetwork(path, 'cuda')
    available = ['CUDAExecutionProvider', 'CPUExecutionProvider']
    monkeypatch.setattr(onnxruntime, 'get_available_providers', lambda: available)
    assert onnx_providers('cuda:1') == [('CUDAExecutionProvider', dict(device_id=1))]
    assert onnx_providers('cpu') == [('CPUExecutionProvider', {})]
    # onnxruntime only warns about a provider whose libraries are missing.
    session = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime, 'InferenceSession', lambda path, options, providers: session(path, options)
    )
    with pytest.raises(RuntimeError, match='CUDAExecutionProvider does not load; replace'):
        ExportedNetwork(path, 'cuda')


@pytest.mark.parametrize('task', TASKS)
def test_files_of_torch_export_move_to_the_device(task, exported):
    _, path = exported(task, '.pt2')
    found = ExportedNetwork(path, 'meta', trust=True)(torch.zeros(2, 3, 256, 192, device='meta'))
    assert {tensor.device.type for tensor in found.values()} == {'meta'}


@pytest.mark.gpu
@pytest.mark.parametrize('suffix', ['.pt', '.pt2'])
@pytest.mark.parametrize('task', TASKS)
def test_files_of_torch_predict_the_same_on_a_gpu(task, suffix, exported):
    _, path = exported(task, suffix)
    images = torch.randn(2, 3, 256, 192)
    expected, found = (
        ExportedNetwork(path, trust=True)(images),
        ExportedNetwork(path, 'cuda', trust=True)(images.cuda()),
    )
    for name, tensor in found.items():
        assert tensor.is_cuda
        torch.testing.assert_close(tensor.cpu(), expected[name], rtol=0, atol=1e-2)
