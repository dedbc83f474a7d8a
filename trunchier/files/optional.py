"""Packages that only some features need."""

import importlib
from types import ModuleType


def need(module: str, purpose: str, remedy: str | None = None) -> ModuleType:
    """Import a module that may not be installed.

    Args:
        module: such as `trimesh` or `scipy.sparse`.
        purpose: what needs it, as the subject of a sentence: `writing OBJ and GLB`.
        remedy: None: `pip install PACKAGE`.

    Raises:
        ImportError: `writing OBJ and GLB needs trimesh: pip install trimesh`.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition('.')[0]
        raise ImportError(f'{purpose} needs {package}: {remedy or "pip install " + package}') from (
            error
        )
