"""Parts of kernels: each does what a line of numpy or torch does, for every share of the work."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

numba = pytest.importorskip('numba')

from trunchier.ops.cpu import simd  # noqa: E402

LANES = simd.LANES


def random(*shape):
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


# --- threads -------------------------------------------------------------------------------------


@simd.compiled
def note_shares(share, shares, counts, noted):
    counts[share] += 1
    noted[share] = shares
    first, end = simd.bounds(share, shares, len(counts))
    for i in range(first, end):
        counts[i] += 10


@simd.compiled
def start(crew, *arguments):
    simd.in_parallel(note_shares, crew, arguments)


@pytest.fixture
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize('threads', [1, 2, 5], indirect=True)
def test_every_share_of_the_work_is_done_once(threads):
    counts, noted = np.zeros((2, 5), np.int64)
    crew = simd.team(simd.LEAST_WORK + 1)
    start(crew, counts, noted)
    assert crew.threads == (threads if simd._openmp() else 1)
    assert noted[: crew.threads].tolist() == [crew.threads] * crew.threads
    assert counts.tolist() == [11] * crew.threads + [10] * (5 - crew.threads)


@pytest.mark.parametrize('threads', [2], indirect=True)
@pytest.mark.skipif(sys.platform != 'linux', reason='GNU OpenMP is what torch has on Linux')
def test_torchs_own_threads_take_part(threads):
    assert simd.team(simd.LEAST_WORK + 1).threads == 2


@pytest.mark.parametrize('threads', [2], indirect=True)
def test_little_work_is_not_divided(threads):
    assert simd.team(simd.LEAST_WORK).threads == 1


@pytest.mark.parametrize('threads', [2], indirect=True)
def test_without_openmp_one_thread_does_it_all(threads, monkeypatch):
    monkeypatch.setattr(simd, '_openmp', lambda: None)
    counts, noted = np.zeros((2, 3), np.int64)
    start(simd.team(10**9), counts, noted)
    assert counts.tolist() == [11, 10, 10] and noted[0] == 1


@pytest.mark.parametrize('threads', [2], indirect=True)
def test_callers_in_several_threads_do_not_disturb_each_other(threads):
    all_counts = [np.zeros(2, np.int64) for _ in range(4)]

    def call(counts):
        for _ in range(200):
            start(simd.team(10**9), counts, np.zeros(2, np.int64))

    callers = [threading.Thread(target=call, args=(counts,)) for counts in all_counts]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    shares = simd.team(10**9).threads
    wanted = [2200] * shares + [2000] * (2 - shares)
    assert [counts.tolist() for counts in all_counts] == [wanted] * 4


# --- vectors -------------------------------------------------------------------------------------


@pytest.mark.parametrize('rows', [1, 3, simd.TALL, 2 * simd.TALL + 1])
@pytest.mark.parametrize('columns', [LANES, LANES + 1, 2 * LANES + 3, 5 * LANES])
@pytest.mark.parametrize('depth', [1, 2, 33])
def test_multiply_is_the_product(rows, columns, depth):
    a, b = random(rows, depth + 2), random(depth, columns + 3)
    c = np.zeros((rows, columns + 5), np.float32)
    simd.multiply(
        rows, columns, depth, a.ravel(), 1, depth + 2, 1, b.ravel(), 2, columns + 3,
        c.ravel(), 3, columns + 5,
    )  # fmt: skip
    wanted = a[:, 1 : 1 + depth] @ b[:, 2 : 2 + columns]
    np.testing.assert_allclose(c[:, 3 : 3 + columns], wanted, atol=1e-5)
    assert not c[:, :3].any() and not c[:, 3 + columns :].any()


def test_multiply_reads_a_matrix_by_columns_too():
    a, b, c = random(9, 4), random(9, LANES), np.zeros((4, LANES), np.float32)
    simd.multiply(4, LANES, 9, a.ravel(), 0, 1, 4, b.ravel(), 0, LANES, c.ravel(), 0, LANES)
    np.testing.assert_allclose(c, a.T @ b, atol=1e-5)


@pytest.mark.parametrize('side', [3, 5, 7])
@pytest.mark.parametrize('height, width', [(1, 1), (2, 5), (7, 6), (4, 13)])
def test_convolve_is_the_depthwise_convolution(side, height, width):
    channels = LANES + 4
    x, weight = random(height, width, channels), random(channels, 1, side, side)
    padded = np.full((height + 6) * (width + 6) * LANES, np.nan, np.float32)
    taps = np.ascontiguousarray(weight.reshape(channels, -1).T)
    y = np.zeros((height, width, LANES), np.float32)
    simd.convolve(
        side, height, width, x.ravel(), 3, channels, padded, taps, 3, channels, y.ravel(), 0, LANES
    )
    wanted = F.conv2d(
        torch.from_numpy(x).permute(2, 0, 1), torch.from_numpy(weight), padding=side // 2,
        groups=channels,
    ).permute(1, 2, 0)  # fmt: skip
    np.testing.assert_allclose(y, wanted[..., 3 : 3 + LANES].numpy(), atol=1e-5)


@simd.compiled
def turn_and_scale(x, y, z):
    simd.turn(x, 2, LANES + 2, y, 0, LANES)
    simd.move(x, 2, np.float32(3), z, 1)


def test_turn_transposes_and_move_scales():
    x = random(LANES, LANES + 2)
    y, z = np.zeros((LANES, LANES), np.float32), np.zeros(LANES + 2, np.float32)
    turn_and_scale(x, y, z)
    np.testing.assert_array_equal(y, x[:, 2:].T)
    np.testing.assert_array_equal(z, [0, *3 * x[0, 2:], 0])


@pytest.mark.skipif(not simd._cpu_has('avx2'), reason='a CPU without AVX2')
@pytest.mark.parametrize(
    'cpu, features, lanes', [('haswell', '+avx,+avx2,+fma', 8), ('x86-64', '+sse2', 4)]
)
def test_code_for_older_cpus_computes_the_same(cpu, features, lanes, tmp_path):
    script = f"""
