"""Compiled kernels follow every edit of the code that is compiled into them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('numba')

from trunchier.files import compiled  # noqa: E402

KERNEL = """
from compiled import compiled
from .{inner} import {names}

@compiled
def kernel(x):
    return {value}

print(kernel(2.0))
"""


def write(folder, **sources):
    folder.mkdir(exist_ok=True)
    for name, source in {'__init__': '', **sources}.items():
        (folder / f'{name}.py').write_text(source)


def run(folder):
    """What importing the kernel prints in a process of its own; the cache lies beside `folder`."""
    environment = {**os.environ, 'NUMBA_CACHE_DIR': str(folder.parent / 'cache')}
    decorator = Path(compiled.__file__).parent  # found without importing torch
    environment['PYTHONPATH'] = os.pathsep.join([str(folder.parent), str(decorator)])
    command = [sys.executable, '-c', f'import {folder.name}.kernel']
    return float(subprocess.check_output(command, env=environment, text=True))


def test_an_edit_of_an_inlined_function_in_another_file_is_compiled_in(tmp_path):
    folder = tmp_path / 'package'
    inner = 'import numba\n@numba.njit(inline="always")\ndef scaled(x):\n    return {} * x\n'
    kernel = KERNEL.format(inner='inner', names='scaled', value='scaled(x)')
    write(folder, inner=inner.format(3), kernel=kernel)
    assert run(folder) == 6
    write(folder, inner=inner.format(5))
    assert run(folder) == 10


def test_an_edit_of_a_constant_two_files_away_is_compiled_in(tmp_path):
    folder = tmp_path / 'package'
    kernel = KERNEL.format(inner='middle', names='FACTOR', value='FACTOR * x')
    write(folder, inner='FACTOR = 3', middle='from . import inner\nFACTOR = inner.FACTOR')
    write(folder, kernel=kernel)
    assert run(folder) == 6
    write(folder, inner='FACTOR = 5')
    assert run(folder) == 10


def test_machine_code_is_kept_while_nothing_changes(tmp_path):
    folder = tmp_path / 'package'
    kernel = KERNEL.format(inner='inner', names='FACTOR', value='FACTOR * x')
    write(folder, inner='FACTOR = 3', kernel=kernel)
    run(folder)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / 'cache').rglob('*.nbc')}
    assert kept and run(folder) == 6
    assert kept == {path: path.stat().st_mtime_ns for path in (tmp_path / 'cache').rglob('*.nbc')}


def test_the_digest_covers_the_files_that_are_imported_and_no_others(tmp_path):
    folder = tmp_path / 'package'
    write(folder, a='from . import b', b='from package.c import X', c='X = 1', d='Y = 1')
    before = compiled.source_digest(folder / 'a.py')
    compiled.source_digest.cache_clear()
    write(folder, d='Y = 2')
    assert compiled.source_digest(folder / 'a.py') == before
    compiled.source_digest.cache_clear()
    write(folder, c='X = 2')
    assert compiled.source_digest(folder / 'a.py') != before


def test_kernels_compile_where_nothing_can_be_kept(monkeypatch):
    def njit(cache=False, **options):
        def compile_it(function):
            if cache:
                raise RuntimeError('cannot cache function: no locator available')
            return function

        return compile_it

    def double(x):
        return 2 * x

    monkeypatch.setattr(compiled.numba, 'njit', njit)
    assert compiled.compiled(double) is double
