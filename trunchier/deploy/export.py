"""Models as files that run without this package: ONNX, TorchScript, torch.export.

The file takes normalised crops and gives what the network gives: heatmaps of a pose model; SMPL
parameters and the crop's camera of a mesh model, with its body on request. What stands before and
after that is described in the file's metadata (see docs/export.md), so that numpy and onnxruntime
are enough to use it. Nothing is written unless the file, read back, computes what the model does.
"""

import copy
import json
import logging
import math
import os
import shutil
import warnings
from contextlib import contextmanager
from pathlib import Path

import torch
from mmengine.utils import digit_version
from torch import nn

from .. import __version__
from ..conventions import BODIES, FOCAL_LENGTH, IMAGE_SIZE, JOINTS_44, SMPL_24, SMPL_PARENTS
from .lower import PRECISIONS, lower

FORMATS = {'onnx': '.onnx', 'torchscript': '.pt', 'torch-export': '.pt2'}  # and their suffixes
# Largest error of an output against the fp32 model in eager mode, in standard deviations of it.
TOLERANCES = {'fp32': 1e-4, 'fp16': 2e-2, 'bf16': 2e-1}
OPSET = 18  # of ONNX: LayerNormalization came with 17, torch writes 18 or newer
EXTRA_FILE = 'trunchier.json'  # where the formats of torch keep the metadata
INPUT = 'images'

SMPL_OUTPUTS = ('global_orient', 'body_pose', 'betas', 'camera')
BODY_OUTPUTS = ('camera_translation', 'vertices', 'joints', 'keypoints_2d')
LAYOUTS = {
    'heatmaps': '(batch, keypoints, height, width)',
    'global_orient': '(batch, 1, 3, 3) rotation matrix',
    'body_pose': f'(batch, {len(SMPL_24) - 1}, 3, 3) rotation matrices relative to the parent',
    'betas': f'(batch, {BODIES["smpl"].num_betas})',
    'camera': '(batch, 3) as (s, tx, ty) of the square crop',
    'camera_translation': '(batch, 3) metres, camera of the square crop',
    'vertices': '(batch, 6890, 3) metres, before camera_translation',
    'joints': '(batch, 44, 3) metres, before camera_translation',
    'keypoints_2d': "(batch, 44, 2) fractions of the square crop's side, from its centre",
}


class ExportError(RuntimeError):
    """A model that cannot be written in a format, or a file that computes something else."""


def task_of(cfg):
    """'pose' or 'mesh'.

    Raises:
        ValueError: a model that is neither top-down heatmaps nor a MeshEstimator.
    """
    tasks = {'TopdownPoseEstimator': 'pose', 'MeshEstimator': 'mesh'}
    if cfg.model.type not in tasks:
        raise ValueError(f'cannot export a {cfg.model.type}; there are {", ".join(tasks)}')
    return tasks[cfg.model.type]


# --- what a user has to know of a file -----------------------------------------------------------


def describe(cfg, name, dataset_meta=None, weights='random'):
    """Metadata of an exported model: plain data, see docs/export.md.

    Args:
        cfg: of the model.
        name: the paper's name, or the config's.
        dataset_meta: mmpose's metainfo of the keypoints; pose models only.
        weights: where they are from.
    """
    normalise = cfg.model.data_preprocessor
    task = task_of(cfg)
    common = dict(
        producer=f'trunchier {__version__}',
        model=name,
        task=task,
        weights=str(weights),
        mean=list(normalise['mean']),
        std=list(normalise['std']),
        channels='RGB' if normalise.get('bgr_to_rgb') else 'BGR',
    )
    return dict(common, **(_describe_pose(cfg, dataset_meta) if task == 'pose' else _MESH))


def _describe_pose(cfg, meta):
    steps = {step['type']: step for step in cfg.test_dataloader.dataset.pipeline}
    affine = steps.get('TopdownAffine', {})
    codec = {key: value for key, value in cfg.model.head.decoder.items() if key != 'type'}
    names, channels = meta['keypoint_id2name'], cfg.model.head.out_channels
    if len(names) != channels:
        raise ValueError(f'the model has {channels} keypoints, its data set {len(names)}')
    return dict(
        input_size=list(affine.get('input_size', codec['input_size'])),
        box_padding=steps.get('GetBBoxCenterScale', {}).get('padding', 1.25),
        udp=bool(affine.get('use_udp')),
        codec=dict(type=cfg.model.head.decoder.type, **codec),
        keypoint_names=[names[index] for index in range(channels)],
        flip_indices=list(meta['flip_indices']),
        skeleton=[list(link) for link in meta['skeleton_links']],
    )


