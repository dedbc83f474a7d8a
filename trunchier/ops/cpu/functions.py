"""Elementary functions of the CPU kernels: polynomials, since libm calls prevent vectorization."""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ..polynomials import LOG1P
from .compile import f32, i32, inlined


@intrinsic
def _float_of_bits(context, bits):
    """Reinterpret an int32 as float32."""

    def cast(context, builder, signature, args):
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), cast


@inlined
def exp(x: f32) -> f32:
    """e^x for x <= 0; 2e-38 below -87, where the true value is smaller still.

    2^n e^r with |r| <= log(2)/2; coefficients of Cephes' expf.
    """
    x = f32(-87.0) if x < f32(-87.0) else x
    n = np.floor(x * f32(1.44269504088896341) + f32(0.5))
    r = x - n * f32(0.693359375)
    r = r - n * f32(-2.12194440e-4)
    p = f32(1.9875691500e-4)
    p = p * r + f32(1.3981999507e-3)
    p = p * r + f32(8.3334519073e-3)
    p = p * r + f32(4.1665795894e-2)
    p = p * r + f32(1.6666665459e-1)
    p = p * r + f32(5.0000001201e-1)
    p = p * (r * r) + (r + f32(1))
    return p * _float_of_bits((i32(n) + i32(127)) << i32(23))


@inlined
def exp_or_zero(x: f32) -> f32:
    """e^x for x <= 0; exactly 0 below -69 (1e-30): for probabilities and decays.

    Products with smaller ones would be subnormal numbers, for which Intel's CPUs take ten times as
    long, and vanish beside the largest probability, which is at least 1 before division.
    """
    return f32(0) if x < f32(-69) else exp(x)  # NaN stays NaN


@inlined
def softplus(x: f32) -> f32:
    """log(1 + e^x) = max(x, 0) + log1p(e^-|x|)."""
    e = exp(-abs(x))
    p = f32(LOG1P[0])
    p = p * e + f32(LOG1P[1])
    p = p * e + f32(LOG1P[2])
    p = p * e + f32(LOG1P[3])
    p = p * e + f32(LOG1P[4])
    p = p * e + f32(LOG1P[5])
    p = p * e + f32(LOG1P[6])
    p = p * e + f32(LOG1P[7])
    p = p * e + f32(LOG1P[8])
    return (x if x > f32(0) else f32(0)) + p * e


@inlined
def sigmoid(x: f32) -> f32:
    """1 / (1 + e^-x), the derivative of softplus."""
    e = exp(-abs(x))
    return (f32(1) if x >= f32(0) else e) / (f32(1) + e)


@inlined
def hardswish(x: f32) -> f32:
    """x clip(x + 3, 0, 6) / 6."""
    y = x + f32(3)
    y = f32(0) if y < f32(0) else y
    y = f32(6) if y > f32(6) else y
    return x * y * f32(1 / 6)
