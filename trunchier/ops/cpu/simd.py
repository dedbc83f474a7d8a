"""What the kernels that numba compiles for the CPU are made of.

`in_parallel` runs a kernel on the threads that torch works with; `tile` and `taps` are the inner
loops of a matrix product and of a depthwise convolution, written for the compiler in vectors, which
it would not find by itself; exp and its like are polynomials, as a call to the C library would keep
the compiler from using vectors.
"""

import ctypes
import functools
import os
from typing import NamedTuple

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic

from ...files.compiled import compiled as compile_kernel

f32, i32 = np.float32, np.int32

FREE = {'contract', 'reassoc', 'nsz', 'arcp'}  # sums may be reordered into vectors; NaN stays NaN
inlined = numba.njit(fastmath=FREE, error_model='numpy', inline='always')


compiled = compile_kernel(fastmath=FREE, error_model='numpy', nogil=True)


# --- threads -------------------------------------------------------------------------------------


class Team(NamedTuple):
    """Who shares the work of a kernel: addresses of OpenMP's functions, and a number of threads."""

    start: int
    index: int
    size: int
    threads: int


def team(work):
    """The `Team` for a kernel that takes about `work` cycles: torch's threads, if that is enough.

    torch's own OpenMP is asked for them, so that no thread waits for another pool's. Where it is
    not GNU's (Windows, macOS) there is one thread.
    """
    addresses = _openmp()
    threads = torch.get_num_threads() if addresses and work > LEAST_WORK else 1
    return Team(*(addresses or (0, 0, 0)), threads)


LEAST_WORK = 50_000  # cycles; a start takes about 5000


@functools.lru_cache
def _openmp():
    """Addresses for a `Team`, or None."""
    try:
        process, found = ctypes.CDLL(None), _Symbol()  # what is loaded for all to see
        process.dladdr(ctypes.cast(process.GOMP_parallel, ctypes.c_void_p), ctypes.byref(found))
        library = ctypes.CDLL(os.fsdecode(found.file))  # there may be several OpenMPs
        functions = library.GOMP_parallel, library.omp_get_thread_num, library.omp_get_num_threads
    except (AttributeError, OSError, TypeError):
        return None
    return tuple(ctypes.cast(function, ctypes.c_void_p).value for function in functions)


class _Symbol(ctypes.Structure):
    """What dladdr tells of a function (Dl_info)."""

    _fields_ = (
        ('file', ctypes.c_char_p), ('base', ctypes.c_void_p),
        ('name', ctypes.c_char_p), ('address', ctypes.c_void_p),
    )  # fmt: skip


@intrinsic
def in_parallel(typing, kernel, team, arguments):
    """kernel(share, shares, *arguments) on each thread of `team`: share 0 of shares, 1 of shares...

    The kernel is `compiled`, divides the work by itself, and must not raise.
    """
    each = kernel.get_call_type(typing, (types.intp, types.intp, *arguments.types), {})

    def emit(context, builder, signature, values):
        _, team, arguments = values
        result = kernel.dispatcher.overloads[each.args]
        context.active_code_library.add_linking_library(result.library)
        integer, pointer, number = ir.IntType(64), ir.IntType(8).as_pointer(), ir.IntType(32)
        packed = ir.LiteralStructType([team.type, arguments.type])

        def run(builder, share, shares, packed):
            unpacked = cgutils.unpack_tuple(builder, builder.extract_value(packed, 1))
            values = [share, shares, *unpacked]
            context.call_internal_no_propagate(builder, result.fndesc, each, values)

        def call(builder, address, kind, values):
            return builder.call(builder.inttoptr(address, kind.as_pointer()), values)

        # What each thread does: void share(void *packed).
        body = ir.Function(
            builder.module, ir.FunctionType(ir.VoidType(), [pointer]),
            builder.module.get_unique_name('share'),
        )  # fmt: skip
        body.linkage = 'internal'
        inner = ir.IRBuilder(body.append_basic_block())
        given = inner.load(inner.bitcast(body.args[0], packed.as_pointer()))
        members = cgutils.unpack_tuple(inner, inner.extract_value(given, 0))
        ask = ir.FunctionType(number, [])
        share, shares = (inner.sext(call(inner, f, ask, []), integer) for f in members[1:3])
        run(inner, share, shares, given)
        inner.ret_void()

        given = builder.insert_value(ir.Constant(packed, ir.Undefined), team, 0)
        given = builder.insert_value(given, arguments, 1)
        start, _, _, threads = cgutils.unpack_tuple(builder, team)
        several = builder.icmp_signed('>', threads, ir.Constant(integer, 1))
        with builder.if_else(several) as (then, otherwise):
            with then:  # GOMP_parallel(body, packed, threads, 0)
                place = cgutils.alloca_once(builder, packed)
                builder.store(given, place)
                kind = ir.FunctionType(ir.VoidType(), [body.type, pointer, number, number])
                place = builder.bitcast(place, pointer)
                threads = builder.trunc(threads, number)
                call(builder, start, kind, [body, place, threads, ir.Constant(number, 0)])
            with otherwise:
                run(builder, ir.Constant(integer, 0), ir.Constant(integer, 1), given)
        return context.get_dummy_value()

    return types.void(kernel, team, arguments), emit


