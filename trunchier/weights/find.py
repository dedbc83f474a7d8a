"""A model by its name, with its weights, on a device."""

import copy
import difflib
from pathlib import Path

import torch

from .. import assets, zoo
from ..files import local_file
from .load import load_official, read_weights, unwrap

PACKAGE = Path(__file__).parents[1]
WEIGHTS = assets.FOLDER  # what comes with the package: PAPER-NAME.safetensors
TRAINED_BY = {  # the configs of those
    'VMPose-T-S2': 'configs/embedded/td-hm_vm-t-s2_synthetic-256x192.py',
    'VMHMR2.0-T-S2': 'configs/embedded/hmr2_vm-t-s2_synthetic-128.py',
}


def model_names(task):
    """The paper's names of the models of a task, 'pose' or 'mesh', by encoder."""
    return {name: zoo.paper_name(name, task) for name in zoo.ENCODERS}


def find_config(model, task):
    """Config of a model, and its name.

    Args:
        model: the paper's name (`VMPose-T-S3`), the encoder's (`vm-t-s3`), the config's file name,
            a config's path, or a Config.
        task: 'pose' or 'mesh'.

    Returns:
        mmengine Config (a copy), str.

    Raises:
        FileNotFoundError: no such config file.
        ValueError: an unknown name (says which is nearest), or a model of the other task.
    """
    from mmengine.config import Config

    if isinstance(model, Config):
        return copy.deepcopy(model), Path(model.filename or 'model').stem
    text = str(model)
    names = model_names(task)
    for encoder, name in names.items():
        path = Path(zoo.config_path(encoder, task))
        if text.lower() in (name.lower(), encoder, path.stem):
            return Config.fromfile(_shipped(path)), name
    if text.endswith('.py'):
        if not Path(text).is_file():
            raise FileNotFoundError(f'no config {text} (from {Path.cwd()})')
        stem = Path(text).stem
        leaves = {
            Path(zoo.config_path(encoder, task)).stem: name for encoder, name in names.items()
        }
        return Config.fromfile(text), leaves.get(stem, stem)
    other = 'mesh' if task == 'pose' else 'pose'
    others = {name.lower(): name for name in model_names(other).values()}
    if text.lower() in others:
        wanted = 'MeshInferencer' if other == 'mesh' else 'PoseInferencer'
        raise ValueError(f'{others[text.lower()]} is a {other} model; use {wanted} for it')
    known = {name.lower(): name for name in names.values()} | {name: name for name in names}
    near = difflib.get_close_matches(text.lower(), known, n=3, cutoff=0.5)
    hint = f'did you mean {" or ".join(known[each] for each in near)}?' if near else ''
    raise ValueError(
        f'no {task} model {text!r}; {hint or "choose from " + ", ".join(names.values())}'
    )


def find_model(model, task, weights=None):
    """Config, name and weights of a model.

    Weights that come with the package come with the config that they were trained by (the mesh
    model's crops are half as large as the paper's), unless `model` is a config itself.

    Args:
        model, task: see `find_config`.
        weights: see `find_weights`.

    Returns:
        mmengine Config, str, path of the weights.
    """
    cfg, name = find_config(model, task)
    path = find_weights(name, weights)
    by_name = isinstance(model, str) and not model.endswith('.py')
    if weights is None and by_name and name in TRAINED_BY:
        cfg = type(cfg).fromfile(_shipped(TRAINED_BY[name]))
    return cfg, name, path


def _shipped(path):
    """A config of the repository, in a checkout or in an installed wheel."""
    root = PACKAGE.parent if (PACKAGE.parent / path).is_file() else PACKAGE / '.mim'
    return root / path


def find_weights(name, weights):
    """Path of a model's weights: the user's, or those that come with the package.

    Raises:
        FileNotFoundError: there are none, and says what to do.
    """
    if weights is not None:
        return local_file(weights)
    embedded = WEIGHTS / f'{name}.safetensors'
    if embedded.is_file():
        return embedded
    message = (
        f'no weights of {name} are published, and a model with random weights predicts nothing: '
        'give weights=FILE (--weights FILE), such as a checkpoint that tools/train.py wrote'
    )
    if available := sorted(path.stem for path in WEIGHTS.glob('*.safetensors')):
        message += f', or take {" or ".join(available)}, which comes with weights'
    raise FileNotFoundError(message)


def weights_note(path):
    """What a .safetensors file says about its weights, or None."""
    if Path(path).suffix != '.safetensors':
        return None
    from safetensors import safe_open

    with safe_open(path, framework='pt') as file:
        return (file.metadata() or {}).get('note')


def embedded_model(task):
    """Name of the model of a task that comes with weights.

    Raises:
        FileNotFoundError: there is none.
    """
    for name in model_names(task).values():
        if (WEIGHTS / f'{name}.safetensors').is_file():
            return name
    raise FileNotFoundError(
        f'no {task} model comes with weights: name one and give its checkpoint, as in '
        f'--model {zoo.paper_name("vm-t-s2", task)} --weights FILE'
    )


def load_weights(model, path):
    """Fill `model` from a checkpoint, every parameter of it.

    Args:
        model: built from its config.
        path: ours, mmpose's, or as official authors release it.

    Returns:
        The metainfo of the data set that the checkpoint was trained on, or None.

    Raises:
        CheckpointError: it is of another model, or no checkpoint.
    """
    content = read_weights(path)
    state = unwrap(content, path)
    wanted = model.state_dict()
    if not any(key.startswith('discriminator.') for key in wanted):
        state = {k: v for k, v in state.items() if not k.startswith('discriminator.')}
    if state.keys() == wanted.keys() and all(state[k].shape == v.shape for k, v in wanted.items()):
        model.load_state_dict(state)
    else:
        load_official(model, path)
    meta = content.get('meta') if isinstance(content, dict) else None
    return meta.get('dataset_meta') if isinstance(meta, dict) else None


def pick_device(device):
    """'auto' is CUDA where there is a GPU, else the CPU.

    Raises:
        ValueError: a device that this machine has not got.
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
        raise ValueError(f"device {device} wants a GPU, and torch finds none; use device='cpu'")
    return device
