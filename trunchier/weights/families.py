"""Key maps of published checkpoints, one layout each: from its state_dict to ours.

A family is a table of renames, and a function for what a regular expression cannot say. `LAYOUTS`
at the end lists those of backbones; a new family is one more row.
"""

import math
import re
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

State = dict[str, Tensor]


def rename(state: State, table: list[tuple[str, str]]) -> State:
    """Apply each row (pattern, replacement) of `table`, in order, to the keys of `state`."""
    for pattern, replacement in table:
        state = {re.sub(pattern, replacement, key): value for key, value in state.items()}
    return state


def from_swin(state: State) -> State:
    """Swin, classifier (microsoft/Swin-Transformer) or detection backbone, to TruncatedSwin.

    The classifier's head goes, and what every module works out by itself (index, mask).
    """
    computed = ('relative_position_index', 'attn_mask')
    state = {k: v for k, v in state.items() if not k.endswith(computed)}
    state = {k: v for k, v in state.items() if not k.startswith('head.')}
    return rename(state, SWIN)


# A downsampling layer belongs to the stage that it leads to.
DOWNSAMPLE = [
    (rf'(^|\.)layers\.{stage}\.downsample\.', rf'\1stages.{stage + 1}.downsample.')
    for stage in range(3)
]
SWIN = [
    (r'(^|\.)patch_embed\.', r'\1stem.'),
    (r'(^|\.)layers\.(\d)\.blocks\.', r'\1stages.\2.blocks.'),
    *DOWNSAMPLE,
    (r'^norm\.', r'norm3.'),
]


def from_groupmixformer(state: State) -> State:
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


def from_vmamba(state: State) -> State:
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
    *DOWNSAMPLE,
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


def from_hmr2(state: State) -> State:
    """Head and discriminator of HMR2.0 (4D-Humans) to those of MeshEstimator.

    The weight that met the head's zero input goes; the two vectors that made up the query token are
    added.
    """
    state = rename({k: v for k, v in state.items() if k != HMR2_UNUSED}, HMR2)
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


HMR2_UNUSED = 'smpl_head.transformer.to_token_embedding.weight'
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


def from_timm_swin(state: State) -> State:
    """Swin under timm's keys: downsampling layers belong to the stage that they lead to."""
    if not any(key.startswith('layers.0.downsample.') for key in state):
        state = rename(state, [(r'^layers\.(\d)\.downsample\.', r'stages.\1.downsample.')])
    return from_swin(state)


def from_mmpretrain_swin(state: State) -> State:
    """Swin of mmpretrain and mmdet.

    Their downsampling takes the 4 C channels of a 2x2 window by (channel, row, column), the authors
    by (column, row, channel).
    """
    state = rename(state, MMPRETRAIN_SWIN)
    for key, value in state.items():
        if re.search(r'\.downsample\.(reduction|norm)\.', key):
            window = value.unflatten(-1, (-1, 2, 2))
            state[key] = window.transpose(-1, -3).flatten(-3)
    return from_timm_swin(state)


MMPRETRAIN_SWIN = [
    (r'^patch_embed\.projection\.', r'patch_embed.proj.'),
    (r'^stages\.(\d)\.downsample\.', r'layers.\1.downsample.'),
    (r'^stages\.(\d)\.blocks\.', r'layers.\1.blocks.'),
    *DOWNSAMPLE,
    (r'\.attn\.w_msa\.', r'.attn.'),
    (r'\.ffn\.layers\.0\.0\.', r'.mlp.fc1.'),
    (r'\.ffn\.layers\.1\.', r'.mlp.fc2.'),
]


def from_transformers_swin(state: State) -> State:
    """Swin of transformers."""
    return from_swin(rename(merge_qkv(state, r'(.*)\.attention\.self'), TRANSFORMERS_SWIN))


TRANSFORMERS_SWIN = [
    (r'^embeddings\.patch_embeddings\.projection\.', r'patch_embed.proj.'),
    (r'^embeddings\.norm\.', r'patch_embed.norm.'),
    (r'^encoder\.', r''),
    (r'\.attention\.self\.', r'.attn.'),
    (r'\.attention\.output\.dense\.', r'.attn.proj.'),
    (r'\.layernorm_before\.', r'.norm1.'),
    (r'\.layernorm_after\.', r'.norm2.'),
    (r'\.intermediate\.dense\.', r'.mlp.fc1.'),
    (r'\.output\.dense\.', r'.mlp.fc2.'),
    (r'^layernorm\.', r'norm.'),
]


def from_vit(state: State) -> State:
    """ViT of the ViTPose authors, 4D-Humans or timm (`blocks.`) to mmpretrain's, which is ours.

    In ViTPose++ the last rows of each `fc2` are those of an expert, one a data set: COCO's, the
    first, is taken. A file that was split for one data set has them in place.
    """
    state = dict(state)
    width = len(state['blocks.0.norm1.weight'])
    for key in [key for key in state if '.mlp.experts.' not in key]:
        first = key.replace('.mlp.fc2.', '.mlp.experts.0.')
        if first != key and first in state and len(state[key]) < width:
            state[key] = torch.cat([state[key], state[first]])
    return from_mmpretrain_vit(rename({k: v for k, v in state.items() if not is_expert(k)}, VIT))


def is_expert(key: str) -> bool:
    """Whether a key belongs to an expert or a further head of ViTPose++."""
    return '.mlp.experts.' in key or key.startswith('associate_')


