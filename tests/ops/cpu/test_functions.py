"""Polynomials of the CPU kernels against numpy in double precision."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

numba = pytest.importorskip('numba')

from trunchier.ops.cpu import functions  # noqa: E402
from trunchier.ops.cpu.compile import FAST_MATH  # noqa: E402
from trunchier.ops.polynomials import LOG1P  # noqa: E402


def test_elementary_functions_are_exact_to_5e_7():
    @numba.njit(fastmath=FAST_MATH)
    def evaluate(x, exps, softpluses, slopes, hards):
        for i in range(len(x)):
            exps[i] = functions.exp(-abs(x[i]))
            softpluses[i] = functions.softplus(x[i])
            slopes[i] = functions.sigmoid(x[i])
            hards[i] = functions.hardswish(x[i])

    x = np.linspace(-86, 86, 1_000_001).astype(np.float32)
    exps, softpluses, slopes, hards = np.empty((4, len(x)), np.float32)
    evaluate(x, exps, softpluses, slopes, hards)
    np.testing.assert_allclose(hards, F.hardswish(torch.from_numpy(x)).numpy(), rtol=5e-7)
    x = x.astype(np.float64)
    np.testing.assert_allclose(exps, np.exp(-abs(x)), rtol=3e-7)
    np.testing.assert_allclose(softpluses, np.logaddexp(0, x), rtol=3e-7)
    np.testing.assert_allclose(slopes, np.exp(-np.logaddexp(0, -x)), rtol=5e-7)


def test_what_a_float32_product_cannot_hold_is_exactly_zero():
    """Subnormal numbers take Intel's CPUs ten times as long."""

    @numba.njit(fastmath=FAST_MATH)
    def evaluate(x, y):
        for i in range(len(x)):
            y[i] = functions.exp_or_zero(x[i])

    x = np.concatenate([np.linspace(-200, 0, 100_001), [-1e30, -np.inf]]).astype(np.float32)
    y = np.empty_like(x)
    evaluate(x, y)
    assert (y[x < -69] == 0).all()
    np.testing.assert_allclose(y[x > -69], np.exp(x[x > -69].astype(np.float64)), rtol=3e-7)
    assert y[x > -69].min() * 1e-7 > np.finfo(np.float32).tiny


def test_the_polynomial_of_log1p_is_exact_to_4e_8():
    e = np.linspace(1e-6, 1, 100_001)
    np.testing.assert_allclose(e * np.polyval(LOG1P, e), np.log1p(e), rtol=4e-8)
