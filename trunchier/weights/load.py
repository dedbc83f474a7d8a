"""Official checkpoints in, ours out.

`load_official(module, file)` fills a module from a file as its authors release it: Swin, VMamba and
GroupMixFormer classifiers, ViTPose, HMR2.0, or a checkpoint of this package. Each family has one
function from its authors' state_dict to ours: a table of renames, then what a regular expression
cannot say. What truncation drops is dropped; anything else that is left over is an error.
"""

import collections
import contextlib
import re
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.registry import WEIGHT_INITIALIZERS
from torch import Tensor

from ..files import local_file, need, whole_file

# Classes that training scripts leave beside the weights. Each is read as an inert dict.
INERT_CLASSES = (
    'argparse.Namespace',
    'yacs.config.CfgNode',
    'mmcv.utils.config.ConfigDict',
    'mmengine.config.config.ConfigDict',
    'pytorch_lightning.utilities.parsing.AttributeDict',
    'lightning_fabric.utilities.data.AttributeDict',
)
WRAPPERS = ('state_dict', 'model', 'model_ema', 'module')


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read, or does not fit the model."""


@WEIGHT_INITIALIZERS.register_module()
class OfficialPretrained:
    """`init_cfg=dict(type='OfficialPretrained', checkpoint=PATH_OR_URL)` on a backbone or model.

    Args:
        checkpoint (str): file or http(s) address, as the authors release it, or one of ours.
        parts (list[str]): load only these children of a whole model, such as ['backbone', 'neck']
            to start a mesh model from a pose model; the others keep their own initialisation.
    """

    def __init__(self, checkpoint, parts=None):
        self.checkpoint = checkpoint
        self.parts = parts

    def __call__(self, module):
        load_official(module, self.checkpoint, self.parts)
        # mmengine would now initialise the children, and mmpretrain's ViT its position embedding,
        # over what was loaded, unless told that this was done.
        loaded = module.children() if self.parts is None else self._children(module)
        for child in loaded:
            for descendant in child.modules():
                descendant._is_init = True
        if self.parts is None and isinstance(getattr(module, 'init_cfg', None), dict):
            module.init_cfg = dict(module.init_cfg, type='Pretrained')

    def _children(self, module):
        return [getattr(module, part) for part in self.parts]


def load_official(module, checkpoint, parts=None):
    """Load `checkpoint` into `module`, every parameter and buffer of it or of its `parts`.

    Args:
        module: a backbone, or a whole model with children `backbone`, `neck`, `head`...
        checkpoint: path or http(s) address.
        parts: names of children to load, others are left alone; None means all.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: unreadable file, forbidden class, unknown layout, or keys that are missing,
            unexpected or misshapen; `module` is then unchanged.
    """
    state = read_official(checkpoint)
    wanted = {key: value for key, value in module.state_dict().items()}
    if parts is not None:
        wanted = _of_parts(module, wanted, parts)
    state, fresh = _fit(module, state, wanted)
    if parts is not None:
        state = {key: value for key, value in state.items() if key.split('.')[0] in parts}
    missing = [key for key in wanted if key not in state and not fresh(key)]
    unexpected = [key for key in state if key not in wanted]
    misshapen = [
        f'{key}: file {tuple(state[key].shape)}, model {tuple(value.shape)}'
        for key, value in wanted.items()
        if key in state and state[key].shape != value.shape
    ]
    if missing or unexpected or misshapen:
        raise CheckpointError(
            f'{checkpoint} does not fit {type(module).__name__}; is it of another variant?'
            + _listing('missing', missing)
            + _listing('unexpected', unexpected)
            + _listing('misshapen', misshapen)
        )
    module.load_state_dict(state, strict=False)


def read_official(checkpoint):
    """State_dict of an official file, or of one of ours, under this package's keys.

    Raises:
        FileNotFoundError, CheckpointError: see `load_official`.
    """
    state = unwrap(read_weights(local_file(checkpoint)), checkpoint)
    for family in FAMILIES:
        if any(re.match(family.signature, key) for key in state):
            return family.convert(state)
    raise CheckpointError(
        f'{checkpoint} has none of the layouts known here ('
        f'{", ".join(family.name for family in FAMILIES)}); its keys begin with '
        f'{", ".join(list(state)[:3])}'
    )


def read_weights(path):
    """The content of a .safetensors, .pth, .pt or .ckpt file, read without running its code.

    Raises:
        CheckpointError: not a checkpoint, cut off, or with a class that is not allowed.
    """
    if Path(path).suffix == '.safetensors':
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise CheckpointError(f'{path} is cut off or no safetensors file: {error}') from error
    try:
        with _inert_classes():
            return torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f'{path} cannot be read as weights: {_first_line(error)}. It is cut off, is no '
            'checkpoint, or holds objects that are not read for safety'
        ) from error


def _first_line(error):
    """Of an error's text, the line which says most: torch puts the global's name further down."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if 'global' in line.lower()), (lines or [repr(error)])[0])


