"""Lifters with the golden weights, and what tests of them share."""

import re

import numpy as np
import torch
from golden_rule import (
    golden_lifting_weight,
    golden_state,
    load_golden,
    max_error_in_std,
    official_shapes,
)
from mmengine.registry import MODELS
from torch import nn

from trunchier.weights.load import load_checkpoint

GOLDEN = load_golden('lifting')


def lifter(backbone, head=None, **options):
    """PoseLifter of small or full size, in eval mode."""
    width = backbone.get('backbone', backbone).get('width', 512)
    head = dict(type='LiftingHead', in_channels=width) if head is None else head
    return MODELS.build(dict(type='mmpose.PoseLifter', backbone=backbone, head=head, **options))


def golden_checkpoint(model, keys, folder, seq_len=None):
    """Write an official checkpoint with golden weights, for the depth and length of `model`."""
    backbone = getattr(model.backbone, 'backbone', model.backbone)
    tokens = list(getattr(model.backbone, 'schedule', {}).values())
    length = seq_len or length_of(backbone)
    lengths = {243: length, 27: length} | dict(zip([81], tokens or [length], strict=False))
    shapes = {
        key: tuple(lengths.get(size, size) for size in shape)
        for key, shape in official_shapes(keys).items()
        if int((re.search(r'(?:TEblocks|layers)\.(\d+)|$', key)[1]) or 0) < depth_of(backbone)
    }
    path = folder / 'official.bin'
    torch.save(dict(model_pos=golden_state(shapes, rule=golden_lifting_weight)), path)
    return path


def length_of(backbone):
    """Longest window of MixSTE or mmpose's DSTFormer."""
    return backbone.seq_len if hasattr(backbone, 'seq_len') else backbone.temp_embed.shape[1]


def depth_of(backbone):
    return backbone.depth if hasattr(backbone, 'depth') else len(backbone.blocks_st)


def golden_lifter(model, keys, folder):
    """`model` with the weights of an official checkpoint, in float64 and eval mode."""
    load_checkpoint(model, golden_checkpoint(model, keys, folder))
    return model.double().eval()


def golden_window(name):
    """The first window of a golden's input, float64; scores of keypoints are 0 to 1."""
    rng = np.random.Generator(np.random.PCG64(GOLDEN[name]['seed']))
    window = rng.standard_normal(GOLDEN[name]['shape'])
    window[..., 2:] = 1 / (1 + np.exp(-window[..., 2:]))
    return torch.from_numpy(window.astype(np.float32))[:1].double()


def records(model, *names):
    """Lists that collect the outputs of the modules `names` in the runs that follow."""
    found = [[] for _ in names]
    for name, outputs in zip(names, found, strict=True):

        def hook(_, args, out, outputs=outputs):
            outputs.append(out)

        model.get_submodule(name).register_forward_hook(hook)
    return found


def assert_golden(tensor, name, output):
    """To 1e-6 of the standard deviation."""
    error = max_error_in_std(tensor, GOLDEN[name]['outputs'][output])
    assert error <= 1e-6, f'{output} of {name} is off by {error:.2e} std'


def linear_macs(model, *inputs):
    """Products of linear and convolution layers in a run of `model`."""
    total = []

    def count(layer, args, out):
        total.append(out.numel() * layer.weight[0].numel())

    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv1d))]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        model(*inputs)
    for hook in hooks:
        hook.remove()
    return sum(total)


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())
