"""Find a model by any of its names, with its config and its weights, and build it."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from mmengine.registry import MODELS, DefaultScope, init_default_scope
from torch import nn

from .. import zoo
from ..files import local_file, need, shipped
from ..zoo.releases import RELEASES
from .experts import dataset_number
from .inspection import PADDINGS, exported_metadata, input_size, inspect_file, stated_facts
from .official import fetch

if TYPE_CHECKING:
    from mmengine.config import Config


class Found(NamedTuple):
    """A model: the paper's name or the config's stem, task, a copy of the config, weights.

    `renames` and `expert`: of the weights, see `recognize.recognize`; `notes` say what was
    guessed of the weights; `smpl`: whether they were trained for SMPL's body; `lifted`: whether
    its results are lifted to bodies.
    """

    name: str
    task: str
    cfg: Config
    weights: Path | None = None
    renames: tuple[tuple[str, str], ...] = ()
    expert: str | int | None = None
    notes: tuple[str, ...] = ()
    smpl: bool = False
    lifted: bool = False

    @property
    def row(self) -> zoo.Task:
        """Row of its task in `zoo.TASKS`; lifted results and bottom-up models have others."""
        row = zoo.TASKS[self.task]
        if self.lifted:
            return row._replace(predictor=row.lifter)
        return row.of(self.cfg.model.type) or row

    @property
    def source(self) -> str:
        """Name of the model itself, whose results may be lifted."""
        return self.name.removesuffix(zoo.LIFTED)

    def required_weights(self) -> Path:
        """Path of the weights; official ones of this model are downloaded, with a word.

        Raises:
            FileNotFoundError: there are none; says what to do. DownloadError: see `fetch`.
        """
        if self.weights is not None:
            return self.weights
        if self.source in RELEASES:
            return fetch(self.source)
        message = (
            f'no weights of {self.name} ship with this package, and a model with random weights '
            'predicts nothing: give weights=FILE (--weights FILE), such as a checkpoint that '
            'tools/train.py wrote'
        )
        if shipped := shipped_models():
            message += f', or take {" or ".join(shipped)}, which comes with weights'
        raise FileNotFoundError(message)


def find(
    model: str | Path | Config | None,
    weights: str | Path | None = None,
    task: str | None = None,
    renames: Sequence[tuple[str, str]] = (),
    expert: str | int | None = None,
) -> Found:
    """A model by any of its names, with its weights; or by its weights alone.

    Weights that state the size of their crops, or another one in the shapes, get the config of a
    named model with that size, and so do keypoints and decoder. Shipped weights come with the
    config that they were trained with, unless `model` is a config itself.

    Args:
        model: the paper's name (`VMPose-T-S3`), the file name or the path of a config, a Config, a
            task (its model that ships with weights), or an encoder's name (`vm-t-s3`), which also
            needs `task`. A pose model's name and '+lift', or 'lift' for ours: bodies lifted from
            its keypoints, see `models.lifting.body`. None: what the weights are recognized as.
        weights: path or http(s) address; None: those that ship with this package, if any.
        task: key of `zoo.TASKS`; None: that of the model.
        renames, expert: of the weights, see `recognize.recognize`.

    Raises:
        FileNotFoundError: no such config or weights.
        ValueError: an unknown name (the nearest ones are named), a model of another task, an
            encoder without a task, or weights of a config with crops of another size.
        CheckpointError: weights of an unknown layout.
    """
    if isinstance(model, str) and (lifted := zoo.lifted_of(model, task)):
        found = find(lifted[0], weights, lifted[1], renames, expert)
        if not found.row.lifter:
            raise ValueError(
                f'{found.name} is a {found.row.estimator}, from which no bodies are lifted; take a '
                f'{zoo.TASKS[found.task].estimator}'
            )
        return found._replace(name=found.name + zoo.LIFTED, lifted=True)
    if isinstance(model, str) and model in zoo.TASKS:
        if weights is None and zoo.TASKS[model].best:
            return find(zoo.TASKS[model].best, task=task)
        model, task = shipped_model(model), model
    if model is None:
        if weights is None:
            raise ValueError('name a model, or give weights')
        file = inspect_file(_path_of(weights), renames, expert)
        return _of_file(file, task, expert=expert)._replace(renames=tuple(renames), expert=expert)
    found = find_config(model, task)
    is_name = isinstance(model, str) and not (model.endswith('.py') or zoo.timm_name(model))
    if weights is None:
        path = shipped.asset(f'{found.name}.safetensors')
        if not path.is_file():
            row = RELEASES.get(found.name)
            return found._replace(smpl=row is not None and row.smpl)
    else:
        path = _path_of(weights)
    if is_name and (path.suffix not in ('.onnx', '.pt2') or exported_metadata(path)):
        file = inspect_file(path, renames, expert)
        if found.name in (file.name, *_names_of(file)):
            found = _of_file(file, task, found, expert)
    elif weights is not None:
        stated, own = stated_facts(path), input_size(found.cfg)
        size = stated.get('input_size')
        if size and own and tuple(size) != own:
            raise ValueError(
                f'{path} was trained on crops of {size[0]} x {size[1]} '
                f'({stated.get("config", "as it says")}), {found.name} takes {own[0]} x {own[1]}: '
                'name that config, or leave the model out'
            )
    return found._replace(weights=path, renames=tuple(renames), expert=expert)


def _path_of(weights):
    if not str(weights).startswith(('http://', 'https://')) and not Path(weights).is_file():
        raise FileNotFoundError(f'no file of weights {weights} (from {Path.cwd()})')
    return local_file(weights)


def _names_of(file):
    return file.identity.names if file.identity else ()


def _of_file(file, task, found=None, expert=None):
    """The model that a file is recognized as, with a config that fits the file."""
    name = found.name if found else file.name
    if name not in zoo.models():
        raise ValueError(f'{file.path} is no model to predict with:\n{file.report()}')
    own_task = zoo.models()[name][1]
    _check_task(name, own_task, task)
    if name in zoo.SHIPPED and file.stated.get('config') == zoo.SHIPPED[name]:
        cfg = _read_config(shipped.of_repository(zoo.SHIPPED[name]))
    else:
        cfg = (found or find_config(name)).cfg
    notes = list(file.guesses)
    if file.identity is not None:
        notes += _fit_model(cfg, file.identity, file.recognized.state, expert)
    size = file.input_size
    if size and size != input_size(cfg):
        _set_input_size(cfg, *size)
    for step in cfg.test_dataloader.dataset.pipeline:
        if step.type in PADDINGS and 'box_padding' in file.stated:
            step[PADDINGS[step.type][0]] = file.stated['box_padding']
    return Found(name, own_task, cfg, file.path, notes=tuple(notes), smpl=file.smpl)


def _fit_model(cfg, identity, state, expert):
    """Give the config of a model the decoder and norms of a recognized file; returns guesses."""
    model, notes = cfg.model, []
    if not identity.head:
        raise ValueError(
            f'the decoder of this file ({identity.decoder}) is of no known size: write a config '
            'with its numbers of heads and channels, and name it as the model'
        )
    if identity.num_stages and f'backbone.norm{identity.num_stages - 1}.weight' not in state:
        model.backbone.out_norm = False
    if 'out_channels' not in identity.head:
        model.head.update(identity.head)
        return notes
    if not identity.head['deconv_out_channels']:
        if model.get('neck'):
            model.neck.simple = True
        else:
            model.neck = dict(type='FeatureMapProcessor', scale_factor=4.0, apply_relu=True)
    count = identity.head['out_channels']
    model.head.update(identity.head)
    known = KEYPOINTS_OF_EXPERTS.get(dataset_number(expert)) if expert is not None else None
    if count != 17 or known:
        if count not in KEYPOINT_SETS and not known:
            raise ValueError(f'{count} keypoints of unknown names: give a config with their names')
        metainfo = f'configs/_base_/datasets/{known or KEYPOINT_SETS[count]}.py'
        cfg.train_dataloader.dataset.metainfo = dict(from_file=metainfo)
        if not known:
            notes.append(f'{count} keypoints are taken for those of {KEYPOINT_SETS[count]}')
    return notes


KEYPOINTS_OF_EXPERTS = {1: 'aic', 2: 'mpii', 3: 'ap10k', 4: 'ap10k', 5: 'coco_wholebody'}
KEYPOINT_SETS = {14: 'aic', 16: 'mpii', 26: 'halpe26', 133: 'coco_wholebody', 136: 'halpe'}


def _set_input_size(cfg, width, height):
    """Crops of another size than the recipe's, pixels."""
    codec = cfg.model.head.get('decoder')
    if codec:
        scale = codec.input_size[0] // codec.heatmap_size[0]
        codec.update(input_size=(width, height), heatmap_size=(width // scale, height // scale))
    if 'img_size' in cfg.model.backbone:
        cfg.model.backbone.img_size = (height, width)
    for step in cfg.test_dataloader.dataset.pipeline:
        if step.type == 'TopdownAffine':
            step.input_size = (width, height)
        elif step.type == 'CropPerson':
            step.size = height
    if input_size(cfg) != (width, height):
        raise ValueError(f'crops of {width} x {height} do not suit this model')


def find_config(model: str | Path | Config, task: str | None = None) -> Found:
    """The same without weights, with the config of the recipe; raises what `find` does."""
    if not isinstance(model, str | Path):
        name = Path(getattr(model, 'filename', None) or 'model').stem
        cfg = _of_student(copy.deepcopy(model))
        return Found(name, _task_of(cfg, name, task), cfg)
    text = str(model)
    if text.endswith('.py'):
        if not Path(text).is_file():
            raise FileNotFoundError(f'no config {text} (from {Path.cwd()})')
        cfg, stem = _read_config(text), Path(text).stem
        return Found(zoo.names().get(stem, stem), _task_of(cfg, stem, task), cfg)
    if timm_name := zoo.timm_name(text):
        return _of_timm(text, *timm_name, task or 'pose')
    name = zoo.known_name(text, task)
    encoder, own_task = zoo.models()[name]
    _check_task(name, own_task, task)
    path = shipped.of_repository(zoo.config_path(encoder, own_task))
    return Found(name, own_task, _read_config(path))


def _of_timm(text, name, num_stages, task):
    """The model of an encoder of timm, such as `convnext_tiny-s3`: Swin-T-S3's with another one."""
    timm = need('timm', f'the encoder {text}')
    if not timm.is_model(name.partition('.')[0]):
        known = zoo.names()
        near = [known[key] for key in difflib.get_close_matches(text.lower(), known, 1)]
        near += difflib.get_close_matches(name, timm.list_models(), 3)
        raise ValueError(f'neither trunchier nor timm has {name!r}; near: {", ".join(near)}')
    cfg = _read_config(shipped.of_repository(zoo.config_path('swin-t-s3', task)))
    with torch.device('meta'):
        infos = list(timm.create_model(name).feature_info)
    part = zoo.timm_cfg(name, num_stages, infos, task)
    cfg.model.backbone, cfg.model.neck = part['backbone'], part['neck']
    cfg.model.head.update(part['head'])
    cfg.model.pop('init_cfg', None)
    file = zoo.TASKS[task].config.format(text)
    cfg = type(cfg)(cfg.to_dict(), cfg_text=cfg.pretty_text, filename=file)
    license = timm.get_pretrained_cfg(name).license or 'not stated'
    return Found(text, task, cfg, notes=(f"license of timm's weights of {name}: {license}",))


def row_of(model: nn.Module) -> zoo.Task:
    """Row of the task in `zoo.TASKS` that an estimator belongs to; ValueError if to none."""
    names = [kind.__name__ for kind in type(model).__mro__]
    for row in zoo.TASKS.values():
        if row.estimator in names:
            return row
    raise ValueError(f'a {names[0]} belongs to no task; supported are {_estimators()}')


def _estimators():
    return ', '.join(row.estimator for row in zoo.TASKS.values())


def _read_config(path):
    from mmengine.config import Config

    return _of_student(Config.fromfile(path))


def _of_student(cfg):
    """The config itself; that of a distiller (see `models.distillers`) with the student's model."""
    if 'student' in cfg.model:
        cfg.model = cfg.model.student
    return cfg


def _task_of(cfg, name, task):
    """Task of a config, by its estimator; `task` if it is another estimator's."""
    for key, row in zoo.TASKS.items():
        if row.of(cfg.model.type):
            _check_task(name, key, task)
            return key
    if task is None:
        kind = cfg.model.type if isinstance(cfg.model.type, str) else cfg.model.type.__name__
        raise ValueError(f'{name} is a {kind}, whose task is unknown; supported: {_estimators()}')
    return task


def _check_task(name, own, task):
    if task is not None and zoo.task(task) is not zoo.TASKS[own]:
        inferencer = zoo.TASKS[own].inferencer.partition(':')[2]
        raise ValueError(f'{name} is a {own} model, not {task}; use {inferencer} for it')


def shipped_models() -> list[str]:
    """Names of the models whose weights ship with this package."""
    return [name for name in zoo.models() if shipped.asset(f'{name}.safetensors').is_file()]


def shipped_model(task: str) -> str:
    """Name of the model of a task whose weights ship here; FileNotFoundError if there is none."""
    for name in shipped_models():
        if zoo.models()[name][1] == task:
            return name
    raise FileNotFoundError(
        f'no {task} model ships with weights: name one and give its checkpoint, as in '
        f'--model {zoo.paper_name("vm-t-s2", task)} --weights FILE'
    )


def weights_note(path: str | Path) -> str | None:
    """The note that a .safetensors file carries about its weights: any text, escape it to print."""
    if Path(path).suffix != '.safetensors':
        return None
    safetensors = need('safetensors', 'reading .safetensors')
    try:
        with safetensors.safe_open(path, framework='pt') as file:
            return (file.metadata() or {}).get('note')
    except safetensors.SafetensorError as error:
        raise ValueError(f'{path} is cut off or not a safetensors file: {error}') from error


def pick_device(device: str | torch.device | None) -> torch.device:
    """'auto' or None is CUDA if there is a GPU, else the CPU.

    Raises:
        ValueError: a device that this machine does not have.
    """
    if device in (None, 'auto'):
        device = 'cuda' if torch.cuda.is_available() else 'cpu'
    try:
        device = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"no device {device!r}; choose 'auto', 'cpu', 'cuda' or 'cuda:1'") from (
            error
        )
    if device.type == 'cuda' and not torch.cuda.is_available():
        raise ValueError(f"device {device} requires a GPU, but torch finds none; use device='cpu'")
    return device


def _types(value: Any) -> Iterator[str]:
    """Every `type` in a config's model."""
    if isinstance(value, dict):
        if isinstance(value.get('type'), str):
            yield value['type']
        value = [*value.values()]
    if isinstance(value, list | tuple):
        for each in value:
            yield from _types(each)


def build_model(cfg: Config, preprocesses: bool = True) -> nn.Module:
    """The model of a config, on the CPU, in eval mode, with random weights.

    Leaves out what only training needs: initial weights and the discriminator.

    Args:
        preprocesses: False leaves out the data preprocessor, for images that are normalized. A
            model that consists of our modules is then built without importing mmpose (6 s).

    Raises:
        ImportError: the model needs mmpose (pose heads) or mmpretrain (ViT).
    """
    cfg = copy.deepcopy(cfg)
    if cfg.model.get('discriminator'):
        cfg.model.discriminator = None
    cfg.model.init_cfg = cfg.model.backbone.init_cfg = None
    known = MODELS.get(cfg.model.type) is not None
    if known and not (preprocesses and find_spec('mmpose')):
        cfg.model.data_preprocessor = None  # mmpose's
    init_default_scope(cfg.get('default_scope', 'mmpose'))
    if not known:
        need('mmpose.models', f'building a {cfg.model.type}')
    ours = all(MODELS.get(name) is not None for name in _types(cfg.model))
    with DefaultScope.overwrite_default_scope('mmengine' if ours else None):
        return MODELS.build(cfg.model).eval()
