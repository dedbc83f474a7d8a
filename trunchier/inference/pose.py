"""2D keypoints: any top-down model of mmpose, from its config."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ..deploy.graph import keypoint_meta
from ..deploy.runtime import ModuleNetwork, Network
from ..files import need
from ..models.heatmaps import plain_pose_model
from ..visualization.overlays import KeypointPainter
from ..weights.find import build_model
from . import topdown
from .inferencer import Inferencer
from .predictor import Crop, Predictor, checked

if TYPE_CHECKING:
    from mmengine.config import Config


class PosePredictor(Predictor):
    """2D keypoints of people.

    Crop, normalization, input size and decoding are those of the config's test pipeline and codec,
    as in mmpose's `TopdownPoseEstimator.predict`.

    Args:
        network: gives `heatmaps` (B, K, h, w); or an mmpose estimator with another head.
        flip_test: average with the mirrored image, for twice the time; None: as the config says, as
            in testing.
        draw_heatmap: put heatmaps into results and drawings.
        cfg, device, precision, dataset_meta: see `Predictor`.
    """

    smoothed = ('keypoints',)
    painter_type = KeypointPainter

    def __init__(
        self,
        cfg: Config,
        network: Network | nn.Module,
        *common: Any,
        flip_test: bool | None = False,
        draw_heatmap: bool = False,
        **options: Any,
    ):
        super().__init__(cfg, network, *common, **options)
        self.dataset_meta = self.dataset_meta or keypoint_meta(cfg)
        self.is_plain = topdown.is_plain(cfg) and not isinstance(network, nn.Module)
        self.crops = topdown.Crops(cfg) if self.is_plain else _pipeline(cfg)
        self.draw_heatmap, self.settings = draw_heatmap, dict(flip_test=flip_test)
        self.test_cfg = dict(cfg.model.get('test_cfg') or {}, output_heatmaps=draw_heatmap)
        if flip_test is not None:
            self.test_cfg['flip_test'] = flip_test
        self.flip_test = bool(self.test_cfg.get('flip_test'))
        flips = self.test_cfg, self.dataset_meta['flip_indices']
        if isinstance(network, nn.Module):
            self.network = Undecoded(network, *flips)
        else:
            codec = cfg.model.head.decoder
            codec = topdown.Codec(codec) if self.is_plain else _codec(codec)
            self.network = Heatmaps(network, codec, *flips)
        self.kept = self.test_cfg.get('output_keypoint_indices')
        if self.kept:
            self.dataset_meta = kept_meta(self.dataset_meta, self.kept)
        count = self.dataset_meta['num_keypoints']
        names = self.dataset_meta.get('keypoint_id2name', {})
        self.keypoint_names = tuple(names.get(index, str(index)) for index in range(count))
        self.fields = dict(keypoints=(count, 2))
        self.fields |= dict.fromkeys(('keypoint_scores', 'keypoints_visible'), (count,))

    @staticmethod
    def build(cfg: Config) -> nn.Module:
        """mmpose's model, or an equal one without mmpose where the config allows it."""
        plain = topdown.is_plain(cfg)
        return plain_pose_model(cfg.model) if plain else build_model(cfg)

    @staticmethod
    def as_network(model: nn.Module) -> Network | nn.Module:
        """The model itself unless it has mmpose's plain heatmap head."""
        return ModuleNetwork(model) if type(model.head).__name__ == 'HeatmapHead' else model

    def crop_box(self, image: np.ndarray, box: np.ndarray) -> Crop:
        if self.is_plain:
            crop, center, size = self.crops(image, box[:4])
            pixels = torch.from_numpy(np.ascontiguousarray(crop.transpose(2, 0, 1)))
            return Crop(pixels, center, size, image.shape[:2])
        data = dict(img=image, bbox=box[None, :4], bbox_score=np.ones(1), **self.dataset_meta)
        data = self.crops(data)
        sample = data['data_samples']
        return Crop(data['inputs'], sample.input_center, sample.input_scale, image.shape[:2])

    def compute(self, images: Tensor) -> dict[str, Tensor]:
        return self.network(images)

    def people(self, tensors: dict[str, Tensor], crops: list[Crop]) -> list[dict[str, np.ndarray]]:
        kept = self.kept or slice(None)
        people = []
        for index, arrays in enumerate(self.network.decode(tensors)):
            crop = crops[index]
            keypoints, scores, visible = (array[0, kept].copy() for array in arrays)
            fractions = keypoints[:, :2] / crop.pixels.shape[:0:-1]
            keypoints[:, :2] = fractions * crop.size + crop.center - 0.5 * crop.size
            person = dict(keypoints=keypoints, keypoint_scores=scores, keypoints_visible=visible)
            if self.draw_heatmap and 'heatmaps' in tensors:
                from mmpose.structures.utils import revert_heatmap

                heatmaps = tensors['heatmaps'][index][kept]
                person['heatmaps'] = revert_heatmap(heatmaps, crop.center, crop.size, crop.shape)
            people.append(person)
        return people

    def painter(self, **options: Any) -> KeypointPainter:
        return KeypointPainter(self.dataset_meta, **options)