_MESH = dict(
    input_size=[IMAGE_SIZE * 3 // 4, IMAGE_SIZE],
    box_aspect=[3, 4],
    crop_size=IMAGE_SIZE,
    focal_length=FOCAL_LENGTH,
    rotation_names=list(SMPL_24),
    parents=list(SMPL_PARENTS),
    joint_names=list(JOINTS_44),
)


# --- the graph -----------------------------------------------------------------------------------


class Graph(nn.Module):
    """What goes into the file: normalised float32 crops in, float32 outputs as a tuple.

    Args:
        model: estimator. precision: key of PRECISIONS; the graph has a copy of the weights unless
            it is fp32. with_body: mesh models pose their body too.

    Attributes:
        outputs: names of what `forward` returns.
    """

    def __init__(self, model, precision='fp32', with_body=False):
        super().__init__()
        is_mesh = hasattr(model, 'body')
        if with_body and not is_mesh:
            raise ValueError('a pose model has no body to export; leave --with-body out')
        self.with_body = with_body
        self.outputs = ('heatmaps',)
        if is_mesh:
            self.outputs = SMPL_OUTPUTS + (BODY_OUTPUTS if with_body else ())
        if is_mesh and not with_body:
            model = _without_body(model)
        if precision != 'fp32':
            model = lower(copy.deepcopy(model), PRECISIONS[precision])
        self.model = model

    def forward(self, images):
        """(batch, 3, height, width) -> the outputs, see LAYOUTS."""
        if self.outputs == ('heatmaps',):
            return (self.model.head(self.model.extract_feat(images)),)
        if self.with_body:
            pred = self.model.regress(images)
        else:
            pred = self.model.head(self.model.extract_feat(images)[-1])
        return tuple(pred[name] for name in self.outputs)


def _without_body(model):
    """The same model, less the body: SMPL may not be passed on unasked."""
    bare = copy.copy(model)
    bare._modules = {name: part for name, part in model._modules.items() if name != 'body'}
    return bare


# --- writing -------------------------------------------------------------------------------------


def export(
    model,
    path,
    metadata,
    format='onnx',
    precision='fp32',
    dynamic_batch=False,
    with_body=False,
    tolerance=None,
):
    """Write `model` to `path`, after its file was compared with it.

    Args:
        model: from `build`, with its weights.
        path: of the file; weights beyond 2 GB go into a second one, `path`.data.
        metadata: from `describe`.
        format: key of FORMATS.
        precision: key of PRECISIONS; input and outputs are float32 in any.
        dynamic_batch: any number of crops at a time; else one.
        with_body: also vertices, joints and keypoints of a mesh model.
        tolerance: largest error, in standard deviations; None: that of TOLERANCES.

    Returns:
        dict: `errors` (of each output, in standard deviations), `nodes` (of ONNX, else None),
        `bytes`, `outputs`.

    Raises:
        ValueError: an unknown format or precision.
        ExportError: the format cannot hold the model, or the file computes something else.
        ImportError: a package that the format needs.
    """
    if format not in FORMATS:
        raise ValueError(f'no format {format!r}; choose from {", ".join(FORMATS)}')
    if precision not in PRECISIONS:
        raise ValueError(f'no precision {precision!r}; choose from {", ".join(PRECISIONS)}')
    if format == 'onnx' and precision == 'bf16':
        raise ValueError(
            'onnxruntime computes nearly no operator in bf16, so such a file could not be checked; '
            'choose --precision fp16, or --format torch-export'
        )
    tolerance = TOLERANCES[precision] if tolerance is None else tolerance
    graph = Graph(model, precision, with_body).eval().requires_grad_(False)
    width, height = metadata['input_size']
    shape = (2 if dynamic_batch else 1, 3, height, width)
    metadata = dict(
        metadata,
        precision=precision,
        dynamic_batch=dynamic_batch,
        input={INPUT: f'(batch, 3, {height}, {width}) float32, normalised'},
        outputs={name: LAYOUTS[name] for name in graph.outputs},
    )
    path = Path(path)
    with _folder_beside(path) as folder:
        part = folder / path.name
        with torch.no_grad(), _quiet():
            nodes = WRITERS[format](graph, torch.zeros(shape), part, metadata, dynamic_batch)
        eager = Graph(model, 'fp32', with_body).eval()
        errors = compare(load(part, format), eager, shape, (1, 3) if dynamic_batch else (1,))
        if not max(errors.values()) <= tolerance:  # NaN is an error too
            raise ExportError(
                f'{format} of {metadata["model"]} computes something else than the model: '
                f'{format_errors(errors)} standard deviations, of which {tolerance:g} are allowed; '
                'nothing was written'
            )
        files = sorted(folder.iterdir(), key=lambda file: file.name == path.name)
        size = sum(file.stat().st_size for file in files)
        for file in files:
            os.replace(file, path.with_name(file.name))
    return dict(errors=errors, nodes=nodes, bytes=size, outputs=graph.outputs)


@contextmanager
def _folder_beside(path):
    """A folder for unfinished files on the disk of `path`, which goes in the end."""
    folder = path.parent / f'.{path.name}.part-{os.getpid()}'
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextmanager
def _quiet():
    """The exporters tell of passes that nobody here can change."""
    loggers = [logging.getLogger(name) for name in ('torch.onnx', 'onnxscript', 'onnx_ir')]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _traced(graph, images, dynamic_batch):
    """torch.export's program of the graph."""
    shapes = ({0: torch.export.Dim('batch', min=1)},) if dynamic_batch else None
    return torch.export.export(graph, (images,), dynamic_shapes=shapes, strict=False)


def _write_onnx(graph, images, path, metadata, dynamic_batch):
    _import_onnx()
    program = torch.onnx.export(
        _traced(graph, images, dynamic_batch),
        dynamo=True,
        opset_version=OPSET,
        input_names=[INPUT],
        output_names=list(graph.outputs),
        dynamic_shapes=({0: 'batch'},) if dynamic_batch else None,
        custom_translation_table=_translations(),
        verbose=False,
    )
    for key, value in metadata.items():
        program.model.metadata_props[key] = json.dumps(value)
    program.model.producer_name, program.model.producer_version = 'trunchier', __version__
    weights = sum(p.numel() * p.element_size() for p in graph.parameters())
    program.save(path, external_data=weights > 1.5e9)  # protobuf ends at 2 GB
    return sum(1 for _ in program.model.graph.all_nodes())


def _translations():
    """{operation of torch: a function that makes it of ONNX's}, where that is faster."""
    from onnxscript import opset18 as op

    def gelu(x, approximate='none'):
        # In the order in which onnxruntime sees that it is one.
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
        # log(1 + t) = 2 atanh(s) with t = exp(-|x|) and s = t / (2 + t), at most 1/3: an odd
        # polynomial, fitted, to 2e-7 of the value.
        two, *coefficients = (op.CastLike(value, x) for value in (2.0, *ATANH))
        if beta != 1:
            return op.Div(softplus(op.Mul(x, op.CastLike(beta, x))), op.CastLike(beta, x))
        t = op.Exp(op.Neg(op.Abs(x)))
        s = op.Div(t, op.Add(t, two))
        square, factor = op.Mul(s, s), coefficients[0]
        for coefficient in coefficients[1:]:
            factor = op.Add(op.Mul(square, factor), coefficient)
        return op.Add(op.Relu(x), op.Mul(s, factor))

    return {torch.ops.aten.gelu.default: gelu, torch.ops.aten.softplus.default: softplus}


# 2 atanh(s) / s by powers of s squared, from the highest, for s up to 1/3.
ATANH = (0.34226051, 0.39589461, 0.66676003, 1.99999967)


def _import_onnx():
    if digit_version(torch.__version__) < digit_version('2.6'):
        raise ImportError(f'ONNX needs torch 2.6 or newer, this is {torch.__version__}')
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f'ONNX needs {error.name}: pip install onnx onnxscript onnxruntime'
        ) from error


