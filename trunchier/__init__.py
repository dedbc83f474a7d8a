"""Truncated hierarchical backbones for pose estimation and mesh recovery, for mmpose.

    trunchier.list_models('VM*')
    model = trunchier.create_model('VMPose-T-S3', weights='pose.pth')
    results = trunchier.PoseInferencer('VMPose-T-S2')('photo.jpg')

Importing registers every module in mmengine's root registries; it needs torch and mmengine alone.
The command `trunchier` imports what it needs instead: `trunchier --help` needs no torch.
"""

import importlib
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import compat, datasets, engine, metrics, models, synthetic
    from .deploy.fuse import deploy

# Imported when asked for: most need more packages, or take longer to import.
LAZY = {
    '__version__': 'files.version',
    'MeshInferencer': 'inference.mesh',
    'PoseInferencer': 'inference.pose',
    'create_backbone': 'models.create',
    'create_model': 'models.create',
    'export': 'deploy.export',
    'list_models': 'zoo',
}
ROOMS = ('datasets', 'engine', 'metrics', 'models', 'synthetic')  # have registered modules
FOR_PREDICTION = ('datasets', 'models')
__all__ = [
    'MeshInferencer', 'PoseInferencer', '__version__', 'compat', 'create_backbone',
    'create_model', 'datasets', 'deploy', 'engine', 'export', 'list_models', 'metrics', 'models',
    'synthetic',
]  # fmt: skip


def register(training: bool = True) -> None:
    """Patch OpenMMLab's packages and register every module; importing does so, but of the command.

    The second time, nothing happens.

    Args:
        training: False registers what prediction with the zoo's models needs, a second sooner.
    """
    global deploy  # the function, in place of the room
    if find_spec('torch') is None:
        raise ImportError(
            'torch is not installed: pip install torch mmengine; without torch, `trunchier predict '
            '--weights FILE.onnx` runs exported pose models ("Predict without torch" in '
            'docs/export.md)'
        )
    compat = importlib.import_module('.compat', __name__)
    # First: what follows may import the parts of the stack that it patches.
    compat.apply()
    if not training:
        compat.without_sharding()
    for room in ROOMS if training else FOR_PREDICTION:
        importlib.import_module(f'.{room}', __name__)
    deploy = importlib.import_module('.deploy.fuse', __name__).deploy


def __getattr__(name: str) -> Any:
    if name in LAZY:
        return getattr(importlib.import_module(f'.{LAZY[name]}', __name__), name)
    if name in __all__:
        register()
        return globals()[name]
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _is_command() -> bool:
    """Whether this process is `trunchier ...` or `python -m trunchier ...`."""
    program = Path(sys.argv[0]).stem if sys.argv else ''
    if program == '-m':  # of which package it will be, Python says here alone
        words = sys.orig_argv[1:]
        return '-m' in words and words[words.index('-m') :][1:2] == [__name__]
    return program == __name__


if _is_command():
    PACKAGE = Path(__file__).resolve().parent
    for home in (PACKAGE / '.mim', PACKAGE.parent):  # of a wheel, of a checkout
        if (script := home / 'tools' / 'idle_threads.py').is_file():
            runpy.run_path(str(script))  # before torch
            break
else:
    register()
