"""The 31 encoders of the paper. Data only.

Three hierarchical families in three sizes, each cut after stage 4, 3 or 2, and four plain ViTs:
`swin-t-s3` is the first three stages of Swin-T. Sections 3 and 4, Tables 1, 3 and 4 of "On the Use
of Hierarchical Vision Foundation Models for Low-Cost Human Mesh Recovery and Pose Estimation".

Layer decay is ViTPose's rate for the size, drop path each backbone's ImageNet rate (the paper
leaves both open).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .releases import WEIGHTS

STRIDES = (4, 8, 16, 32)

# Architectures by class and name; the drop path rate is that of the last block.
# fmt: off
ARCHS: dict[str, dict[str, dict[str, Any]]] = {
    'TruncatedSwin': {
        'tiny':  dict(channels=( 96, 192, 384,  768), depths=(2, 2,  6, 2),
                      num_heads=(3, 6, 12, 24), drop_path_rate=0.2),
        'small': dict(channels=( 96, 192, 384,  768), depths=(2, 2, 18, 2),
                      num_heads=(3, 6, 12, 24), drop_path_rate=0.3),
        'base':  dict(channels=(128, 256, 512, 1024), depths=(2, 2, 18, 2),
                      num_heads=(4, 8, 16, 32), drop_path_rate=0.5),
    },
    'TruncatedGMF': {
        'tiny':  dict(channels=( 80, 160, 200, 240), depths=(4, 4, 12, 4),
                      mlp_ratios=(4, 4, 4, 4), drop_path_rate=0.1),
        'small': dict(channels=( 80, 160, 320, 320), depths=(2, 4, 12, 4),
                      mlp_ratios=(4, 4, 4, 4), drop_path_rate=0.2),
        'base':  dict(channels=(200, 240, 320, 480), depths=(8, 8, 12, 8),
                      mlp_ratios=(2, 2, 4, 4), drop_path_rate=0.5),
    },
    'TruncatedVMamba': {
        'tiny':  dict(channels=( 96, 192, 384,  768), depths=(2, 2,  8, 2), ssm_ratio=1.0,
                      d_state=1, mlp_ratio=4.0, drop_path_rate=0.2),
        'small': dict(channels=( 96, 192, 384,  768), depths=(2, 2, 15, 2), ssm_ratio=2.0,
                      d_state=1, mlp_ratio=4.0, drop_path_rate=0.3),
        'base':  dict(channels=(128, 256, 512, 1024), depths=(2, 2, 15, 2), ssm_ratio=2.0,
                      d_state=1, mlp_ratio=4.0, drop_path_rate=0.6),
    },
    'VisionTransformer': {
        'small': dict(channels=( 384,), depths=(12,), num_heads=12, drop_path_rate=0.1),
        'base':  dict(channels=( 768,), depths=(12,), num_heads=12, drop_path_rate=0.3),
        'large': dict(channels=(1024,), depths=(24,), num_heads=16, drop_path_rate=0.5),
        'huge':  dict(channels=(1280,), depths=(32,), num_heads=16, drop_path_rate=0.55),
    },
}


class Backbone(NamedTuple):
    """One size of one family: its row in `ARCHS`, the paper's name, its recipe."""

    type: str
    arch: str
    paper: str
    layer_decay: float
    decoder: str

    @property
    def channels(self) -> tuple[int, ...]:
        return ARCHS[self.type][self.arch]['channels']

    @property
    def drop_path(self) -> float:
        return ARCHS[self.type][self.arch]['drop_path_rate']


BACKBONES = {
    'swin-b': Backbone('TruncatedSwin',     'base',  'Swin', 0.75, 'b'),
    'swin-s': Backbone('TruncatedSwin',     'small', 'Swin', 0.8,  's'),
    'swin-t': Backbone('TruncatedSwin',     'tiny',  'Swin', 0.8,  's'),
    'gmf-b':  Backbone('TruncatedGMF',      'base',  'GMF',  0.75, 'b'),
    'gmf-s':  Backbone('TruncatedGMF',      'small', 'GMF',  0.8,  's'),
    'gmf-t':  Backbone('TruncatedGMF',      'tiny',  'GMF',  0.8,  's'),
    'vm-b':   Backbone('TruncatedVMamba',   'base',  'VM',   0.75, 'b'),
    'vm-s':   Backbone('TruncatedVMamba',   'small', 'VM',   0.8,  's'),
    'vm-t':   Backbone('TruncatedVMamba',   'tiny',  'VM',   0.8,  's'),
    'vit-h':  Backbone('VisionTransformer', 'huge',  'ViT',  0.85, 'h'),
    'vit-l':  Backbone('VisionTransformer', 'large', 'ViT',  0.8,  'l'),
    'vit-b':  Backbone('VisionTransformer', 'base',  'ViT',  0.75, 'b'),
    'vit-s':  Backbone('VisionTransformer', 'small', 'ViT',  0.8,  's'),
}
# fmt: on