def _write_torchscript(graph, images, path, metadata, dynamic_batch):
    traced = torch.jit.trace(graph, images, check_trace=False)
    torch.jit.save(traced, str(path), _extra_files={EXTRA_FILE: json.dumps(metadata)})


def _write_torch_export(graph, images, path, metadata, dynamic_batch):
    program = _traced(graph, images, dynamic_batch)
    torch.export.save(program, path, extra_files={EXTRA_FILE: json.dumps(metadata)})


WRITERS = {
    'onnx': _write_onnx,
    'torchscript': _write_torchscript,
    'torch-export': _write_torch_export,
}


# --- reading -------------------------------------------------------------------------------------


class Exported:
    """A file that `export` wrote: crops in, a dict of outputs, numpy both.

    Args:
        path: of the file. format: key of FORMATS; None: what the suffix says.

    Attributes:
        metadata: dict of plain data.

    Raises:
        FileNotFoundError, ValueError: no file, or not one of ours.
        ExportError: a runtime that cannot run it.
    """

    def __init__(self, path, format=None):
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f'no exported model {path} (from {Path.cwd()})')
        if format is None:
            suffixes = {suffix: name for name, suffix in FORMATS.items()}
            if path.suffix not in suffixes:
                raise ValueError(f'{path} ends in none of {", ".join(suffixes)}')
            format = suffixes[path.suffix]
        self.metadata, self._run = READERS[format](path)
        if 'task' not in self.metadata:
            raise ValueError(f'{path} was not written by trunchier: it has no metadata')

    def __call__(self, images):
        """(batch, 3, height, width) float32 normalised -> {name: float32 array}."""
        return dict(zip(self.metadata['outputs'], self._run(images), strict=True))


