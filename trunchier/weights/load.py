"""Load checkpoints: official files, mmpose's, ours; and write ours.

`load_checkpoint(module, file)` fills a module from a file as its authors release it: Swin, VMamba
and GroupMixFormer classifiers, ViTPose, HMR2.0, MixSTE, HoT, a checkpoint of mmpose or of this
package. What truncation drops is left out; any other difference is an error.
"""

import json
import os
import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from mmengine.registry import WEIGHT_INITIALIZERS
from mmengine.runner import checkpoint as of_mmengine
from torch import nn

from ..files import download, local_file, need, whole_file
from ..zoo.releases import release_of
from .checkpoint import read_checkpoint
from .experts import expert_entries
from .families import State, rename
from .lifters import from_lifter
from .recognize import CheckpointError, identify, recognize, stage_depths

WRAPPERS = ('state_dict', 'model', 'model_ema', 'model_pos', 'module')


@WEIGHT_INITIALIZERS.register_module()
class OfficialPretrained:
    """`init_cfg=dict(type='OfficialPretrained', checkpoint=PATH_OR_URL)` on a backbone or model.

    Args:
        checkpoint: see `load_checkpoint`.
        parts: load only these children of a whole model, such as ['backbone', 'neck'] to start a
            mesh model from a pose model; the others keep their own initialization.
    """

    def __init__(self, checkpoint: str, parts: Sequence[str] | None = None):
        self.checkpoint = checkpoint
        self.parts = parts

    def __call__(self, module: nn.Module) -> None:
        load_checkpoint(module, self.checkpoint, self.parts)
        # Without these marks mmengine would initialize the children, and mmpretrain's ViT its
        # position embedding, over the loaded values.
        whole = self.parts is None
        for child in module.children() if whole else [getattr(module, p) for p in self.parts]:
            for descendant in child.modules():
                descendant._is_init = True
        if whole and isinstance(cfg := getattr(module, 'init_cfg', None), dict):
            module.init_cfg = dict(cfg, type='Pretrained')


def load_checkpoint(
    module: nn.Module,
    checkpoint: str | Path,
    parts: Sequence[str] | None = None,
    renames: Sequence[tuple[str, str]] = (),
    expert: str | int | None = None,
) -> dict[str, Any] | None:
    """Load `checkpoint` into `module`: every parameter and buffer of it or of its `parts`.

    Args:
        module: a backbone, or a whole model with children `backbone`, `neck`, `head`...
        checkpoint: path or http(s) address.
        parts: names of children to load, others are left alone; None: all.
        renames, expert: see `recognize.recognize`.

    Returns:
        The metainfo of the data set that the checkpoint was trained on, if it states one.

    Raises:
        FileNotFoundError: no such file. DownloadError: see `files.download`.
        CheckpointError: unreadable file, forbidden class, unknown layout, or keys that are missing,
            unexpected or misshapen; `module` is then unchanged.
    """
    content = read_weights(announced_file(checkpoint))
    state = unwrap(content, checkpoint)
    expected = module.state_dict()
    if not hasattr(module, 'discriminator'):  # only training needs it
        state = {k: v for k, v in state.items() if not k.startswith('discriminator.')}
    fresh, differing = None, []
    if parts is not None or renames or expert is not None or state.keys() != expected.keys():
        if parts is not None:
            expected = _of_parts(module, expected, parts)
        found = from_lifter(state, expected) or recognize(state, checkpoint, renames, expert).state
        trained = any(key.startswith('head.') for key in found)
        whole = trained and (parts is None or 'head' in parts)
        state, fresh, differing = _fit(module, found, whole)
        if not hasattr(module, 'discriminator'):
            state = {k: v for k, v in state.items() if not k.startswith('discriminator.')}
        if parts is not None:
            state = {key: value for key, value in state.items() if key.split('.')[0] in parts}
    backbone = getattr(module, 'backbone', module)
    if hasattr(backbone, 'adapt_state'):
        prefix = '' if backbone is module else 'backbone.'
        if getattr(backbone, 'experts', None):
            experts = expert_entries(unwrap(content, checkpoint))
            state = state | {prefix + key: value for key, value in experts.items()}
        backbone.adapt_state(state, prefix)
    missing = [key for key in expected if key not in state and not (fresh and fresh(key))]
    unexpected = [key for key in state if key not in expected]
    misshapen = [
        f'{key}: file {tuple(state[key].shape)}, model {tuple(value.shape)}'
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    ] + differing
    if missing or unexpected or misshapen:
        raise CheckpointError(
            f'{checkpoint} does not fit {type(module).__name__}; is it of another variant? '
            f'It looks like {_likely(content, checkpoint)}'
            + _listing('missing', missing)
            + _listing('unexpected', unexpected)
            + _listing('misshapen', misshapen)
        )
    module.load_state_dict(state, strict=False)
    meta = content.get('meta')
    return meta.get('dataset_meta') if isinstance(meta, dict) else None


