"""One encoder, a head for each data set: ViTPose's training on several data sets, and ViTPose++.

The loss of a head is that of the authors (TopDownMoE): targets and weights of samples of other data
sets are zero, and the mean is over the whole batch. Their released configuration does not train
(all targets are padded to 133 keypoints, heads are not); here each target has its own keypoints.
"""

from contextlib import contextmanager
from typing import Any

import torch
from mmengine.model import BaseModule, ModuleDict
from mmengine.registry import MODELS
from mmengine.structures import InstanceData, PixelData
from mmpose.models import TopdownPoseEstimator
from mmpose.structures import PoseDataSample
from torch import Tensor

NAME = 'dataset_name'  # of a sample's metainfo: `dataset_name` of its data set's metainfo


class MultiDatasetHead(BaseModule):
    """Heads by data set, of which each sample is for one.

    Args:
        heads: {`dataset_name` of a data set's metainfo: config of mmpose's HeatmapHead}. The order
            is that of experts; predictions of samples without a name are the first head's.

    Raises:
        ValueError: no heads, or a sample of a data set without a head.
    """

    def __init__(self, heads: dict[str, dict[str, Any]], init_cfg: dict | None = None):
        super().__init__(init_cfg)
        if not heads:
            raise ValueError('heads={}; give a head for at least one data set, by its name')
        self.heads = ModuleDict({name: MODELS.build(head) for name, head in heads.items()})
        self.names = tuple(heads)

    def numbers(self, samples: list[PoseDataSample]) -> list[int]:
        """Number of the data set of each sample, in the order of `heads`."""
        found = [sample.metainfo.get(NAME, self.names[0]) for sample in samples]
        unknown = sorted(set(found) - set(self.names))
        if unknown:
            raise ValueError(
                f'no head for the data set {unknown[0]!r}; there are {", ".join(self.names)}: add '
                f'one to `heads`, or set {NAME} in the metainfo of the data set'
            )
        return [self.names.index(name) for name in found]

    def forward(self, feats: tuple[Tensor, ...]) -> Tensor:
        """Heatmaps of the first data set, (B, K, H, W)."""
        return self.heads[self.names[0]](feats)

    def loss(
        self,
        feats: tuple[Tensor, ...],
        samples: list[PoseDataSample],
        train_cfg: dict | None = None,
    ) -> dict[str, Tensor]:
        """`loss_NAME` and `acc_NAME` of each data set; the losses of absent ones are 0."""
        numbers, losses = self.numbers(samples), {}
        for number, (name, head) in enumerate(self.heads.items()):
            chosen = [n == number for n in numbers]
            own = self._masked(samples, chosen, head)
            for key, value in head.loss(feats, own, train_cfg=train_cfg or {}).items():
                if 'loss' in key:
                    losses[f'loss_{name}' if key == 'loss_kpt' else f'{key}_{name}'] = value
                elif any(chosen):
                    losses[f'{key}_{name}'] = value
        return losses

    def _masked(self, samples, chosen, head):
        """Samples with the targets of the head; those that are not chosen have zero targets."""
        own = next((s for s, c in zip(samples, chosen, strict=True) if c), samples[0])
        heatmaps, weights = own.gt_fields.heatmaps, own.gt_instance_labels.keypoint_weights
        shape = head.out_channels, *heatmaps.shape[1:]
        if any(chosen) and heatmaps.shape != shape:
            raise ValueError(
                f'targets of {own.metainfo.get(NAME)} have {len(heatmaps)} keypoints, its head '
                f'{head.out_channels}; give the head out_channels={len(heatmaps)}'
            )
        absent = PoseDataSample(metainfo=dict(own.metainfo))
        absent.gt_fields = PixelData(heatmaps=heatmaps.new_zeros(shape))
        absent.gt_instance_labels = InstanceData(
            keypoint_weights=weights.new_zeros(len(weights), head.out_channels)
        )
        return [s if c else absent for s, c in zip(samples, chosen, strict=True)]

    def predict(
        self, feats: Any, samples: list[PoseDataSample], test_cfg: dict | None = None
    ) -> Any:
        """As a HeatmapHead's, each sample by the head of its data set."""
        numbers, test_cfg = self.numbers(samples), test_cfg or {}
        is_flipped = test_cfg.get('flip_test', False)
        results = [None] * len(samples)
        for number in sorted(set(numbers)):
            places = [i for i, n in enumerate(numbers) if n == number]
            runs = [tuple(f[places] for f in run) for run in (feats if is_flipped else [feats])]
            found = self.heads[self.names[number]].predict(
                runs if is_flipped else runs[0], [samples[i] for i in places], test_cfg
            )
            pairs = zip(*found, strict=True) if isinstance(found, tuple) else found
            for place, result in zip(places, pairs, strict=True):
                results[place] = result
        if isinstance(results[0], tuple):  # with heatmaps
            return tuple(map(list, zip(*results, strict=True)))
        return results


class MultiDatasetEstimator(TopdownPoseEstimator):
    """A top-down estimator that tells the experts of its backbone the data set of each sample.

    The backbone is a `PlainViT` with experts, the head a `MultiDatasetHead`. Only ViTPose++ needs
    it; heads alone work in mmpose's TopdownPoseEstimator. `trunchier split` makes plain models.
    """

    _datasets: Tensor | None = None  # of the samples of a running `loss` or `predict`, (B,)

    def loss(self, inputs: Tensor, data_samples: list[PoseDataSample]) -> dict[str, Tensor]:
        """Losses of `MultiDatasetHead`."""
        with self._experts_of(inputs, data_samples):
            return super().loss(inputs, data_samples)

    def predict(self, inputs: Tensor, data_samples: list[PoseDataSample]) -> list[PoseDataSample]:
        """Samples with predictions."""
        with self._experts_of(inputs, data_samples):
            return super().predict(inputs, data_samples)

    def extract_feat(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Features of (B, 3, H, W): within `loss` and `predict` by the experts of the samples, else
        by those of the first data set, whose heatmaps the head gives."""
        feats = self.backbone(inputs, 0 if self._datasets is None else self._datasets)
        return self.neck(feats) if self.with_neck else feats

    @contextmanager
    def _experts_of(self, inputs, samples):
        self._datasets = torch.tensor(self.head.numbers(samples), device=inputs.device)
        try:
            yield
        finally:
            self._datasets = None
