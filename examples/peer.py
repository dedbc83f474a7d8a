"""The authors' code for side-by-side benchmarks, from checkouts of their repositories:

    git clone https://github.com/MzeroMiko/VMamba
    git clone https://github.com/AILab-CVC/GroupMixFormer
    git clone https://github.com/shubham-goel/4D-Humans
    pip install timm einops fvcore
    export VMAMBA=VMamba GROUPMIXFORMER=GroupMixFormer FOURD_HUMANS=4D-Humans
    python tools/benchmark models --models '*-t-s4' --against official=examples

Swin and ViT are mmpretrain's, the pose head is mmpose's, the mesh head is 4D-Humans'. VMamba uses
its CUDA extension if that is installed and the images are on a GPU, otherwise its torch fallback.
Models without a checkout are left out.
"""

import contextlib
import importlib
import io
import os
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import torch
from benchmark import networks
from mmengine.registry import MODELS
from torch import Tensor, nn

from trunchier import zoo
from trunchier.models.mesh.hmr2_head import EMBEDDED_MEAN_PARAMS

SIZES = dict(t='tiny', s='small', b='base')


def build(name: str) -> nn.Module | None:
    """The network of that name (see tools/benchmark/networks.py), or None without its checkout."""
    if name in zoo.ENCODERS:
        return _backbone(name)
    encoder, _ = zoo.models()[name]
    row, neck, ours = zoo.encoder(encoder), zoo.neck_cfg(encoder), networks.build(name)
    head, is_mesh = ours.model.head, 'body_pose' in ours.outputs
    if is_mesh:
        head = _smpl_head(row.decoder_channels, zoo.MESH_DECODERS[row.backbone.decoder])
    backbone = _backbone(encoder)
    if backbone is None or head is None:
        return None
    return Network(backbone, neck and MODELS.build(neck), head, is_mesh).eval()


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> Tensor:
    """The authors' scan, with the arguments of `trunchier.ops.selective_scan`."""
    scans = _vmamba() and sys.modules['csms6s']
    scan = scans.selective_scan_fn if u.is_cuda else scans.selective_scan_torch
    return scan(u, delta, A, B, C, D, delta_bias, delta_softplus)


class Network(nn.Module):
    def __init__(self, backbone, neck, head, is_mesh):
        super().__init__()
        self.backbone, self.neck, self.head, self.is_mesh = backbone, neck, head, is_mesh
        self.traceable = getattr(backbone, 'traceable', True)

    def forward(self, images):
        feats = self.backbone(images)
        feats = feats if self.neck is None else self.neck(feats)
        return self.head(feats[-1] if self.is_mesh else feats)


def _backbone(encoder):
    family, size, *stages = encoder.split('-')
    if family == 'vit':
        return networks.build(encoder)
    kind = dict(swin=Swin, gmf=GroupMixFormer, vm=VMamba)[family]
    if kind.checkout and not os.environ.get(kind.checkout):
        return None
    arch = MODELS.get(zoo.backbone_cfg(encoder)['type']).ARCHS[SIZES[size]]
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return kind(arch, int(stages[0][1:])).eval()


class Swin(nn.Module):
    checkout = None

    def __init__(self, arch: dict[str, Any], stages: int):
        super().__init__()
        from mmpretrain.models import SwinTransformer

        arch = dict(
            embed_dims=arch['channels'][0], depths=arch['depths'][:stages],
            num_heads=arch['num_heads'][:stages],
        )  # fmt: skip
        self.model = SwinTransformer(
            arch, img_size=networks.SIZE, out_indices=(stages - 1,), pad_small_map=True
        )

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return self.model(images)[-1:]


class GroupMixFormer(nn.Module):
    checkout = 'GROUPMIXFORMER'

    def __init__(self, arch: dict[str, Any], stages: int):
        super().__init__()
        sys.modules.setdefault('ipdb', types.ModuleType('ipdb'))  # their debugger
        theirs = _import_from(Path(os.environ[self.checkout], 'models'), 'groupmixformer')
        rows = (list(arch[key][:stages]) for key in ('channels', 'depths', 'mlp_ratios'))
        names = 'embedding_dims', 'serial_depths', 'mlp_ratios'
        rows = dict(zip(names, rows, strict=True))
        self.model = theirs.GroupMixFormer(num_stages=stages, return_interm_layers=True, **rows)
        self.norm = nn.BatchNorm2d(arch['channels'][stages - 1])

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return (self.norm(self.model.forward_features(images)[-1]),)


