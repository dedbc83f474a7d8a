"""Index tensors that depend on sizes alone: computed once for each size and device."""

import functools
import sys
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from .when import PLAIN

MAX_PLANS = 64  # kept for each kind of plan; the oldest is dropped


def cached_plan(make: Callable) -> Callable:
    """Decorator: `make(*sizes) -> NamedTuple of arrays` becomes `(*sizes, device) -> of tensors`.

    Graphs take the tensors as constants. Stand-ins that a tracer makes are not kept.
    """
    plans = {}

    @functools.wraps(make)
    def plan(*sizes_and_device):
        *sizes, device = sizes_and_device
        sizes = (*map(_whole, sizes),)
        key = *sizes, device, _is_freezing()
        if key in plans:
            return plans[key]
        made = _to_tensors(make(*sizes), device)
        is_real = all(type(t) in PLAIN for t in made if isinstance(t, torch.Tensor))
        if is_real and not torch.jit.is_tracing():
            if len(plans) == MAX_PLANS:
                del plans[next(iter(plans))]
            plans[key] = made
        return made

    # All that torch.compiler.assume_constant_result does, but it imports the compiler, 0.6 s.
    vars(plan).update(plans=plans, _dynamo_marked_constant=True)
    return plan


def _whole(size):
    """A size as int, a pair of sizes as ints: torch.jit.trace passes tensors."""
    return tuple(map(int, size)) if isinstance(size, (tuple, list)) else int(size)


def _is_freezing():
    """Whether torch.compile folds parameters; then it looks for an owner of each, and fails."""
    settings = sys.modules.get('torch._inductor.config')  # importing it takes a second
    return bool(getattr(settings, 'freezing', False))


def _to_tensors(values, device):
    """A tuple, its arrays as tensors."""
    made = []
    for value in values:
        if isinstance(value, np.ndarray):
            with torch.inference_mode(False):
                value = torch.from_numpy(value).to(device)
                # torch.compile takes a parameter's shape as constant even if sizes are dynamic.
                value = value if _is_freezing() else nn.Parameter(value, requires_grad=False)
        elif isinstance(value, tuple):
            value = _to_tensors(value, device)
        made.append(value)
    return type(values)(*made) if hasattr(values, '_fields') else tuple(made)
