"""Other implementations to compare with: DIR/peer.py of --against NAME=DIR."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path


def load_peers(against: list[str], function: str) -> dict[str, Callable]:
    """{name: the peer's `function`} of the arguments NAME=DIR, of peers that define it.

    Args:
        function: 'build' or 'selective_scan'; a peer without either is a ValueError.
    """
    found = {}
    for text in against:
        name, _, folder = text.partition('=')
        if not (name and folder):
            raise ValueError(f'--against requires NAME=DIR, got {text!r}')
        path = Path(folder, 'peer.py')
        if not path.is_file():
            raise FileNotFoundError(f'no {path}; write one that defines build(name), see --help')
        sys.path.insert(0, str(path.parent.resolve()))  # for the modules that it imports
        spec = importlib.util.spec_from_file_location(f'peer_{name}', path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if not (hasattr(module, 'build') or hasattr(module, 'selective_scan')):
            raise ValueError(f'{path} has neither build(name) nor selective_scan(...)')
        if hasattr(module, function):
            found[name] = getattr(module, function)
    return found