def kept_meta(meta: dict[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """mmpose's metainfo of some of the keypoints, as models of merged data sets give them.

    Args:
        meta: of all keypoints.
        kept: their indices, in the order of the model's output.

    Returns:
        What prediction and drawing need. Of a mirrored pair with one keypoint kept, this is its own
        mirror image.
    """
    place = {index: new for new, index in enumerate(kept)}
    names = meta.get('keypoint_id2name', {})
    names = {new: names.get(index, str(index)) for index, new in place.items()}
    links = [number for number, link in enumerate(meta['skeleton_links']) if {*link} <= {*place}]
    made = dict(
        dataset_name=meta['dataset_name'],
        num_keypoints=len(kept),
        keypoint_id2name=names,
        keypoint_name2id={name: new for new, name in names.items()},
        flip_indices=[place.get(meta['flip_indices'][old], new) for old, new in place.items()],
        num_skeleton_links=len(links),
        skeleton_links=[tuple(place[i] for i in meta['skeleton_links'][n]) for n in links],
    )
    of_keypoints = 'keypoint_colors', 'sigmas', 'dataset_keypoint_weights'
    picked = dict.fromkeys(of_keypoints, list(kept)) | dict(skeleton_link_colors=links)
    return made | {key: np.asarray(meta[key])[i] for key, i in picked.items() if key in meta}


def _pipeline(cfg):
    """The config's test pipeline, in mmpose."""
    from mmengine.dataset import Compose
    from mmengine.registry import init_default_scope

    need('mmpose.datasets.transforms', 'this config')  # registers them
    init_default_scope(cfg.get('default_scope', 'mmpose'))
    return Compose(cfg.test_dataloader.dataset.pipeline)


def _codec(codec):
    return need('mmpose.registry', 'this codec').KEYPOINT_CODECS.build(codec)


class Heatmaps:
    """A network of heatmaps, with a codec and its flip test."""

    def __init__(self, network: Network, codec: Any, test_cfg: dict, flip_indices: list[int]):
        self.network, self.test_cfg, self.flip_indices = network, test_cfg, flip_indices
        self.codec = codec

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        shapes = dict(heatmaps=(len(self.flip_indices), None, None))
        heatmaps = checked(self.network(images), shapes, len(images))['heatmaps']
        if self.test_cfg.get('flip_test'):
            mirrored = self.network(images.flip(-1))['heatmaps']
            heatmaps = (heatmaps + self._mirror(mirrored)) * 0.5
        return dict(heatmaps=heatmaps)

    def _mirror(self, heatmaps):
        if isinstance(self.codec, topdown.Codec):
            return heatmaps.flip(-1)[:, self.flip_indices]
        from mmpose.models.utils.tta import flip_heatmaps

        return flip_heatmaps(
            heatmaps,
            flip_mode=self.test_cfg.get('flip_mode', 'heatmap'),
            flip_indices=self.flip_indices,
            shift_heatmap=self.test_cfg.get('shift_heatmap', False),
        )

    def decode(self, tensors: dict[str, Tensor]) -> Iterator[tuple[np.ndarray, ...]]:
        """Keypoints (1, K, 2) in pixels of the crop, scores and visibilities (1, K), per crop."""
        for heatmaps in tensors['heatmaps'].numpy():
            keypoints, scores = self.codec.decode(heatmaps)
            yield keypoints, scores, scores


class Undecoded:
    """Any other mmpose top-down model, stopped between network and decoding.

    mmpose's `predict` does both. Here `head.decode` of this very model hands over its input, and
    decoding runs later, in another thread. Each thread that predicts has a handover of its own.
    """

    def __init__(self, model: nn.Module, test_cfg: dict, flip_indices: list[int]):
        self.model, self.flip_indices, self.held = model, flip_indices, threading.local()
        model.test_cfg = test_cfg
        model.head.decode = self._hold
        model.add_pred_to_datasample = lambda preds, fields, samples: fields

    def _hold(self, outputs):
        self.held.outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return [InstanceData()] * len(self.held.outputs[0])

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        from mmpose.structures import PoseDataSample

        meta = dict(flip_indices=self.flip_indices, input_size=images.shape[:-3:-1])
        fields = self.model.predict(images, [PoseDataSample(metainfo=meta)] * len(images))
        tensors = {f'output{index}': tensor for index, tensor in enumerate(self.held.outputs)}
        self.held.outputs = ()
        if fields is not None:
            tensors['heatmaps'] = torch.stack([field.heatmaps for field in fields])
        return tensors

    def decode(self, tensors: dict[str, Tensor]) -> Iterator[tuple[np.ndarray, ...]]:
        """See `Heatmaps.decode`."""
        outputs = tuple(tensor for name, tensor in tensors.items() if name.startswith('output'))
        head = self.model.head
        for each in type(head).decode(head, outputs if len(outputs) > 1 else outputs[0]):
            visible = each.get('keypoints_visible', each.keypoint_scores)
            yield each.keypoints, each.keypoint_scores, visible


class PoseInferencer(Inferencer):
    """2D keypoints of people in images, videos and cameras.

    Any top-down config of mmpose works too.

    Args:
        flip_test, draw_heatmap: see `PosePredictor`.
        model, weights, options: see `Inferencer`.
    """

    task = 'pose'