VIT = [
    (r'^blocks\.', r'layers.'),
    (r'^(layers\.\d+)\.norm', r'\1.ln'),
    (r'^(layers\.\d+)\.mlp\.fc1', r'\1.ffn.layers.0.0'),
    (r'^(layers\.\d+)\.mlp\.fc2', r'\1.ffn.layers.1'),
    (r'^patch_embed\.proj\.', r'patch_embed.projection.'),
    (r'^(last_|fc_)?norm\.', r'ln1.'),
]


def from_mmpretrain_vit(state: State) -> State:
    """ViT of mmpretrain: less a class token, whose position entry is added to every other.

    ViTPose's files keep that entry without the token.
    """
    embed = state.get('pos_embed')
    if embed is not None and ('cls_token' in state or _is_grid(embed.shape[1] - 1)):
        state = dict(state, pos_embed=embed[:, 1:] + embed[:, :1])
    return {k: v for k, v in state.items() if k not in ('cls_token', 'mask_token')}


def _is_grid(count):
    """Whether so many tokens are those of a square or 4:3 image."""
    return any(count == each * math.isqrt(count // each) ** 2 for each in (1, 12))


def from_transformers_vit(state: State) -> State:
    """ViT of transformers, as in its ViTPose, ViTPose++ included."""
    return from_vit(rename(merge_qkv(state, r'(.*)\.attention\.attention'), TRANSFORMERS_VIT))


TRANSFORMERS_VIT = [
    (r'^embeddings\.patch_embeddings\.projection\.', r'patch_embed.proj.'),
    (r'^embeddings\.position_embeddings$', r'pos_embed'),
    (r'^embeddings\.cls_token$', r'cls_token'),
    (r'^encoder\.layer\.', r'blocks.'),
    (r'\.attention\.attention\.', r'.attn.'),
    (r'\.attention\.output\.dense\.', r'.attn.proj.'),
    (r'\.layernorm_before\.', r'.norm1.'),
    (r'\.layernorm_after\.', r'.norm2.'),
    (r'\.intermediate\.dense\.', r'.mlp.fc1.'),
    (r'(blocks\.\d+)\.output\.dense\.', r'\1.mlp.fc2.'),
    (r'^layernorm\.', r'last_norm.'),
]


def merge_qkv(state: State, module: str) -> State:
    """`query`, `key` and `value` of the modules that match as one `qkv`."""
    merged = {}
    for key, value in state.items():
        found = re.fullmatch(rf'(?P<module>{module})\.(query|key|value)\.(weight|bias)', key)
        if found is None:
            merged[key] = value
        elif key.endswith(f'.query.{found[4]}'):
            parts = [state[f'{found["module"]}.{each}.{found[4]}'] for each in QKV]
            merged[f'{found["module"]}.qkv.{found[4]}'] = torch.cat(parts)
    return merged


QKV = ('query', 'key', 'value')


def from_transformers_head(state: State) -> State:
    """Decoder of transformers' ViTPose to mmpose's, without prefix."""
    return rename(state, TRANSFORMERS_HEAD)


TRANSFORMERS_HEAD = [
    (r'^deconv1\.', r'deconv_layers.0.'),
    (r'^batchnorm1\.', r'deconv_layers.1.'),
    (r'^deconv2\.', r'deconv_layers.3.'),
    (r'^batchnorm2\.', r'deconv_layers.4.'),
    (r'^conv\.', r'final_layer.'),
]


class Layout(NamedTuple):
    """Keys of a backbone, as one library or repository names them.

    Attributes:
        name: of the library or repository.
        kind: class of the backbone, key of `zoo.ARCHS`.
        anchor: pattern of a key of the first block, which only this layout has.
        convert: state_dict of the backbone, without prefix -> the same under our keys.
    """

    name: str
    kind: str
    anchor: str
    convert: Callable[[State], State]


# The first layout that has a matching key converts. Add a row when you add a family.
# fmt: off
LAYOUTS = [
    Layout('its authors or timm', 'TruncatedSwin',
           r'layers\.0\.blocks\.0\.attn\.qkv\.weight', from_timm_swin),
    Layout('mmpretrain or mmdet', 'TruncatedSwin',
           r'stages\.0\.blocks\.0\.attn\.w_msa\.qkv\.weight', from_mmpretrain_swin),
    Layout('transformers', 'TruncatedSwin',
           r'encoder\.layers\.0\.blocks\.0\.attention\.self\.query\.weight',
           from_transformers_swin),
    Layout('trunchier', 'TruncatedSwin', r'stages\.0\.blocks\.0\.attn\.qkv\.weight', dict),
    Layout('its authors', 'TruncatedVMamba',
           r'layers\.0\.blocks\.0\.(?:op|self_attention)\.out_proj\.weight', from_vmamba),
    Layout('trunchier', 'TruncatedVMamba', r'stages\.0\.blocks\.0\.ss2d\.out_proj\.weight', dict),
    Layout('its authors', 'TruncatedGMF',
           r'groupmixformer_backbone\.0\.gma_stage\.0\.norm1\.weight', from_groupmixformer),
    Layout('trunchier', 'TruncatedGMF', r'stages\.0\.blocks\.0\.att\.proj\.weight', dict),
    Layout('mmpose 1.x or mmpretrain', 'VisionTransformer',
           r'layers\.0\.ln1\.weight', from_mmpretrain_vit),
    Layout('transformers', 'VisionTransformer',
           r'encoder\.layer\.0\.attention\.attention\.query\.weight', from_transformers_vit),
    Layout('mmpose 0.x, 4D-Humans or timm', 'VisionTransformer',
           r'blocks\.0\.attn\.qkv\.weight', from_vit),
]
# fmt: on