class _Inert:
    """Stands in for a class of INERT_CLASSES: makes an empty dict, whatever it is given."""

    def __new__(cls, *args, **kwargs):
        return collections.OrderedDict()


def _inert_classes():
    if not hasattr(torch.serialization, 'safe_globals'):  # torch < 2.5: such files are refused
        return contextlib.nullcontext()
    return torch.serialization.safe_globals([(_Inert, name) for name in INERT_CLASSES])


def unwrap(content, checkpoint='checkpoint'):
    """The state_dict inside `content`, under whichever key its authors put it."""
    for key in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise CheckpointError(f'{checkpoint} holds a {type(content).__name__}, not a state_dict')
    state = {k: v for k, v in content.items() if isinstance(v, torch.Tensor)}
    if not state:
        raise CheckpointError(f'{checkpoint} holds no tensors; found keys {list(content)[:5]}')
    return rename(state, [(r'^module\.', '')])


def _listing(word, keys, most=12):
    if not keys:
        return ''
    more = f'\n  ... and {len(keys) - most} more' if len(keys) > most else ''
    return f'\n{len(keys)} {word}:\n  ' + '\n  '.join(keys[:most]) + more


def rename(state, table):
    """Apply every row (pattern, replacement) of `table`, in order, to the keys of `state`."""
    for pattern, replacement in table:
        state = {re.sub(pattern, replacement, key): value for key, value in state.items()}
    return state


def _of_parts(module, wanted, parts):
    children = dict(module.named_children())
    absent = [part for part in parts if part not in children]
    if absent:
        raise CheckpointError(
            f'{type(module).__name__} has no part {absent}; its parts are {list(children)}'
        )
    return {key: value for key, value in wanted.items() if key.split('.')[0] in parts}


def _fit(module, state, wanted):
    """`state` with the keys of `module`, less what truncation drops, and what may stay fresh."""
    whole = hasattr(module, 'backbone')
    prefixed = any(key.startswith('backbone.') for key in state)
    if prefixed and not whole:
        start = len('backbone.')
        state = {key[start:]: v for key, v in state.items() if key.startswith('backbone.')}
    elif whole and not prefixed:
        state = {f'backbone.{key}': value for key, value in state.items()}
    if not hasattr(module, 'discriminator'):  # trained beside HMR2.0, of no use afterwards
        state = {k: v for k, v in state.items() if not k.startswith('discriminator.')}
    backbone = module.backbone if whole else module
    if not hasattr(backbone, 'num_stages'):
        return state, lambda key: False
    state = {key: value for key, value in state.items() if _kept(key, backbone)}
    return state, lambda key: FRESH.fullmatch(key)


# Output norms of stages 1 to 3: classifiers have none, so a truncated model starts its own.
FRESH = re.compile(r'(backbone\.)?norm[0-2]\..*')


