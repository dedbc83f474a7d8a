"""Index tensors that depend on sizes alone: computed once for each size and device."""

import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

MAX_PLANS = 64  # kept for each kind of plan; the oldest is dropped


def cached_plan(make: Callable) -> Callable:
    """Decorator: `make(*sizes) -> NamedTuple of arrays` becomes `(*sizes, device) -> of tensors`.

    Graphs take the tensors as constants. Stand-ins that a tracer makes are not kept.
    """
    plans = {}

    @functools.wraps(make)
    def plan(*sizes_and_device):
        *sizes, device = sizes_and_device
        key = *map(_whole, sizes), device
        if key in plans:
            return plans[key]
        made = _to_tensors(make(*key[:-1]), device)
        is_real = all(type(t) is nn.Parameter for t in made if isinstance(t, torch.Tensor))
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


def _to_tensors(values, device):
    """A tuple, its arrays as tensors."""
    made = []
    for value in values:
        if isinstance(value, np.ndarray):
            # A parameter: torch.compile takes its shape as constant even where sizes are dynamic.
            with torch.inference_mode(False):
                value = nn.Parameter(torch.from_numpy(value).to(device), requires_grad=False)
        elif isinstance(value, tuple):
            value = _to_tensors(value, device)
        made.append(value)
    return type(values)(*made) if hasattr(values, '_fields') else tuple(made)