@inlined
def bounds(share, shares, count):
    """(first, end) of a share of `count` things."""
    return count * share // shares, count * (share + 1) // shares


# --- vectors -------------------------------------------------------------------------------------
#
# Arrays are float32 and contiguous; places in them and strides are counted in floats. Vectors of
# LANES floats are what the registers of this CPU hold; there are 32 of them, or 16 before AVX-512.


def _cpu_has(feature):
    """Whether code is compiled for a CPU with it: this one, or what NUMBA_CPU_FEATURES says."""
    features = numba.config.CPU_FEATURES
    features = get_host_cpu_features() if features is None else features
    return f'+{feature}' in features.split(',')


LANES = 16 if _cpu_has('avx512f') else 8 if _cpu_has('avx') else 4
TALL, WIDE = (4, 3) if LANES == 8 else (7, 4)  # rows and vectors of a tile that fills the registers


class _Vectors:
    """Loads, stores and sums of vectors in an intrinsic's function."""

    def __init__(self, context, builder, signature, values):
        self.context, self.builder = context, builder
        self.types, self.values = signature.args, values
        self.vector = ir.VectorType(ir.FloatType(), LANES)
        self.zero = ir.Constant(self.vector, [0.0] * LANES)

    def int(self, number):
        return ir.Constant(ir.IntType(64), number)

    def at(self, argument, *places):
        """Pointer into the array that is argument number `argument`."""
        array = self.context.make_array(self.types[argument])
        pointer = array(self.context, self.builder, self.values[argument]).data
        return self.move(pointer, *places)

    def move(self, pointer, *places):
        for place in places:
            pointer = self.builder.gep(pointer, [place])
        return pointer

    def load(self, pointer):
        value = self.builder.load(self.builder.bitcast(pointer, self.vector.as_pointer()))
        value.align = 4
        return value

    def store(self, value, pointer):
        kind = value.type.as_pointer()
        self.builder.store(value, self.builder.bitcast(pointer, kind)).align = 4

    def spread(self, value):
        """A vector of one float LANES times."""
        empty = ir.Constant(self.vector, ir.Undefined)
        one = self.builder.insert_element(empty, value, ir.Constant(ir.IntType(32), 0))
        return self.shuffle(one, empty, [0] * LANES)

    def shuffle(self, a, b, order):
        """The lanes of a and b, one after the other, in another order."""
        kind = ir.VectorType(ir.IntType(32), LANES)
        return self.builder.shuffle_vector(a, b, ir.Constant(kind, order))

    def exchange(self, a, b, step):
        """Every second `step` lanes of a for the others of b."""
        lanes = range(LANES)
        return (
            self.shuffle(a, b, [LANES + i - step if i & step else i for i in lanes]),
            self.shuffle(a, b, [LANES + i if i & step else i + step for i in lanes]),
        )

    def add_product(self, a, b, c):
        """a b + c."""
        product = self.builder.fmul(a, b, flags=('contract',))
        return self.builder.fadd(product, c, flags=('contract',))

    def loop(self, count, sums, body):
        """sums = body(i, sums) for i of range(count), count > 0; lists of vectors."""
        builder, before = self.builder, self.builder.block
        inside, after = (builder.append_basic_block(name) for name in ('loop', 'after'))
        builder.branch(inside)
        builder.position_at_end(inside)
        i = builder.phi(ir.IntType(64))
        i.add_incoming(self.int(0), before)
        phis = [builder.phi(self.vector) for _ in sums]
        for phi, value in zip(phis, sums, strict=True):
            phi.add_incoming(value, before)
        sums = body(i, phis)
        following = builder.add(i, self.int(1))
        for phi, value in zip([i, *phis], [following, *sums], strict=True):
            phi.add_incoming(value, builder.block)
        builder.cbranch(builder.icmp_signed('<', following, count), inside, after)
        builder.position_at_end(after)
        return sums


