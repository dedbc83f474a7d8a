"""Train a student by a teacher: heatmaps, a knowledge token, or bodies; labels are optional.

Heatmaps and token: Xu et al., "ViTPose", NeurIPS 2022, section 3.4 (knowledge token, equations 3 to
5), of which no code was released. The body is this project's own.

A distiller *is* its student, with another `loss`: `MODELS.build(dict(type='HeatmapDistiller',
student=dict(...), teacher=...))` returns the student's estimator. Its parameters, optimizers,
checkpoints, predictions and tests are those of the student; the teacher is no part of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..conventions import HEAD_FIELDS, JOINTS_44_FLIP, PELVIS
from .mesh.estimator import pose_bodies
from .mesh.losses import keypoint_2d_loss, keypoint_3d_loss, parameter_loss
from .teachers import (
    Teacher,
    keypoint_names,
    match_keypoints,
    read_token,
    teacher_digest,
    with_class,
)
from .tokens import TokenJoin, project, width_of

if TYPE_CHECKING:
    from mmpose.structures import PoseDataSample


class Distiller(nn.Module):
    """Base: builds the student and gives it the class of the distiller beside its own."""

    def __new__(cls, student: dict | None = None, *args: Any, **options: Any) -> Any:
        if student is None:  # copy.deepcopy
            return super().__new__(cls)
        return with_class(MODELS.build(student), cls)

    def _teach(self, teacher, weights, precision):
        self.teacher = Teacher(teacher, weights, precision)

    def init_weights(self) -> None:
        """Initial weights of the student; loads the teacher, so that errors come at once."""
        super().init_weights()
        self.check_teacher()

    def check_teacher(self) -> None:
        """Raise ValueError unless the student's images suit the teacher."""
        own = getattr(self.data_preprocessor, 'mean', None)
        other = getattr(getattr(self.teacher.model, 'data_preprocessor', None), 'mean', None)
        if own is None or other is None:
            return
        for name in ('mean', 'std'):
            own, other = (
                getattr(each.data_preprocessor, name).flatten().tolist()
                for each in (self, self.teacher.model)
            )
            if own != other:
                raise ValueError(
                    f'{name} of the data_preprocessor: student {own}, teacher {other}. They share '
                    'the images: give both the same, that of the teacher'
                )


@MODELS.register_module()
class HeatmapDistiller(Distiller):
    """A pose estimator that also learns the teacher's heatmaps: mean squared error, every channel.

    Any student whose head ends in a `final_layer` that returns heatmaps, as mmpose's HeatmapHead.
    A sample's weights come from `WeighPerson` in its pipeline: without labels, without teacher, or
    both. With `stored`, its heatmaps come from `LoadTeacherHeatmaps`, and the teacher is not
    loaded: its file is only compared with that of the stored ones.

    Args:
        student: config of the estimator.
        teacher: a model's name, the path of a config, or the `model` of a config.
        teacher_weights: path or http(s) address; None: those that the name stands for.
        label_weight: factor of the student's own losses; 0: images need no labels.
        teacher_weight: factor of the teacher's loss.
        keypoints, teacher_keypoints: names in the order of the channels, or a metainfo file of
            mmpose such as 'configs/_base_/datasets/halpe26.py'; needed if they differ. Keypoints
            that the teacher lacks learn from labels alone.
        precision: of the teacher, 'float32' or 'bfloat16'.
        stored: whether samples bring the teacher's heatmaps.

    Raises:
        ValueError: a teacher with other keypoints, images or heatmaps, or another one than the
            stored heatmaps are of; TypeError: a student without heatmaps.
    """

    def __init__(
        self,
        student: dict,
        teacher: str | dict,
        teacher_weights: str | Path | None = None,
        label_weight: float = 1.0,
        teacher_weight: float = 1.0,
        keypoints: Sequence[str] | str | None = None,
        teacher_keypoints: Sequence[str] | str | None = None,
        precision: str = 'float32',
        stored: bool = False,
    ):
        if not isinstance(getattr(self.head, 'final_layer', None), nn.Module):
            raise TypeError(f'a {type(self.head).__name__} has no final_layer with heatmaps')
        self._teach(teacher, teacher_weights, precision)
        self.label_weight, self.teacher_weight = label_weight, teacher_weight
        self.keypoints = keypoint_names(keypoints), keypoint_names(teacher_keypoints)
        self.stored, self.digest = stored, 0

    def check_teacher(self) -> None:
        if self.stored:
            teacher = self.teacher.source, self.teacher.weights
            self.digest = teacher_digest(*teacher, self.keypoints)
            return
        super().check_teacher()
        teacher = self.teacher.model.head
        own, other = _channels(self.head), _channels(teacher)
        self.channels = match_keypoints(*self.keypoints, own, other)
        sizes = [
            getattr(getattr(head, 'decoder', None), 'heatmap_size', None)
            for head in (self.head, teacher)
        ]
        if None not in sizes and list(sizes[0]) != list(sizes[1]):
            raise ValueError(_sizes_differ(*sizes))

    def loss(self, inputs: Tensor, data_samples: list[PoseDataSample]) -> dict[str, Tensor]:
        """The student's losses times `label_weight`, and `loss_teacher`."""
        seen: list[Tensor] = []
        hook = self.head.final_layer.register_forward_hook(lambda *call: seen.append(call[2]))
        try:
            losses = {}
            if self.label_weight:
                losses = _scaled(super().loss(inputs, data_samples), self.label_weight)
            else:
                self._forward(inputs)
        finally:
            hook.remove()
        if self.teacher is not None and self.teacher_weight:
            losses['loss_teacher'] = self.teacher_weight * self._heatmap_loss(
                seen[0], inputs, data_samples
            )
        return losses

    def _heatmap_loss(self, heatmaps, inputs, data_samples):
        if not (self.digest or hasattr(self, 'channels')):
            self.check_teacher()
        if self.stored:
            targets = self._stored_targets(data_samples).to(heatmaps)
        else:
            targets = self.teacher(inputs).to(heatmaps.dtype)
        if targets.shape[2:] != heatmaps.shape[2:]:
            raise ValueError(_sizes_differ(heatmaps.shape[:1:-1], targets.shape[:1:-1]))
        if self.stored:
            targets = torch.where(targets.isnan(), heatmaps.detach(), targets)
        else:
            own, other = self.channels
            heatmaps, targets = heatmaps[:, own], targets[:, other]
        weights = sample_weights(data_samples, inputs)
        return (weights[:, None, None, None] * (heatmaps - targets).square()).mean()

    def _stored_targets(self, data_samples):
        """(B, K, h, w); NaN where nothing was stored."""
        for sample in data_samples:
            if 'teacher_heatmaps' not in (sample.get('gt_fields') or {}):
                raise ValueError(
                    'stored=True, but a sample has no teacher_heatmaps: put LoadTeacherHeatmaps '
                    'before PackPoseInputs in the training pipeline'
                )
            if int(sample.gt_instance_labels.teacher_digest[0]) != self.digest:
                raise ValueError(
                    f'the stored heatmaps are not those of {self.teacher}: its weights or the '
                    'names of keypoints have changed; store them anew in another folder by '
                    'tools/store_heatmaps.py'
                )
        return torch.stack([sample.gt_fields.teacher_heatmaps for sample in data_samples])


