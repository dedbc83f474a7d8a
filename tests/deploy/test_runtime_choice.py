"""The runtime that `auto` takes is the fastest, and computes what the model does."""

import copy
import shutil
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import small_models
import torch

import trunchier
from trunchier.deploy import export, runtime_choice
from trunchier.deploy.runtime import ExportedNetwork, ModuleNetwork
from trunchier.deploy.runtime_choice import network_on_cpu, runtime_of_file
from trunchier.files.decided import decisions
from trunchier.weights.find import find_config

for package in ('onnxruntime', 'onnxscript'):
    pytest.importorskip(package)
IMAGES = torch.randn(2, 3, 256, 192, generator=torch.Generator().manual_seed(0))
NAME = 'small-pose'


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    monkeypatch.setenv('TRUNCHIER_HOME', str(tmp_path / 'home'))
    return tmp_path / 'home'


@pytest.fixture(scope='module')
def found():
    return find_config(small_models.config('pose'))._replace(name=NAME)


@pytest.fixture
def model(exported):
    return exported('pose', '.onnx')[0]


@pytest.fixture
def written(exported):
    return exported('pose', '.onnx')[1]


@pytest.fixture
def writes(monkeypatch, written):
    """The models that are exported; what they become was written before."""
    calls = []

    def write(model, path, *_, **__):
        calls.append(model)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(written, path)

    monkeypatch.setattr(export, 'write', write)
    return calls


@pytest.fixture
def fastest(monkeypatch):
    """Let measurements say what a test wants; returns what was measured."""

    def fastest(name):
        calls = []
        monkeypatch.setattr(
            runtime_choice, '_fastest', lambda networks, shape: calls.append([*networks]) or name
        )
        return calls

    return fastest


def kept():
    """Decisions about runtimes."""
    return {about: answer for about, answer in decisions().items() if about.startswith('runtime')}


def test_a_model_runs_where_it_is_fastest_and_is_measured_once(found, model, fastest, writes):
    assert network_on_cpu(found, model, runtime='measured') is None
    measured = fastest('onnxruntime')
    for runtime in ('auto', 'auto', 'measured'):
        network = network_on_cpu(found, model, runtime=runtime)
        assert network.runtime == 'onnxruntime'
    assert measured == [['torch', *filter(find_spec, ('onnxruntime', 'openvino'))]]
    assert len(writes) == 1
    (question,) = kept()
    assert question.startswith(f'runtime of {NAME} ') and 'onnxruntime' in question
    expected = ModuleNetwork(model)(IMAGES)['heatmaps']
    error = (network(IMAGES)['heatmaps'] - expected).abs().max()
    assert error < 1e-4 * expected.std()


def test_torch_stays_where_it_is_fastest(found, model, fastest, writes, home):
    fastest('torch')
    assert network_on_cpu(found, model, runtime='auto') is None
    assert [*kept().values()] == ['torch']
    assert not [*(home / 'exported').iterdir()]


@pytest.mark.parametrize('content', [b'', b'no graph', 'another model'])
def test_a_file_that_computes_something_else_is_written_again(
    found, model, writes, written, home, content
):
    network_on_cpu(found, model, runtime='onnxruntime')
    (path,) = (home / 'exported').iterdir()
    if content == 'another model':
        import onnx

        other = onnx.load(written)
        for tensor in other.graph.initializer:
            if tensor.name.endswith('final_layer.weight'):
                array = onnx.numpy_helper.to_array(tensor)
                tensor.CopyFrom(onnx.numpy_helper.from_array(2 * array, tensor.name))
        content = other.SerializeToString()
        assert content != path.read_bytes()
    path.write_bytes(content)
    network_on_cpu(found, model, runtime='onnxruntime')
    assert len(writes) == 2 and path.read_bytes() == written.read_bytes()


def test_other_weights_have_another_file(found, model, writes, home):
    model = copy.deepcopy(model)
    network_on_cpu(found, model, runtime='onnxruntime')
    with torch.no_grad():
        model.head.final_layer.weight.mul_(2)
    with pytest.raises(export.ExportError, match='computes something else than small-pose'):
        network_on_cpu(found, model, runtime='onnxruntime')  # here, the same is written
    assert len({*(home / 'exported').iterdir()}) == len(writes) == 2


def test_what_cannot_be_exported_runs_in_torch(found, model, monkeypatch, caplog, home):
    def fail(*_, **__):
        raise NotImplementedError('no such operator')

    monkeypatch.setattr(export, 'write', fail)
    assert network_on_cpu(found, model, runtime='auto') is None
    assert 'no such operator' in caplog.text
    assert [*kept().values()] == ['torch']
    with pytest.raises(NotImplementedError):
        network_on_cpu(found, model, runtime='onnxruntime')


