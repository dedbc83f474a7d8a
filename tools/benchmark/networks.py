"""The networks of the paper as plain modules to be timed: backbone, adapter, decoder.

Built from the zoo without configs, and without mmpose and mmpretrain where these are not
installed: then their head and ViT are replaced by the same layers under the same names (a test
holds each against the other). A mesh network ends with SMPL parameters and camera; the body model
is not part of it, nor of the paper's GFLOPs.
"""

import fnmatch
import importlib.util
import logging

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import trunchier  # registers the modules
from trunchier import zoo

KEYPOINTS = 17
PARTS = ('backbone', 'network')
SIZE = (256, 192)  # (H, W) of the crops


class Network(nn.Module):
    """(B, 3, H, W) -> the decoder's output; the backbone's where it ends there."""

    def __init__(self, backbone, neck=None, head=None, mesh=False):
        super().__init__()
        self.backbone, self.neck, self.head, self.mesh = backbone, neck, head, mesh

    def forward(self, images):
        feats = self.backbone(images)
        if self.neck is not None:
            feats = self.neck(feats)
        if self.head is None:
            return feats[-1]
        return self.head(feats[-1] if self.mesh else feats)


def names(patterns, part='network'):
    """{name: (encoder, task)} of the networks that match one of `patterns`, in the zoo's order.

    Args:
        patterns: of the paper's names, as in `VM*-T-S2`, or of encoders, as in `vm-t-*`; 'all',
            'pose', 'mesh'.
        part: 'backbone': names of encoders; 'network': the paper's.

    Raises:
        ValueError: a pattern that matches none.
    """
    known = {}  # name -> encoder, task, the words that stand for it
    for task in zoo.TASKS:
        for encoder in zoo.ENCODERS:
            paper = zoo.paper_name(encoder, task)
            name = encoder if part == 'backbone' else paper
            _, _, words = known.setdefault(name, (encoder, task, set()))
            words |= {encoder, paper.lower(), task, 'all'}
    found = set()
    for pattern in patterns:
        matching = {n for n, row in known.items() if fnmatch.filter(row[2], pattern.lower())}
        if not matching:
            raise ValueError(
                f'no network is called {pattern!r}; try VM*-T-S2, vm-t-s2, pose or all'
            )
        found |= matching
    return {name: row[:2] for name, row in known.items() if name in found}


def build(encoder, task='pose', part='network', device='cpu'):
    """A network with random weights, in eval mode.

    Args:
        encoder: key of `zoo.ENCODERS`. task: key of `zoo.TASKS`. part: of PARTS.
        device: where it is built.
    """
    row = zoo.encoder(encoder)
    logging.getLogger('mmengine').setLevel(logging.ERROR)
    with torch.device(device):
        backbone = _backbone(encoder)
        if part == 'backbone':
            return Network(backbone).eval().to(device)
        neck = zoo.neck_cfg(encoder) and MODELS.build(zoo.neck_cfg(encoder))
        if task == 'mesh':
            sizes = zoo.MESH_DECODERS[row.backbone.decoder]
            head = MODELS.build(dict(type='HMR2Head', in_channels=row.decoder_channels, **sizes))
        else:
            head = _heatmap_head(row.decoder_channels)
        return Network(backbone, neck, head, task == 'mesh').eval().to(device)


def build_deployed(encoder, task='pose', part='network', device='cpu'):
    """The same network as `trunchier.deploy` makes it, part by part."""
    network = build(encoder, task, part, device)
    for name in ('backbone', 'neck', 'head'):
        module = getattr(network, name)
        if module is not None and not _is_stand_in(module):
            setattr(network, name, trunchier.deploy(module, inplace=True))
    return network


def _is_stand_in(module):
    return type(module).__module__ == __name__


def stood_in_for():
    """Packages whose modules are replaced by the same layers here."""
    return [name for name in ('mmpose', 'mmpretrain') if importlib.util.find_spec(name) is None]


def _backbone(encoder):
    cfg = dict(zoo.backbone_cfg(encoder), init_cfg=None)
    if zoo.encoder(encoder).num_stages is None:
        if 'mmpretrain' in stood_in_for():
            return VisionTransformer(**cfg['arch'])
        import mmpretrain.models  # noqa: F401
    return MODELS.build(cfg)


def _heatmap_head(in_channels):
    if 'mmpose' in stood_in_for():
        return HeatmapHead(in_channels)
    from mmpose.models.heads import HeatmapHead as Theirs

    return Theirs(
        in_channels, KEYPOINTS, deconv_out_channels=(256, 256), deconv_kernel_sizes=(4, 4)
    )  # fmt: skip


def macs(encoder, task='pose', part='network', size=SIZE):
    """Multiply-accumulates of one image in matrix products and convolutions.

    What is executed for the result: nothing for norms, activations and the scan's recurrence.
    """
    network = build(encoder, task, part, 'meta')
    with FlopCounterMode(display=False) as counter:
        network(torch.empty(1, 3, *size, device='meta'))
    return counter.get_total_flops() / 2


# --- the same layers, where their packages are absent --------------------------------------------


class HeatmapHead(nn.Module):
    """mmpose's, as ViTPose has it."""

    def __init__(self, in_channels, channels=256):
        super().__init__()
        layers = []
        for before in (in_channels, channels):
            deconvolution = nn.ConvTranspose2d(before, channels, 4, 2, 1, bias=False)
            layers += [deconvolution, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
        self.deconv_layers = nn.Sequential(*layers)
        self.final_layer = nn.Conv2d(channels, KEYPOINTS, 1)

    def forward(self, feats):
        return self.final_layer(self.deconv_layers(feats[-1]))


class VisionTransformer(nn.Module):
    """mmpretrain's, as ViTPose has it."""

    def __init__(self, embed_dims, num_layers, num_heads, feedforward_channels):
        super().__init__()
        self.patch_embed = nn.ModuleDict(
            dict(projection=nn.Conv2d(3, embed_dims, 16, stride=16, padding=2))
        )
        self.pos_embed = nn.Parameter(torch.zeros(1, (SIZE[0] // 16) * (SIZE[1] // 16), embed_dims))
        self.layers = nn.ModuleList(
            EncoderLayer(embed_dims, num_heads, feedforward_channels) for _ in range(num_layers)
        )
        self.ln1 = nn.LayerNorm(embed_dims, eps=1e-6)

    def forward(self, images):
        x = self.patch_embed['projection'](images)
        height, width = x.shape[2:]
        x = x.flatten(2).transpose(1, 2) + self.pos_embed
        for layer in self.layers:
            x = layer(x)
        return (self.ln1(x).transpose(1, 2).unflatten(2, (height, width)),)


class EncoderLayer(nn.Module):
    def __init__(self, width, num_heads, hidden):
        super().__init__()
        self.num_heads = num_heads
        self.ln1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = nn.ModuleDict(
            dict(qkv=nn.Linear(width, 3 * width), proj=nn.Linear(width, width))
        )
        self.ln2 = nn.LayerNorm(width, eps=1e-6)
        first = nn.Sequential(nn.Linear(width, hidden), nn.GELU())
        self.ffn = nn.ModuleDict(dict(layers=nn.Sequential(first, nn.Linear(hidden, width))))

    def forward(self, x):
        q, k, v = self.attn['qkv'](self.ln1(x)).unflatten(2, (3, self.num_heads, -1)).unbind(2)
        y = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)))
        x = x + self.attn['proj'](y.transpose(1, 2).flatten(2))
        return x + self.ffn['layers'](self.ln2(x))