class VMamba(nn.Module):
    checkout = 'VMAMBA'
    traceable = False  # the fallback is a loop over pixels, which an exporter writes out

    def __init__(self, arch: dict[str, Any], stages: int):
        super().__init__()
        self.model = _vmamba().VSSM(
            patch_size=4, in_chans=3, depths=list(arch['depths']), dims=arch['channels'][0],
            ssm_d_state=1, ssm_ratio=arch['ssm_ratio'], ssm_dt_rank='auto', ssm_init='v0',
            ssm_act_layer='silu', ssm_conv=3, ssm_conv_bias=False,
            forward_type='v05_noz', mlp_ratio=4.0, mlp_act_layer='gelu',
            patch_norm=True, norm_layer='ln2d', downsample_version='v3',
            patchembed_version='v2', imgsize=224,
        )  # fmt: skip
        del self.model.classifier, self.model.layers[stages:]
        self.model.layers[-1].downsample = nn.Identity()
        self.norm = nn.LayerNorm(arch['channels'][stages - 1])

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        x = self.model.patch_embed(images)
        for i, layer in enumerate(self.model.layers):
            x = layer.blocks(x)
            if i < len(self.model.layers) - 1:
                x = layer.downsample(x)
        return (self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),)


def _vmamba():
    """The module `vmamba`; without a GPU its scans are replaced by its own torch fallback."""
    folder = Path(os.environ['VMAMBA'], 'classification', 'models')
    # mamba2 requires packages that these models do not use.
    sys.modules.setdefault('mamba2', types.ModuleType('mamba2'))
    without = types.SimpleNamespace(selective_scan_chunk_fn=None)
    sys.modules.setdefault('mamba2.ssd_minimal', without)
    theirs = _import_from(folder, 'vmamba')
    if not torch.cuda.is_available():
        crosses, scans = sys.modules['csm_triton'], sys.modules['csms6s']

        def cross_scan(x, first=True, out_first=True, one_by_one=False, scans=0, **_):
            return crosses.CrossScanF.apply(x, first, out_first, one_by_one, scans)

        def cross_merge(y, first=True, out_first=True, one_by_one=False, scans=0, **_):
            return crosses.CrossMergeF.apply(y, first, out_first, one_by_one, scans)

        def scan(*args, backend=None, **kwargs):
            return scans.selective_scan_torch(*args, **kwargs)

        theirs.cross_scan_fn, theirs.cross_merge_fn = cross_scan, cross_merge
        theirs.selective_scan_fn = scan
    return theirs


def _smpl_head(channels, sizes):
    folder = os.environ.get('FOURD_HUMANS')
    if not folder:
        return None
    package = types.ModuleType('hmr2')
    package.__path__ = [str(Path(folder, 'hmr2'))]
    for name in ('models', 'models.heads', 'utils'):  # skips the imports of its __init__
        module = types.ModuleType(f'hmr2.{name}')
        module.__path__ = [str(Path(folder, 'hmr2', *name.split('.')))]
        sys.modules.setdefault(f'hmr2.{name}', module)
    sys.modules.setdefault('hmr2', package)
    theirs = importlib.import_module('hmr2.models.heads.smpl_head')

    class Settings(dict):
        __getattr__ = dict.__getitem__

    decoder = Settings(
        depth=sizes['depth'], heads=sizes['num_heads'], mlp_dim=sizes['mlp_dim'],
        dim_head=sizes['head_dim'], context_dim=channels, norm='layer', dropout=0.0,
        emb_dropout=0.0,
    )  # fmt: skip
    head = Settings(IN_CHANNELS=channels, TYPE='transformer_decoder', TRANSFORMER_DECODER=decoder)
    body = Settings(NUM_BODY_JOINTS=23, MEAN_PARAMS=str(EMBEDDED_MEAN_PARAMS))
    return theirs.SMPLTransformerDecoderHead(
        Settings(MODEL=Settings(SMPL_HEAD=head), SMPL=body)
    ).eval()


def _import_from(folder, name):
    if not folder.is_dir():
        raise FileNotFoundError(f'no folder {folder}; is the checkout complete?')
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))
