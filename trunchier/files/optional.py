"""Packages that only some features need."""

import importlib
from types import ModuleType

# mmpose's own metadata requires chumpy, which no longer builds and which it never imports.
OPENMMLAB = (
    "pip install 'trunchier[train]', then pip install --no-deps mmdet==3.3.0 mmpose==1.3.2 "
    'mmpretrain==1.2.0'
)
THEIRS = ('mmcv', 'mmdet', 'mmpose', 'mmpretrain')
# The extra of setup.py that brings a package.
EXTRAS = {
    'av': 'video',
    'fsspec': 'remote',
    'pandas': 'tables',
    'pyarrow': 'ray',
    'pycocotools': 'data',
    'ray': 'ray',
    'timm': 'timm',
    'trimesh': 'mesh',
    'viser': 'viewer',
}


def need(module: str, purpose: str, remedy: str | None = None) -> ModuleType:
    """Import a module that may not be installed.

    Args:
        module: such as `trimesh` or `scipy.sparse`.
        purpose: what needs it, as the subject of a sentence: `writing OBJ and GLB`.
        remedy: None: `pip install PACKAGE`, or its extra, or `OPENMMLAB` for their packages.

    Raises:
        ImportError: `writing OBJ and GLB needs trimesh: pip install 'trunchier[mesh]'`.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition('.')[0]
        if remedy is None:
            name = f"'trunchier[{EXTRAS[package]}]'" if package in EXTRAS else package
            remedy = OPENMMLAB if package in THEIRS else f'pip install {name}'
        raise ImportError(f'{purpose} needs {package}: {remedy}') from error
