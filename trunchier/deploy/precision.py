"""The fastest precision of a model on this machine, within an error that the caller allows.

It is measured once for each CPU, number of threads, torch, network and images' shape, and kept in
the cache folder; `trunchier doctor` lists what is kept.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..files.decided import decided
from .calibration import calibration_crops
from .fuse import DEPLOYED, deploy
from .graph import describe, make_graph
from .lower import PRECISIONS

if TYPE_CHECKING:
    from ..weights.find import Found

CROPS = 2  # of people, on which a predictor's model is measured
TOLERANCE = 0.1  # root mean square error of an output, in standard deviations of it
MARGIN = 0.95  # a lower precision must take less than this part of float32's time
ROUNDS = 5
EMULATED = 10.0  # of float32's time for a convolution
HOPELESS = 2.0  # of the first one's time: no further rounds


class Measured(NamedTuple):
    """Seconds for the images, and the error as of `TOLERANCE`."""

    seconds: float
    error: float


def fastest_precision(model: nn.Module, images: Tensor, tolerance: float | None = None) -> str:
    """Name of the precision, of `fuse.DEPLOYED`, in which a model is fastest when deployed.

    Args:
        model: with its weights, on CPU, not deployed; it is not changed. In memory are up to
            four copies for a few seconds.
        images: (N, 3, H, W), normalized crops of people: results of noise tell little of errors.
        tolerance: largest root mean square error of an output, in its standard deviations; None:
            TOLERANCE.

    Raises:
        ValueError: a model on another device, or a tolerance that is not positive.
    """
    return _decided(model, tuple(images.shape), lambda: images, tolerance)


def fastest_on_people(found: Found, model: nn.Module, dataset_meta: dict | None = None) -> str:
    """`fastest_precision` of a model for crops, on synthetic people.

    Args:
        found: where the model is from. dataset_meta: see `graph.describe`.

    Raises:
        ValueError: a model that finds people itself.
    """
    if not found.row.graph:
        raise ValueError(f"precision 'auto' measures models for crops, {found.name} is for images")
    facts = describe(found, dataset_meta)
    width, height = facts['input_size']
    return _decided(
        model,
        (CROPS, 3, height, width),
        lambda: torch.from_numpy(calibration_crops(facts, num=CROPS)),
    )


def _decided(model, shape, images, tolerance=None):
    """See `fastest_precision`; `images` draws those of this shape if they are needed."""
    devices = {each.device.type for each in model.parameters()}
    if devices - {'cpu'}:
        raise ValueError(f"precision 'auto' measures on CPU, the model is on {devices}: take fp16")
    tolerance = TOLERANCE if tolerance is None else tolerance
    if not tolerance > 0:
        raise ValueError(f'tolerance is a positive number of standard deviations, got {tolerance}')
    question = (
        f'precision of {type(model).__name__} {weights_digest(model)} on {shape}, '
        f'{torch.get_num_threads()} threads, error up to {tolerance:g}, torch {torch.__version__}'
    )
    return decided(question, DEPLOYED, lambda: choose(measure(model, images()), tolerance))


def choose(measured: dict[str, Measured], tolerance: float) -> str:
    """The fastest one within the tolerance; the first unless another gains more than noise."""
    allowed = {name: row.seconds for name, row in measured.items() if row.error <= tolerance}
    first, best = next(iter(allowed)), min(allowed, key=lambda name: allowed[name])
    return best if allowed[best] < MARGIN * allowed[first] else first


@torch.no_grad()
def measure(model: nn.Module, images: Tensor) -> dict[str, Measured]:
    """Time and error of each precision that this machine has: the least of several, in turn."""
    networks, errors = {}, {}
    exact = outputs(deploy(model), images)
    limit = EMULATED * _convolution(torch.float32)
    for name in DEPLOYED:
        if name != 'int8' and _convolution(PRECISIONS[name]) > limit:
            continue  # a run would take minutes
        try:
            network = deploy(model, precision=name)
            found = outputs(network, images)
        except RuntimeError:  # no such products in this torch or CPU
            continue
        networks[name] = network
        errors[name] = max(map(_error, found, exact))
    seconds = least_seconds(
        {name: partial(outputs, network, images) for name, network in networks.items()}
    )
    return {name: Measured(seconds[name], errors[name]) for name in networks}


def least_seconds(tasks: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Of several rounds, in turn; one that is hopeless beside the first task has no more."""
    first = next(iter(tasks))
    seconds = dict.fromkeys(tasks, float('inf'))
    for _ in range(ROUNDS):
        for name, task in tasks.items():
            if HOPELESS * seconds[first] < seconds[name] < float('inf'):
                continue
            start = time.perf_counter()
            task()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    return seconds


def _convolution(dtype):
    """Seconds of a small convolution: a CPU without such products takes 100 times as long."""
    images, weight = torch.ones(1, 64, 16, 16, dtype=dtype), torch.ones(64, 64, 3, 3, dtype=dtype)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        F.conv2d(images, weight)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def outputs(network: nn.Module, images: Tensor) -> list[Tensor]:
    """What a network computes from images: of an estimator, what its exported file returns."""
    try:
        run: nn.Module = make_graph(network)
    except ValueError:  # a backbone, or another model
        run = network
    return list(_tensors(run(images)))


def _tensors(value: Any):
    if isinstance(value, Tensor):
        yield value.float()
    else:
        for each in value.values() if isinstance(value, dict) else value:
            yield from _tensors(each)


def _error(found, exact):
    return ((found - exact).square().mean().sqrt() / exact.std()).item()


def weights_digest(model: nn.Module) -> str:
    """Of parameters and buffers, since an error depends on them."""
    content = hashlib.blake2b(digest_size=6)
    for name, tensor in model.state_dict().items():
        content.update(name.encode())
        content.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())
    return content.hexdigest()
