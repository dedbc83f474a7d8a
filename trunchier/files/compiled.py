"""Numba kernels whose machine code is kept on disk and recompiled when any code in it changes.

numba keys its cache by the content of the kernel's own file alone: after an edit of a function or
constant that the kernel takes from another file, it would run the old machine code.
"""

import ast
import contextlib
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

try:
    import numba
except ImportError as error:
    raise ImportError('compiled kernels and rendering need numba: pip install numba') from error


def compiled(function: Callable | None = None, **options: Any) -> Callable:
    """Compile with `numba.njit` and cache on disk, where numba finds a folder for it.

    The cache key covers the kernel's file and all files of its package that it imports from, so
    this replaces `njit(cache=True)` wherever compiled code uses functions or constants of another
    file. Used as `@compiled` or, with options of njit, as `@compiled(fastmath=True)`.
    """
    if function is None:
        return functools.partial(compiled, **options)
    function.__qualname__ += f'_{source_digest(function.__code__.co_filename)}'
    try:
        kernel = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache can be written
        return numba.njit(**options)(function)
    _forgive(kernel._cache)
    return kernel


def _forgive(cache):
    """Let a full disk or a damaged cache cost the time of compilation alone."""
    load, save = cache.load_overload, cache.save_overload

    def load_overload(*arguments):
        try:
            return load(*arguments)
        except Exception:  # a damaged pickle may raise anything; `flush` empties the index
            with contextlib.suppress(OSError):
                cache.flush()

    def save_overload(*arguments):
        with contextlib.suppress(OSError):
            save(*arguments)

    cache.load_overload, cache.save_overload = load_overload, save_overload


@functools.lru_cache
def source_digest(file: str | Path) -> str:
    """Hash of a source file and of the files of its package that it imports, at any depth."""
    files, found = [Path(file)], {}
    while files:
        path = files.pop()
        if path not in found and path.is_file():
            found[path] = path.read_bytes()
            files.extend(_imported(path, ast.parse(found[path])))
    contents = hashlib.sha256()
    for path in sorted(found):
        contents.update(hashlib.sha256(found[path]).digest())
    return contents.hexdigest()[:12]


def _imported(path, tree):
    """Files that the import statements of `tree`, the code in `path`, may mean; not all exist."""
    packages = [folder for folder in path.parents if (folder / '__init__.py').is_file()]
    root = packages[-1] if packages else path
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name.split('.') for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module.split('.') if node.module else []]
            modules += [[*modules[0], alias.name] for alias in node.names]
        else:
            continue
        level = getattr(node, 'level', 0)
        for module in modules:
            if level:
                target = path.parents[level - 1].joinpath(*module)
            elif module[0] == root.name:
                target = root.parent.joinpath(*module)
            else:
                continue
            yield target.with_suffix('.py')
            yield target / '__init__.py'
