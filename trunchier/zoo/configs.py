"""Configs and names of the models that encoders and tasks make. Data only."""

import difflib
import fnmatch
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from .encoders import ENCODERS, STRIDES, Backbone, Encoder, encoder, neck_cfg, stage_feature
from .tasks import TASKS
from .tasks import task as task_row


def model_cfg(name: str, task: str = 'pose', decoder: str = 'classic') -> dict[str, Any]:
    """The part of a model's config that its encoder decides: backbone, neck, head, weights.

    Args:
        name, task: keys of `ENCODERS` and `TASKS`; ValueError if unknown.
        decoder: of poses: 'classic' (two deconvolutions) or 'simple' (ReLU, bilinear upsampling by
            4, a 3x3 convolution), ViTPose's.
    """
    cfg = task_row(task).model(name, encoder(name))
    neck = neck_cfg(name)
    if neck is not None:
        cfg = dict(cfg, neck=neck)
    if decoder == 'classic':
        return cfg
    if decoder != 'simple' or task_row(task) is not TASKS['pose']:
        raise ValueError(f'decoder={decoder!r} of {task}; give classic or, for poses, simple')
    return simple_decoder(cfg)


def simple_decoder(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """A pose model's config, or the part of `model_cfg` or `timm_cfg`, with the simple decoder."""
    upsample = dict(type='FeatureMapProcessor', scale_factor=4.0, apply_relu=True)
    neck = cfg.get('neck')
    return dict(
        cfg,
        head=dict(cfg['head'], **SIMPLE_HEAD),
        neck=dict(neck, simple=True) if neck else upsample,
    )


def timm_name(text: str) -> tuple[str, int] | None:
    """Encoder and stages of a name such as `convnext_tiny-s3`; None: it is no such name."""
    match = re.fullmatch(r'(\w+(?:\.\w+)?)-s([234])', text)  # ours have two hyphens
    return (match[1], int(match[2])) if match else None


def timm_cfg(
    name: str, num_stages: int, infos: Sequence[Mapping[str, Any]], task: str = 'pose'
) -> dict[str, Any]:
    """The part of a model's config that an encoder of timm decides, as `model_cfg`.

    Decoders are those of the paper's sizes T and S.

    Args:
        name: of timm.
        num_stages: 2, 3 or 4; stage 3 (1/16) gives the width of the decoder.
        infos: `feature_info` of the network: dicts with `reduction` and `num_chs`.
        task: key of `TASKS`.

    Raises:
        ValueError: the network has no map of the stage, or none of 1/16.
    """
    channels, width = (infos[stage_feature(infos, i, name)]['num_chs'] for i in (num_stages - 1, 2))
    backbone = Backbone('TruncatedTimm', name, name, 0.8, 's')
    stride = STRIDES[num_stages - 1]
    row = Encoder(name, backbone, num_stages, channels, stride, width)
    init_cfg = dict(type='TimmPretrained')
    return dict(
        backbone=dict(
            type='TruncatedTimm',
            model_name=name,
            num_stages=num_stages,
            img_size=(256, 192),
            init_cfg=init_cfg,
        ),
        neck=dict(
            type='StageAdapter', in_channels=channels, out_channels=width, num_stages=num_stages
        ),
        head=task_row(task).model('swin-t-s3', row)['head'],
    )


SIMPLE_HEAD = dict(
    deconv_out_channels=(), deconv_kernel_sizes=(), final_layer=dict(kernel_size=3, padding=1)
)


def optim_cfg(name: str) -> dict[str, Any]:
    """The part of the pose recipe's optimizer config that the encoder decides."""
    return dict(paramwise_cfg=dict(layer_decay_rate=encoder(name).backbone.layer_decay))


LIFTED = '+lift'  # after the name of a model: its results, lifted


def paper_name(name: str, task: str) -> str:
    """The paper's name of a model: `('swin-t-s3', 'mesh')` -> `SwinHMR2.0-T-S3`."""
    return task_row(task).paper_name(name)


def config_path(name: str, task: str) -> str:
    """Path of a model's config from the root of the repository."""
    return task_row(task).config_path(name)


def models() -> dict[str, tuple[str, str]]:
    """{the paper's name of each model: (its encoder, its task)}, in the order of the tables."""
    return {row.paper_name(name): (name, task) for task, row in TASKS.items() for name in ENCODERS}


def list_models(pattern: str = '*') -> list[str]:
    """The paper's names of the models that match a shell pattern, in any case: `VM*-S2`."""
    return [name for name in models() if fnmatch.fnmatch(name.lower(), pattern.lower())]


def names() -> dict[str, str]:
    """{the paper's name in lower case, or the stem of the config: the paper's name}."""
    known = {name.lower(): name for name in models()}
    for name, (of, task) in models().items():
        known[PurePosixPath(config_path(of, task)).stem] = name
    return known


def lifted_of(text: str, task: str | None = None) -> tuple[str, str] | None:
    """Name and task of the model whose results a name lifts: 'ViTPose-B+lift', or 'lift' for ours.

    Returns:
        None: the name lifts nothing.

    Raises:
        ValueError: another `task` is wanted than that of lifted results.
    """
    if not f'+{text}'.endswith(LIFTED):
        return None
    source, row = next(each for each in TASKS.items() if each[1].lifter)
    if task not in (None, row.lifted):
        raise ValueError(f'{text} gives results of the task {row.lifted}, not {task}')
    return text.removesuffix('lift').rstrip('+') or source, source


def known_name(text: str, task: str | None = None) -> str:
    """The paper's name of a model by any of its names.

    Args:
        text: the paper's name, the stem of a config, or an encoder's name (`vm-t-s3`), which needs
            `task`; in any case.

    Raises:
        ValueError: an unknown name (the nearest ones are named), or an encoder without a task.
    """
    known, name = names(), text.lower()
    if name in known:
        return known[name]
    if name in ENCODERS:
        if task is None:
            choices = ' or '.join(row.paper_name(name) for row in TASKS.values())
            raise ValueError(f'{text!r} is an encoder; name a model, {choices}, or give its task')
        return paper_name(name, task)
    near = difflib.get_close_matches(name, [*known, *ENCODERS], n=3, cutoff=0.5)
    near = ' or '.join(dict.fromkeys(known.get(each, each) for each in near))
    hint = f'did you mean {near}?' if near else f'choose from {", ".join(models())}'
    raise ValueError(f'no model {text!r}; {hint}')
