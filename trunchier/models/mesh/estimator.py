"""HMR2.0 on any backbone: regress a posed SMPL-layout body from the crop of a person.

Goel et al., "Humans in 4D", ICCV 2023; matches hmr2/models/hmr2.py of shubham-goel/4D-Humans.
Deliberate differences: the discriminator's parameters are fixed in the generator's step (there,
their gradients are computed and discarded), a loss that is not finite stops the training, and one
step is one update of the generator (there, of either optimizer).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from mmengine.model import BaseModel, is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import MODELS
from torch import Tensor
from torch.func import functional_call

from ...conventions import FOCAL_LENGTH, IMAGE_SIZE, POSED_FIELDS, TARGETS, person
from ...geometry import (
    axis_angle_to_matrix,
    camera_to_translation,
    perspective_projection,
    seen_columns,
)
from .body import BodyModel
from .losses import AttentionGuide, discriminator_loss, generator_loss

if TYPE_CHECKING:
    from mmpose.structures import PoseDataSample


@MODELS.register_module()
class MeshEstimator(BaseModel):
    """Backbone, neck, head, body model and, for training, loss and discriminator.

    Args:
        backbone, head, neck: configs; a plain ViT has no neck.
        body_model: arguments of BodyModel, such as the `path` of SMPL; None: the embedded body.
        discriminator: config; None trains without adversarial loss.
        loss: config; its default type is MeshLoss.
        adversarial_weight: weight of both adversarial losses.
        attention_guide: arguments of AttentionGuide, such as dict(weight=1.0); None: no such loss.
        data_preprocessor: config of mmpose's PoseDataPreprocessor.
        train_cfg: None, which `mmpose.apis.init_model` sets.
        test_cfg: `with_vertices` (default True) adds vertices to predictions.
        init_cfg: see mmengine.
    """

    def __init__(
        self,
        backbone: dict,
        head: dict,
        neck: dict | None = None,
        body_model: dict | None = None,
        discriminator: dict | None = None,
        loss: dict | None = None,
        adversarial_weight: float = 0.0005,
        attention_guide: dict | None = None,
        data_preprocessor: dict | None = None,
        train_cfg: None = None,
        test_cfg: dict | None = None,
        init_cfg: dict | None = None,
    ):
        super().__init__(data_preprocessor, init_cfg)
        self.backbone = MODELS.build(backbone)
        if neck is not None:
            self.neck = MODELS.build(neck)
        self.head = MODELS.build(head)
        self.body = BodyModel(**(body_model or {}))
        if discriminator is not None:
            self.discriminator = MODELS.build(discriminator)
        self.loss_module = MODELS.build(dict(dict(type='MeshLoss'), **(loss or {})))
        self.adversarial_weight = adversarial_weight
        if attention_guide is not None:
            self.attention_guide = AttentionGuide(**attention_guide)
        self.test_cfg = dict(dict(with_vertices=True), **(test_cfg or {}))
        self._register_state_dict_hook(_remove_wrappers)

    def forward(
        self, inputs: Tensor, data_samples: list[PoseDataSample] | None = None, mode: str = 'tensor'
    ) -> dict[str, Tensor] | list[PoseDataSample]:
        """Interface of mmengine's models: `regress`, `predict` or the losses of `loss`.

        Args:
            inputs: (B, 3, 256, 256) normalized square crops, of which the backbone sees the middle
                192 columns; or (B, 3, 256, 192).
            data_samples: required by 'loss' and 'predict'.
            mode: 'tensor', 'predict' or 'loss'.
        """
        if mode == 'tensor':
            return self.regress(inputs)
        if mode == 'predict':
            return self.predict(inputs, data_samples)
        if mode == 'loss':
            return self.loss(inputs, data_samples)[0]
        raise ValueError(f"mode must be 'tensor', 'predict' or 'loss', got {mode!r}")

    def extract_feat(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, 256, 256 or 192) -> tuple of one (B, C, 16, 12) map for the head."""
        height, width = inputs.shape[-2:]
        if height == width:
            inputs = seen_columns(inputs)
        elif height * 3 != width * 4:
            raise ValueError(
                f'inputs must be square crops or 4:3 ones (H:W), got {tuple(inputs.shape)}'
            )
        feats = self.backbone(inputs)
        return self.neck(feats) if hasattr(self, 'neck') else feats

    def regress(self, inputs: Tensor) -> dict[str, Tensor]:
        """`HEAD_FIELDS` and `POSED_FIELDS` of `conventions.person` for each crop (see `forward`).

        The crop's camera has a focal length of 5000 pixels for a crop of 256.
        """
        return pose_bodies(self.head(self.extract_feat(inputs)[-1]), self.body)

    def _forward(self, inputs: Tensor, data_samples: None = None) -> tuple[Tensor, ...]:
        """Outputs of the head, without the body model: what mmpose's get_flops traces."""
        return tuple(self.head(self.extract_feat(inputs)[-1]).values())

    @torch.no_grad()
    def predict(self, inputs: Tensor, data_samples: list[PoseDataSample]) -> list[PoseDataSample]:
        """`regress`, and set `pred_instances` of each sample: numpy arrays of one instance.

        The fields are those of `regress` (vertices only if `with_vertices`), but for
        `crop_keypoints`: `keypoints` (1, 44, 2) are in pixels of the image, by the sample's
        `input_center` and `input_scale`, and `keypoint_scores` (1, 44) are 1, since the model
        predicts no confidence.
        """
        from mmengine.structures import InstanceData

        pred = {name: value.float().cpu().numpy() for name, value in self.regress(inputs).items()}
        points = pred.pop('crop_keypoints')
        if not self.test_cfg['with_vertices']:
            del pred['vertices']
        for i, sample in enumerate(data_samples):
            side, center = np.float32(sample.input_scale), np.float32(sample.input_center)
            sample.pred_instances = InstanceData(
                keypoints=(points[i] * side + center)[None],
                keypoint_scores=np.ones((1, points.shape[1]), np.float32),
                **{name: value[i][None] for name, value in pred.items()},
            )
        return data_samples

    def loss(
        self, inputs: Tensor, data_samples: list[PoseDataSample]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses of the generator by name, and its predictions (see `regress`) without vertices.

        Raises:
            FloatingPointError: a loss is not finite; names the samples.
        """
        guided = hasattr(self, 'attention_guide')
        features = self.extract_feat(inputs)[-1]
        found = self.head(features, with_attention=True) if guided else self.head(features)
        attention = found.pop('attention', None)
        pred = pose_bodies(found, self.body, with_vertices=False)
        target = collate_targets(data_samples, inputs.device)
        losses = self.loss_module(pred, target)
        if guided:
            points = target['crop_keypoints_2d']
            losses['loss_attention'] = self.attention_guide(attention, points)
        if hasattr(self, 'discriminator'):
            scores = self._fixed_scores(pred['body_pose'], pred['betas'])
            losses['loss_adversarial'] = self.adversarial_weight * generator_loss(scores)
        if not torch.isfinite(sum(losses.values())):
            raise FloatingPointError(self._describe_non_finite(losses, pred, target, data_samples))
        return losses, pred

    def _fixed_scores(self, body_pose, betas):
        """Scores of the discriminator, without gradients to its parameters."""
        discriminator = self.discriminator
        if is_model_wrapper(discriminator):
            discriminator = discriminator.module
        fixed = {name: value.detach() for name, value in discriminator.named_parameters()}
        return functional_call(discriminator, fixed, (body_pose, betas))

    def _describe_non_finite(self, losses, pred, target, data_samples):
        finite = torch.isfinite(sum(self.loss_module.per_sample(pred, target).values()))
        ids = [
            f'{s.get("dataset", "?")}:{s.get("key", s.get("img_path", "?"))}'
            for s, is_finite in zip(data_samples, finite.tolist(), strict=True)
            if not is_finite
        ]
        values = {name: float(value) for name, value in losses.items()}
        return (
            f'the loss is not finite ({values}); samples: {ids or "the whole batch"}. Inspect them '
            'with tools/check_data.py, or lower the learning rate'
        )

    def train_step(
        self, data: dict, optim_wrapper: OptimWrapper | OptimWrapperDict
    ) -> dict[str, Tensor]:
        """Update the generator, then the discriminator, if there is one.

        Args:
            data: batch of the dataloader.
            optim_wrapper: with a discriminator, an OptimWrapperDict of 'generator' and
                'discriminator' (see TwoOptimWrapperConstructor).

        Returns:
            scalars to log.

        Raises:
            TypeError: `optim_wrapper` does not match the model.
        """
        adversarial = hasattr(self, 'discriminator')
        if adversarial != isinstance(optim_wrapper, OptimWrapperDict):
            raise TypeError(
                f'a model {"with" if adversarial else "without"} a discriminator got '
                f'{type(optim_wrapper).__name__}; set optim_wrapper.constructor='
                '"TwoOptimWrapperConstructor" exactly when model.discriminator is set'
            )
        generator = optim_wrapper['generator'] if adversarial else optim_wrapper
        data = self.data_preprocessor(data, True)
        with generator.optim_context(self):
            losses, pred = self.loss(**data)
        total, log = self.parse_losses(losses)
        generator.update_params(total)
        if adversarial:
            log['loss_discriminator'] = self._train_discriminator(
                pred, data['data_samples'], optim_wrapper['discriminator']
            )
        return log

    def _train_discriminator(self, pred, data_samples, optimizer):
        device = pred['betas'].device
        real_pose, real_betas = real_bodies(data_samples, device)
        fake = len(pred['betas'])
        with optimizer.optim_context(self):
            scores = self.discriminator(
                torch.cat((pred['body_pose'].detach(), real_pose)),
                torch.cat((pred['betas'].detach(), real_betas)),
            )
            loss = self.adversarial_weight * discriminator_loss(scores[:fake], scores[fake:])
        optimizer.update_params(loss)
        return loss.detach()


def pose_bodies(
    pred: dict[str, Tensor], body: BodyModel, with_vertices: bool = True
) -> dict[str, Tensor]:
    """Pose `body` as the head predicts, and project its joints into the crop.

    `pred` has HEAD_FIELDS; the result also POSED_FIELDS, without `vertices` unless
    `with_vertices`.
    """
    pose = pred['global_orient'], pred['body_pose'], pred['betas']
    posed = body(*pose) if with_vertices else body.joints(*pose)
    translation = camera_to_translation(pred['camera'].float())
    focal = translation.new_full((translation.shape[0], 2), FOCAL_LENGTH / IMAGE_SIZE)
    points = perspective_projection(posed['joints'], translation, focal)
    fields = dict(posed, camera_translation=translation, crop_keypoints=points)
    return dict(pred, **{name: fields[name] for name in POSED_FIELDS if name in fields})


def collate_targets(data_samples: list[PoseDataSample], device: torch.device) -> dict[str, Tensor]:
    """Batch `conventions.TARGETS` of the samples' `gt_instances`: float32, (B, ...).

    Raises:
        ValueError: a field has another shape than in `conventions.person`.
    """
    targets = {name: _batch(data_samples, name, device) for name in TARGETS}
    for name, target in targets.items():
        shape, expected = tuple(target.shape[1:]), person()[name].shape
        if shape != expected:
            raise ValueError(f'gt_instances.{name}: expected shape {expected}, got {shape}')
    return targets


def real_bodies(data_samples: list[PoseDataSample], device: torch.device) -> tuple[Tensor, Tensor]:
    """Real poses of the samples: rotation matrices (R, 23, 3, 3) and betas (R, 10).

    Raises:
        ValueError: the pipeline has no AddRealPoses.
    """
    if 'real_body_pose' not in data_samples[0].gt_instances:
        raise ValueError(
            'the discriminator requires real poses in each sample: put AddRealPoses() before '
            'PackPerson() in the training pipeline, or set model.discriminator=None'
        )
    pose = _batch(data_samples, 'real_body_pose', device).flatten(0, 1)
    betas = _batch(data_samples, 'real_betas', device).flatten(0, 1)
    return axis_angle_to_matrix(pose.unflatten(1, (-1, 3))), betas


def _batch(data_samples, name, device):
    """A field of the samples' `gt_instances`, as one float32 tensor."""
    rows = np.concatenate([sample.gt_instances[name] for sample in data_samples])
    return torch.from_numpy(np.float32(rows)).to(device)


def _remove_wrappers(model, state, prefix, _):
    """Remove distributed wrappers' prefixes, as mmengine does when it loads, not when it saves."""
    for name, part in model.named_children():
        if is_model_wrapper(part):
            wrapped = f'{prefix}{name}.module.'
            for key in [key for key in state if key.startswith(wrapped)]:
                state[f'{prefix}{name}.{key[len(wrapped) :]}'] = state.pop(key)