def _channels(head):
    return getattr(head, 'out_channels', None) or head.final_layer.out_channels


def _sizes_differ(own, other):
    return (
        f'heatmaps of the student are {own[0]} x {own[1]} (width x height), of the teacher '
        f'{other[0]} x {other[1]}: give both the same input_size and heatmap_size'
    )


def _scaled(losses, factor):
    return {name: value * factor if 'loss' in name else value for name, value in losses.items()}


def sample_weights(data_samples: Sequence[PoseDataSample], like: Tensor) -> Tensor:
    """`teacher_weight` of each sample (see `WeighPerson`), 1 where there is none: (B,)."""
    labels = [sample.get('gt_instance_labels') or {} for sample in data_samples]
    weights = [float(each.get('teacher_weight', 1.0)) for each in labels]
    return torch.tensor(weights, device=like.device, dtype=torch.float32)


# --- knowledge token ------------------------------------------------------------------------------
@MODELS.register_module()
class TokenDistiller(HeatmapDistiller):
    """Stage 2 of token distillation: the frozen token joins the student's map in training.

    With a teacher, its heatmaps are learned as well (ViTPose's third loss). The token is in the map
    of a share of the batches, so that the student also learns without it: tests and predictions,
    in any program, have none.

    Args:
        token: checkpoint of a TeacherToken.
        stage: index of the student's stage; a plain ViT has one, 0.
        join: see `TokenJoin`.
        projection: 'orthogonal' for a token of another width (see `tokens.project`). It is fixed:
            a learned one could map a single frozen vector to any other.
        rate: share of the batches with the token; 1 is ViTPose's.
        student, teacher, others: see `HeatmapDistiller`; teacher=None: labels and token alone.

    Raises:
        ValueError: a token of another width without a projection.
    """

    def __init__(
        self,
        student: dict,
        token: str | Path,
        teacher: str | dict | None = None,
        stage: int = -1,
        join: str = 'row',
        projection: str | None = None,
        rate: float = 0.5,
        **options: Any,
    ):
        super().__init__(student, teacher or '', **options)
        if teacher is None:
            self.teacher = None
        self.token_path, self.rate, self.projection = token, rate, projection
        self.joined = TokenJoin(self.backbone, stage, join)
        self.token_width = width_of(self.backbone, stage)
        self.token: Tensor | None = None

    def check_teacher(self) -> None:
        self._read_token()
        if self.teacher is not None:
            super().check_teacher()

    def _read_token(self):
        if self.token is None:
            self.token = project(read_token(self.token_path), self.token_width, self.projection)

    def train(self, mode: bool = True) -> nn.Module:
        """No token in eval mode."""
        if not mode:
            self.joined.token = None
        return super().train(mode)

    def loss(self, inputs: Tensor, data_samples: list[PoseDataSample]) -> dict[str, Tensor]:
        """As HeatmapDistiller's, perhaps with the token in the map."""
        self._read_token()
        present = bool(torch.rand(()) < self.rate)
        self.joined.token = self.token.to(inputs.device) if present else None
        return super().loss(inputs, data_samples)


