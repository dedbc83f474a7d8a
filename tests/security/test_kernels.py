"""Compiled kernels stay within their arrays, for any shape, width of vectors and number of threads.

`guarded_kernels` does the work in a process of its own, since a heap overflow may end it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('numba')
from trunchier.ops.cpu import simd  # noqa: E402

SCRIPT = Path(__file__).with_name('guarded_kernels.py')
ROOT = Path(__file__).parents[2]


def report(*arguments, **settings):
    """What the script found; its rows are printed if the test fails."""
    settings = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_WAIT_POLICY': 'passive', **settings}
    run = subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)], env=settings, capture_output=True,
        text=True,
    )  # fmt: skip
    assert run.returncode == 0, f'{run.stdout}\n{run.stderr}'
    found = json.loads(run.stdout)
    for row in found['table']:
        print(row)
    return found


def test_kernels_stay_within_their_arrays_and_every_kernel_has_a_row():
    found = report('--cases', 8, '--threads', 1, 3)
    assert found['failures'] == []
    assert found['unreached'] == [], 'give these kernels a row in guarded_kernels.py'
    assert {row['lanes'] for row in found['table']} == {simd.LANES}


@pytest.mark.slow
@pytest.mark.parametrize(
    'cpu, features, lanes',
    [('x86-64', '+sse2', 4), ('haswell', '+avx,+avx2,+fma', 8), (None, None, 16)],
)
@pytest.mark.skipif(not simd.cpu_has('avx512f'), reason='a CPU without AVX-512')
def test_kernels_stay_within_their_arrays_on_other_cpus(cpu, features, lanes):
    settings = dict(NUMBA_CPU_NAME=cpu, NUMBA_CPU_FEATURES=features) if cpu else {}
    found = report('--cases', 500, '--threads', 1, 2, 3, 4, **settings)
    assert found['failures'] == []
    assert {row['lanes'] for row in found['table']} == {lanes}


@pytest.mark.slow
def test_indices_of_kernels_are_in_bounds(tmp_path):
    settings = dict(NUMBA_BOUNDSCHECK='1', NUMBA_CACHE_DIR=str(tmp_path))
    assert report('--cases', 200, '--threads', 1, 2, **settings)['failures'] == []
