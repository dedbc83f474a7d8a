"""Teachers of distillation: trained estimators, alone or with a knowledge token that is learned.

`distillers` trains students by them. The token: Xu et al., "ViTPose", NeurIPS 2022, section 3.4.
"""

from __future__ import annotations

import hashlib
import json
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..files import file_digest
from ..weights.find import build_model, find
from ..weights.inspection import input_size
from ..weights.load import announced_file, load_checkpoint, read_weights, unwrap
from .tokens import TokenJoin, width_of

PRECISIONS = ('float32', 'bfloat16')


class Teacher:
    """A trained estimator that gives targets: in eval mode, without gradients, loaded once.

    It is no module, so that a student that holds it neither saves, copies nor optimizes it. It
    moves to the device of the first images.

    Args:
        source: a model's name, the path of a config, or the `model` of a config.
        weights: path or http(s) address; None: those that `source` names, if any.
        precision: 'float32', or 'bfloat16' for autocast.

    Raises:
        ValueError: another precision.
    """

    def __init__(self, source: str | dict, weights: str | Path | None, precision: str = 'float32'):
        if precision not in PRECISIONS:
            raise ValueError(f'precision of the teacher is {precision!r}; expected {PRECISIONS}')
        self.source, self.weights, self.precision = source, weights, precision
        self.loaded: nn.Module | None = None
        self.input_size: tuple[int, int] | None = None

    def __deepcopy__(self, memo: dict) -> Teacher:
        return self  # of an averaged student, too

    def __str__(self) -> str:
        source = self.source['type'] if isinstance(self.source, dict) else self.source
        return f'{source} ({self.weights})' if self.weights else source

    @property
    def model(self) -> nn.Module:
        """The estimator, loaded at the first use.

        Raises:
            FileNotFoundError, CheckpointError, ValueError: see `weights.find`.
        """
        if self.loaded is None:
            self.loaded, self.input_size = build_teacher(self.source, self.weights)
        return self.loaded

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Any:
        """Output of the head for normalized images (B, 3, H, W).

        Raises:
            ValueError: images of another size than the teacher's crops.
        """
        model = self.model.to(images.device)
        height, width = images.shape[-2:]
        if self.input_size and (height, width) not in _crops(*self.input_size):
            raise ValueError(
                f'the teacher takes crops of {self.input_size[0]} x {self.input_size[1]} (width x '
                f'height), the student {width} x {height}: choose a teacher of the same size, or '
                "change the student's codec and pipelines"
            )
        half = self.precision == 'bfloat16'
        with torch.autocast(images.device.type, torch.bfloat16, enabled=half):
            features = model.extract_feat(images)
            return model.head(features[-1] if hasattr(model, 'body') else features)


def _crops(width, height):
    """(height, width) of a model's crops; a mesh model sees the middle of square ones."""
    return (height, width), (height, height)


def build_teacher(
    source: str | dict, weights: str | Path | None
) -> tuple[nn.Module, tuple[int, int] | None]:
    """A trained estimator in eval mode without gradients, and the (width, height) of its crops.

    Raises:
        ValueError: the `model` of a config without weights; and see `weights.find`.
    """
    if isinstance(source, dict):
        if weights is None:
            raise ValueError(
                f'the teacher, a {source.get("type")}, has no weights: give teacher_weights=FILE; '
                'a teacher with random weights teaches nothing'
            )
        cfg = Config(dict(model=source))
        size = input_size(cfg) if (source.get('head') or {}).get('decoder') else None
        model, path, renames, expert = build_model(cfg), weights, (), None
    else:
        found = find(source, weights)
        size = input_size(found.cfg)
        model, path = build_model(found.cfg), found.required_weights()
        renames, expert = found.renames, found.expert
    load_checkpoint(model, path, renames=renames, expert=expert)
    return model.requires_grad_(False).eval(), size


def teacher_digest(source: str | dict, weights: str | Path | None, keypoints: Any) -> int:
    """A number (63 bits) for the content of a teacher's weights and what else heatmaps depend on.

    Raises:
        FileNotFoundError, ValueError: see `build_teacher`.
    """
    if isinstance(source, dict):
        path, expert = announced_file(weights), None
    else:
        found = find(source, weights)
        path, expert = found.required_weights(), found.expert
    about = json.dumps([file_digest(path), expert, keypoints])
    return int(hashlib.sha256(about.encode()).hexdigest()[:16], 16) >> 1


