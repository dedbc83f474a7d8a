"""The tasks, one row each: everything that depends on which task a model is for. Data only.

A new task is a row here, its estimator, its predictor and its configs; nothing else asks for the
name of a task.
"""

import importlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from .encoders import Encoder, backbone_cfg, encoder, neck_cfg
from .releases import BY_HAND

# fmt: off
# Table 1 of the paper: the HMR2.0 decoder of each encoder size.
MESH_DECODERS = {
    'h': dict(depth=6, num_heads=8, head_dim=64, mlp_dim=1024),
    'l': dict(depth=6, num_heads=8, head_dim=32, mlp_dim= 512),
    'b': dict(depth=3, num_heads=8, head_dim=24, mlp_dim= 384),
    's': dict(depth=3, num_heads=4, head_dim=16, mlp_dim= 128),
}
# fmt: on


def _pose_model(name: str, row: Encoder) -> dict[str, Any]:
    """Starts from its backbone's official ImageNet weights (ViT: from MAE's)."""
    return dict(backbone=backbone_cfg(name), head=dict(in_channels=row.decoder_channels))


def _mesh_model(name: str, row: Encoder) -> dict[str, Any]:
    """Starts from the trained pose model of the same encoder, as in the paper."""
    head = dict(in_channels=row.decoder_channels, **MESH_DECODERS[row.backbone.decoder])
    pose = f'{BY_HAND}{TASKS["pose"].paper_name(name)}.pth'
    parts = ['backbone', 'neck'] if neck_cfg(name) else ['backbone']
    return dict(
        backbone=dict(backbone_cfg(name), init_cfg=None),
        head=head,
        init_cfg=dict(type='OfficialPretrained', checkpoint=pose, parts=parts),
    )


class Task(NamedTuple):
    """A row of `TASKS`.

    Attributes:
        folder: of its configs and metafile, below `configs/`.
        paper: pattern of the paper's names of truncated models.
        plain: pattern of the paper's names of plain ViTs.
        config: pattern of a config's file name, which follows mmpose's model zoo.
        estimator: registered class of its models.
        predictor, inferencer, graph: `module:class` below `trunchier`, see `load`: crops and
            decodes; runs over images and videos; goes into exported files.
        exported: the same of the predictor of exported files without torch; '': there is none.
        lifter: the same of a predictor that lifts this task's results to those of the task
            `lifted`; '': there is none.
        others: predictors of other estimators of this task, by registered class: models that find
            people themselves, in whole images, and lifters of windows of results of this task.
            They are neither exported nor lifted.
        best: the best model that ships here, '': that of this task with weights.
        model: (name, row) of an encoder -> the part of the model's config that it decides, less
            the neck.
    """

    folder: str
    paper: str
    plain: str
    config: str
    estimator: str
    predictor: str
    inferencer: str
    graph: str
    model: Callable[[str, Encoder], dict[str, Any]]
    exported: str = ''
    lifter: str = ''
    lifted: str = ''
    others: Mapping[str, str] = MappingProxyType({})
    best: str = ''

    def of(self, estimator: str | type) -> 'Task | None':
        """This row for the models of a registered class; None if it is another task's."""
        kind = estimator if isinstance(estimator, str) else estimator.__name__
        kind = kind.rpartition('.')[2]
        if kind in self.others:
            own = self._replace(estimator=kind, predictor=self.others[kind])
            return own._replace(graph='', lifter='')
        return self if kind == self.estimator else None

    def paper_name(self, name: str) -> str:
        """The paper's name of the model of an encoder: 'swin-t-s3' -> 'SwinPose-T-S3'."""
        row = encoder(name)
        size = row.backbone_name.split('-')[1].upper()
        pattern = self.plain if row.num_stages is None else self.paper
        return pattern.format(family=row.backbone.paper, size=size, stages=row.num_stages)

    def load(self, role: str) -> Any:
        """Import the class of a role: 'predictor', 'inferencer', 'graph' or 'lifter'."""
        module, _, name = getattr(self, role).partition(':')
        package = __package__.partition('.')[0]
        return getattr(importlib.import_module(f'{package}.{module}'), name)

    def config_path(self, name: str) -> str:
        """Path of the config of the model of an encoder, from the root of the repository."""
        encoder(name)
        return f'configs/{self.folder}/{self.config.format(name)}'


TASKS = {
    'pose': Task(
        folder='pose2d',
        paper='{family}Pose-{size}-S{stages}',
        plain='ViTPose-{size}',
        config='td-hm_{}_8xb64-210e_coco-256x192.py',
        estimator='TopdownPoseEstimator',
        predictor='inference.pose:PosePredictor',
        inferencer='inference.pose:PoseInferencer',
        graph='deploy.graph:PoseGraph',
        model=_pose_model,
        exported='inference.exported:ExportedPose',
        lifter='inference.lift:LiftPredictor',
        lifted='mesh',
        others={
            'BottomupPoseEstimator': 'inference.bottomup:BottomupPredictor',
            'PoseLifter': 'inference.joints:JointPredictor',
            'DiffusionLifter': 'inference.joints:JointPredictor',
        },
    ),
    'mesh': Task(
        folder='mesh',
        paper='{family}HMR2.0-{size}-S{stages}',
        plain='HMR2.0-{size}',
        config='hmr2_{}_8xb48-1000k_mix-256x192.py',
        estimator='MeshEstimator',
        predictor='inference.mesh:MeshPredictor',
        inferencer='inference.mesh:MeshInferencer',
        graph='deploy.graph:MeshGraph',
        model=_mesh_model,
        best='lift',
    ),
}


def task(name: str) -> Task:
    """Row of the task `name`; ValueError if unknown."""
    if name not in TASKS:
        raise ValueError(f'no task {name!r}; choose from {", ".join(TASKS)}')
    return TASKS[name]
