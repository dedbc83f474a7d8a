"""Write models as files that run without this package: ONNX, TorchScript, torch.export.

A file takes normalized crops and returns the network's outputs: heatmaps of a pose model; SMPL
parameters and the crop's camera of a mesh model, and its body on request. Its metadata describes
the steps before and after (docs/export.md), so that numpy and onnxruntime are enough to use it. A
file is kept only if, read back, it computes what the model does.
"""

from __future__ import annotations

import copy
import io
import json
import logging
import math
import os
import shutil
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from mmengine.utils import digit_version
from numpy.polynomial import Chebyshev, Polynomial
from torch import Tensor, nn

from ..files.optional import need
from ..files.version import PRODUCER
from ..files.whole import scratch_folder
from ..weights.find import build_model, find, find_config
from ..weights.load import load_checkpoint
from .calibration import calibration_crops
from .graph import LAYOUTS, NO_BODY, describe, make_graph
from .lower import PRECISIONS, lower
from .quantize import held_out, quantize, with_phases
from .runtime import (
    EXTRA_FILE,
    FORMATS,
    INPUT,
    ExportedNetwork,
    ExportError,
    ModuleNetwork,
    Network,
)

if TYPE_CHECKING:
    from mmengine.config import Config

# Largest error of an output against the fp32 model in eager mode, in standard deviations of it.
# Of int8 it is the root mean square, on crops of people that gave no scales.
TOLERANCES = {'fp32': 1e-4, 'fp16': 2e-2, 'bf16': 2e-1, 'int8': 1e-1}
RANDOM = 'random'  # weights
MANY_ZEROS = 1 << 16  # of a constant that is zero everywhere, which are not stored
OPSET = 18  # of ONNX: LayerNormalization came with 17, torch writes 18 or newer


def export(
    model: str | Path | Config,
    path: str | Path | None = None,
    weights: str | Path | None = None,
    body_model: str | Path | None = None,
    format: str | None = None,
    **options: Any,
) -> Written:
    """Export a model by name.

    Args:
        model: the paper's name (`VMPose-T-S2`), a config's path or a Config.
        path: of the file, see `write`; None: the model's name, and the suffix of the format.
        weights: checkpoint; None: those that ship with this package; 'random': to measure speed.
        body_model: SMPL as tools/convert_smpl.py writes it; None: the embedded body.
        format: key of FORMATS, which the path must fit; None: that of the path, else onnx.
        options: of `write`: precision, calibrate, dynamic_batch, with_body, tolerance.

    Raises:
        FileNotFoundError: no such file, or no weights ship with this package.
        ValueError: an unknown model, or `body_model` for a pose model. Others: see `write`.
    """
    found = find_config(model) if weights == RANDOM else find(model, weights)
    if found.lifted:
        raise ValueError(
            f'export {found.source}, whose keypoints are lifted to bodies after its network'
        )
    if not found.row.graph:
        raise ValueError(
            f'{found.name} is a {found.row.estimator}, which is not exported: predict with its '
            'checkpoint, or export a model of single people'
        )
    path = Path(path or found.name + FORMATS[format or 'onnx'])
    if format and path.suffix != FORMATS[format]:
        raise ValueError(f'{format} files end in {FORMATS[format]}, got {path}')
    _check(path, options.get('precision', 'fp32'), options.get('calibrate'))
    if body_model is not None:
        if not found.row.load('graph').body_outputs:
            raise ValueError(NO_BODY)
        found.cfg.model.body_model = dict(path=str(body_model))
    built = build_model(found.cfg)
    meta = None if weights == RANDOM else load_checkpoint(built, found.required_weights())
    return write(built, path, describe(found, meta), **options)


class Written(NamedTuple):
    """Result of `write`."""

    path: Path
    errors: dict[str, float]  # of each output, in standard deviations; see TOLERANCES
    nodes: int | None  # of an ONNX graph
    bytes: int  # of all files
    network: ExportedNetwork  # the file, read back
    module: ModuleNetwork  # the fp32 model that it was compared with
    float32_layers: tuple[str, ...] = ()  # of an int8 file, nodes that would cost too much