def keypoint_names(keypoints: Sequence[str] | str | None) -> tuple[str, ...] | None:
    """Names in the order of the channels, from names or a metainfo file."""
    if not isinstance(keypoints, str):
        return None if keypoints is None else tuple(keypoints)
    from mmpose.datasets.datasets.utils import parse_pose_metainfo

    names = parse_pose_metainfo(dict(from_file=keypoints))['keypoint_id2name']
    return tuple(names[i] for i in range(len(names)))


def match_keypoints(
    student: tuple[str, ...] | None, teacher: tuple[str, ...] | None, own: int, other: int
) -> tuple[list[int], list[int]]:
    """Channels of the student and of the teacher that show the same keypoints, by name.

    Args:
        student, teacher: names; both None: the same keypoints in the same order.
        own, other: numbers of channels.

    Raises:
        ValueError: names that do not fit the channels, differing numbers without names, or no name
            in common.
    """
    if student is None and teacher is None and own == other:
        return [*range(own)], [*range(own)]
    if student is None or teacher is None:
        raise ValueError(
            f'the student has {own} keypoints, the teacher {other}: name both by keypoints=... and '
            "teacher_keypoints=..., as in 'configs/_base_/datasets/halpe26.py'"
        )
    for what, names, number in (('student', student, own), ('teacher', teacher, other)):
        if len(names) != number:
            raise ValueError(f'the {what} has {number} heatmaps, but {len(names)} names are given')
    common = [name for name in student if name in teacher]
    if not common:
        raise ValueError(
            f'no keypoint of the student ({", ".join(student[:4])}, ...) is one of the teacher '
            f'({", ".join(teacher[:4])}, ...)'
        )
    return [student.index(name) for name in common], [teacher.index(name) for name in common]


# --- knowledge token ------------------------------------------------------------------------------
@MODELS.register_module()
class TeacherToken(nn.Module):
    """Stage 1 of token distillation: a teacher whose only parameter to learn is a token.

    The token joins the teacher's map before the blocks of a stage (`TokenJoin`); all else is
    frozen and in eval mode. Trained on labels, as the teacher was. Its checkpoint holds `token`.

    Args:
        teacher, teacher_weights: see `HeatmapDistiller`.
        stage: index of the stage; a plain ViT has one, 0.
        join: see `TokenJoin`.
    """

    def __new__(cls, teacher: str | dict | None = None, *args: Any, **options: Any) -> Any:
        if teacher is None:  # copy.deepcopy
            return super().__new__(cls)
        weights = args[0] if args else options.get('teacher_weights')
        return with_class(build_teacher(teacher, weights)[0], cls)

    def __init__(
        self,
        teacher: str | dict,
        teacher_weights: str | Path | None = None,
        stage: int = -1,
        join: str = 'row',
    ):
        self.token = nn.Parameter(torch.empty(width_of(self.backbone, stage)))
        nn.init.trunc_normal_(self.token, std=0.02)
        self.joined = TokenJoin(self.backbone, stage, join)
        self._register_state_dict_hook(_keep_token)
        self.register_load_state_dict_post_hook(_needs_token)

    def init_weights(self) -> None:
        """The teacher is trained."""

    def train(self, mode: bool = True) -> nn.Module:
        """Stay in eval mode: statistics and drop path of the teacher are frozen."""
        return super().train(False)

    def extract_feat(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Features with the token in the map."""
        self.joined.token = self.token
        return super().extract_feat(inputs)


def _keep_token(model, state, prefix, _):
    for key in [key for key in state if key.startswith(prefix) and key != f'{prefix}token']:
        del state[key]


def _needs_token(model, incompatible):
    incompatible.missing_keys[:] = [key for key in incompatible.missing_keys if key == 'token']


def read_token(path: str | Path) -> Tensor:
    """The token of a checkpoint of `TeacherToken`: (C,), float32.

    Raises:
        FileNotFoundError, CheckpointError: no such file, or unreadable.
        ValueError: a file without a token.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'no token {path}: train one with a TeacherToken first')
    token = unwrap(read_weights(path), path).get('token')
    if token is None or token.ndim != 1:
        raise ValueError(f'{path} holds no token; it is not a checkpoint of a TeacherToken')
    return token.float()


def with_class(model: nn.Module, kind: type) -> nn.Module:
    """The same estimator, as an instance of `kind`, too."""
    model.__class__ = types.new_class(kind.__name__, (kind, type(model)))
    return model
