"""Settings with which numba compiles the kernels for the CPU."""

import numba
import numpy as np

from ...files.compiled import compiled as compile_kernel

f32, i32 = np.float32, np.int32

# Sums may be reordered into vectors; NaN and infinity keep their meaning.
FAST_MATH = {'contract', 'reassoc', 'nsz', 'arcp'}
inlined = numba.njit(fastmath=FAST_MATH, error_model='numpy', inline='always')
compiled = compile_kernel(fastmath=FAST_MATH, error_model='numpy', nogil=True)