def _kept(key, backbone):
    """Whether `key` belongs to a stage and an output norm that `backbone` has."""
    stage = re.match(r'(?:backbone\.)?stages\.(\d+)\.', key)
    norm = re.match(r'(?:backbone\.)?norm(\d)\.', key)
    if stage:
        return int(stage[1]) < backbone.num_stages
    if norm:
        return hasattr(backbone, f'norm{norm[1]}')
    return True


# --- files -------------------------------------------------------------------------------------


def save_weights(state: dict[str, Tensor], path: str | Path, note: str | None = None) -> None:
    """Write a state_dict as .safetensors or .pth; the file appears complete or not at all.

    Args:
        note: what users of the weights should know; only .safetensors keeps it.

    Raises:
        ValueError: another suffix.
    """
    state = {key: value.contiguous().clone() for key, value in state.items()}
    suffix = Path(path).suffix
    if suffix not in ('.safetensors', '.pth'):
        raise ValueError(f'{path}: weights are written as .safetensors or .pth')
    with whole_file(path) as part:
        if suffix == '.pth':
            torch.save(dict(state_dict=state), part)
        else:
            safetensors = need('safetensors.torch', 'writing .safetensors')
            safetensors.save_file(state, part, None if note is None else dict(note=note))
            part.chmod(0o644)  # safetensors makes it readable for its owner alone


# --- families ----------------------------------------------------------------------------------


def from_vitpose(state):
    """ViTPose, or HMR2.0's backbone, to mmpose's TopdownPoseEstimator (ViTPose repository).

    The position embedding's leading entry, added to every token, is added here once for all.
    """
    state = rename(state, VITPOSE)
    if 'backbone.pos_embed' in state:
        embed = state['backbone.pos_embed']
        state['backbone.pos_embed'] = embed[:, 1:] + embed[:, :1]
    return state


VITPOSE = [
    (r'^backbone\.blocks\.', r'backbone.layers.'),
    (r'^(backbone\.layers\.\d+)\.norm', r'\1.ln'),
    (r'^(backbone\.layers\.\d+)\.mlp\.fc1', r'\1.ffn.layers.0.0'),
    (r'^(backbone\.layers\.\d+)\.mlp\.fc2', r'\1.ffn.layers.1'),
    (r'^backbone\.patch_embed\.proj\.', r'backbone.patch_embed.projection.'),
    (r'^backbone\.last_norm\.', r'backbone.ln1.'),
    (r'^keypoint_head\.', r'head.'),
]


def from_swin(state):
    """Swin, classifier (microsoft/Swin-Transformer) or detection backbone, to TruncatedSwin.

    The classifier's head goes, and what every module works out by itself (index, mask).
    """
    computed = ('relative_position_index', 'attn_mask')
    state = {k: v for k, v in state.items() if not k.endswith(computed)}
    state = {k: v for k, v in state.items() if not k.startswith('head.')}
    return rename(state, SWIN)


# A downsampling layer belongs to the stage that it leads to.
SWIN = [
    (r'(^|\.)patch_embed\.', r'\1stem.'),
    (r'(^|\.)layers\.(\d)\.blocks\.', r'\1stages.\2.blocks.'),
    (r'(^|\.)layers\.0\.downsample\.', r'\1stages.1.downsample.'),
    (r'(^|\.)layers\.1\.downsample\.', r'\1stages.2.downsample.'),
    (r'(^|\.)layers\.2\.downsample\.', r'\1stages.3.downsample.'),
    (r'^norm\.', r'norm3.'),
]


