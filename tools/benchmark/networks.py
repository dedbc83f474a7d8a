"""The models of the paper with random weights, as plain modules to be timed.

A mesh network ends with SMPL parameters and camera; its body model is not timed, nor is it part of
the paper's GFLOPs.
"""

import fnmatch
import logging

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from trunchier import zoo
from trunchier.deploy.fuse import deploy
from trunchier.deploy.graph import make_graph
from trunchier.models.create import create_backbone, create_model

PARTS = ('backbone', 'network')
SIZE = (256, 192)  # (H, W) of the crops


def names(patterns: list[str], part: str = 'network') -> list[str]:
    """Names of the networks that match one of `patterns`, in the zoo's order.

    Args:
        patterns: of the paper's names, as in `VM*-T-S2`, or of encoders, as in `vm-t-*`; 'all',
            'pose', 'mesh'.
        part: 'backbone': names of encoders; 'network': the paper's.

    Raises:
        ValueError: a pattern that matches no name.
    """
    known = {}  # name -> the words that select it
    for paper, (encoder, task) in zoo.models().items():
        words = known.setdefault(encoder if part == 'backbone' else paper, set())
        words |= {encoder, paper.lower(), task, 'all'}
    found = set()
    for pattern in patterns:
        matching = {name for name, words in known.items() if fnmatch.filter(words, pattern.lower())}
        if not matching:
            raise ValueError(
                f'no network is called {pattern!r}; try VM*-T-S2, vm-t-s2, pose or all'
            )
        found |= matching
    return [name for name in known if name in found]


def build(name: str, device: str = 'cpu', deployed: bool = False) -> nn.Module:
    """A backbone (`swin-t-s4`) or network (`SwinPose-T-S4`, a config) with random weights."""
    logging.getLogger('mmengine').setLevel(logging.ERROR)
    with torch.device(device):
        model = create_backbone(name) if name in zoo.ENCODERS else create_model(name)
    model.to(device)  # buffers that come from files are on the CPU
    if deployed:
        model = deploy(model, inplace=True)
    return model if name in zoo.ENCODERS else make_graph(model)


def macs(module: nn.Module, size: tuple[int, int] = SIZE) -> float:
    """Executed multiply-accumulates of matrix products and convolutions for an image (H, W).

    Args:
        module: on the meta device.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(torch.empty(1, 3, *size, device='meta'))
    return counter.get_total_flops() / 2
