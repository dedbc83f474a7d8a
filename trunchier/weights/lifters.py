"""Key maps of published lifters to ours: MixSTE, KTPFormer, D3DP, MotionAGFormer, HoT on these.

A lifter is mmpose's PoseLifter with `backbone` and `head`. In a model with a `HourglassTokenizer`,
the network that it runs is `backbone.backbone`.
"""

import re
from collections.abc import Collection

from .families import State, rename

# fmt: off
LIFTERS = [
    (r'^time_mlp\.1\.',                    r'time.0.'),
    (r'^time_mlp\.3\.',                    r'time.2.'),
    (r'^Spatial_patch_to_embedding\.',     r'backbone.embedding.'),
    (r'^Spatial_pos_embed$',               r'backbone.spatial_position'),
    (r'^Temporal_pos_embed$',              r'backbone.temporal_position'),
    (r'^STEblocks\.',                      r'backbone.spatial_blocks.'),
    (r'^TTEblocks\.',                      r'backbone.temporal_blocks.'),
    (r'^Spatial_norm\.',                   r'backbone.spatial_norm.'),
    (r'^Temporal_norm\.',                  r'backbone.temporal_norm.'),
    (r'^head\.0\.',                        r'head.pre_logits.'),
    (r'^head\.1\.',                        r'head.fc.'),
    (r'^kpattention\.',                    r'backbone.kinematic.'),
    (r'^tpattention\.',                    r'backbone.trajectory.'),
    (r'\.attn\.(Spatial|Temporal)_pos_embed$', r'.position'),
    (r'\.attn\.norm1\.',                  r'.norm1.'),
    (r'\.attn\.kpa\.',                    r'.graphs.0.'),
    (r'\.attn\.tpa\.gconv1\.',            r'.graphs.0.'),
    (r'\.attn\.tpa\.gconv2\.',            r'.graphs.1.'),
    (r'(\.graphs\.\d)\.bn\.',             r'\1.norm.'),
    (r'(\.graphs\.\d)\.gconv\.W$',        r'\1.weight'),
    (r'(\.graphs\.\d)\.gconv\.M$',        r'\1.scale'),
    (r'(\.graphs\.\d)\.gconv\.adj2$',     r'\1.learned'),
    (r'(\.graphs\.\d)\.gconv\.bias$',     r'\1.bias'),
]
MOTIONBERT = [
    (r'^head\.',                           r'head.fc.'),
    (r'^pre_logits\.',                     r'head.pre_logits.'),
    (r'^pos_embed$',                       r'backbone.spat_embed'),
    (r'^ts_attn\.',                        r'backbone.attn_regress.'),
    (r'^(blocks_.*\.mlp_[st])\.fc1\.',     r'\1.0.'),
    (r'^(blocks_.*\.mlp_[st])\.fc2\.',     r'\1.2.'),
    (r'^(joints_embed|temp_embed|norm|blocks_[st]+)\b', r'backbone.\1'),
]
MOTION_AGFORMER = [
    (r'^head\.',                           r'head.fc.'),
    (r'^rep_logit\.',                      r'head.pre_logits.'),
    (r'^pos_embed$',                       r'backbone.position'),
    (r'^joints_embed\.',                   r'backbone.embedding.'),
    (r'^(norm|layers)\.',                  r'backbone.\1.'),
    (r'\.layer_scale_([12])$',             r'.scale\1'),
    (r'\.mixer\.U\.',                      r'.mixer.own.'),
    (r'\.mixer\.V\.',                      r'.mixer.others.'),
    (r'\.mixer\.batch_norm\.',             r'.mixer.norm.'),
]
# Of the tokenizer, around any.
HOURGLASS = [
    (r'^backbone\.',                       r'backbone.backbone.'),
    (r'^pos_embed_token$',                 r'backbone.positions.0'),
    (r'^x_token$',                         r'backbone.recovery.query'),
    (r'^cross_attention\.(?:linear_)?',    r'backbone.recovery.'),
]
# fmt: on
BY_KEY = {  # that official files of these networks have
    'STEblocks.0.attn.qkv.weight': LIFTERS,
    'ts_attn.0.weight': MOTIONBERT,
    'layers.0.graph_spatial.mixer.U.weight': MOTION_AGFORMER,
}


def from_lifter(state: State, expected: Collection[str]) -> State | None:
    """Rename the entries of an official lifter to those of a model; None: it is of no lifter.

    Args:
        expected: keys of the model; they tell whether its network is within a tokenizer.
    """
    prefix = 'pose_estimator.'  # of D3DP, beside the constants of its schedule
    if any(prefix + key in state for key in BY_KEY):
        state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    renames = next((each for key, each in BY_KEY.items() if key in state), None)
    if renames is None:
        return None
    state = rename(state, renames)
    wrapped = any(re.match(r'backbone\.backbone\.', key) for key in expected)
    return rename(state, HOURGLASS) if wrapped else state