def from_groupmixformer(state):
    """GroupMixFormer classifier (AILab-CVC/GroupMixFormer) to TruncatedGMF.

    Projected channels lie by (q/k/v, segment) there and by (segment, q/k/v) here, in one layer a
    segment; 1x1 convolutions are linear layers.
    """
    state = rename({k: v for k, v in state.items() if not k.startswith('head.')}, GROUPMIXFORMER)
    ours = {}
    for key, value in state.items():
        if 'pointwise.' in key:
            value = value.flatten(1)
        if '.att.qkv.' not in key or len(value) % 15:
            ours[key] = value
            continue
        segments = value.unflatten(0, (3, 5, -1)).transpose(0, 1).flatten(1, 2)
        for part, segment in zip(GROUPMIXFORMER_PARTS, segments, strict=True):
            ours[key.replace('.att.', f'.att.{part}.')] = segment
    return ours


GROUPMIXFORMER = [
    (r'(^|\.)conv_stem\.', r'\1stem.'),
    (r'(^|\.)patch_embed_layers\.0\.', r'\1stem.embed.'),
    (r'(^|\.)patch_embed_layers\.(\d)\.', r'\1stages.\2.downsample.'),
    (r'(^|\.)groupmixformer_backbone\.(\d)\.gma_stage\.', r'\1stages.\2.blocks.'),
    (r'(^|\.)norm4\.', r'\1norm3.'),
    (r'\.proj\.(conv1|pointwise_conv)\.', r'.\1.'),
    (r'\.cpe\.proj\.', r'.cpe.'),
    (r'\.aggregator\.agg0\.conv\.', r'.local.'),
    (r'\.aggregator\.agg0\.', r'.local.'),
    (r'\.aggregator\.agg([1-3])\.', r'.groups.\1.'),
    (r'\.aggregator\.norm([0-3])\.', r'.groups.\1.norm.'),
    (r'\.conv1\.', r'.conv.'),
    (r'\.pointwise_conv\.', r'.pointwise.'),
    (r'\.crpe\.conv_list\.', r'.positions.'),
]
GROUPMIXFORMER_PARTS = ('groups.0', 'groups.1', 'groups.2', 'groups.3', 'local')


def from_vmamba(state):
    """VMamba, classifier or detection backbone (MzeroMiko/VMamba), to TruncatedVMamba.

    The authors' two classes name and stack the projections of the four directions differently,
    and store 1x1 layers as linear or as convolution weights; all are taken.
    """
    state = rename(state, VMAMBA)
    for key, value in state.items():
        if key.endswith('x_proj.weight') and value.dim() == 3:
            state[key] = value.flatten(0, 1)  # (4, R + 2 N, d) -> (4 (R + 2 N), d)
        elif key.endswith('dt_projs_weight') and value.dim() == 2:
            state[key] = value.unflatten(0, (4, -1))  # (4 d, R) -> (4, d, R)
        elif key.endswith('.weight') and value.shape[2:] == (1, 1):
            state[key] = value.flatten(1)
    return {k: v for k, v in state.items() if not k.startswith('classifier.head.')}


VMAMBA = [
    (r'(^|\.)patch_embed\.0\.', r'\1stem.conv1.'),
    (r'(^|\.)patch_embed\.2\.', r'\1stem.norm1.'),
    (r'(^|\.)patch_embed\.5\.', r'\1stem.conv2.'),
    (r'(^|\.)patch_embed\.7\.', r'\1stem.norm2.'),
    (r'(^|\.)layers\.0\.downsample\.', r'\1stages.1.downsample.'),
    (r'(^|\.)layers\.1\.downsample\.', r'\1stages.2.downsample.'),
    (r'(^|\.)layers\.2\.downsample\.', r'\1stages.3.downsample.'),
    (r'\.downsample\.1\.', r'.downsample.conv.'),
    (r'\.downsample\.3\.', r'.downsample.norm.'),
    (r'(^|\.)layers\.(\d)\.blocks\.', r'\1stages.\2.blocks.'),
    (r'(\.blocks\.\d+)\.(norm|ln_1)\.', r'\1.norm1.'),
    (r'(\.blocks\.\d+)\.(op|self_attention)\.', r'\1.ss2d.'),
    (r'\.x_proj_weight$', r'.x_proj.weight'),
    (r'\.dt_projs\.(weight|bias)$', r'.dt_projs_\1'),
    (r'(^|\.)outnorm(\d)\.', r'\1norm\2.'),
    (r'^classifier\.norm\.', r'norm3.'),
]


