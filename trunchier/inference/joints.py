"""3D joints of people in videos, by a lifter of windows behind any 2D model."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from mmpose.datasets.datasets.utils import parse_pose_metainfo
from torch import nn

from ..models.lifting.hourglass import steps_of
from ..weights.find import Found, build_model, find, pick_device
from ..weights.load import load_checkpoint
from .camera import Lens, translations
from .pose import PosePredictor
from .windows import WindowModel, without_unknown

if TYPE_CHECKING:
    from mmengine.config import Config
    from typing_extensions import Self

    from ..deploy.runtime import Network
    from .result import Result

BATCH = 8  # windows at once
HIPS, SHOULDERS = ('left_hip', 'right_hip'), ('left_shoulder', 'right_shoulder')
# Joints that lifters take as means of keypoints, as mmpose makes those of Human3.6M.
MEANS = {
    'root': HIPS, 'pelvis': HIPS, 'thorax': SHOULDERS, 'neck': SHOULDERS,
    'spine': HIPS + SHOULDERS, 'neck_base': ('nose',), 'head': ('left_eye', 'right_eye'),
    'left_foot': ('left_ankle',), 'right_foot': ('right_ankle',),
}  # fmt: skip


class JointLifter(WindowModel):
    """Joints from windows of keypoints: a trained PoseLifter of any backbone.

    Args:
        model: mmpose's PoseLifter, or a DiffusionLifter.
        cfg: its config.
        names: of the keypoints that the 2D model gives.

    Raises:
        ValueError: keypoints that the lifter takes cannot be made of these; a codec or a backbone
            that is not known.
    """

    inputs = ('keypoints', 'keypoint_scores')

    def __init__(self, model: nn.Module, cfg: Config, names: tuple[str, ...]):
        dataset = cfg.test_dataloader.dataset
        files = {'Human36mDataset': 'h36m', 'MPIInf3dhpSequences': 'mpi_inf_3dhp'}
        kind = str(dataset.type).rpartition('.')[2]
        if kind not in files and not dataset.get('metainfo'):
            raise ValueError(f'the keypoints of {kind} are unknown: give its dataset a metainfo')
        of = dataset.get('metainfo') or dict(from_file=f'configs/_base_/datasets/{files[kind]}.py')
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # the file of keypoints is mmpose's own
            meta = parse_pose_metainfo(of)
        self.names = tuple(meta['keypoint_id2name'][i] for i in range(meta['num_keypoints']))
        self.flip = list(meta['flip_indices'])
        self.parts = parts_of(self.names, names)
        codec = cfg.model.head.decoder
        if str(codec.type) != 'VideoPoseLifting' or not codec.get('zero_center', True):
            raise ValueError(f'lifters are trained with the codec VideoPoseLifting, not {codec}')
        self.root = codec.get('root_index', 0)
        self.with_scores = codec.get('concat_vis', False)
        self.model, self.device = model, next(model.parameters()).device
        self.flip_test = bool((model.test_cfg or {}).get('flip_test'))
        inner = getattr(model.backbone, 'backbone', model.backbone)  # of a HourglassTokenizer
        self.length = steps_of(inner).seq_len
        backbone = model.backbone
        kept = hasattr(backbone, 'schedule') and not (backbone.recovery or backbone.interpolate)
        self.centered = getattr(model.head, 'center', False) or kept
        self.overlap = 0 if self.centered else self.length // 3

    @torch.no_grad()
    def __call__(
        self, fields: dict[str, np.ndarray], known: np.ndarray, result: Result
    ) -> dict[str, np.ndarray]:
        """`joints` (B, T, J, 3), meters from the root, camera axes; and the `points` (B, T, J, 3)
        that they were lifted from: pixels and score."""
        keypoints, scores = without_unknown(fields['keypoints'], fields['keypoint_scores'])
        scores = scores * known[..., None]
        points = np.stack([keypoints[..., part, :].mean(-2) for part in self.parts], 2)
        scores = np.stack([scores[..., part].min(-1) for part in self.parts], 2)
        height, width = result.ori_shape
        inputs = (points - np.float64((width / 2, height / 2))) / (width / 2)
        if self.with_scores:
            inputs = np.concatenate([inputs, scores[..., None]], -1)
        windows = torch.from_numpy(inputs).float().to(self.device)
        joints = torch.cat([self.lift(part) for part in windows.split(BATCH)]).cpu().numpy()
        return dict(joints=joints, points=np.concatenate([points, scores[..., None]], -1))

    def lift(self, windows: torch.Tensor) -> torch.Tensor:
        """Normalized keypoints (B, T, J, 2 or 3) -> joints (B, T or 1, J, 3)."""
        flip = self.flip if self.flip_test else None
        if hasattr(self.model, 'lift'):
            joints = self.model.lift(windows, flip)
        else:
            joints = self.model(windows, None, mode='tensor')
            if flip is not None:
                sides = joints.new_tensor([-1, 1, 1])
                mirrored = windows[:, :, flip] * sides[: windows.shape[-1]]
                other = self.model(mirrored, None, mode='tensor')
                joints = (joints + other[:, :, flip] * sides) / 2
        return joints - joints[:, :, self.root : self.root + 1]

    def finish(self, result: Result, values: dict[str, np.ndarray]) -> None:
        """`joints` (P, J, 3) and `translation` (P, 3), the root in the camera's frame."""
        people = result.pred_instances
        joints = values.get('joints', np.empty((0, len(self.names), 3), np.float32))
        points = values.get('points', joints)
        people.joints = joints
        people.translation = translations(
            joints, points[..., :2], points[..., 2], result.focal_length, result.principal_point,
            people.bboxes[:, :4], shape=result.ori_shape,
        )  # fmt: skip
        result.set_metainfo(dict(joint_names=self.names))


