"""The models of the paper with random weights, as plain modules to be timed.

A mesh network ends with SMPL parameters and camera; its body model is not timed, nor is it part of
the paper's GFLOPs.
"""

import fnmatch
import logging
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from trunchier import zoo
from trunchier.deploy.fuse import deploy
from trunchier.deploy.graph import make_graph
from trunchier.deploy.lower import PRECISIONS
from trunchier.models.create import create_backbone, create_model

SIZE = (256, 192)  # (H, W) of the crops
DTYPES = PRECISIONS | {'tf32': torch.float32}


def add_arguments(add: Callable, batch: int) -> None:
    """Options that select networks and their input."""
    add('--models', nargs='+', default=['*-t-s2'], metavar='NAME', help='names, patterns, or all')
    add('--part', choices=('backbone', 'network'), default='network', help='default: network')
    add('--batch', nargs='+', type=int, default=[batch], metavar='N')
    add('--dtype', nargs='+', choices=DTYPES, default=['fp32'], help='in training by autocast')
    add('--size', nargs=2, type=int, default=SIZE, metavar=('H', 'W'))
    add('--against', nargs='+', default=[], metavar='NAME=DIR', help='peers, see above')


def names(patterns: list[str], part: str = 'network') -> list[str]:
    """The paper's names of the networks, or of encoders if `part` is 'backbone', in zoo's order.

    Args:
        patterns: of the paper's names, as in `VM*-T-S2`, or of encoders, as in `vm-t-*`; 'all',
            'pose', 'mesh'. One that matches nothing is a ValueError.
    """
    known = {}  # name -> the words that select it
    for paper, (encoder, task) in zoo.models().items():
        words = known.setdefault(encoder if part == 'backbone' else paper, set())
        words |= {encoder, paper.lower(), task, 'all'}
    found = set()
    for pattern in patterns:
        matching = {name for name, words in known.items() if fnmatch.filter(words, pattern.lower())}
        if not matching:
            raise ValueError(f'no network is called {pattern!r}; try VM*-T-S2, vm-t-s2 or all')
        found |= matching
    return [name for name in known if name in found]


def build(
    name: str, device: str = 'cpu', deployed: bool = False, precision: str = 'fp32'
) -> nn.Module:
    """A backbone (`swin-t-s4`) or network (`SwinPose-T-S4`, a config) with random weights.

    Args:
        precision: of a deployed one.
    """
    logging.getLogger('mmengine').setLevel(logging.ERROR)
    with torch.device(device):
        model = create_backbone(name) if name in zoo.ENCODERS else create_model(name)
    model.to(device)  # buffers that come from files are on the CPU
    model = deploy(model, inplace=True, precision=precision) if deployed else model
    return model if name in zoo.ENCODERS else make_graph(model)


def macs(module: nn.Module, size: tuple[int, int] = SIZE) -> float:
    """Executed multiply-accumulates of products and convolutions of a meta module, for (H, W)."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(torch.empty(1, 3, *size, device='meta'))
    return counter.get_total_flops() / 2