def from_hmr2(state):
    """HMR2.0's whole checkpoint (4D-Humans) to MeshEstimator: backbone, head and discriminator.

    The body model goes, which is read from its own file, and the weight that met the head's zero
    input; the two vectors that made up the query token are added.
    """
    state = {key: value for key, value in state.items() if not re.match(HMR2_UNUSED, key)}
    state = rename(from_vitpose(state), HMR2)
    embedding = 'head.to_token_embedding.bias', 'head.pos_embedding'
    if all(key in state for key in embedding):
        bias, position = (state.pop(key) for key in embedding)
        state['head.token'] = bias + position[0]
    critics = [f'discriminator.joint_out.{joint}' for joint in range(23)]
    for kind in ('weight', 'bias'):
        if all(f'{critic}.{kind}' in state for critic in critics):
            rows = [state.pop(f'{critic}.{kind}') for critic in critics]
            state[f'discriminator.joint_out.{kind}'] = torch.cat(rows)
    for key in ('discriminator.joint_fc1.weight', 'discriminator.joint_fc2.weight'):
        if key in state:
            state[key] = state[key].flatten(1)  # was a 1x1 convolution
    return state


HMR2_UNUSED = r'smpl\.|initialized$|smpl_head\.transformer\.to_token_embedding\.weight$'
HMR2 = [
    (r'^smpl_head\.(transformer\.)*', r'head.'),
    (r'^(head\.layers\.\d+)\.0\.norm\.', r'\1.norm_self.'),
    (r'^(head\.layers\.\d+)\.0\.fn\.to_out\.0\.', r'\1.self_out.'),
    (r'^(head\.layers\.\d+)\.1\.norm\.', r'\1.norm_cross.'),
    (r'^(head\.layers\.\d+)\.1\.fn\.to_out\.0\.', r'\1.cross_out.'),
    (r'^(head\.layers\.\d+)\.2\.norm\.', r'\1.norm_mlp.'),
    (r'^(head\.layers\.\d+)\.2\.fn\.net\.0\.', r'\1.mlp_in.'),
    (r'^(head\.layers\.\d+)\.2\.fn\.net\.3\.', r'\1.mlp_out.'),
    (r'^(head\.layers\.\d+)\.[01]\.fn\.', r'\1.'),
    (r'^head\.decpose\.', r'head.pose_out.'),
    (r'^head\.decshape\.', r'head.betas_out.'),
    (r'^head\.deccam\.', r'head.camera_out.'),
    (r'^head\.init_body_pose$', r'head.mean_pose'),
    (r'^head\.init_betas$', r'head.mean_betas'),
    (r'^head\.init_cam$', r'head.mean_camera'),
    (r'^discriminator\.pose_out\.', r'discriminator.joint_out.'),
    (r'^discriminator\.D_conv', r'discriminator.joint_fc'),
    (r'^discriminator\.D_alljoints_', r'discriminator.pose_'),
]


class Family(NamedTuple):
    name: str
    signature: str  # a key that only this family has
    convert: callable


# The first family that has a matching key converts. Add a row when you add a family.
FAMILIES = [
    Family('HMR2.0', r'smpl_head\.', from_hmr2),
    Family('ViTPose', r'backbone\.last_norm\.', from_vitpose),
    Family('Swin', r'(backbone\.)?layers\.\d\.blocks\.\d+\.attn\.qkv', from_swin),
    Family('VMamba', r'(backbone\.)?layers\.\d\.blocks\.\d+\.(op|self_attention)\.', from_vmamba),
    Family('GroupMixFormer', r'(backbone\.)?groupmixformer_backbone\.', from_groupmixformer),
    Family('this package', r'(backbone\.)?(stages\.\d|layers\.\d+\.ln1)', dict),
]
