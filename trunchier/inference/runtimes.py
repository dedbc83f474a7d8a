"""The option --runtime of commands that predict, and what it is where nobody gives it."""

import importlib.util
import math
from collections.abc import Callable, Iterable

from . import sources

CHOICES = 'auto', 'onnxruntime', 'openvino', 'torch'
HELP = (
    'what runs the network on CPU; auto measures once which is fastest (default: torch, of .onnx '
    'files onnxruntime; where there are many frames, what is fastest here)'
)
SOME, MANY = 100, 20_000  # frames, see `runtime_for`


def add_runtime(add: Callable) -> None:
    """Add the option to a parser or group by its `add_argument`."""
    add('--runtime', choices=CHOICES, help=HELP)


def runtime_for(found: Iterable[sources.Source], frames: range | None = None) -> str | None:
    """What pays for so many frames: starting another runtime takes seconds, measuring minutes.

    Args:
        found: inputs. frames: of videos; None: all.

    Returns:
        'auto', 'measured' or None, see `Predictor.load`.
    """
    number = sources.count_frames(found, frames or sources.EVERY_FRAME)
    if MANY <= number < math.inf and importlib.util.find_spec('openvino'):
        return 'auto'
    return 'measured' if number >= SOME else None