# --- bodies ---------------------------------------------------------------------------------------
@MODELS.register_module()
class BodyDistiller(Distiller):
    """A MeshEstimator that also learns the teacher's bodies.

    Rotations, shape, camera, 3D joints and projected joints are compared, as `MeshLoss` compares
    them with annotations. The student's body is posed by the teacher's parameters, so that joints
    mean the same. Each person is weighted by the teacher's agreement with itself on the mirrored
    crop: exp(-distance / agreement), with the mean distance of the 44 joints from the pelvis.

    Args:
        student, teacher, teacher_weights, precision: see `HeatmapDistiller`.
        label_weight: factor of the losses of annotations; what is not annotated counts 0 in them.
        teacher_weight: factor of the teacher's losses.
        weights: {name: weight} of `keypoints_2d`, `keypoints_3d`, `global_orient`, `body_pose`,
            `betas` (default: those of the student's loss) and `camera` (default 0.01).
        agreement: meters; None: no mirrored crop, all weights are 1.
    """

    def __init__(
        self,
        student: dict,
        teacher: str | dict,
        teacher_weights: str | Path | None = None,
        label_weight: float = 1.0,
        teacher_weight: float = 1.0,
        weights: dict[str, float] | None = None,
        agreement: float | None = 0.05,
        precision: str = 'float32',
    ):
        self._teach(teacher, teacher_weights, precision)
        self.label_weight, self.teacher_weight = label_weight, teacher_weight
        known = dict(self.loss_module.weights, camera=0.01)
        if unknown := set(weights or {}) - set(known):
            raise ValueError(f'weights has {sorted(unknown)}; expected some of {sorted(known)}')
        self.weights = known | (weights or {})
        self.agreement = agreement

    def check_teacher(self) -> None:
        super().check_teacher()
        if not hasattr(self.teacher.model, 'body'):
            raise ValueError(
                f'the teacher is a {type(self.teacher.model).__name__}, which predicts no bodies: '
                'choose a mesh model'
            )

    def loss(
        self, inputs: Tensor, data_samples: list[PoseDataSample]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses of MeshEstimator times `label_weight`, and `loss_teacher_...`; predictions."""
        losses, pred = super().loss(inputs, data_samples)
        losses = _scaled(losses, self.label_weight)
        target, weights = self.teach(inputs)
        reduce = self.loss_module.reduce
        for name, value in body_losses(pred, target, weights).items():
            factor = self.teacher_weight * self.weights[name]
            losses[f'loss_teacher_{name}'] = factor * reduce(value)
        return losses, pred

    @torch.no_grad()
    def teach(self, inputs: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Bodies of the teacher for crops (B, 3, H, W), see `regress`; their weights, (B,)."""
        count = len(inputs)
        if self.agreement is None:
            return self._pose(self.teacher(inputs)), inputs.new_ones(count)
        both = self._pose(self.teacher(torch.cat((inputs, inputs.flip(-1)))))
        target = {name: value[:count] for name, value in both.items()}
        sign = inputs.new_tensor((-1, 1, 1))
        mirrored = both['joints'][count:, list(JOINTS_44_FLIP)] * sign
        joints, mirrored = (each - each[:, PELVIS, None] for each in (target['joints'], mirrored))
        distance = (joints - mirrored).norm(dim=-1).mean(1)
        return target, (-distance / self.agreement).exp()

    def _pose(self, head):
        return pose_bodies({name: head[name].float() for name in HEAD_FIELDS}, self.body)


def body_losses(
    pred: dict[str, Tensor], target: dict[str, Tensor], weights: Tensor
) -> dict[str, Tensor]:
    """Distance of two sets of bodies (see `MeshEstimator.regress`) by name, (B,) each.

    Args:
        weights: (B,).
    """

    def certain(points):
        return torch.cat((points, torch.ones_like(points[..., :1])), -1)

    parameters = ('global_orient', 'body_pose', 'betas', 'camera')
    losses = {name: parameter_loss(pred[name], target[name], weights) for name in parameters}
    points, joints = certain(target['crop_keypoints']), certain(target['joints'])
    losses['keypoints_2d'] = weights * keypoint_2d_loss(pred['crop_keypoints'], points)
    losses['keypoints_3d'] = weights * keypoint_3d_loss(pred['joints'], joints)
    return losses