class Encoder(NamedTuple):
    """A backbone kept up to stage `num_stages` (None: a plain ViT).

    `backbone_name` is its key in `BACKBONES`, `channels` and `stride` are those of its output,
    `decoder_channels` the input channels of the decoder.
    """

    backbone_name: str
    backbone: Backbone
    num_stages: int | None
    channels: int
    stride: int
    decoder_channels: int


ENCODERS = {}
for _size, _row in BACKBONES.items():
    if len(_row.channels) == 1:
        ENCODERS[_size] = Encoder(_size, _row, None, *_row.channels, 16, *_row.channels)
        continue
    for _n in (4, 3, 2):
        _output = _row.channels[_n - 1], STRIDES[_n - 1]
        ENCODERS[f'{_size}-s{_n}'] = Encoder(_size, _row, _n, *_output, _row.channels[2])


def encoder(name: str) -> Encoder:
    """Row of the encoder `name`, such as `vm-t-s2` or `vit-b`; ValueError if unknown."""
    if name not in ENCODERS:
        raise ValueError(f'no encoder {name!r}; choose from {", ".join(ENCODERS)}')
    return ENCODERS[name]


def backbone_cfg(name: str) -> dict[str, Any]:
    """Config of the encoder's backbone, with the weights that the pose recipe starts from."""
    row = encoder(name)
    if row.num_stages is None:
        return dict(
            type='mmpretrain.VisionTransformer',
            arch=plain_arch(row.backbone.arch),
            img_size=(256, 192),
            patch_size=16,
            patch_cfg=dict(padding=2),
            with_cls_token=False,
            out_type='featmap',
            drop_path_rate=row.backbone.drop_path,
            init_cfg=dict(type='Pretrained', checkpoint=WEIGHTS[row.backbone_name]),
        )
    return dict(
        type=row.backbone.type,
        arch=row.backbone.arch,
        num_stages=row.num_stages,
        drop_path_rate=row.backbone.drop_path,
        init_cfg=dict(type='OfficialPretrained', checkpoint=WEIGHTS[row.backbone_name]),
    )


def stage_feature(infos: Sequence[Mapping[str, Any]], stage: int, name: str) -> int:
    """Index of the last feature of a stage (from 0) in the `feature_info` of a network of timm.

    Raises:
        ValueError: no feature of this stride.
    """
    found = [i for i, info in enumerate(infos) if info['reduction'] == STRIDES[stage]]
    if not found:
        strides = ', '.join(f'1/{info["reduction"]}' for info in infos)
        raise ValueError(
            f'{name} has no map of 1/{STRIDES[stage]} (stage {stage + 1}); its maps are {strides}'
        )
    return found[-1]


def plain_arch(name: str) -> dict[str, int]:
    """`arch` of mmpretrain's VisionTransformer for a size of ViTPose; ValueError if unknown."""
    sizes = ARCHS['VisionTransformer']
    if name not in sizes:
        raise ValueError(f'no plain ViT {name!r}; choose from {", ".join(sizes)}')
    (width,), (depth,) = sizes[name]['channels'], sizes[name]['depths']
    return dict(
        embed_dims=width,
        num_layers=depth,
        num_heads=sizes[name]['num_heads'],
        feedforward_channels=4 * width,
    )


def neck_cfg(name: str) -> dict[str, Any] | None:
    """Config of the adapter to 1/16 of the input, or None for a plain ViT."""
    row = encoder(name)
    if row.num_stages is None:
        return None
    return dict(
        type='StageAdapter',
        in_channels=row.channels,
        out_channels=row.decoder_channels,
        num_stages=row.num_stages,
    )
