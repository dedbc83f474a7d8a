"""Polynomial of softplus, shared by the kernels for CPU and CUDA."""

import numpy as np
from numpy.polynomial import Chebyshev, Polynomial


def _log1p_ratio(e):
    """log(1 + e) / e, 1 at 0."""
    return np.divide(np.log1p(e), e, out=np.ones_like(e), where=e > 0)


# log1p(e) / e on [0, 1], interpolated at the Chebyshev points: relative error 4e-8. Highest power
# first, for Horner's scheme: softplus(x) = max(x, 0) + e LOG1P(e) with e = exp(-|x|).
LOG1P = tuple(
    float(c)
    for c in Chebyshev.interpolate(_log1p_ratio, 8, domain=[0, 1]).convert(kind=Polynomial).coef
)[::-1]
