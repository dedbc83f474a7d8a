"""Parts of CPU kernels against the same line of numpy or torch."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip('numba')

from trunchier.ops.cpu import simd  # noqa: E402
from trunchier.ops.cpu.compile import compiled  # noqa: E402

LANES = simd.LANES


def random(*shape):
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize('rows', [1, 3, simd.TILE_ROWS, 2 * simd.TILE_ROWS + 1])
@pytest.mark.parametrize('columns', [LANES, LANES + 1, 2 * LANES + 3, 5 * LANES])
@pytest.mark.parametrize('depth', [1, 2, 33])
def test_multiply_is_the_product(rows, columns, depth):
    a, b = random(rows, depth + 2), random(depth, columns + 3)
    c = np.zeros((rows, columns + 5), np.float32)
    simd.multiply(
        rows, columns, depth, a.ravel(), 1, depth + 2, 1, b.ravel(), 2, columns + 3,
        c.ravel(), 3, columns + 5,
    )  # fmt: skip
    expected = a[:, 1 : 1 + depth] @ b[:, 2 : 2 + columns]
    np.testing.assert_allclose(c[:, 3 : 3 + columns], expected, atol=1e-5)
    assert not c[:, :3].any() and not c[:, 3 + columns :].any()


def test_multiply_reads_a_matrix_by_columns_too():
    a, b, c = random(9, 4), random(9, LANES), np.zeros((4, LANES), np.float32)
    simd.multiply(4, LANES, 9, a.ravel(), 0, 1, 4, b.ravel(), 0, LANES, c.ravel(), 0, LANES)
    np.testing.assert_allclose(c, a.T @ b, atol=1e-5)


@pytest.mark.parametrize('size', [3, 5, 7])
@pytest.mark.parametrize('height, width', [(1, 1), (2, 5), (7, 6), (4, 13)])
def test_convolve_is_the_depthwise_convolution(size, height, width):
    channels = LANES + 4
    x, weight = random(height, width, channels), random(channels, 1, size, size)
    padded = np.full((height + 6) * (width + 6) * LANES, np.nan, np.float32)
    taps = np.ascontiguousarray(weight.reshape(channels, -1).T)
    y = np.zeros((height, width, LANES), np.float32)
    simd.convolve(
        size, height, width, x.ravel(), 3, channels, padded, taps, 3, channels, y.ravel(), 0, LANES
    )
    expected = F.conv2d(
        torch.from_numpy(x).permute(2, 0, 1), torch.from_numpy(weight), padding=size // 2,
        groups=channels,
    ).permute(1, 2, 0)  # fmt: skip
    np.testing.assert_allclose(y, expected[..., 3 : 3 + LANES].numpy(), atol=1e-5)


@compiled
def transpose_and_scale(x, y, z):
    simd.transpose_tile(x, 2, LANES + 2, y, 0, LANES)
    simd.scale_copy(x, 2, np.float32(3), z, 1)


def test_tiles_are_transposed_and_copies_scaled():
    x = random(LANES, LANES + 2)
    y, z = np.zeros((LANES, LANES), np.float32), np.zeros(LANES + 2, np.float32)
    transpose_and_scale(x, y, z)
    np.testing.assert_array_equal(y, x[:, 2:].T)
    np.testing.assert_array_equal(z, [0, *3 * x[0, 2:], 0])


@pytest.mark.skipif(not simd.cpu_has('avx2'), reason='a CPU without AVX2')
@pytest.mark.slow
@pytest.mark.parametrize(
    'cpu, features, lanes',
    [
        ('haswell', '+avx,+avx2,+fma', 8),
        ('x86-64', '+sse2', 4),
    ],
)
def test_code_for_older_cpus_computes_the_same(cpu, features, lanes, tmp_path):
    script = f"""
import sys, pytest
from trunchier.ops.cpu import simd
assert simd.LANES == {lanes}
chosen = 'not older and (product or convolution or transposed or equals_that_of_torch)'
files = 'cpu/test_simd.py', 'test_attention.py'
sys.exit(pytest.main(['-q', '-p', 'no:xdist', '-k', chosen, *files]))
"""
    settings = dict(NUMBA_CPU_NAME=cpu, NUMBA_CPU_FEATURES=features, NUMBA_CACHE_DIR=str(tmp_path))
    run = subprocess.run(
        [sys.executable, '-c', script], cwd=Path(__file__).parents[1], env=os.environ | settings,
        capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