def read_official(checkpoint: str | Path) -> State:
    """State_dict of an official file or one of ours, under our keys; see `load_checkpoint`."""
    return recognize(unwrap(read_weights(announced_file(checkpoint)), checkpoint), checkpoint).state


def read_weights(path: str | Path, shapes: bool = False) -> Any:
    """Content of a .safetensors, .pth, .pt or .ckpt file, read without running code in it.

    Args:
        shapes: read shapes alone, as tensors on the meta device.

    Returns:
        The pickled content; of .safetensors the tensors, and as `meta` its metadata if `shapes`.

    Raises:
        CheckpointError: not a checkpoint, cut off, or with a class that is not allowed.
    """
    if Path(path).suffix == '.safetensors':
        safetensors = need('safetensors', 'reading .safetensors')
        try:
            if not shapes:
                return need('safetensors.torch', 'reading .safetensors').load_file(path)
            with safetensors.safe_open(path, framework='pt') as file:
                sizes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
                tensors = {key: torch.empty(size, device='meta') for key, size in sizes.items()}
                return dict(tensors, meta=dict(file.metadata() or {}))
        except safetensors.SafetensorError as error:
            raise CheckpointError(
                f'{path} is cut off or not a safetensors file: {error}'
            ) from error
    with open(path, 'rb') as file:
        start = file.read(16)
    if not start.startswith((b'PK', b'\x80')):  # a zip archive, or a pickle
        raise CheckpointError(
            f'{path} cannot be read as weights: it is no file of torch.save or safetensors, and '
            f'begins with {start!r}'
        )
    try:
        return read_checkpoint(path, shapes)
    except Exception as error:
        reason = str(error).partition('\n')[0] or repr(error)
        raise CheckpointError(
            f'{path} cannot be read as weights: {reason}. It is cut off, not a checkpoint, or '
            'holds objects that are not read for safety; in the program that wrote it, save the '
            'weights alone: torch.save(model.state_dict(), FILE)'
        ) from error


def load_from_anywhere(filename: str, map_location: Any = None, **unused: Any) -> Any:
    """`read_weights` of a path or http(s) address, on the CPU, as a loader of mmengine.

    Those of a safetensors file are returned as `state_dict`, which EMAHook of mmengine reads.

    Raises:
        ValueError: an address of another kind.
    """
    if re.match(r'(\S+:)?(s3|petrel|pavi)://', filename):
        raise ValueError(f'{filename} is not read; download it and give the path of the file')
    content = read_weights(announced_file(os.path.expanduser(filename)))
    return dict(state_dict=content) if filename.endswith('.safetensors') else content


def announced_file(checkpoint: str | Path) -> Path:
    """`files.local_file`; the license of an official file is said before its download."""
    if known := release_of(str(checkpoint)):
        return download(str(checkpoint), note=f'license: {known[1].license}')
    return local_file(checkpoint)


def load_by_name(filename: str, map_location: Any = None) -> Any:
    """`load_from_anywhere` of an open-mmlab:// name: of the list of mmengine, or of its home's own.

    Raises:
        ValueError: the name is in neither list.
    """
    name = filename.partition('://')[2]
    name = of_mmengine.get_deprecated_model_names().get(name, name)
    addresses = of_mmengine.get_external_models()
    if name not in addresses:
        similar = ', '.join(get_close_matches(name, addresses)) or 'none'
        raise ValueError(f'{filename}: mmengine knows no address of this name; similar: {similar}')
    address = addresses[name]  # or a path below the home
    if '://' not in address:
        address = os.path.join(of_mmengine._get_mmengine_home(), address)
    return load_from_anywhere(address)


# mmengine would unpickle what `init_cfg`, `load_from`, --resume and its inferencers name. Its own
# loaders of torchvision:// and mmcls:// look an address up and call load_from_http.
of_mmengine.load_from_http = of_mmengine.load_from_local = load_from_anywhere
of_mmengine.CheckpointLoader.register_scheme(
    ('', 'http://', 'https://', 'pavi://', r'(\S+\:)?s3://', r'(\S+\:)?petrel://'),
    load_from_anywhere,
    force=True,
)
of_mmengine.CheckpointLoader.register_scheme(
    ('open-mmlab://', 'openmmlab://'), load_by_name, force=True
)


