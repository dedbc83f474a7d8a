"""The fastest runtime of a model on this machine's CPU: torch, OpenVINO or onnxruntime.

It is measured once for each CPU, number of threads, versions, network and images' shape, as the
precision is; `trunchier doctor` lists what is kept. A checkpoint runs elsewhere than in torch as an
ONNX file in the cache folder, which may be removed at any time. Such a file is used only if it
computes on a crop what the model does; else it is written again.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..files.decided import decided, decisions
from ..files.download import cache_folder
from ..files.optional import need
from ..files.version import __version__
from ..files.whole import file_digest
from .calibration import calibration_crops
from .fuse import AUTO, deploy
from .graph import describe
from .precision import CROPS, TOLERANCE, Measured, choose, least_seconds, weights_digest
from .runtime import RUNTIMES, ExportedNetwork, ExportError, ModuleNetwork, Network

if TYPE_CHECKING:
    from ..weights.find import Found

MEASURED = 'measured'  # as 'auto' if that was measured before, else the default
CHOICES = (AUTO, MEASURED, *RUNTIMES)
OF_ONNX = tuple(name for name, suffixes in RUNTIMES.items() if '.onnx' in suffixes)
WRITERS = 'onnx', 'onnxscript', 'onnxruntime'  # packages that write ONNX
RUNTIMES_OF = {'fp32': OF_ONNX, 'int8': OF_ONNX, 'bf16': ('openvino',)}  # on CPU

log = logging.getLogger('trunchier')


def network_on_cpu(
    found: Found,
    model: nn.Module,
    precision: str = 'fp32',
    runtime: str | None = None,
    dataset_meta: dict | None = None,
) -> ExportedNetwork | None:
    """What runs a model for crops on this CPU; None: torch.

    Args:
        found: where the model is from. model: with its weights, not deployed.
        precision: key of RUNTIMES_OF, or another one, which only torch runs.
        runtime: one of CHOICES; None: torch. Measuring takes half a minute, most of it the export,
            in int8 longer.
        dataset_meta: see `graph.describe`.

    Raises:
        ValueError: a runtime by name, in another precision.
        ExportError, ImportError, OSError, RuntimeError: the file for a runtime by name cannot be
            written or run.
    """
    if runtime in (None, 'torch'):
        return None
    runtimes = RUNTIMES_OF.get(precision, ())
    if runtime in OF_ONNX and runtime not in runtimes:
        able = [each for each, those in RUNTIMES_OF.items() if runtime in those]
        remedy = ' or '.join((*runtimes, 'torch'))
        raise ValueError(
            f'{runtime} runs models in {" or ".join(able)}, not {precision}; take {remedy}'
        )
    if not runtimes:
        return None
    about = f'runtime of {found.name}'
    if runtime == MEASURED and not any(each.startswith(f'{about} ') for each in decisions()):
        return None
    file = _File(found, model, precision, dataset_meta)
    if runtime in OF_ONNX:
        return file.opened(runtime)
    if absent := [name for name in WRITERS if find_spec(name) is None]:
        log.info('runtime torch: no other one can be measured without %s', ' and '.join(absent))
        return None
    question = _question(f'{about} {file.digest} in {precision}', file.shape)
    try:
        taken = _answer(question, runtime, ('torch', *runtimes), file.fastest)
        return None if taken == 'torch' else file.opened(taken)
    except (OSError, ImportError, ExportError) as error:
        log.warning('runtime torch: %s', error)
        return None


def runtime_of_file(path: str | Path, runtime: str) -> str | None:
    """Key of RUNTIMES in which an exported file runs on this CPU; None: the default.

    Args:
        path: of any format. runtime: 'auto' or 'measured'.
    """
    path = Path(path)
    if path.suffix != '.onnx' or not all(map(find_spec, OF_ONNX)):
        return None
    question = _question(f'runtime of {path.name} {file_digest(path)[:12]}', (CROPS,))
    return _answer(question, runtime, OF_ONNX, partial(_fastest_of_file, path))


class _File:
    """The ONNX file of a model, in the cache folder."""

    def __init__(self, found, model, precision, dataset_meta):
        self.name, self.model, self.precision = found.name, model, precision
        self.facts = describe(found, dataset_meta)
        width, height = self.facts['input_size']
        self.shape = CROPS, 3, height, width
        key = f'{weights_digest(model)} {found.cfg.model} {self.facts} {__version__}'
        self.digest = hashlib.blake2b(key.encode(), digest_size=6).hexdigest()
        name = f'{Path(found.name).stem}-{precision}-{self.digest}.onnx'
        self.path = cache_folder() / 'exported' / name

    def opened(self, runtime):
        """The file in a runtime, as an ExportedNetwork; it is written unless there is a right one.

        Raises:
            ExportError: it cannot be written, or computes something else than the model.
        """
        from .export import write

        need(runtime, f'runtime {runtime}', f'pip install {runtime}, or take torch')
        if (network := self._right(runtime)) is None:
            stored = 'fp32' if self.precision == 'bf16' else self.precision
            write(self.model, self.path, self.facts, stored, dynamic_batch=True)
            network = self._right(runtime)
        if network is None:
            raise ExportError(
                f'{runtime} computes something else than {self.name} from {self.path} in '
                f'{self.precision}'
            )
        return network

    def _right(self, runtime):
        from .export import TOLERANCES, compare, random_crops

        if not self.path.is_file():
            return None
        exact = self.precision == 'fp32'
        if exact:
            crops, limit = random_crops((1, *self.shape[1:])), TOLERANCES['fp32']
        else:  # of few crops, the error is larger than of those on which it was written
            crops = torch.from_numpy(calibration_crops(self.facts, num=CROPS))
            limit = TOLERANCE if self.precision == 'bf16' else 2 * TOLERANCES[self.precision]
        computed = 'bf16' if self.precision == 'bf16' else 'fp32'  # int8 is in the file
        try:
            network = ExportedNetwork(self.path, runtime=runtime, precision=computed)
            errors = compare(network, ModuleNetwork(self.model), crops, mean=not exact)
        except (ValueError, LookupError, ExportError) as error:
            log.debug('%s: %s', self.path, error)
            return None
        return network if max(errors.values()) <= limit else None

    def fastest(self):
        """Name of the runtime; if that is torch, no file is left."""
        log.info('measuring, once, in which runtime %s is fastest here', self.name)
        in_torch = ModuleNetwork(deploy(self.model, precision=self.precision))
        networks = dict(torch=in_torch, **_networks(self.opened, RUNTIMES_OF[self.precision]))
        taken = _fastest(networks, self.shape)
        if taken == 'torch':
            self.path.unlink(missing_ok=True)
            self.path.with_name(f'{self.path.name}.data').unlink(missing_ok=True)
        return taken


def _fastest_of_file(path):
    networks = _networks(lambda name: ExportedNetwork(path, runtime=name))
    if len(networks) < 2:
        return OF_ONNX[0]
    width, height = networks[OF_ONNX[0]].metadata['input_size']
    return _fastest(networks, (CROPS, 3, height, width))


def _networks(
    opened: Callable[[str], Network], runtimes: tuple[str, ...] = OF_ONNX
) -> dict[str, Network]:
    """By runtime. What the first one cannot run, others are not tried with."""
    networks = {}
    for name in filter(find_spec, runtimes):
        try:
            networks[name] = opened(name)
        except OSError:  # of the disk
            raise
        except Exception as error:  # of any class: exporters have none in common
            log.warning('not in %s: %s', name, error)
            break
    return networks


def _fastest(networks, shape):
    """Name of a network; the first one unless another gains more than noise."""
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    tasks = {name: partial(network, images) for name, network in networks.items()}
    for task in tasks.values():
        task()
    seconds = least_seconds(tasks)
    return choose({name: Measured(each, 0.0) for name, each in seconds.items()}, math.inf)


def _question(about, shape):
    return f'{about} on {shape}, {torch.get_num_threads()} threads, ' + ', '.join(
        f'{name} {_version(name)}' for name in ('torch', *OF_ONNX)
    )


def _version(name):
    try:
        return version(name)
    except PackageNotFoundError:  # or of another name, as onnxruntime-gpu
        return 'of another name' if find_spec(name) else 'absent'


def _answer(
    question: str, runtime: str, choices: tuple[str, ...], measure: Callable[[], str]
) -> str:
    """What was decided, or else for 'auto' is measured."""
    if runtime == MEASURED:
        kept = decisions().get(question)
        taken = kept if kept in choices else choices[0]
    else:
        taken = decided(question, choices, measure)
    log.info('runtime %s, the fastest here', taken)
    return taken
