"""Everybody in whole images, without boxes: any bottom-up model of mmpose, from its config."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..deploy.graph import keypoint_meta
from ..visualization.overlays import KeypointPainter
from .pose import _pipeline
from .predictor import Crop, Output, Predictor

if TYPE_CHECKING:
    from mmengine.config import Config

KEYPOINT_SCORE = 0.1  # of keypoints that a box holds


class BottomupPredictor(Predictor):
    """2D keypoints of everybody in an image.

    A crop is the whole image, as the config's test pipeline resizes it. A person's box holds the
    keypoints with a score of 0.1 or more.

    Args:
        network: mmpose's BottomupPoseEstimator; exported files are refused.
        flip_test: average with the mirrored image, for twice the time; None: as the config says, as
            in testing.
        score_thr: minimum score of a person, which is the mean of that of the keypoints.
        cfg, device, precision, dataset_meta: see `Predictor`.
    """

    smoothed = ('keypoints',)
    painter_type = KeypointPainter
    finds_people = True

    def __init__(
        self,
        cfg: Config,
        network: nn.Module,
        *common: Any,
        flip_test: bool | None = False,
        score_thr: float = 0.3,
        **options: Any,
    ):
        super().__init__(cfg, network, *common, **options)
        if not isinstance(network, nn.Module):
            raise ValueError('bottom-up models are not exported; give a checkpoint')
        self.dataset_meta = self.dataset_meta or keypoint_meta(cfg)
        self.pipeline, self.score_thr = _pipeline(cfg), score_thr
        self.settings = dict(flip_test=flip_test)
        network.test_cfg = dict(network.test_cfg or {}, output_heatmaps=False)
        if flip_test is not None:
            network.test_cfg['flip_test'] = flip_test
        count = self.dataset_meta['num_keypoints']
        names = self.dataset_meta.get('keypoint_id2name', {})
        self.keypoint_names = tuple(names.get(index, str(index)) for index in range(count))
        self.fields = dict(keypoints=(count, 2))
        self.fields |= dict.fromkeys(('keypoint_scores', 'keypoints_visible'), (count,))

    @staticmethod
    def as_network(model: nn.Module) -> nn.Module:
        return model

    def crop_box(self, image: np.ndarray, box: np.ndarray) -> Crop:
        data = self.pipeline(dict(img=image, **self.dataset_meta))
        sample = data['data_samples']
        return Crop(data['inputs'], sample.input_center, sample.input_scale, image.shape[:2])

    @torch.no_grad()
    def forward(self, crops: list[Crop]) -> Output:
        people: list = [None] * len(crops)
        for shape in {crop.pixels.shape for crop in crops}:  # images of one size are a batch
            places = [i for i, crop in enumerate(crops) if crop.pixels.shape == shape]
            found = self._predict([crops[i] for i in places])
            for place, each in zip(places, found, strict=True):
                people[place] = each
        return Output(dict(people=people), lambda: None)

    def _predict(self, crops):
        from mmpose.structures import PoseDataSample

        samples = [
            PoseDataSample(
                metainfo=dict(
                    input_size=crop.pixels.shape[:0:-1],
                    img_shape=crop.pixels.shape[1:],
                    ori_shape=crop.shape,
                    input_center=crop.center,
                    input_scale=crop.size,
                    flip_indices=self.dataset_meta['flip_indices'],
                    skeleton_links=self.dataset_meta.get('skeleton_links'),
                )
            )
            for crop in crops
        ]
        images = torch.stack([crop.pixels for crop in crops]).to(self.device)
        low = self.dtype != torch.float32
        with torch.autocast(self.device.type, self.dtype, enabled=low):
            found = self.network.predict(self.normalize(images), samples)
        return [sample.pred_instances for sample in found]

    def people(self, tensors: dict[str, Any], crops: list[Crop]) -> list:
        """For each image its people, the best first."""
        return [self._people(instances) for instances in tensors['people']]

    def _people(self, instances):
        arrays = (instances[name] for name in (*self.fields, 'bbox_scores'))
        *arrays, scores = (np.asarray(each, np.float32) for each in map(to_array, arrays))
        people = []
        for index in np.argsort(-scores, kind='stable'):
            if scores[index] < self.score_thr:
                break
            person = dict(zip(self.fields, (each[index] for each in arrays), strict=True))
            box = keypoint_box(person['keypoints'], person['keypoint_scores'])
            people.append(dict(person, box=np.float32([*box, scores[index]])))
        return people

    def painter(self, **options: Any) -> KeypointPainter:
        return KeypointPainter(self.dataset_meta, **options)


def to_array(values: Tensor | np.ndarray) -> np.ndarray:
    """The same in numpy: heads of mmpose return either."""
    return values.float().cpu().numpy() if isinstance(values, Tensor) else values


def keypoint_box(keypoints: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Box (4,), xyxy, of the keypoints (K, 2) with a score (K,) of 0.1 or more, else of all."""
    seen = scores >= min(KEYPOINT_SCORE, scores.max())
    return np.concatenate([keypoints[seen].min(0), keypoints[seen].max(0)])