def write(
    model: nn.Module,
    path: str | Path,
    metadata: dict,
    precision: str = 'fp32',
    dynamic_batch: bool = False,
    with_body: bool = False,
    tolerance: float | None = None,
    calibrate: str | Path | None = None,
) -> Written:
    """Write a model, and compare the file with it.

    Args:
        model: estimator with its weights.
        path: its suffix chooses the format (FORMATS). ONNX weights beyond 2 GB go into a second
            file, `path`.data.
        metadata: from `describe`.
        precision: key of TOLERANCES; inputs and outputs are float32 in any. int8 is for ONNX.
        dynamic_batch: any number of crops at a time; otherwise one.
        with_body: add vertices, joints and keypoints of a mesh model.
        tolerance: largest error, in standard deviations; None: that of TOLERANCES.
        calibrate: folder of photos of people that scales of int8 are found on, see
            `calibration.calibration_crops`; None: synthetic people.

    Raises:
        FileNotFoundError: no photo to calibrate on.
        ValueError: an unknown suffix or precision, or a body is requested of a pose model.
        ExportError: the format cannot hold the model, or the file computes something else; nothing
            is written then.
        ImportError: the format needs a package.
    """
    path = Path(path)
    _check(path, precision, calibrate)
    tolerance = TOLERANCES[precision] if tolerance is None else tolerance
    module = ModuleNetwork(model, with_body)
    graph = module.graph
    if precision == 'int8':
        crops = calibration_crops(metadata, calibrate)
        graph = make_graph(with_phases(copy.deepcopy(model)), with_body)
    elif precision != 'fp32':
        graph = make_graph(lower(copy.deepcopy(model), PRECISIONS[precision]), with_body)
    width, height = metadata['input_size']
    shape = 3, height, width
    metadata = dict(
        metadata,
        precision=precision,
        dynamic_batch=dynamic_batch,
        input={INPUT: f'(batch, 3, {height}, {width}) float32, normalized'},
        outputs={name: LAYOUTS[name] for name in graph.outputs},
    )
    # A folder, not `whole_file`: an ONNX file names the file of its weights, so both need their
    # final names from the beginning.
    with scratch_folder(path) as folder:
        part = folder / path.name
        with torch.no_grad(), _quiet():
            graph.requires_grad_(False)
            images = torch.zeros((2 if dynamic_batch else 1, *shape))
            exact = folder / 'float32' / path.name if precision == 'int8' else part
            exact.parent.mkdir(exist_ok=True)
            nodes = WRITERS[path.suffix](graph, images, exact, metadata, dynamic_batch)
        left: list[str] = []
        if precision == 'int8':
            left = quantize(exact, part, crops, tolerance)
            shutil.rmtree(exact.parent)
            checks = torch.from_numpy(held_out(crops))
        else:
            checks = random_crops((3 if dynamic_batch else 1, *shape))
        network = ExportedNetwork(part, trust=True)
        errors = compare(network, module, checks, mean=precision == 'int8')
        if not max(errors.values()) <= tolerance:  # NaN is an error too
            raise ExportError(
                f'{part.name} computes something else than {metadata["model"]}: '
                f'{format_errors(errors)} standard deviations, of which {tolerance:g} are allowed; '
                'nothing was written'
            )
        files = sorted(folder.iterdir(), key=lambda file: file.name == path.name)
        size = sum(file.stat().st_size for file in files)
        for file in files:
            os.replace(file, path.with_name(file.name))
    return Written(path, errors, nodes, size, network, module, tuple(left))


def _check(path, precision, calibrate):
    if path.suffix not in WRITERS:
        raise ValueError(f'{path} ends in none of {", ".join(WRITERS)}')
    if precision not in TOLERANCES:
        raise ValueError(f'no precision {precision!r}; choose from {", ".join(TOLERANCES)}')
    if precision == 'int8' and path.suffix != FORMATS['onnx']:
        raise ValueError(
            f'{path}: files in int8 are ONNX; choose --format onnx, or predict with the checkpoint '
            'in int8 (trunchier predict --precision int8)'
        )
    if calibrate is not None and precision != 'int8':
        raise ValueError(f'calibration is for int8, not {precision}; add --precision int8')
    if path.suffix == FORMATS['onnx'] and precision == 'bf16':
        raise ValueError(
            'onnxruntime supports nearly no operator in bf16, so such a file could not be checked; '
            'choose --precision fp16, or --format torch-export'
        )


