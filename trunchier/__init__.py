"""Truncated hierarchical backbones for pose estimation and mesh recovery, for mmpose.

    trunchier.list_models('VM*')
    model = trunchier.create_model('VMPose-T-S3', weights='pose.pth')
    results = trunchier.PoseInferencer('VMPose-T-S2')('photo.jpg')

Importing registers every module in mmengine's root registries; it needs torch and mmengine alone.
"""

import importlib
import runpy
import sys
from pathlib import Path
from typing import Any

if sys.argv and Path(sys.argv[0]).stem in ('trunchier', '-m'):  # the command, before torch
    PACKAGE = Path(__file__).resolve().parent
    for home in (PACKAGE / '.mim', PACKAGE.parent):  # of a wheel, of a checkout
        if (script := home / 'tools' / 'idle_threads.py').is_file():
            runpy.run_path(str(script))
            break

from . import compat  # noqa: E402

compat.apply()  # before what follows, which may import the parts of the stack that it patches

from . import datasets, engine, metrics, models, synthetic  # noqa: E402
from .deploy.fuse import deploy  # noqa: E402

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
__all__ = [
    'MeshInferencer', 'PoseInferencer', '__version__', 'compat', 'create_backbone',
    'create_model', 'datasets', 'deploy', 'engine', 'export', 'list_models', 'metrics', 'models',
    'synthetic',
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in LAZY:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(f'.{LAZY[name]}', __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *LAZY})
