"""The 31 encoders of the paper and the model configs made of them. Data only.

Three hierarchical families in three sizes, each cut after stage 4, 3 or 2, and four plain ViTs:
`swin-t-s3` is the first three stages of Swin-T. Sections 3 and 4, Tables 1, 3 and 4 of "On the Use
of Hierarchical Vision Foundation Models for Low-Cost Human Mesh Recovery and Pose Estimation".

Drop path is each backbone's own ImageNet rate; layer decay is ViTPose's rate for the size (the
paper leaves both open).
"""

from typing import NamedTuple

STRIDES = (4, 8, 16, 32)
DECODER_STRIDE = 16

# Official ImageNet classifiers, and for ViT the MAE weights that ViTPose starts from.
SWIN_RELEASE = 'https://github.com/SwinTransformer/storage/releases/download/v1.0.0/'
VMAMBA_RELEASE = 'https://github.com/MzeroMiko/VMamba/releases/download/%23v2cls/'
MMPOSE_FILES = 'https://download.openmmlab.com/mmpose/v1/pretrained_models/'
# GroupMixFormer's weights lie behind a web page: fetch them by hand (see "Weights" in README.md).
BY_HAND = 'data/checkpoints/'


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

WEIGHTS = {
    'swin-b': SWIN_RELEASE + 'swin_base_patch4_window7_224.pth',
    'swin-s': SWIN_RELEASE + 'swin_small_patch4_window7_224.pth',
    'swin-t': SWIN_RELEASE + 'swin_tiny_patch4_window7_224.pth',
    'gmf-b':  BY_HAND + 'groupmixformer_base.pth',
    'gmf-s':  BY_HAND + 'groupmixformer_small.pth',
    'gmf-t':  BY_HAND + 'groupmixformer_tiny.pth',
    'vm-b':   VMAMBA_RELEASE + 'vssm_base_0229_ckpt_epoch_237.pth',
    'vm-s':   VMAMBA_RELEASE + 'vssm_small_0229_ckpt_epoch_222.pth',
    'vm-t':   VMAMBA_RELEASE + 'vssm1_tiny_0230s_ckpt_epoch_264.pth',
    'vit-h':  MMPOSE_FILES + 'mae_pretrain_vit_huge_20230913.pth',
    'vit-l':  MMPOSE_FILES + 'mae_pretrain_vit_large_20230913.pth',
    'vit-b':  MMPOSE_FILES + 'mae_pretrain_vit_base_20230913.pth',
    'vit-s':  MMPOSE_FILES + 'mae_pretrain_vit_small_20230913.pth',
}

VIT = {
    'small': dict(embed_dims= 384, num_layers=12, num_heads=12, feedforward_channels=4 *  384),
    'base':  dict(embed_dims= 768, num_layers=12, num_heads=12, feedforward_channels=4 *  768),
    'large': dict(embed_dims=1024, num_layers=24, num_heads=16, feedforward_channels=4 * 1024),
    'huge':  dict(embed_dims=1280, num_layers=32, num_heads=16, feedforward_channels=4 * 1280),
}

# Table 1: the HMR2.0 decoder of each encoder size.
MESH_DECODERS = {
    'h': dict(depth=6, num_heads=8, head_dim=64, mlp_dim=1024),
    'l': dict(depth=6, num_heads=8, head_dim=32, mlp_dim= 512),
    'b': dict(depth=3, num_heads=8, head_dim=24, mlp_dim= 384),
    's': dict(depth=3, num_heads=4, head_dim=16, mlp_dim= 128),
}
# fmt: on


class Encoder(NamedTuple):
    """A backbone kept up to stage `num_stages` (None: a plain ViT).

    `channels` and `stride` are those of its output, `decoder_channels` what the decoder sees.
    """

    size: str
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

TASKS = ('pose', 'mesh')


def encoder(name):
    """Row of the encoder `name`, such as `vm-t-s2` or `vit-b`; ValueError if there is none."""
    if name not in ENCODERS:
        raise ValueError(f'no encoder {name!r}; choose from {", ".join(ENCODERS)}')
    return ENCODERS[name]


def paper_name(name, task):
    """The paper's name of a model: `('swin-t-s3', 'mesh')` -> `SwinHMR2.0-T-S3`."""
    family, size = encoder(name).size.split('-')
    if family == 'vit':
        return f'{dict(pose="ViTPose", mesh="HMR2.0")[task]}-{size.upper()}'
    task_name = dict(pose='Pose', mesh='HMR2.0')[task]
    stages = ENCODERS[name].num_stages
    return f'{BACKBONES[ENCODERS[name].size].paper}{task_name}-{size.upper()}-S{stages}'


def config_path(name, task):
    """Path of a model's config from the repository's root; names follow mmpose's zoo."""
    encoder(name)
    return dict(
        pose=f'configs/pose2d/td-hm_{name}_8xb64-210e_coco-256x192.py',
        mesh=f'configs/mesh/hmr2_{name}_8xb48-1000k_mix-256x192.py',
    )[task]


def backbone_cfg(name):
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
            init_cfg=dict(type='Pretrained', checkpoint=WEIGHTS[row.size]),
        )
    return dict(
        type=row.backbone.type,
        arch=row.backbone.arch,
        num_stages=row.num_stages,
        drop_path_rate=row.backbone.drop_path,
        init_cfg=dict(type='OfficialPretrained', checkpoint=WEIGHTS[row.size]),
    )


def neck_cfg(name):
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


def model_cfg(name, task='pose'):
    """The part of a model's config that its encoder decides: backbone, neck, head, weights.

    A pose model starts from its backbone's official ImageNet weights (ViT: from MAE's). A mesh
    model starts from the trained pose model of the same encoder, as in the paper: its checkpoint is
    expected as data/checkpoints/SwinPose-T-S3.pth and so on.

    Args:
        name: a key of `ENCODERS`.
        task: 'pose' or 'mesh'.

    Raises:
        ValueError: unknown encoder or task.
    """
    if task not in TASKS:
        raise ValueError(f'no task {task!r}; choose from {", ".join(TASKS)}')
    row = encoder(name)
    head = dict(in_channels=row.decoder_channels)
    cfg = dict(backbone=backbone_cfg(name), head=head)
    if row.num_stages is not None:
        cfg['neck'] = neck_cfg(name)
    if task == 'mesh':
        head.update(MESH_DECODERS[row.backbone.decoder])
        cfg['backbone']['init_cfg'] = None
        cfg['init_cfg'] = dict(
            type='OfficialPretrained',
            checkpoint=f'{BY_HAND}{paper_name(name, "pose")}.pth',
            parts=[part for part in ('backbone', 'neck') if part in cfg],
        )
    return cfg


def optim_cfg(name):
    """The part of the pose recipe's optimizer config that the encoder decides."""
    return dict(paramwise_cfg=dict(layer_decay_rate=encoder(name).backbone.layer_decay))
