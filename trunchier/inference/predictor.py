"""Prediction as pure functions of images and boxes: no threads, no files, no state between frames.

    predictor = PosePredictor.load(find('VMPose-T-S2'))
    crops = [predictor.crop(image, box) for box in boxes]
    people = predictor.decode(predictor.forward(crops), crops)

Servers and batch jobs use a predictor alone; `run.Run` adds threads, tracking and files.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from mmengine.model import revert_sync_batchnorm
from torch import Tensor

from ..deploy.fuse import AUTO, DEPLOYED, deploy
from ..deploy.lower import PRECISIONS
from ..deploy.precision import fastest_on_people
from ..deploy.runtime import ExportedNetwork, ModuleNetwork, Network, is_exported
from ..deploy.runtime_choice import CHOICES, MEASURED, network_on_cpu, runtime_of_file
from ..weights.find import Found, build_model, pick_device
from ..weights.load import load_checkpoint
from . import topdown

if TYPE_CHECKING:
    from mmengine.config import Config
    from torch import nn
    from typing_extensions import Self

    from ..models.mesh.body import BodyModel
    from .windows import WindowModel

log = logging.getLogger(__name__)


@dataclass
class Crop:
    """The part of an image around a person."""

    pixels: Tensor  # (3, h, w), BGR, 0..255
    center: np.ndarray  # (2,), of the box that the crop shows, pixels of the image, x before y
    size: np.ndarray  # (2,), of the same
    shape: tuple[int, int]  # (H, W) of the image
    focal: float | None = None  # focal length of the image by EXIF, pixels
    box: np.ndarray | None = None  # (4,), of the person, xyxy, pixels of the image

    @classmethod
    def of_box(cls, box: np.ndarray, shape: tuple[int, int], focal: float | None = None) -> Crop:
        """Where a person is, without pixels."""
        return cls(torch.empty(0), (box[:2] + box[2:]) / 2, box[2:] - box[:2], shape, focal, box)


class Output(NamedTuple):
    """Tensors of a batch, perhaps still on their way from the GPU until `wait` returns."""

    tensors: dict[str, Tensor]
    wait: Callable[[], Any]


class Predictor:
    """Base class: a network, with what comes before and after it.

    A subclass crops (`crop_box`), computes tensors from normalized crops (`compute`) and turns them
    into people (`people`).

    Args:
        cfg: config of the model.
        network: module, deployed module or exported file, see `deploy.runtime`.
        device: of the network.
        precision: 'fp32', 'int8' (CPU), 'bf16' or 'fp16' (autocast).
        dataset_meta: mmpose's metainfo of the keypoints.

    Attributes:
        fields: shapes of one predicted person's arrays, by name.
        smoothed: fields to smooth in videos.
        faces: (F, 3) of the bodies, or None.
        body: that is posed, or None.
        has_meshes: whether there are such bodies.
        finds_people: whether a crop is the whole image, and its prediction a list of people, each
            with a `box` (5,): xyxy and score.
        windows: that follow in a run: `windows.WindowModel`, or None.
        causal: whether these see past frames alone; None: of cameras.
        keypoint_names: of the keypoints, in order.
        settings: options that the results depend on, as plain data.
        painter_type: class of what `painter` returns.
    """

    smoothed: ClassVar[tuple[str, ...]] = ()
    painter_type: ClassVar[type]
    has_meshes: ClassVar[bool] = False
    finds_people: ClassVar[bool] = False
    windows: WindowModel | None = None
    causal: bool | None = None
    keypoint_names: tuple[str, ...] = ()
    faces: np.ndarray | None = None
    body: BodyModel | None = None
    fields: dict[str, tuple[int, ...]]
    settings: dict[str, Any]

    def __init__(
        self,
        cfg: Config,
        network: Network,
        device: str | torch.device = 'cpu',
        precision: str = 'fp32',
        dataset_meta: dict | None = None,
    ):
        self.cfg, self.network, self.device = cfg, network, torch.device(device)
        self.precision, self.dtype = precision, PRECISIONS.get(precision, torch.float32)
        self.dataset_meta = dataset_meta
        preprocessor = cfg.model.get('data_preprocessor') or {}
        self.mean, self.std = (
            torch.tensor(preprocessor.get(name) or default, device=self.device).view(-1, 1, 1)
            for name, default in (('mean', 0.0), ('std', 1.0))
        )
        self.swaps_channels = preprocessor.get('bgr_to_rgb') or preprocessor.get('rgb_to_bgr')

    @classmethod
    def load(
        cls,
        found: Found,
        device: str = 'auto',
        precision: str = 'fp32',
        trust: bool = False,
        runtime: str | None = None,
        **options: Any,
    ) -> Self:
        """The predictor of a model and its weights.

        Args:
            found: from `weights.find.find`, with weights: a checkpoint or an exported model.
            device, options: see the class. precision: as there, or 'auto' (CPU): the fastest here,
                see `deploy.precision`.
            trust: of exported files, see `ExportedNetwork`.
            runtime: 'torch', 'onnxruntime', 'openvino'; 'auto' (CPU): the fastest here, see
                `deploy.runtime_choice`; 'measured': that one if it is known, else the default;
                None: the default, torch, of .onnx files onnxruntime.

        Raises:
            ValueError: unknown device, precision or runtime, or an exported file of another model.
            CheckpointError: weights of another model.
        """
        if precision not in (*DEPLOYED, AUTO):
            names = ', '.join((*DEPLOYED, AUTO))
            raise ValueError(f'precision must be one of {names}, got {precision!r}')
        if runtime not in (None, *CHOICES):
            raise ValueError(f'runtime must be one of {", ".join(CHOICES)}, got {runtime!r}')
        kind, estimator = found.cfg.model.type, found.row.estimator
        if kind != estimator:
            raise ValueError(
                f'{found.name} is a {kind}; {cls.__name__} runs a {estimator}. For other models: '
                'mmpose.apis.MMPoseInferencer'
            )
        device, weights = pick_device(device), found.required_weights()
        if precision in ('int8', AUTO) and device.type != 'cpu':
            raise ValueError(f'precision {precision} is for CPU, not {device}; take fp16 there')
        if is_exported(weights):
            if precision in ('int8', AUTO):
                raise ValueError(
                    f'{weights} has the precision that it was exported in, not {precision}'
                )
            onnx = weights.suffix == '.onnx'
            if onnx and precision == 'bf16' and runtime == AUTO:
                runtime = 'openvino'  # no other one has it
            elif runtime in (AUTO, MEASURED):
                runtime = runtime_of_file(weights, runtime) if device.type == 'cpu' else None
            computed = precision if onnx else 'fp32'  # files of torch run under autocast
            network = ExportedNetwork(weights, device, found.name, trust, runtime, computed)
            predictor = cls(found.cfg, network, device, precision, **options)
            if onnx:
                predictor.dtype = torch.float32
            return predictor
        model = cls.build(found.cfg)
        if any('SyncBatchNorm' in type(each).__name__ for each in model.modules()):
            model = revert_sync_batchnorm(model)  # looks into mmcv, which takes 0.1 s
        meta = load_checkpoint(model, weights, renames=found.renames, expert=found.expert)
        deployed = device.type == 'cpu' and precision in ('fp32', 'int8', AUTO)
        if precision == AUTO:
            precision = fastest_on_people(found, model, meta)
            log.info('precision %s, the fastest here', precision)
        crops = device.type == 'cpu' and isinstance(cls.as_network(model), ModuleNetwork)
        if not crops and runtime in ('onnxruntime', 'openvino'):
            raise ValueError(f'{found.name} does not run in {runtime} on {device}; take torch')
        exported = network_on_cpu(found, model, precision, runtime, meta) if crops else None
        if deployed and exported is None:  # autocast is faster without
            model = deploy(model, inplace=True, precision=precision)
        network = exported or cls.as_network(model.to(device).eval())
        predictor = cls(found.cfg, network, device, precision, meta, **options)
        if exported:
            predictor.settings['runtime'] = exported.runtime
        if deployed or exported:
            predictor.dtype = torch.float32  # without autocast: the network casts
        return predictor

    @staticmethod
    def build(cfg: Config) -> nn.Module:
        """The model of a config, on the CPU, in eval mode, with random weights."""
        return build_model(cfg, preprocesses=False)

    @staticmethod
    def as_network(model: nn.Module) -> Network:
        """What the constructor takes as `network` from a built model."""
        return ModuleNetwork(model)

    def crop(self, image: np.ndarray, box: np.ndarray, focal: float | None = None) -> Crop:
        """Cut a person out of an image of any size.

        Args:
            image: (H, W, 3) uint8 BGR.
            box: (4 or more,), xyxy in pixels.
            focal: focal length of the image by EXIF, pixels, see `files.images.exif_focal`.
        """
        of_image = dict(shape=image.shape[:2], focal=focal, box=box[:4])
        if max(image.shape[:2]) <= topdown.WARP_LIMIT:
            return replace(self.crop_box(image, box), **of_image)
        part, near, factor, corner = topdown.cut_out(image, box)
        crop = self.crop_box(part, near)
        center = (crop.center + 0.5) * factor - 0.5 + corner
        return replace(crop, center=center, size=crop.size * factor, **of_image)

    @torch.no_grad()
    def forward(self, crops: list[Crop]) -> Output:
        """Run the network on a batch. On a GPU the output is still being computed."""
        batch = torch.stack([crop.pixels for crop in crops])
        if self.device.type == 'cuda':
            batch = batch.pin_memory().to(self.device, non_blocking=True)
        low = self.dtype != torch.float32
        with torch.autocast(self.device.type, self.dtype) if low else nullcontext():
            return to_cpu(self.compute(self.normalize(batch)))

    def decode(self, output: Output, crops: list[Crop]) -> list[dict[str, np.ndarray]]:
        """People in the crops of a batch: the arrays `fields` of each, in the whole image."""
        output.wait()
        return self.people(output.tensors, crops)

    # --- what tasks define ---------------------------------------------------------------------

    def crop_box(self, image: np.ndarray, box: np.ndarray) -> Crop:
        """`crop` of images that OpenCV can warp."""
        raise NotImplementedError

    def compute(self, images: Tensor) -> dict[str, Tensor]:
        """Tensors that `people` needs from (B, 3, h, w) normalized crops."""
        raise NotImplementedError

    def people(self, tensors: dict[str, Tensor], crops: list[Crop]) -> list:
        """`decode` of tensors on the CPU."""
        raise NotImplementedError

    def metainfo(self, shape: tuple[int, int], focal: float | None = None) -> dict[str, np.ndarray]:
        """What the results of an image say about it.

        Args:
            shape: (H, W). focal: by EXIF, pixels.
        """
        return {}

    def derived(self, fields: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Fields (P, ...) that follow from smoothed ones."""
        return {}

    def painter(self, **options: Any) -> Callable:
        """Function of an image and its PoseDataSample that draws the result."""
        raise NotImplementedError

    def normalize(self, images: Tensor) -> Tensor:
        """(B, 3, h, w), 0..255, as the config's data preprocessor."""
        if self.swaps_channels:
            images = images[:, [2, 1, 0]]
        return (images.float() - self.mean) / self.std


def checked(tensors: dict[str, Tensor], shapes: dict[str, tuple], count: int) -> dict[str, Tensor]:
    """Those outputs of a network that `shapes` names.

    Args:
        shapes: of an output for each of `count` crops; None stands for any size.

    Raises:
        ValueError: the network, as of an exported file, gives others.
    """
    for name, shape in shapes.items():
        found = tuple(tensors[name].shape) if name in tensors else None
        expected = (count, *shape)
        if (
            found is None
            or len(found) != len(expected)
            or any(wanted not in (size, None) for size, wanted in zip(found, expected, strict=True))
        ):
            raise ValueError(f'the network gives {name} of shape {found}; expected {expected}')
    return {name: tensors[name] for name in shapes}


def to_cpu(tensors: dict[str, Tensor]) -> Output:
    """Start copying tensors to the CPU, as float32."""
    tensors = {name: tensor.detach().float() for name, tensor in tensors.items()}
    if not any(tensor.is_cuda for tensor in tensors.values()):
        return Output({name: tensor.cpu() for name, tensor in tensors.items()}, lambda: None)
    copies = {n: torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for n, t in tensors.items()}
    for name, tensor in tensors.items():
        copies[name].copy_(tensor, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return Output(copies, event.synchronize)
