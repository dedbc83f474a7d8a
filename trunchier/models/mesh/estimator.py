"""A person crop in, a posed SMPL-layout body out: HMR2.0 on any backbone.

Goel et al., "Humans in 4D", ICCV 2023; matches HMR2 of shubham-goel/4D-Humans
(hmr2/models/hmr2.py).
Deliberate differences: the generator is judged by a discriminator whose parameters are held fixed
in that step (there its gradients are computed and thrown away), a non-finite loss stops the
training, and steps are counted once for each generator update (there once for each optimizer).
"""

import numpy as np
import torch
from mmengine.model import BaseModel, is_model_wrapper
from mmengine.optim import OptimWrapperDict
from mmengine.registry import MODELS
from torch import Tensor
from torch.func import functional_call

from ...conventions import FOCAL_LENGTH, IMAGE_SIZE
from ...geometry import (
    axis_angle_to_matrix,
    camera_to_translation,
    perspective_projection,
    seen_columns,
)
from .body import BodyModel
from .losses import discriminator_loss, generator_loss

# gt_instances of a training sample, and the shape of one.
TARGETS = {
    'keypoints_2d': (44, 3),
    'keypoints_3d': (44, 4),
    'global_orient': (3,),
    'body_pose': (69,),
    'betas': (10,),
    'has_body_pose': (),
    'has_betas': (),
}


