"""Constant-fold a trained model for inference. Outputs are equal up to rounding.

    model = deploy(model)

Classes stay, weights change: batch norms are folded into the layer before them, GELUs join linear
layers, weights are packed in the order in which oneDNN reads them. A module that can do more has a
method `fuse()`, which changes the module or returns another one to take its place. It runs once,
without gradients, after the `fuse()` of all children; `trunchier.ops.folding` has the parts. A
module's `before_fuse()`, if it has one, runs before its children. Methods `fuse` of timm's modules,
which fuse their children themselves, are left to timm.
"""

import copy
from functools import partial

import torch
from torch import Tensor, nn

from ..ops.folding import fold, is_a, pack
from ..ops.int8 import fix_scales
from ..ops.linear import keep_freed_memory
from .lower import PRECISIONS, lower, to_int8

DEPLOYED = (*PRECISIONS, 'int8')
AUTO = 'auto'


def deploy(
    model: nn.Module,
    inplace: bool = False,
    precision: str = 'fp32',
    images: Tensor | None = None,
    tolerance: float | None = None,
    calibration: Tensor | None = None,
) -> nn.Module:
    """Prepare a model for inference; checkpoints must be loaded before.

    Every `nn.Sequential` must be called as a whole, as all models here and in mmpose do.

    Args:
        model: a module with its weights, on any device.
        inplace: change `model` itself instead of a deep copy.
        precision: 'fp32', 'bf16', 'fp16', or 'int8' (on CPU); inputs and outputs stay float32;
            'auto': the fastest here, see `precision.fastest_precision`. See docs/deploy.md.
        images, tolerance: of `fastest_precision`, for 'auto' alone.
        calibration: for 'int8' alone: (N, 3, H, W), normalized crops of people, whose activations
            give fixed scales; None: each activation has the scale of its own numbers, which is
            slower and needs no crops.

    Returns:
        A model of the same class with the same methods, equal up to rounding (below 1e-4 of an
        output's standard deviation in float32). It stays in eval mode and requires no gradient.

    Raises:
        TypeError: not a module, or a deployed one.
        ValueError: another precision, 'auto' without images, or `calibration` that is no such crops
            or for another precision.
        RuntimeError: this machine has no 8-bit products.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f'cannot deploy a {type(model).__name__}; give an nn.Module')
    if precision not in (*DEPLOYED, AUTO):
        names = ', '.join((*DEPLOYED, AUTO))
        raise ValueError(f'cannot deploy in {precision!r}; give one of {names}')
    if precision == AUTO and images is None:
        raise ValueError(
            f'precision {AUTO!r} measures: give images, normalized crops of people (N, 3, H, W)'
        )
    if calibration is not None and precision != 'int8':
        raise ValueError(f"calibration is for 'int8', not {precision!r}; leave it out")
    if calibration is not None and (calibration.dim() != 4 or not len(calibration)):
        raise ValueError(
            f'calibration has shape {tuple(calibration.shape)}; give crops of people (N, 3, H, W), '
            'or leave it out'
        )
    if any(getattr(module, 'deployed', False) for module in model.modules()):
        raise TypeError('the model, or a part of it, is deployed already; deploy the original')
    if precision == AUTO:
        from .precision import fastest_precision

        precision = fastest_precision(model, images, tolerance)
    if not inplace:
        model = copy.deepcopy(model)
    model.eval()
    with torch.no_grad():
        model = _fused(model, {})
        if precision == 'int8':
            model = to_int8(model)
            if calibration is not None:
                from .precision import outputs

                crops = calibration.split(1)
                fix_scales(model, lambda: [outputs(model, crop) for crop in crops])
        else:
            lower(model, PRECISIONS[precision])
    model.eval()
    model.requires_grad_(False)
    keep_freed_memory()
    model.deployed = True
    model.train = partial(_refuse_training, model)
    model._register_load_state_dict_pre_hook(_refuse_weights, with_module=True)
    return model


def _fused(module, done):
    """The module that takes the place of `module`, children first; `done` has those of before."""
    if module in done:
        return done[module]
    if callable(getattr(module, 'before_fuse', None)):
        module.before_fuse()
    for name, child in module._modules.items():
        if child is not None:
            module._modules[name] = _fused(child, done)
    fused = pack(module)
    if is_a(module, nn.Sequential):
        for index, part in enumerate(fold(*module)):
            module[index] = part
    elif callable(getattr(module, 'fuse', None)) and not _is_of_timm(module):
        replacement = module.fuse()
        fused = module if replacement is None else replacement
    done[module] = fused
    return fused


def _is_of_timm(module: nn.Module) -> bool:
    return type(module).__module__.partition('.')[0] == 'timm'


def _refuse_training(model, mode=True):
    if mode:
        raise RuntimeError(
            f'this {type(model).__name__} is deployed and cannot train; train the original model, '
            'and deploy that again'
        )
    return model


def _refuse_weights(model, *_):
    raise RuntimeError(
        f'this {type(model).__name__} is deployed: its parameters differ from those of a '
        'checkpoint; load the checkpoint into a model that is not, and deploy that'
    )