load = Exported


def _read_onnx(path):
    _import_onnxruntime()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    except Exception as error:  # onnxruntime's exceptions have no common class
        raise ExportError(f'onnxruntime cannot run {path.name} on this CPU: {error}') from error
    texts = session.get_modelmeta().custom_metadata_map
    metadata = {key: json.loads(text) for key, text in texts.items()} if 'task' in texts else {}
    return metadata, lambda images: session.run(None, {INPUT: images})


def _import_onnxruntime():
    try:
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise ImportError('.onnx files need onnxruntime: pip install onnxruntime') from error


def _read_torchscript(path):
    extra = {EXTRA_FILE: ''}
    with _quiet():  # torch.jit is on its way out
        module = torch.jit.load(str(path), _extra_files=extra)
    return json.loads(extra[EXTRA_FILE] or '{}'), _on_tensors(module)


def _read_torch_export(path):
    extra = {EXTRA_FILE: ''}
    program = torch.export.load(path, extra_files=extra)
    return json.loads(extra[EXTRA_FILE] or '{}'), _on_tensors(program.module())


def _on_tensors(module):
    def run(images):
        with torch.no_grad():
            return [output.numpy() for output in module(torch.from_numpy(images))]

    return run


READERS = {
    'onnx': _read_onnx,
    'torchscript': _read_torchscript,
    'torch-export': _read_torch_export,
}


# --- comparing -----------------------------------------------------------------------------------


def compare(exported, graph, shape, batches):
    """{output: largest difference between the two on random crops, in standard deviations}.

    Args:
        exported: Exported. graph: Graph in fp32. shape: (_, 3, height, width) of the crops.
        batches: sizes of the batches that are tried.
    """
    generator = torch.Generator().manual_seed(0)
    wanted, found = [], []
    for batch in batches:
        images = torch.randn((batch, *shape[1:]), generator=generator)
        with torch.no_grad():
            wanted.append(graph(images))
        found.append(exported(images.numpy()))
    errors = {}
    for index, name in enumerate(graph.outputs):
        ours = torch.cat([each[index] for each in wanted])
        theirs = torch.cat([torch.from_numpy(each[name]) for each in found])
        errors[name] = ((ours - theirs).abs().max() / ours.std()).item()
    return errors


def format_errors(errors):
    """'heatmaps 3.1e-06, ...'"""
    return ', '.join(f'{name} {error:.1e}' for name, error in errors.items())
