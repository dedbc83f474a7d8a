"""Compiled kernels follow every edit of the code that is compiled into them."""

import os
import resource
import subprocess
import sys
from functools import partial
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


def run(folder, preexec_fn=None, **variables):
    """What importing the kernel prints in a process of its own; the cache lies beside `folder`."""
    environment = {**os.environ, 'NUMBA_CACHE_DIR': str(folder.parent / 'cache'), **variables}
    decorator = Path(compiled.__file__).parent  # found without importing torch
    environment['PYTHONPATH'] = os.pathsep.join([str(folder.parent), str(decorator)])
    command = [sys.executable, '-c', f'import {folder.name}.kernel']
    done = subprocess.check_output(command, env=environment, preexec_fn=preexec_fn, text=True)
    return float(done)


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


# --- Where nothing can be kept --------------------------------------------------------------------
def prepared(tmp_path):
    folder = tmp_path / 'package'
    kernel = KERNEL.format(inner='inner', names='FACTOR', value='FACTOR * x')
    write(folder, inner='FACTOR = 3', kernel=kernel)
    return folder


def test_kernels_compile_where_no_folder_can_be_written(tmp_path):
    folder = prepared(tmp_path)
    (folder / '__pycache__').touch()  # as files, they stop even the superuser
    assert run(folder, HOME=os.devnull, NUMBA_CACHE_DIR='', XDG_CACHE_HOME=os.devnull) == 6


@pytest.mark.parametrize('limit', [0, 1000])  # of the index, of the machine code
def test_kernels_compile_where_the_disk_is_full(tmp_path, limit):
    folder = prepared(tmp_path)
    set_limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit))
    assert run(folder, preexec_fn=set_limit, PYTHONDONTWRITEBYTECODE='1') == 6
    assert not list((tmp_path / 'cache').rglob('*.nb[ci]')) or limit


def test_a_damaged_cache_is_made_anew(tmp_path):
    folder = prepared(tmp_path)
    run(folder)
    for suffix in ('nbi', 'nbc'):  # the index, the machine code
        damaged = list((tmp_path / 'cache').rglob(f'*.{suffix}'))
        assert damaged
        for path in damaged:
            path.write_bytes(path.read_bytes()[:-20])
        assert run(folder) == 6
