"""Networks to predict with: a module, a deployed module and an exported file, called alike.

    network = ExportedNetwork('VMPose-T-S2.onnx', 'cuda')
    heatmaps = network(images)['heatmaps']

An exported file runs in onnxruntime, OpenVINO or torch; the modules it was made of are never built.
Files of torch are programs, whose author decides what they do, so that they need `trust`.
"""

import functools
import json
import warnings
import zipfile
from collections.abc import Collection
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..files.optional import need
from ..ops.thread_choice import ThreadChoice
from .graph import make_graph

FORMATS = {'onnx': '.onnx', 'torchscript': '.pt', 'torch-export': '.pt2'}  # and their suffixes
EXTRA_FILE = 'trunchier.json'  # metadata in torch's formats
INPUT = 'images'


class ExportError(RuntimeError):
    """A format cannot hold a model, a runtime cannot run it, or its outputs differ."""


class Network(Protocol):
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Outputs of normalized crops.

        Args:
            images: (B, 3, H, W), float32.

        Returns:
            {name: (B, ...) float32 tensor on the device of `images`}: `heatmaps` of a pose model;
            `global_orient`, `body_pose`, `betas` and `camera` of a mesh model.
        """


class ModuleNetwork:
    """An estimator in torch, deployed or not, as a `Network`.

    Args:
        model: put into eval mode.
        with_body: mesh models also return vertices, joints and keypoints.

    Raises:
        ValueError: an estimator of another kind than those that can be exported.
    """

    def __init__(self, model: nn.Module, with_body: bool = False):
        self.graph = make_graph(model, with_body)
        self.threads = ThreadChoice()

    @torch.no_grad()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        with self.threads.step(len(images)) if images.is_cpu else nullcontext():
            outputs = self.graph(images)
        return {name: x.float() for name, x in zip(self.graph.outputs, outputs, strict=True)}


class ExportedNetwork:
    """A file written by `export`, as a `Network`.

    Batches that are larger than a file's fixed batch of one run one by one.

    Args:
        path: .onnx, .pt (TorchScript) or .pt2 (torch.export).
        device: where it runs. On CUDA an .onnx file requires onnxruntime-gpu.
        name: expected model; None accepts any.
        trust: also read files of torch, which may run any code of their author.
        runtime: key of RUNTIMES; None: onnxruntime for .onnx, torch for its own files.
        precision: 'bf16': OpenVINO computes in bfloat16; 'fp32': in that of the file, never lower.

    Attributes:
        metadata: plain data, see docs/export.md.
        runtime: name of what runs it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, another model, a runtime of other files, or bf16 in
            another runtime than OpenVINO.
        ExportError: a program without `trust`, or the runtime cannot run the file.
        RuntimeError: the runtime does not run on `device` here, or this CPU has no bfloat16.
        ImportError: the runtime is not installed.
    """

    def __init__(
        self,
        path: str | Path,
        device: str | torch.device = 'cpu',
        name: str | None = None,
        trust: bool = False,
        runtime: str | None = None,
        precision: str = 'fp32',
    ):
        path, self.device = Path(path), torch.device(device)
        if not path.is_file():
            raise FileNotFoundError(f'no exported model {path} (from {Path.cwd()})')
        if path.suffix not in READERS:
            raise ValueError(f'{path} ends in none of {", ".join(READERS)}')
        if runtime is not None and path.suffix not in RUNTIMES.get(runtime, ()):
            able = [name for name, suffixes in RUNTIMES.items() if path.suffix in suffixes]
            raise ValueError(f'{path} does not run in {runtime!r}; choose {" or ".join(able)}')
        if path.suffix != FORMATS['onnx'] and not trust:
            raise ExportError(
                f'{path} is a program of torch, which may run code and write files; exchange '
                'models as ONNX (.onnx) or, if you trust its author, say trust=True (--trust)'
            )
        self.runtime, reader = READERS[path.suffix]
        if runtime == 'openvino':
            self.runtime, reader = runtime, partial(_read_openvino, precision=precision)
        elif precision != 'fp32':
            raise ValueError(
                f'{path} has the precision that it was exported in, not {precision}, which '
                f'{self.runtime} cannot change; of .onnx files, OpenVINO computes in bf16'
            )
        self.path = path
        self.metadata, self._run = reader(path, self.device)
        for key, kind in dict(task=str, model=str, dynamic_batch=bool, outputs=dict | list).items():
            if not isinstance(self.metadata.get(key), kind):
                raise ValueError(f'{path} was not written by trunchier: no {key} in its metadata')
        found = self.metadata['model']
        if name not in (None, found):
            raise ValueError(f'{path} is {found}, not {name}; name the model that was exported')

    @torch.no_grad()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        crops = images.float().to(self.device)
        step = len(crops) if self.metadata['dynamic_batch'] else 1
        try:
            parts = [self._run(part) for part in crops.split(step)]
            outputs = (torch.cat(part).to(images.device) for part in zip(*parts, strict=True))
            return dict(zip(self.metadata['outputs'], outputs, strict=True))
        except Exception as error:  # onnxruntime's exceptions have no common class
            raise ExportError(f'{self.path} cannot run {tuple(crops.shape)}: {error}') from error


def compute_by(model: nn.Module, network: Network, outputs: Collection[str]) -> None:
    """Let a network compute what an estimator's backbone, neck and head do, in place.

    What comes before and after, such as flipped images, decoding and the body, stays the model's.

    Args:
        model: estimator of crops. network: on the device of the crops.
        outputs: of the network.

    Raises:
        ValueError: the network has other outputs than the model's head.
    """
    needed = make_graph(model).outputs
    if not {*needed} <= {*outputs}:
        raise ValueError(
            f'the network gives {", ".join(outputs)}; a {type(model).__name__} needs '
            f'{", ".join(needed)}: give the file of a model of this config'
        )
    model.backbone = _Crops()
    if hasattr(model, 'neck'):
        del model.neck

    def head(features: Tensor | tuple[Tensor, ...]) -> Any:
        found = network(features if isinstance(features, Tensor) else features[-1])
        return found['heatmaps'] if 'heatmaps' in needed else found

    model.head.forward = head


class _Crops(nn.Module):
    def forward(self, images):
        return (images,)


def is_exported(path: str | Path) -> bool:
    """Whether a file holds a network, as `export` writes it, and not only weights."""
    path = Path(path)
    if path.suffix != FORMATS['torchscript']:
        return path.suffix in READERS
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith(f'/extra/{EXTRA_FILE}') for name in archive.namelist())


# --- readers: (path, device) -> metadata, function of crops that returns a list of tensors --------
def _read_onnx(path, device):
    onnxruntime = need('onnxruntime', 'reading .onnx files')
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    providers = onnx_providers(device)
    try:
        session = onnxruntime.InferenceSession(path, options, providers=providers)
    except Exception as error:  # onnxruntime's exceptions have no common class
        raise ExportError(f'onnxruntime cannot run {path.name} on {device}: {error}') from error
    if session.get_providers()[0] != providers[0][0]:  # its libraries did not load
        raise RuntimeError(_no_provider(device, f'{providers[0][0]} does not load'))
    metadata = _parsed(session.get_modelmeta().custom_metadata_map)

    def run(images):
        return [torch.from_numpy(each) for each in session.run(None, {INPUT: images.cpu().numpy()})]

    return metadata, run


def _read_openvino(path, device, precision='fp32'):
    remedy = "pip install 'trunchier[openvino]', or take onnxruntime"
    openvino = need('openvino', 'running .onnx files in OpenVINO', remedy)
    if device.type != 'cpu':
        raise RuntimeError(f'OpenVINO runs on the CPU, not on {device}; take onnxruntime there')
    if precision not in OPENVINO_TYPES:
        raise ValueError(f'OpenVINO computes in {" or ".join(OPENVINO_TYPES)}, not in {precision}')
    core = openvino.Core()
    if precision == 'bf16' and 'BF16' not in core.get_property('CPU', 'OPTIMIZATION_CAPABILITIES'):
        raise RuntimeError('OpenVINO has no bfloat16 on this CPU; take precision fp32')
    try:
        model = core.read_model(path)
    except Exception as error:  # as onnxruntime's
        raise ExportError(f'OpenVINO cannot read {path.name}: {error}') from error
    # By itself OpenVINO takes bfloat16 or float16 where a CPU has it, however inexact.
    settings = dict(
        INFERENCE_PRECISION_HINT=OPENVINO_TYPES[precision],
        PERFORMANCE_HINT='LATENCY',
        INFERENCE_NUM_THREADS=torch.get_num_threads(),
    )
    shape = model.input(0).partial_shape

    @functools.cache
    def compiled(batch):
        graph = model.clone()
        if batch:
            graph.reshape([batch, *shape[1:]])
        return core.compile_model(graph, 'CPU', settings)

    def run(images):
        # A graph of one crop takes 0.84 to 0.94 of the time of one for any number.
        network = compiled(1 if len(images) == 1 and shape[0].is_dynamic else None)
        return [torch.tensor(each) for each in network([images.numpy()]).to_tuple()]

    facts = model.get_rt_info()
    texts = facts['framework'].items() if 'framework' in facts else ()
    return _parsed({key: text.value for key, text in texts}), run


def _parsed(texts):
    """Metadata of an ONNX file; empty if it is not one of ours."""
    try:
        return {key: json.loads(text) for key, text in texts.items()} if 'task' in texts else {}
    except (ValueError, RecursionError):
        return {}


def onnx_providers(device: str | torch.device) -> list[tuple[str, dict[str, Any]]]:
    """Execution providers of onnxruntime for a device, with their options.

    Raises:
        RuntimeError: the installed onnxruntime does not support the device.
    """
    import onnxruntime

    device = torch.device(device)
    if device.type == 'cpu':
        return [('CPUExecutionProvider', {})]
    provider = f'{device.type.upper()}ExecutionProvider'
    if provider not in onnxruntime.get_available_providers():
        raise RuntimeError(_no_provider(device, f'this onnxruntime has no {provider}'))
    return [(provider, dict(device_id=device.index or 0))]


def _no_provider(device, reason):
    return (
        f'cannot run .onnx files on {device}: {reason}; replace onnxruntime by onnxruntime-gpu '
        "(pip uninstall onnxruntime; pip install onnxruntime-gpu), or use device='cpu'"
    )


def _read_torchscript(path, device):
    extra = {EXTRA_FILE: ''}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # torch.jit is deprecated
        module = torch.jit.load(str(path), map_location=device, _extra_files=extra)
        if device.type != 'cpu':
            module = _move_constants(module, device)
    return json.loads(extra[EXTRA_FILE] or '{}'), module


def _move_constants(module, device):
    """Replace the devices that tracing wrote into a graph as constants."""

    def constants(graph):
        nodes = graph.findAllNodes('prim::Constant')
        return [node for node in nodes if node.output().type().kind() == 'DeviceObjType']

    one = torch.ones((), device=device)
    traced = torch.jit.trace(lambda x: x + torch.ones((), device=device), one, check_trace=False)
    module = torch.jit.freeze(module.eval())
    for node in constants(module.graph):
        node.copyAttributes(constants(traced.graph)[0])
    return module


def _read_torch_export(path, device):
    extra = {EXTRA_FILE: ''}
    program = torch.export.load(path, extra_files=extra)
    if device.type != 'cpu':
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, device)
    return json.loads(extra[EXTRA_FILE] or '{}'), program.module()


READERS = {
    '.onnx': ('onnxruntime', _read_onnx),
    '.pt': ('torchscript', _read_torchscript),
    '.pt2': ('torch.export', _read_torch_export),
}
OPENVINO_TYPES = {'fp32': 'f32', 'bf16': 'bf16'}
RUNTIMES = {'onnxruntime': ('.onnx',), 'openvino': ('.onnx',), 'torch': ('.pt', '.pt2')}