def parts_of(wanted: tuple[str, ...], given: tuple[str, ...]) -> list[list[int]]:
    """Indices of the keypoints whose mean each joint is.

    Raises:
        ValueError: names the joints that cannot be made.
    """
    parts = [(name,) if name in given else MEANS.get(name, (name,)) for name in wanted]
    lost = [name for name, part in zip(wanted, parts, strict=True) if not set(part) <= set(given)]
    if lost:
        raise ValueError(
            f'the lifter takes {", ".join(lost)}, which cannot be made of the keypoints of the 2D '
            f'model: {", ".join(given)}. Choose a 2D model of other keypoints (--pose)'
        )
    return [[given.index(each) for each in part] for part in parts]


class JointPredictor(PosePredictor):
    """2D keypoints of people; in videos, also 3D joints by a lifter of windows.

    Args:
        cfg, network, common: of the 2D model.
        lifter: model of a lifter and its config; None: there is only 2D.
        causal: lift from past frames alone; None: of cameras.
        focal, fov, intrinsics: see `camera.Lens`.
        options: see `PosePredictor`.
    """

    smoothed = ('keypoints', 'joints', 'translation')

    def __init__(
        self,
        cfg: Config,
        network: Network | nn.Module,
        *common: Any,
        lifter: tuple[nn.Module, Config] | None = None,
        causal: bool | None = None,
        focal: float | tuple[float, float] | str | None = None,
        fov: float | None = None,
        intrinsics: np.ndarray | None = None,
        **options: Any,
    ):
        super().__init__(cfg, network, *common, **options)
        self.lens, self.causal = Lens(focal, fov, intrinsics), causal
        self.windows = lifter and JointLifter(*lifter, self.keypoint_names)
        self.settings |= dict(self.lens.settings, causal=causal)

    @classmethod
    def load(
        cls,
        found: Found,
        device: str = 'auto',
        precision: str = 'fp32',
        trust: bool = False,
        runtime: str | None = None,
        pose: str = 'pose',
        pose_weights: str | None = None,
        **options: Any,
    ) -> Self:
        """The predictor of a lifter and its weights.

        Args:
            found: the lifter, from `weights.find.find`.
            device, precision, trust, runtime, options: see `Predictor.load`.
            pose, pose_weights: name of the 2D model, and its weights if it has none of its own.
        """
        source = find(pose, pose_weights, found.task)
        if source.row.load('predictor') is not PosePredictor:
            raise ValueError(f'{source.name} is no top-down 2D model, which the lifter needs')
        model = build_model(found.cfg)
        load_checkpoint(model, found.required_weights(), renames=found.renames)
        lifter = model.to(pick_device(device)).eval(), found.cfg
        predictor = super().load(
            source, device, precision, trust, runtime, lifter=lifter, **options
        )
        predictor.settings |= dict(pose=source.name, pose_weights=source.required_weights().name)
        return predictor

    def metainfo(self, shape: tuple[int, int], focal: float | None = None) -> dict[str, np.ndarray]:
        """Camera of the image, see `camera.Lens`."""
        return self.lens.of(shape, focal)