def wrapper_of(content: Any) -> str:
    """Path of keys below which `unwrap` finds the state_dict, such as 'state_dict'; '' for none."""
    path = []
    for key in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            path.append(key)
    return '/'.join(path)


def unwrap(content: Any, checkpoint: str | Path = 'checkpoint') -> State:
    """The state_dict in `content`, under any of the usual keys."""
    for key in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise CheckpointError(f'{checkpoint} holds a {type(content).__name__}, not a state_dict')
    state = {k: v for k, v in content.items() if isinstance(v, torch.Tensor)}
    if not state:
        raise CheckpointError(f'{checkpoint} holds no tensors; found keys {list(content)[:5]}')
    return rename(state, [(r'^module\.', '')])


def _likely(content, checkpoint):
    try:
        return identify(recognize(unwrap(content, checkpoint), checkpoint))
    except CheckpointError:
        return 'none of the known models'


def _listing(word, keys, most=12):
    if not keys:
        return ''
    more = f'\n  ... and {len(keys) - most} more' if len(keys) > most else ''
    return f'\n{len(keys)} {word}:\n  ' + '\n  '.join(keys[:most]) + more


def _of_parts(module, expected, parts):
    children = dict(module.named_children())
    absent = [part for part in parts if part not in children]
    if absent:
        raise CheckpointError(
            f'{type(module).__name__} has no part {absent}; its parts are {list(children)}'
        )
    return {key: value for key, value in expected.items() if key.split('.')[0] in parts}


def _fit(module, state, trained):
    """`state` with the keys of `module` and without dropped stages; a test for optional keys;
    how the dropped stages differ from those of the variant. Of `trained` models nothing is dropped.
    """
    whole = hasattr(module, 'backbone')
    prefixed = any(key.startswith('backbone.') for key in state)
    if prefixed and not whole:
        own = [key for key in state if key.startswith('backbone.')]
        state = {key.removeprefix('backbone.'): state[key] for key in own}
    elif whole and not prefixed:
        state = {f'backbone.{key}': value for key, value in state.items()}
    backbone = module.backbone if whole else module
    if not hasattr(backbone, 'num_stages'):
        return state, lambda key: False, []
    depths = dict(enumerate(backbone.arch['depths']))
    differing = [
        f'stage {stage + 1}: file {depth} blocks, model {depths.get(stage)}'
        for stage, depth in stage_depths(state).items()
        if stage >= backbone.num_stages and depth != depths.get(stage)
    ]
    if not trained:
        state = {key: value for key, value in state.items() if _kept(key, backbone)}
    return state, lambda key: not trained and FRESH.fullmatch(key), differing


# Output norms of stages 1 to 3: classifiers have none, so that a truncated model keeps its initial
# values.
FRESH = re.compile(r'(backbone\.)?norm[0-2]\..*')


def _kept(key, backbone):
    """Whether `key` belongs to a stage and an output norm that `backbone` has."""
    if stage := re.match(r'(?:backbone\.)?stages\.(\d+)\.', key):
        return int(stage[1]) < backbone.num_stages
    norm = re.match(r'(?:backbone\.)?(norm\d)\.', key)
    return norm is None or hasattr(backbone, norm[1])


def save_weights(
    state: State, path: str | Path, note: str | None = None, stated: dict[str, Any] | None = None
) -> None:
    """Write a state_dict as .safetensors or .pth; the file appears complete or not at all.

    Args:
        note: what users of the weights should know; only .safetensors keeps it.
        stated: what made them: `model`, `config`, `input_size`, see `inspection.stated_facts`.

    Raises:
        ValueError: another suffix.
    """
    state = {key: value.contiguous().clone() for key, value in state.items()}
    suffix = Path(path).suffix
    if suffix not in ('.safetensors', '.pth'):
        raise ValueError(f'{path}: weights are written as .safetensors or .pth')
    safetensors = suffix != '.pth' and need('safetensors.torch', 'writing .safetensors')
    with whole_file(path) as part:
        try:
            if safetensors:
                texts = dict(note=note, trunchier=stated and json.dumps(stated))
                texts = {key: text for key, text in texts.items() if text is not None}
                safetensors.save_file(state, part, texts or None)
                part.chmod(0o644)  # safetensors makes it readable for its owner alone
            else:
                meta = dict(meta=dict(trunchier=stated)) if stated else {}
                torch.save(dict(state_dict=state, **meta), part)
        except Exception as error:  # torch and safetensors have their own
            raise OSError(f'{path} cannot be written: {error}; is the disk full?') from error
