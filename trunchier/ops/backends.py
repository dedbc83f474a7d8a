"""Choice of a backend by name.

'auto' takes the fastest backend that supports a call. A backend that is named either does the work
or raises an error with the reason and a remedy; it never falls back in silence.
"""

import functools
import importlib
import importlib.util
from collections.abc import Callable, Collection


def choose(name: str, known: Collection[str], fastest: str, refusal: Callable[[str], str]) -> str:
    """The backend for a call.

    Args:
        name: 'auto' or one of `known`.
        fastest: what 'auto' takes where it supports the call; 'torch' otherwise.
        refusal: maps a backend to the reason why it does not support this call, '' if it does.

    Raises:
        RuntimeError: an unknown backend, or one that does not support this call.
    """
    if name == 'auto':
        return 'torch' if refusal(fastest) else fastest
    if name not in known:
        raise RuntimeError(f"no backend {name!r}; give 'auto' or one of {', '.join(known)}")
    if reason := refusal(name):
        raise RuntimeError(f"backend {name!r} {reason}; or use backend='torch'")
    return name


@functools.lru_cache
def missing(package: str, module: str) -> str:
    """Why `module` of this package, which needs `package`, cannot be imported; '' if it can."""
    if importlib.util.find_spec(package) is None:
        return f'needs the package {package}; pip install {package}'
    try:
        importlib.import_module(module, __package__)
    except ImportError as error:  # numba refuses versions of numpy that it does not know
        return f'needs the package {package}, which cannot be imported: {error}'
    return ''