def test_a_full_disk_decides_nothing(found, model, monkeypatch, caplog):
    def fail(*_, **__):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(export, 'write', fail)
    assert network_on_cpu(found, model, runtime='auto') is None
    assert 'No space left' in caplog.text and not kept()


def test_other_runtimes_have_no_other_precisions(found, model, written):
    assert network_on_cpu(found, model, 'fp16', 'auto') is None
    with pytest.raises(ValueError, match='openvino runs .* or int8 or bf16, not fp16; take torch'):
        network_on_cpu(found, model, 'fp16', 'openvino')
    with pytest.raises(ValueError, match='fp32 or int8, not bf16; take openvino or torch'):
        network_on_cpu(found, model, 'bf16', 'onnxruntime')
    with pytest.raises(ValueError, match='the precision that it was exported in, not bf16'):
        trunchier.PoseInferencer(
            small_models.config('pose'), written, device='cpu', precision='bf16'
        )


@pytest.mark.skipif(find_spec('openvino') is None, reason='needs openvino')
def test_openvino_is_measured_in_bfloat16_beside_torch(found, model, writes, fastest):
    import openvino

    measured = fastest('openvino')
    if 'BF16' not in openvino.Core().get_property('CPU', 'OPTIMIZATION_CAPABILITIES'):
        with pytest.raises(RuntimeError, match='no bfloat16 on this CPU'):
            network_on_cpu(found, model, 'bf16', 'openvino')
        return
    network = network_on_cpu(found, model, 'bf16', 'auto')
    assert measured == [['torch', 'openvino']] and network.runtime == 'openvino'
    expected = ModuleNetwork(model)(IMAGES)['heatmaps']
    error = (network(IMAGES)['heatmaps'] - expected).square().mean().sqrt() / expected.std()
    assert 1e-4 < error < 0.1


def test_a_runtime_that_is_absent_is_named(found, model, monkeypatch):
    monkeypatch.setitem(sys.modules, 'openvino', None)
    with pytest.raises(ImportError, match='runtime openvino needs openvino: pip install openvino'):
        network_on_cpu(found, model, runtime='openvino')


def test_nothing_is_exported_where_that_cannot_be(found, model, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    caplog.set_level('INFO')
    assert network_on_cpu(found, model, runtime='auto') is None
    assert 'without onnxscript' in caplog.text and not kept()


def test_a_file_runs_where_it_is_fastest(written, fastest, monkeypatch):
    monkeypatch.setattr(runtime_choice, 'find_spec', {'onnxruntime': 1}.get)
    assert runtime_of_file(written, 'auto') is None  # there is no choice
    monkeypatch.setattr(runtime_choice, 'find_spec', str)
    monkeypatch.setattr(runtime_choice, 'ExportedNetwork', lambda path, runtime: ONE)
    fastest('openvino')
    assert runtime_of_file(written, 'measured') == 'onnxruntime'
    assert runtime_of_file(written, 'auto') == runtime_of_file(written, 'measured') == 'openvino'
    assert runtime_of_file(written.with_suffix('.pt'), 'auto') is None


class ONE:
    metadata = dict(input_size=(192, 256))


def test_a_predictor_of_another_runtime_finds_the_same_people(fastest, monkeypatch, written):
    image = small_models.noise(64, 48)
    options = dict(device='cpu')
    expected = trunchier.PoseInferencer(**options)
    network, asked = ExportedNetwork(written), []
    monkeypatch.setattr(
        'trunchier.inference.predictor.network_on_cpu',
        lambda *given: asked.append(given) or network,
    )
    found = trunchier.PoseInferencer(runtime='auto', **options)
    assert asked[0][2:4] == ('fp32', 'auto')
    assert found.settings['runtime'] == 'onnxruntime' and 'runtime' not in expected.settings
    people = [
        next(each(image, bboxes=[[0, 0, 48, 64]])).pred_instances for each in (expected, found)
    ]
    assert np.isfinite(people[1].keypoints).all()
    assert people[0].keypoints.shape == people[1].keypoints.shape
    with pytest.raises(ValueError, match="runtime must be one of auto, .*, got 'tflite'"):
        trunchier.PoseInferencer(runtime='tflite', **options)


@pytest.mark.skipif(find_spec('openvino') is None, reason='needs openvino')
def test_openvino_is_measured_beside_the_others(found, model, writes, monkeypatch):
    compared = []
    monkeypatch.setattr(
        runtime_choice, 'choose', lambda rows, _: compared.append(rows) or 'openvino'
    )
    network = network_on_cpu(found, model, runtime='auto')
    assert network.runtime == 'openvino'
    assert [*compared[0]] == ['torch', 'onnxruntime', 'openvino']
    assert all(row.seconds > 0 for row in compared[0].values())