@MODELS.register_module()
class MeshEstimator(BaseModel):
    """Backbone, adapter, head, body; in training an adversary too.

    Args:
        backbone, neck, head (dict): configs; no neck for a plain ViT.
        body_model (dict): arguments of BodyModel, such as `path` of the user's SMPL. Default: the
            embedded body.
        discriminator (dict): config of the adversary; None trains without.
        loss (dict): config of MeshLoss or alike.
        adversarial_weight (float): weight of both adversarial losses.
        data_preprocessor (dict): mmpose's PoseDataPreprocessor.
        test_cfg (dict): `with_vertices` (default True) puts vertices into predictions.
        init_cfg (dict): see mmengine.
    """

    def __init__(
        self,
        backbone,
        head,
        neck=None,
        body_model=None,
        discriminator=None,
        loss=None,
        adversarial_weight=0.0005,
        data_preprocessor=None,
        test_cfg=None,
        init_cfg=None,
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
        self.test_cfg = dict(dict(with_vertices=True), **(test_cfg or {}))
        self._register_state_dict_hook(_leave_out_wrappers)

    @property
    def with_neck(self):
        return hasattr(self, 'neck')

    def forward(self, inputs, data_samples=None, mode='tensor'):
        """As mmengine's models.

        Args:
            inputs: (B, 3, 256, 256) normalised square crops, of which the middle 192 columns are
                seen; or (B, 3, 256, 192).
            data_samples: list of PoseDataSample; 'loss' and 'predict' need it.
            mode: 'tensor', 'predict' or 'loss'.

        Returns:
            'tensor': dict, see `regress`. 'loss': dict of losses. 'predict': `data_samples` with
            `pred_instances`, see `predict`.

        Raises:
            ValueError: another mode, or shape.
        """
        if mode == 'tensor':
            return self.regress(inputs)
        if mode == 'predict':
            return self.predict(inputs, data_samples)
        if mode == 'loss':
            return self.loss(inputs, data_samples)[0]
        raise ValueError(f"mode must be 'tensor', 'predict' or 'loss', got {mode!r}")

    def extract_feat(self, inputs):
        """(B, 3, 256, 256 or 192) -> tuple of one (B, C, 16, 12) map for the head."""
        height, width = inputs.shape[-2:]
        if height == width:
            inputs = seen_columns(inputs)
        elif height * 3 != width * 4:
            raise ValueError(
                f'inputs must be square crops or 4:3 ones (H:W), got {tuple(inputs.shape)}'
            )
        feats = self.backbone(inputs)
        return self.neck(feats) if self.with_neck else feats

    def regress(self, inputs):
        """Body and camera of each crop.

        Args:
            inputs: see `forward`.

        Returns:
            dict: global_orient (B, 1, 3, 3) and body_pose (B, 23, 3, 3), rotation matrices; betas
            (B, 10); camera (B, 3) as (s, tx, ty); camera_translation (B, 3), metres, of the crop's
            camera (focal length 5000 pixels, crop side 256); vertices (B, 6890, 3) and joints
            (B, 44, 3), metres, before that translation; keypoints_2d (B, 44, 2), fractions of the
            crop's side from its centre.
        """
        return pose_bodies(self.head(self.extract_feat(inputs)[-1]), self.body)

    # --- predicting ----------------------------------------------------------------------------

    @torch.no_grad()
    def predict(self, inputs, data_samples):
        """Fill `pred_instances` of each sample, see `add_pred_to_samples`."""
        return self.add_pred_to_samples(self.regress(inputs), data_samples)

    def add_pred_to_samples(self, pred, data_samples):
        """Fill `pred_instances` of each sample, numpy arrays with a leading 1.

        `global_orient` (1, 1, 3, 3), `body_pose` (1, 23, 3, 3), `betas` (1, 10), `camera` (1, 3),
        `camera_translation` (1, 3), `vertices` (1, 6890, 3), `joints` (1, 44, 3) as in `regress`;
        `keypoints` (1, 44, 2), pixels of the original image, from the sample's `input_center` and
        `input_scale`; `keypoint_scores` (1, 44), all 1: the model states no confidence.
        """
        from mmengine.structures import InstanceData

        pred = {name: value.float().cpu().numpy() for name, value in pred.items()}
        points = pred.pop('keypoints_2d')
        if not self.test_cfg['with_vertices']:
            del pred['vertices']
        for i, sample in enumerate(data_samples):
            side, centre = np.float32(sample.input_scale), np.float32(sample.input_center)
            sample.pred_instances = InstanceData(
                keypoints=(points[i] * side + centre)[None],
                keypoint_scores=np.ones((1, points.shape[1]), np.float32),
                **{name: value[i][None] for name, value in pred.items()},
            )
        return data_samples

    # --- training ------------------------------------------------------------------------------

    def loss(self, inputs, data_samples):
        """Losses of the generator, and what it predicted.

        Returns:
            dict of scalars, dict of `regress`.

        Raises:
            FloatingPointError: a loss is not finite; names the samples.
        """
        pred = self.regress(inputs)
        target = collate_targets(data_samples, inputs.device)
        losses = self.loss_module(pred, target)
        if hasattr(self, 'discriminator'):
            scores = self._judge_fixed(pred['body_pose'], pred['betas'])
            losses['loss_adversarial'] = self.adversarial_weight * generator_loss(scores)
        if not torch.isfinite(sum(losses.values())):
            raise FloatingPointError(self._describe_non_finite(losses, pred, target, data_samples))
        return losses, pred

    def _judge_fixed(self, body_pose, betas):
        """Scores by the discriminator as it is: its parameters get no gradient."""
        judge = _unwrapped(self.discriminator)
        fixed = {name: value.detach() for name, value in judge.named_parameters()}
        return functional_call(judge, fixed, (body_pose, betas))

    def _describe_non_finite(self, losses, pred, target, data_samples):
        bad = torch.zeros(len(data_samples), dtype=torch.bool, device=pred['betas'].device)
        for value in self.loss_module.per_sample(pred, target).values():
            bad |= ~torch.isfinite(value)
        ids = [
            f'{s.get("dataset", "?")}:{s.get("key", s.get("img_path", "?"))}'
            for s, b in zip(data_samples, bad.tolist(), strict=True)
            if b
        ]
        values = {name: float(value) for name, value in losses.items()}
        return (
            f'the loss is not finite ({values}); samples {ids or "of the whole batch"}. Look at '
            'them with tools/check_data.py, or lower the learning rate'
        )

    def train_step(self, data, optim_wrapper):
        """One update of the generator, then, with an adversary, one of the discriminator.

        Args:
            data: a batch of the dataloader.
            optim_wrapper: OptimWrapperDict of 'generator' and 'discriminator' with an adversary
                (TwoOptimWrapperConstructor makes it), else one OptimWrapper.

        Returns:
            dict of scalars to log.

        Raises:
            TypeError: the optimizers do not fit the model.
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


def pose_bodies(pred: dict[str, Tensor], body: BodyModel) -> dict[str, Tensor]:
    """Pose `body` as the head predicts, and project its joints into the crop.

    Args:
        pred: output of the head: global_orient, body_pose, betas, camera.

    Returns:
        `pred` and the other fields of `MeshEstimator.regress`.
    """
    posed = body(pred['global_orient'], pred['body_pose'], pred['betas'])
    translation = camera_to_translation(pred['camera'].float())
    focal = translation.new_full((translation.shape[0], 2), FOCAL_LENGTH / IMAGE_SIZE)
    return dict(
        pred,
        camera_translation=translation,
        vertices=posed['vertices'],
        joints=posed['joints'],
        keypoints_2d=perspective_projection(posed['joints'], translation, focal),
    )


def collate_targets(data_samples, device):
    """`gt_instances` of the samples as a dict of float32 tensors (B, ...), for MeshLoss.

    Raises:
        ValueError: a sample has another shape than `TARGETS`.
    """
    target = {}
    for name, shape in TARGETS.items():
        rows = np.stack([np.asarray(s.gt_instances[name])[0] for s in data_samples])
        if rows.shape[1:] != shape:
            raise ValueError(f'gt_instances.{name} has shape {rows.shape[1:]}, wanted {shape}')
        target[name] = torch.from_numpy(np.float32(rows)).to(device)
    target['has_global_orient'] = target['has_body_pose']
    return target


def real_bodies(data_samples, device):
    """The real poses that ride with the samples: (R, 23, 3, 3) matrices and (R, 10) betas.

    Raises:
        ValueError: the pipeline has no AddRealPoses.
    """
    if 'real_body_pose' not in data_samples[0].gt_instances:
        raise ValueError(
            'the discriminator needs real poses in each sample: put AddRealPoses() before '
            'PackPerson() in the training pipeline, or set model.discriminator=None'
        )
    pose = np.concatenate([s.gt_instances.real_body_pose[0] for s in data_samples])
    betas = np.concatenate([s.gt_instances.real_betas[0] for s in data_samples])
    pose = torch.from_numpy(np.float32(pose)).to(device).unflatten(1, (-1, 3))
    return axis_angle_to_matrix(pose), torch.from_numpy(np.float32(betas)).to(device)


def _leave_out_wrappers(model, state, prefix, _):
    """Distributed training wraps each part; its checkpoints have the same keys as all others.

    mmengine leaves the wrappers out when it loads a checkpoint, but not when it saves one.
    """
    for name, part in model.named_children():
        if is_model_wrapper(part):
            wrapped = f'{prefix}{name}.module.'
            for key in [key for key in state if key.startswith(wrapped)]:
                state[f'{prefix}{name}.{key[len(wrapped) :]}'] = state.pop(key)


def _unwrapped(module):
    return module.module if is_model_wrapper(module) else module
