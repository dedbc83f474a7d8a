"""Key maps of the official checkpoints, one family each: from its authors' state_dict to ours.

A family is a table of renames, and a function for what a regular expression cannot say. `FAMILIES`
at the end lists them; a new family is one more row.
"""

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


def from_vitpose(state: State) -> State:
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
    """`signature` matches the beginning of a key that only this family has."""

    name: str
    signature: str
    convert: Callable[[State], State]


# The first family that has a matching key converts. Add a row when you add a family.
FAMILIES = [
    Family('HMR2.0', r'smpl_head\.', from_hmr2),
    Family('ViTPose', r'backbone\.last_norm\.', from_vitpose),
    Family('Swin', r'(backbone\.)?layers\.\d\.blocks\.\d+\.attn\.qkv', from_swin),
    Family('VMamba', r'(backbone\.)?layers\.\d\.blocks\.\d+\.(op|self_attention)\.', from_vmamba),
    Family('GroupMixFormer', r'(backbone\.)?groupmixformer_backbone\.', from_groupmixformer),
    Family('this package', r'(backbone\.)?(stages\.\d|layers\.\d+\.ln1)', dict),
]
