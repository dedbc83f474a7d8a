"""Poses of an exported .onnx file by numpy, onnxruntime and OpenCV alone, without torch.

The command takes this way on the CPU; `PosePredictor` runs the same file to the same numbers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from .. import zoo
from ..files import local_file, need
from ..visualization.overlays import KeypointPainter
from . import topdown
from .detection import onnx_session

INPUT = 'images'  # name of the input of exported files


class ExportedModel(NamedTuple):
    """An exported file that needs no torch: as `weights.find.Found`, with a session and metadata.

    Attributes:
        name: of the model.
        weights: path of the file.
        session: onnxruntime's.
        metadata: plain data, see docs/export.md.
    """

    name: str
    weights: Path
    session: Any
    metadata: dict[str, Any]
    notes: tuple[str, ...] = ()
    smpl: bool = False

    @property
    def row(self) -> zoo.Task:
        """Row of its task, whose predictor is one without torch."""
        row = zoo.TASKS[self.metadata['task']]
        return row._replace(predictor=row.exported)

    def required_weights(self) -> Path:
        return self.weights


def exported_models(
    models: Sequence[str], weights: Sequence[str | Path], device: str, **options: Any
) -> list[ExportedModel] | None:
    """The models of exported files; None: at least one of them needs torch, which says more.

    Args:
        models: names; none: those of the files. weights: paths or addresses.
        device: as the command takes it.
        options: others of the command; each that is set needs torch.
    """
    if any(options.values()) or not weights or len(models) not in (0, len(weights)):
        return None
    if any(Path(file).suffix != '.onnx' for file in weights) or device not in ('auto', 'cpu'):
        return None
    if not all(str(file).startswith('http') or Path(file).is_file() for file in weights):
        return None
    available = need('onnxruntime', 'reading .onnx files').get_available_providers()
    if device == 'auto' and 'CUDAExecutionProvider' in available:
        return None
    found = [_exported(local_file(file)) for file in weights]
    for each, name in zip(found, models or [None] * len(found), strict=True):
        if each is None or name is not None and name.lower() != each.name.lower():
            return None
    return found


def _exported(path):
    try:
        session = onnx_session(path, 'cpu')
        texts = session.get_modelmeta().custom_metadata_map
        metadata = {key: json.loads(text) for key, text in texts.items()}
        row = zoo.TASKS[metadata['task']]
        codec = metadata['codec']
        plain = codec['type'] == 'UDPHeatmap'
        plain = plain and codec.get('heatmap_type', 'gaussian') == 'gaussian'
        if row.exported and plain and metadata['udp'] and 'heatmaps' in metadata['outputs']:
            found = ExportedModel(metadata['model'], path, session, metadata)
            ExportedPose(found)  # reads the rest
            return found
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return None  # torch's way says what is wrong with it
    return None


@dataclass
class Crop:
    """The part of an image around a person, see `predictor.Crop`; pixels (3, h, w) uint8."""

    pixels: np.ndarray
    center: np.ndarray
    size: np.ndarray
    shape: tuple[int, int]


class ExportedPose:
    """2D keypoints of people, by an exported file: the interface of `predictor.Predictor`.

    Args:
        found: the file.
        flip_test: average with the mirrored image, for twice the time.
    """

    smoothed: ClassVar[tuple[str, ...]] = ('keypoints',)
    painter_type = KeypointPainter
    precision: ClassVar[str] = 'fp32'
    has_meshes: ClassVar[bool] = False
    finds_people: ClassVar[bool] = False
    faces = body = None

    def __init__(self, found: ExportedModel, flip_test: bool | None = False):
        facts, self.session = found.metadata, found.session
        names = facts['keypoint_names']
        width, height = facts['input_size']
        self.crops = topdown.Crops.of(facts['box_padding'], (width, height))
        self.codec = topdown.Codec(facts['codec'])
        self.flip_test, self.settings = bool(flip_test), dict(flip_test=flip_test)
        self.flip_indices = facts['flip_indices']
        self.mean, self.std = (
            np.array(facts[name], np.float32).reshape(-1, 1, 1) for name in ('mean', 'std')
        )
        self.order = slice(None, None, -1) if facts['channels'] == 'RGB' else slice(None)
        self.batch = None if facts['dynamic_batch'] else 1
        self.output = list(facts['outputs']).index('heatmaps')
        self.keypoint_names = tuple(names)
        self.dataset_meta = dict(
            num_keypoints=len(names),
            keypoint_id2name=dict(enumerate(names)),
            flip_indices=self.flip_indices,
            skeleton_links=[tuple(link) for link in facts['skeleton']],
        )
        self.fields: dict[str, tuple[int, ...]] = dict(keypoints=(len(names), 2))
        self.fields |= dict(keypoint_scores=(len(names),), keypoints_visible=(len(names),))

    @classmethod
    def load(
        cls,
        found: ExportedModel,
        device: str = 'cpu',
        precision: str = 'fp32',
        trust: bool = False,
        runtime: str | None = None,
        flip_test: bool | None = False,
    ) -> ExportedPose:
        """See `Predictor.load`; `exported_models` has checked device, precision and runtime."""
        return cls(found, flip_test)

    def crop(self, image: np.ndarray, box: np.ndarray, focal: float | None = None) -> Crop:
        """See `Predictor.crop`."""
        shape = image.shape[:2]
        if max(shape) <= topdown.WARP_LIMIT:
            pixels, center, size = self.crops(image, box[:4])
        else:
            part, near, factor, corner = topdown.cut_out(image, box)
            pixels, center, size = self.crops(part, near[:4])
            center, size = (center + 0.5) * factor - 0.5 + corner, size * factor
        return Crop(pixels.transpose(2, 0, 1), center, size, shape)

    def forward(self, crops: list[Crop]) -> np.ndarray:
        """Heatmaps (B, K, h, w)."""
        images = np.stack([crop.pixels[self.order] for crop in crops]).astype(np.float32)
        images = (images - self.mean) / self.std
        heatmaps = self._run(images)
        if self.flip_test:
            mirrored = self._run(np.ascontiguousarray(images[..., ::-1]))
            heatmaps = (heatmaps + mirrored[..., ::-1][:, self.flip_indices]) * np.float32(0.5)
        return heatmaps

    def _run(self, images):
        step = self.batch or len(images)
        parts = [images[i : i + step] for i in range(0, len(images), step)]
        try:
            outputs = [self.session.run(None, {INPUT: part})[self.output] for part in parts]
        except Exception as error:  # onnxruntime's exceptions have no common class
            raise RuntimeError(f'onnxruntime cannot run crops {images.shape}: {error}') from error
        heatmaps = np.concatenate(outputs)
        if heatmaps.ndim != 4 or heatmaps.shape[:2] != (len(images), len(self.keypoint_names)):
            raise ValueError(f'the network gives heatmaps of shape {heatmaps.shape}')
        return heatmaps

    def decode(self, heatmaps: np.ndarray, crops: list[Crop]) -> list[dict[str, np.ndarray]]:
        """People in the crops of a batch: the arrays `fields` of each, in the whole image."""
        people = []
        for maps, crop in zip(heatmaps, crops, strict=True):
            keypoints, scores = self.codec.decode(maps)
            points = keypoints[0] / crop.pixels.shape[:0:-1] * crop.size
            points = np.float32(points + crop.center - 0.5 * crop.size)
            people.append(
                dict(keypoints=points, keypoint_scores=scores[0], keypoints_visible=scores[0])
            )
        return people

    def metainfo(self, shape: tuple[int, int], focal: float | None = None) -> dict[str, Any]:
        """Nothing: poses have no camera."""
        return {}

    def derived(self, fields: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Nothing follows from smoothed keypoints."""
        return {}

    def painter(self, **options: Any) -> KeypointPainter:
        return KeypointPainter(self.dataset_meta, **options)