def _tile(rows, vectors):
    """Intrinsic: rows x (vectors LANES) of a product, the sums in registers."""

    @intrinsic
    def tile(typing, depth, a, a_at, a_row, a_column, b, b_at, b_row, c, c_at, c_row):
        """c = a @ b, where a has `depth` columns."""
        n = types.intp

        def emit(context, builder, signature, values):
            v = _Vectors(context, builder, signature, values)
            depth, _, a_at, a_row, a_column, _, b_at, b_row, _, c_at, c_row = values
            starts = [v.at(1, a_at, builder.mul(a_row, v.int(r))) for r in range(rows)]
            first = v.at(5, b_at)

            def step(k, sums):
                line = v.move(first, builder.mul(k, b_row))
                line = [v.load(v.move(line, v.int(i * LANES))) for i in range(vectors)]
                column = builder.mul(k, a_column)
                out = []
                for r in range(rows):
                    x = v.spread(builder.load(v.move(starts[r], column)))
                    for i in range(vectors):
                        out.append(v.add_product(x, line[i], sums[r * vectors + i]))
                return out

            sums = v.loop(depth, [v.zero] * (rows * vectors), step)
            for r in range(rows):
                line = v.at(8, c_at, builder.mul(c_row, v.int(r)))
                for i in range(vectors):
                    v.store(sums[r * vectors + i], v.move(line, v.int(i * LANES)))
            return context.get_dummy_value()

        return types.void(n, a, n, n, n, b, n, n, c, n, n), emit

    return tile


def _taps(side, run):
    """Intrinsic: `run` neighbouring results of a depthwise convolution, LANES channels of each."""

    @intrinsic
    def taps(typing, x, x_at, x_row, w, w_at, w_row, y, y_at, y_row):
        """y_t = sum_ij w_ij x_(i, t + j); neighbours in x are LANES apart, in y and w a row."""
        n = types.intp

        def emit(context, builder, signature, values):
            v = _Vectors(context, builder, signature, values)
            _, x_at, x_row, _, w_at, w_row, _, y_at, y_row = values

            def step(i, sums):
                line = v.at(0, x_at, builder.mul(i, x_row))
                line = [v.load(v.move(line, v.int(t * LANES))) for t in range(run + side - 1)]
                for j in range(side):
                    tap = builder.add(builder.mul(i, v.int(side)), v.int(j))
                    weight = v.load(v.at(3, w_at, builder.mul(tap, w_row)))
                    sums = [v.add_product(weight, line[t + j], sums[t]) for t in range(run)]
                return sums

            sums = v.loop(v.int(side), [v.zero] * run, step)
            for t in range(run):
                v.store(sums[t], v.at(6, y_at, builder.mul(y_row, v.int(t))))
            return context.get_dummy_value()

        return types.void(x, n, n, w, n, n, y, n, n), emit

    return taps


@intrinsic
def move(typing, x, x_at, factor, y, y_at):
    """LANES floats of y = factor times those of x."""
    n = types.intp

    def emit(context, builder, signature, values):
        v = _Vectors(context, builder, signature, values)
        _, x_at, factor, _, y_at = values
        v.store(builder.fmul(v.load(v.at(0, x_at)), v.spread(factor)), v.at(3, y_at))
        return context.get_dummy_value()

    return types.void(x, n, types.float32, y, n), emit


@intrinsic
def turn(typing, x, x_at, x_row, y, y_at, y_row):
    """LANES rows of LANES floats of y = those of x, transposed."""
    n = types.intp

    def emit(context, builder, signature, values):
        v = _Vectors(context, builder, signature, values)
        _, x_at, x_row, _, y_at, y_row = values
        rows = [v.load(v.at(0, x_at, builder.mul(x_row, v.int(i)))) for i in range(LANES)]
        step = 1
        while step < LANES:  # exchange the blocks of `step` rows and columns beside the diagonal
            for i in range(LANES):
                if not i & step:
                    rows[i], rows[i + step] = v.exchange(rows[i], rows[i + step], step)
            step *= 2
        for i, row in enumerate(rows):
            v.store(row, v.at(3, y_at, builder.mul(y_row, v.int(i))))
        return context.get_dummy_value()

    return types.void(x, n, n, y, n, n), emit


tile_full, tile_tall, tile_wide, tile_one = (
    _tile(rows, vectors) for rows, vectors in ((TALL, WIDE), (TALL, 1), (1, WIDE), (1, 1))
)
RUN = 6  # divides the widths of the maps of a crop of 192 pixels
taps3, taps5, taps7 = (_taps(side, RUN) for side in (3, 5, 7))
taps3_one, taps5_one, taps7_one = (_taps(side, 1) for side in (3, 5, 7))


