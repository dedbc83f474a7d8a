"""Build models by name: `create_model('VMPose-T-S3')`, `create_backbone('swin-t-s3')`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmengine.registry import MODELS
from torch import nn

from .. import zoo
from ..weights.find import build_model, find, find_config
from ..weights.load import load_checkpoint
from ..weights.official import fetch

if TYPE_CHECKING:
    from mmengine.config import Config

SHIPPED = 'shipped'  # the weights that come with the package
OFFICIAL = 'official'  # those of its authors, see zoo/releases.py


def create_model(
    name: str | Path | Config,
    weights: str | Path | None = None,
    num_keypoints: int | None = None,
    task: str | None = None,
    **changes: Any,
) -> nn.Module:
    """Build a model, on the CPU, in eval mode.

    Args:
        name: the paper's name, `VMPose-T-S3` (`list_models` lists them), an encoder of timm
            with its stages, `convnext_tiny-s3`, a config's path or a Config.
        weights: path or http(s) address of a checkpoint; 'shipped': the package's own weights and
            the config that they were trained with; 'official': those of its authors, downloaded
            once; None: random weights.
        num_keypoints: number of heatmaps of a pose model; None: that of its config, 17.
        task: of an encoder: 'pose' (default of timm's) or 'mesh'.
        changes: options of the config's `model`, merged into it:
            `backbone=dict(drop_path_rate=0.1)`.

    Returns:
        The estimator: `backbone`, `neck` (less ViT), `head` and, of mesh models, `body`.

    Raises:
        ValueError: unknown name, or `num_keypoints` of a model without keypoints.
        FileNotFoundError, CheckpointError, DownloadError: no such weights, or of another model.
    """
    found = find(name, task=task) if weights == SHIPPED else find_config(name, task)
    cfg = found.cfg
    if num_keypoints is not None:
        if 'out_channels' not in cfg.model.head:
            raise ValueError(f'{found.name} has no heatmaps; leave num_keypoints out')
        changes = dict(changes, head=dict(changes.get('head', {}), out_channels=num_keypoints))
    cfg.merge_from_dict(dict(model=changes))
    if weights == OFFICIAL:
        weights = fetch(found.name)
    model = build_model(cfg)
    if weights is not None:
        load_checkpoint(model, found.required_weights() if weights == SHIPPED else weights)
    return model


def create_backbone(name: str, weights: str | Path | None = None, **changes: Any) -> nn.Module:
    """Build an encoder's backbone alone, on the CPU, in eval mode.

    Args:
        name: key of `zoo.ENCODERS`, such as `swin-t-s3`.
        weights: path or http(s) address of a checkpoint, official or ours; None: random weights.
        changes: options of the backbone, such as `out_indices=(0, 1, 2)`.

    Returns:
        A module: (B, 3, H, W) -> tuple of (B, C, H / stride, W / stride), one a stage of
        `out_indices` (default: the last stage).

    Raises:
        ValueError: unknown name. CheckpointError: weights of another backbone.
    """
    backbone = MODELS.build(dict(zoo.backbone_cfg(name), init_cfg=None, **changes))
    backbone.eval()  # returns None in mmpretrain
    if weights is not None:
        load_checkpoint(backbone, weights)
    return backbone
