"""The 31 encoders of the paper. Data only.

Three hierarchical families in three sizes, each cut after stage 4, 3 or 2, and four plain ViTs:
`swin-t-s3` is the first three stages of Swin-T. Sections 3 and 4, Tables 1, 3 and 4 of "On the Use
of Hierarchical Vision Foundation Models for Low-Cost Human Mesh Recovery and Pose Estimation".

Drop path is each backbone's own ImageNet rate; layer decay is ViTPose's rate for the size (the
paper leaves both open).
"""

from typing import Any, NamedTuple

from .releases import WEIGHTS

STRIDES = (4, 8, 16, 32)
DECODER_STRIDE = 16


class Backbone(NamedTuple):
    """One size of one family: `channels` of its stages, the paper's name, its recipe."""

    type: str
    arch: str
    paper: str
    channels: tuple
    drop_path: float
    layer_decay: float
    decoder: str


# fmt: off
BACKBONES = {
    'swin-b': Backbone('TruncatedSwin',   'base',  'Swin', (128, 256, 512, 1024), 0.5,  0.75, 'b'),
    'swin-s': Backbone('TruncatedSwin',   'small', 'Swin', ( 96, 192, 384,  768), 0.3,  0.8,  's'),
    'swin-t': Backbone('TruncatedSwin',   'tiny',  'Swin', ( 96, 192, 384,  768), 0.2,  0.8,  's'),
    'gmf-b':  Backbone('TruncatedGMF',    'base',  'GMF',  (200, 240, 320,  480), 0.5,  0.75, 'b'),
    'gmf-s':  Backbone('TruncatedGMF',    'small', 'GMF',  ( 80, 160, 320,  320), 0.2,  0.8,  's'),
    'gmf-t':  Backbone('TruncatedGMF',    'tiny',  'GMF',  ( 80, 160, 200,  240), 0.1,  0.8,  's'),
    'vm-b':   Backbone('TruncatedVMamba', 'base',  'VM',   (128, 256, 512, 1024), 0.6,  0.75, 'b'),
    'vm-s':   Backbone('TruncatedVMamba', 'small', 'VM',   ( 96, 192, 384,  768), 0.3,  0.8,  's'),
    'vm-t':   Backbone('TruncatedVMamba', 'tiny',  'VM',   ( 96, 192, 384,  768), 0.2,  0.8,  's'),
    'vit-h':  Backbone('VisionTransformer', 'huge',  'ViT', (1280,),              0.55, 0.85, 'h'),
    'vit-l':  Backbone('VisionTransformer', 'large', 'ViT', (1024,),              0.5,  0.8,  'l'),
    'vit-b':  Backbone('VisionTransformer', 'base',  'ViT', ( 768,),              0.3,  0.75, 'b'),
    'vit-s':  Backbone('VisionTransformer', 'small', 'ViT', ( 384,),              0.1,  0.8,  's'),
}

# Plain ViTs, as mmpretrain's VisionTransformer takes them.
VIT = {
    'small': dict(embed_dims= 384, num_layers=12, num_heads=12, feedforward_channels=4 *  384),
    'base':  dict(embed_dims= 768, num_layers=12, num_heads=12, feedforward_channels=4 *  768),
    'large': dict(embed_dims=1024, num_layers=24, num_heads=16, feedforward_channels=4 * 1024),
    'huge':  dict(embed_dims=1280, num_layers=32, num_heads=16, feedforward_channels=4 * 1280),
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


def _cut(size, backbone, num_stages):
    return Encoder(
        size,
        backbone,
        num_stages,
        channels=backbone.channels[num_stages - 1],
        stride=STRIDES[num_stages - 1],
        decoder_channels=backbone.channels[2],
    )


ENCODERS = {}
for _size, _backbone in BACKBONES.items():
    if len(_backbone.channels) == 1:
        _width = _backbone.channels[0]
        ENCODERS[_size] = Encoder(_size, _backbone, None, _width, DECODER_STRIDE, _width)
    else:
        for _stages in (4, 3, 2):
            ENCODERS[f'{_size}-s{_stages}'] = _cut(_size, _backbone, _stages)


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
            arch=VIT[row.backbone.arch],
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