import sys, pytest
from trunchier.ops.cpu import simd
assert simd.LANES == {lanes}
chosen = 'not older and (product or convolution or transposes or that_of_torch)'
sys.exit(pytest.main(['-q', '-p', 'no:xdist', '-k', chosen, 'test_simd.py', 'test_attention.py']))
"""
    settings = dict(NUMBA_CPU_NAME=cpu, NUMBA_CPU_FEATURES=features, NUMBA_CACHE_DIR=str(tmp_path))
    run = subprocess.run(
        [sys.executable, '-c', script], cwd=Path(__file__).parent, env=os.environ | settings,
        capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr


# --- elementary functions ------------------------------------------------------------------------


def test_elementary_functions_are_exact_to_5e_7():
    @numba.njit(fastmath=simd.FREE)
    def evaluate(x, exps, softpluses, slopes, hards):
        for i in range(len(x)):
            exps[i] = simd.exp(-abs(x[i]))
            softpluses[i] = simd.softplus(x[i])
            slopes[i] = simd.sigmoid(x[i])
            hards[i] = simd.hardswish(x[i])

    x = np.linspace(-86, 86, 1_000_001).astype(np.float32)
    exps, softpluses, slopes, hards = np.empty((4, len(x)), np.float32)
    evaluate(x, exps, softpluses, slopes, hards)
    np.testing.assert_allclose(hards, F.hardswish(torch.from_numpy(x)).numpy(), rtol=5e-7)
    x = x.astype(np.float64)
    np.testing.assert_allclose(exps, np.exp(-abs(x)), rtol=3e-7)
    np.testing.assert_allclose(softpluses, np.logaddexp(0, x), rtol=3e-7)
    np.testing.assert_allclose(slopes, np.exp(-np.logaddexp(0, -x)), rtol=5e-7)


def test_kernels_compile_where_nothing_can_be_kept(monkeypatch):
    def njit(cache=False, **options):
        def compile_it(function):
            if cache:
                raise RuntimeError('cannot cache function: no locator available')
            return function

        return compile_it

    monkeypatch.setattr(simd.numba, 'njit', njit)
    assert simd.compiled(abs) is abs
