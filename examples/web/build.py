"""Build the page: `make web`, or `npm ci --prefix examples/web && python examples/web/build.py`.

Writes into examples/web/dist, which any static server serves: the page, onnxruntime-web, and the
two models that come with trunchier, their weights stored in 8 bits and computed with in float32.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from trunchier import export
from trunchier.deploy.export import compare, format_errors, random_crops
from trunchier.deploy.runtime import ExportedNetwork
from trunchier.files.shipped import asset
from trunchier.synthetic.people import SyntheticPeople

HERE = Path(__file__).resolve().parent
RUNTIME = HERE / 'node_modules' / 'onnxruntime-web' / 'dist'
RUNTIME_FILES = (
    *('ort.wasm.bundle.min.mjs', 'ort-wasm-simd-threaded.wasm', 'ort-wasm-simd-threaded.mjs'),
    *('ort.webgpu.bundle.min.mjs', 'ort-wasm-simd-threaded.asyncify.wasm'),
    'ort-wasm-simd-threaded.asyncify.mjs',
)
PAGE = ('index.html', 'style.css', 'page.js', 'worker.js', 'crops.js', 'body.js', 'sw.js')
MODELS = {'pose': 'VMPose-T-S2', 'mesh': 'VMHMR2.0-T-S2'}
FACTS = (
    *('model', 'outputs', 'input_size', 'mean', 'std', 'channels', 'box_padding', 'codec'),
    *('keypoint_names', 'skeleton', 'box_aspect', 'crop_size', 'focal_length', 'joint_names'),
)
TOLERANCE = 0.2  # largest error of 8 bits, standard deviations of an output
SAMPLE = 6  # seed of the picture of a synthetic person
VERTICES = 6890  # of the body
MIN_SIZE, MIN_INT8 = 2048, 50_000  # elements of an array that is stored in 16 and in 8 bits


def build(target: Path = HERE / 'dist') -> None:
    """Write all files of the page.

    Raises:
        FileNotFoundError: npm has not installed onnxruntime-web.
        ValueError: a model with weights of 8 bits computes something else.
    """
    if not RUNTIME.is_dir():
        raise FileNotFoundError(f'no {RUNTIME}; run: npm ci --prefix {HERE}')
    for name in ('ort', 'models'):
        (target / name).mkdir(parents=True, exist_ok=True)
    for name in PAGE:
        shutil.copy(HERE / name, target)
    for name in RUNTIME_FILES:
        shutil.copy(RUNTIME / name, target / 'ort')
    facts = {}
    for task, name in MODELS.items():
        path = target / 'models' / f'{name}.onnx'
        written = export(name, path, with_body=task == 'mesh')
        model = onnx.load(path)
        shrink(model)
        onnx.save(model, path)
        network = ExportedNetwork(path)
        width, height = network.metadata['input_size']
        errors = compare(network, written.module, random_crops((1, 3, height, width)))
        size = path.stat().st_size
        print(f'{path.name}: {size / 1e6:.2f} MB; errors {format_errors(errors)}')
        if not max(errors.values()) <= TOLERANCE:
            raise ValueError(
                f'{name} in 8 bits is off by more than {TOLERANCE} standard deviations'
            )
        known = {key: network.metadata[key] for key in FACTS if key in network.metadata}
        facts[task] = dict(known, file=f'models/{path.name}', bytes=size)
    faces = np.load(asset('body.npz'))['f'].astype('<u2')
    (target / 'models' / 'faces.bin').write_bytes(faces.tobytes())
    sample, *_ = SyntheticPeople(seed=SAMPLE, size=(480, 640), plain=True).encoded(0)
    (target / 'models' / 'sample.jpg').write_bytes(sample)
    (target / 'models.json').write_text(json.dumps(facts))


def shrink(model: onnx.ModelProto) -> None:
    """Store large weights in 8 bits with a scale per channel, smaller ones in 16.

    Casts and factors restore them; onnxruntime folds both when it loads the file, so that nothing
    is computed in 8 or 16 bits. The first layers, which are small and whose errors would grow, are
    among the smaller ones; the body, which tells where the joints are, has 16 bits as well.
    """
    graph, added = model.graph, []
    del graph.value_info[:]
    users = {name: node for node in graph.node for name in node.input}
    for tensor in [*graph.initializer]:
        array, name = numpy_helper.to_array(tensor), tensor.name
        if array.size < MIN_SIZE:
            continue
        scale, body = None, VERTICES in array.shape
        if array.dtype == np.int64 and np.abs(array).max() < 1 << 15:
            stored = array.astype(np.int16)
        elif array.dtype == np.float32 and array.ndim > 1 and array.size >= MIN_INT8 and not body:
            stored, scale = _quantize(array, _channels(users[name], array.ndim))
        elif array.dtype == np.float32:
            stored = array.astype(np.float16)
        else:
            continue
        graph.initializer.remove(tensor)
        graph.initializer.append(numpy_helper.from_array(stored, f'{name}.stored'))
        cast = name if scale is None else f'{name}.cast'
        added.append(helper.make_node('Cast', [f'{name}.stored'], [cast], to=tensor.data_type))
        if scale is not None:
            graph.initializer.append(numpy_helper.from_array(scale, f'{name}.scale'))
            added.append(helper.make_node('Mul', [cast, f'{name}.scale'], [name]))
    nodes = [*added, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _channels(node, ndim):
    """Axis of the output channels in the weights of a node."""
    if node.op_type == 'Gemm':
        return 0 if any(each.name == 'transB' and each.i for each in node.attribute) else 1
    return {'Conv': 0, 'ConvTranspose': 1}.get(node.op_type, ndim - 1)


def _quantize(array, axis):
    others = tuple(each for each in range(array.ndim) if each != axis)
    scale = np.maximum(np.abs(array).max(others, keepdims=True) / 127, 1e-12)
    return np.rint(array / scale).astype(np.int8), scale


if __name__ == '__main__':
    build()