@contextmanager
def _quiet():
    """Silence the exporters: their messages concern passes of their own."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        logging.disable(before)


def _traced(graph, images, dynamic_batch):
    """Program of the graph, by torch.export."""
    if digit_version(torch.__version__) < digit_version('2.6'):
        raise ImportError(
            f'files of ONNX and torch.export need torch 2.6 or newer, this is {torch.__version__}; '
            'give a .pt file (TorchScript)'
        )
    shapes = ({0: torch.export.Dim('batch', min=1)},) if dynamic_batch else None
    return torch.export.export(graph, (images,), dynamic_shapes=shapes, strict=False)


def _write_onnx(graph, images, path, metadata, dynamic_batch):
    for module in ('onnxscript', 'onnxruntime'):
        need(module, 'writing ONNX', 'pip install onnx onnxscript onnxruntime')
    traced = _traced(graph, images, dynamic_batch)
    program = torch.onnx.export(
        traced,
        dynamo=True,
        opset_version=OPSET,
        input_names=[INPUT],
        output_names=list(graph.outputs),
        dynamic_shapes=({0: 'batch'},) if dynamic_batch else None,
        custom_translation_table=_translations(traced),
        verbose=False,
    )
    for key, value in metadata.items():
        program.model.metadata_props[key] = json.dumps(value)
    program.model.producer_name, program.model.producer_version = PRODUCER.split()
    _strip(program.model)
    weights = sum(p.numel() * p.element_size() for p in graph.parameters())
    program.save(path, external_data=weights > 1.5e9)  # protobuf ends at 2 GB
    return sum(1 for _ in program.model.graph.all_nodes())


def _strip(model):
    """Remove where in torch's program each node came from (1 MB), and store zeros as their shape.

    The embedded body does not bulge with its pose: 17 MB of zeros.
    """
    from onnxscript import ir

    graph = model.graph
    for node in graph.all_nodes():
        for each in (node, *node.outputs):
            each.metadata_props.clear()
            each.doc_string = None
    for name, value in [*graph.initializers.items()]:
        value.metadata_props.clear()
        array = value.const_value.numpy()
        if array.size < MANY_ZEROS or array.any():
            continue
        shape = ir.Value(name=f'{name}.shape', const_value=ir.tensor(np.int64(array.shape)))
        zero = ir.AttrTensor('value', ir.tensor(np.zeros(1, array.dtype)))
        node = ir.Node('', 'ConstantOfShape', [shape], [zero])
        made = node.outputs[0]
        made.shape, made.type = value.shape, value.type
        del graph.initializers[name]
        value.name, made.name = f'{name}.zeros', name
        ir.convenience.replace_all_uses_with(value, made)
        graph.register_initializer(shape)
        graph.insert_before(graph[0], node)


def _translations(traced):
    """{operation of torch: function that builds it from ONNX operators}, where torch's is slower.

    Attention too, if windows or heads make it more than 4D, which torch's does not support.
    """
    from onnxscript import opset18 as op

    def gelu(x, approximate='none'):
        # In the order that onnxruntime recognizes as one GELU.
        one, half = (op.CastLike(value, x) for value in (1.0, 0.5))
        if approximate == 'tanh':
            cubic, root = (op.CastLike(value, x) for value in (0.044715, (2 / math.pi) ** 0.5))
            inner = op.Mul(root, op.Add(x, op.Mul(cubic, op.Mul(x, op.Mul(x, x)))))
            inner = op.Tanh(inner)
        else:
            inner = op.Erf(op.Div(x, op.CastLike(2**0.5, x)))
        return op.Mul(op.Mul(x, op.Add(inner, one)), half)

    def softplus(x, beta=1.0, threshold=20.0):
        # onnxruntime's own, and its logarithm, take longer than the scan that follows. Here
        # log(1 + t) = 2 atanh(s) with t = exp(-|x|) and s = t / (2 + t) <= 1/3: s ATANH(s^2).
        two, *coefficients = (op.CastLike(value, x) for value in (2.0, *map(float, ATANH)))
        if beta != 1:
            return op.Div(softplus(op.Mul(x, op.CastLike(beta, x))), op.CastLike(beta, x))
        t = op.Exp(op.Neg(op.Abs(x)))
        s = op.Div(t, op.Add(t, two))
        square, factor = op.Mul(s, s), coefficients[0]
        for coefficient in coefficients[1:]:
            factor = op.Add(op.Mul(square, factor), coefficient)
        return op.Add(op.Relu(x), op.Mul(s, factor))

    def attention(
        query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **others
    ):
        if attn_mask is not None or is_causal or others.get('enable_gqa'):
            raise NotImplementedError('masked or grouped attention of more than 4 dimensions')
        *front, rows, columns = range(len(key.shape))
        factor = op.CastLike(scale or query.shape[-1] ** -0.5, query)
        keys = op.Transpose(key, perm=[*front, columns, rows])
        return op.MatMul(op.Softmax(op.MatMul(op.Mul(query, factor), keys), axis=-1), value)

    table = {torch.ops.aten.gelu.default: gelu, torch.ops.aten.softplus.default: softplus}
    of_torch = torch.ops.aten.scaled_dot_product_attention.default
    nodes = (node for node in traced.graph.nodes if node.target is of_torch)
    if any(node.args[0].meta['val'].dim() > 4 for node in nodes):
        table[of_torch] = attention
    return table


def _atanh_ratio(square):
    """2 atanh(s) / s of s squared, 2 at 0."""
    s = np.sqrt(square)
    return np.divide(2 * np.arctanh(s), s, out=np.full_like(s, 2), where=s > 0)


# Interpolated at the Chebyshev points of s <= 1/3: relative error 2e-7. Highest power first.
ATANH = (
    Chebyshev.interpolate(_atanh_ratio, 3, domain=[0, 1 / 9]).convert(kind=Polynomial).coef[::-1]
)


def _write_torchscript(graph, images, path, metadata, dynamic_batch):
    traced = torch.jit.trace(graph, images, check_trace=False)
    buffer = io.BytesIO()  # on a full disk, torch's own writer ends the process
    torch.jit.save(traced, buffer, _extra_files={EXTRA_FILE: json.dumps(metadata)})
    path.write_bytes(buffer.getbuffer())


def _write_torch_export(graph, images, path, metadata, dynamic_batch):
    program = _traced(graph, images, dynamic_batch)
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={EXTRA_FILE: json.dumps(metadata)})
    path.write_bytes(buffer.getbuffer())


WRITERS = {'.onnx': _write_onnx, '.pt': _write_torchscript, '.pt2': _write_torch_export}


# --- comparing -----------------------------------------------------------------------------------
def compare(
    network: Network, reference: Network, crops: Tensor, mean: bool = False
) -> dict[str, float]:
    """Difference of each output, in standard deviations of `reference`'s.

    Args:
        crops: (N, 3, H, W), compared all at once, and the first one alone.
        mean: root mean square; otherwise the largest difference.
    """
    batches = (crops[:1], crops) if len(crops) > 1 else (crops,)
    found, expected = ([each(images) for images in batches] for each in (network, reference))
    errors = {}
    for name in expected[0]:
        theirs, ours = (
            torch.cat([outputs[name] for outputs in each]) for each in (found, expected)
        )
        difference = (ours - theirs).abs()
        error = difference.square().mean().sqrt() if mean else difference.max()
        errors[name] = (error / ours.std()).item()
    return errors


def random_crops(shape: tuple[int, int, int, int]) -> Tensor:
    """Crops (N, 3, H, W) of numbers from a normal distribution."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def format_errors(errors: dict[str, float]) -> str:
    """'heatmaps 3.1e-06, ...'"""
    return ', '.join(f'{name} {error:.1e}' for name, error in errors.items())