@compiled
def multiply(rows, columns, depth, a, a_at, a_row, a_column, b, b_at, b_row, c, c_at, c_row):
    """c = a @ b, of LANES columns at least; what whole tiles leave over is done twice."""
    j = 0
    while j < columns:
        wide = columns - j >= WIDE * LANES
        if not wide:
            j = min(j, columns - LANES)
        i = 0
        while i < rows:
            if rows >= TALL:
                i = min(i, rows - TALL)
            a_i, b_j, c_ij = a_at + i * a_row, b_at + j, c_at + i * c_row + j
            if rows >= TALL and wide:
                tile_full(depth, a, a_i, a_row, a_column, b, b_j, b_row, c, c_ij, c_row)
            elif rows >= TALL:
                tile_tall(depth, a, a_i, a_row, a_column, b, b_j, b_row, c, c_ij, c_row)
            elif wide:
                tile_wide(depth, a, a_i, a_row, a_column, b, b_j, b_row, c, c_ij, c_row)
            else:
                tile_one(depth, a, a_i, a_row, a_column, b, b_j, b_row, c, c_ij, c_row)
            i += TALL if rows >= TALL else 1
        j += WIDE * LANES if wide else LANES


@compiled
def convolve(side, height, width, x, x_at, x_pixel, padded, w, w_at, w_row, y, y_at, y_pixel):
    """Depthwise convolution of LANES channels of a map with kernels of 3, 5 or 7 and zero padding.

    Args:
        side: of the kernel.
        height, width: of the map.
        x, x_at, x_pixel: array, place of the first pixel's channels, floats from pixel to pixel.
        padded: scratch, (height + 6) (width + 6) LANES floats.
        w, w_at, w_row: the kernel, tap after tap.
        y, y_at, y_pixel: result, as x.
    """
    margin = side // 2
    row = (width + 2 * margin) * LANES
    for i in range(margin * row):
        padded[i] = 0
        padded[(height + margin) * row + i] = 0
    for i in range(height):
        line = (i + margin) * row
        for j in range(margin * LANES):
            padded[line + j] = 0
            padded[line + (width + margin) * LANES + j] = 0
        for j in range(width):
            start, to = x_at + (i * width + j) * x_pixel, line + (margin + j) * LANES
            for c in range(LANES):
                padded[to + c] = x[start + c]
    for i in range(height):
        j = 0
        while j < width:
            if width >= RUN:
                j = min(j, width - RUN)
            start, to = i * row + j * LANES, y_at + (i * width + j) * y_pixel
            if width >= RUN and side == 3:
                taps3(padded, start, row, w, w_at, w_row, y, to, y_pixel)
            elif width >= RUN and side == 5:
                taps5(padded, start, row, w, w_at, w_row, y, to, y_pixel)
            elif width >= RUN:
                taps7(padded, start, row, w, w_at, w_row, y, to, y_pixel)
            elif side == 3:
                taps3_one(padded, start, row, w, w_at, w_row, y, to, y_pixel)
            elif side == 5:
                taps5_one(padded, start, row, w, w_at, w_row, y, to, y_pixel)
            else:
                taps7_one(padded, start, row, w, w_at, w_row, y, to, y_pixel)
            j += RUN if width >= RUN else 1


# --- elementary functions ------------------------------------------------------------------------


@intrinsic
def float_of_bits(context, bits):
    """The float32 with the bits of an int32."""

    def cast(context, builder, signature, args):
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), cast


@inlined
def exp(x):
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
    return p * float_of_bits((i32(n) + i32(127)) << i32(23))


@inlined
def softplus(x):
    """log(1 + e^x): max(x, 0) + log1p(e^-|x|), with log1p(e) / e a polynomial on [0, 1]."""
    e = exp(-abs(x))
    p = f32(0.005253457796743533)
    p = p * e + f32(-0.029588507391508756)
    p = p * e + f32(0.07836166801601366)
    p = p * e + f32(-0.13674769705249476)
    p = p * e + f32(0.19111431080410513)
    p = p * e + f32(-0.24844369892406562)
    p = p * e + f32(0.33319271342488666)
    p = p * e + f32(-0.49999501516785977)
    p = p * e + f32(0.9999999705406566)
    return (x if x > f32(0) else f32(0)) + p * e


@inlined
def sigmoid(x):
    """Derivative of softplus."""
    e = exp(-abs(x))
    return (f32(1) if x >= f32(0) else e) / (f32(1) + e)


@inlined
def hardswish(x):
    """x clip(x + 3, 0, 6) / 6."""
    y = x + f32(3)
    y = f32(0) if y < f32(0) else y
    y = f32(6) if y > f32(6) else y
    return x * y * f32(1 / 6)
