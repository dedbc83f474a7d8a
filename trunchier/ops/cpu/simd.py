"""Matrix product and depthwise convolution for the CPU kernels, in explicit SIMD vectors.

LLVM does not vectorize these loops by itself with all sums in registers.

Arrays are float32 and contiguous; offsets into them and strides count floats. A vector holds LANES
floats, what a register of this CPU holds; there are 32 registers, or 16 before AVX-512.
"""

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic

from .compile import compiled

Array = np.ndarray


def cpu_has(feature: str) -> bool:
    """Whether the target CPU has a feature: this CPU, or what NUMBA_CPU_FEATURES sets."""
    features = numba.config.CPU_FEATURES
    features = get_host_cpu_features() if features is None else features
    return f'+{feature}' in features.split(',')


LANES = 16 if cpu_has('avx512f') else 8 if cpu_has('avx') else 4
# Sums of a tile of a matrix product: as many as leave registers for its factors.
TILE_ROWS, TILE_VECTORS = (4, 3) if LANES == 8 else (7, 4)


class _Vectors:
    """LLVM instructions on vectors, in the body of an intrinsic."""

    def __init__(self, context, builder, signature, values):
        self.context, self.builder = context, builder
        self.types, self.values = signature.args, values
        self.vector = ir.VectorType(ir.FloatType(), LANES)
        self.zero = ir.Constant(self.vector, [0.0] * LANES)

    def int(self, number):
        return ir.Constant(ir.IntType(64), number)

    def at(self, argument, *offsets):
        """Pointer into the array that is argument number `argument`."""
        array = self.context.make_array(self.types[argument])
        pointer = array(self.context, self.builder, self.values[argument]).data
        return self.move(pointer, *offsets)

    def move(self, pointer, *offsets):
        for offset in offsets:
            pointer = self.builder.gep(pointer, [offset])
        return pointer

    def load(self, pointer):
        value = self.builder.load(self.builder.bitcast(pointer, self.vector.as_pointer()))
        value.align = 4
        return value

    def store(self, value, pointer):
        kind = value.type.as_pointer()
        self.builder.store(value, self.builder.bitcast(pointer, kind)).align = 4

    def broadcast(self, value):
        """A vector with the same float in all lanes."""
        empty = ir.Constant(self.vector, ir.Undefined)
        one = self.builder.insert_element(empty, value, ir.Constant(ir.IntType(32), 0))
        return self.shuffle(one, empty, [0] * LANES)

    def shuffle(self, a, b, order):
        """Lanes of the concatenation of a and b, by index."""
        kind = ir.VectorType(ir.IntType(32), LANES)
        return self.builder.shuffle_vector(a, b, ir.Constant(kind, order))

    def exchange(self, a, b, step):
        """Swap every second block of `step` lanes of a with the other blocks of b."""
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
        """sums = body(i, sums) for i in range(count), count > 0; `sums` is a list of vectors."""
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


def _matmul_tile(rows, vectors):
    """Intrinsic: a tile of rows x (vectors * LANES) of a matrix product, sums in registers."""

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
                    x = v.broadcast(builder.load(v.move(starts[r], column)))
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


def _depthwise(size, pixels):
    """Intrinsic: depthwise convolution at `pixels` neighboring pixels, LANES channels of each."""

    @intrinsic
    def taps(typing, x, x_at, x_row, w, w_at, w_row, y, y_at, y_row):
        """y_t = sum_ij w_ij x_(i, t + j); neighbors lie LANES apart in x, a row apart in y, w."""
        n = types.intp

        def emit(context, builder, signature, values):
            v = _Vectors(context, builder, signature, values)
            _, x_at, x_row, _, w_at, w_row, _, y_at, y_row = values

            def step(i, sums):
                line = v.at(0, x_at, builder.mul(i, x_row))
                width = pixels + size - 1
                line = [v.load(v.move(line, v.int(t * LANES))) for t in range(width)]
                for j in range(size):
                    tap = builder.add(builder.mul(i, v.int(size)), v.int(j))
                    weight = v.load(v.at(3, w_at, builder.mul(tap, w_row)))
                    sums = [v.add_product(weight, line[t + j], sums[t]) for t in range(pixels)]
                return sums

            sums = v.loop(v.int(size), [v.zero] * pixels, step)
            for t in range(pixels):
                v.store(sums[t], v.at(6, y_at, builder.mul(y_row, v.int(t))))
            return context.get_dummy_value()

        return types.void(x, n, n, w, n, n, y, n, n), emit

    return taps


@intrinsic
def scale_copy(typing: object, x: Array, x_at: int, factor: float, y: Array, y_at: int) -> None:
    """y = factor x, LANES floats."""
    n = types.intp

    def emit(context, builder, signature, values):
        v = _Vectors(context, builder, signature, values)
        _, x_at, factor, _, y_at = values
        v.store(builder.fmul(v.load(v.at(0, x_at)), v.broadcast(factor)), v.at(3, y_at))
        return context.get_dummy_value()

    return types.void(x, n, types.float32, y, n), emit


@intrinsic
def transpose_tile(
    typing: object, x: Array, x_at: int, x_row: int, y: Array, y_at: int, y_row: int
) -> None:
    """y = x transposed, LANES rows of LANES floats."""
    n = types.intp

    def emit(context, builder, signature, values):
        v = _Vectors(context, builder, signature, values)
        _, x_at, x_row, _, y_at, y_row = values
        rows = [v.load(v.at(0, x_at, builder.mul(x_row, v.int(i)))) for i in range(LANES)]
        step = 1
        while step < LANES:  # swap the off-diagonal blocks of `step` rows and columns
            for i in range(LANES):
                if not i & step:
                    rows[i], rows[i + step] = v.exchange(rows[i], rows[i + step], step)
            step *= 2
        for i, row in enumerate(rows):
            v.store(row, v.at(3, y_at, builder.mul(y_row, v.int(i))))
        return context.get_dummy_value()

    return types.void(x, n, n, y, n, n), emit


tile_full, tile_narrow, tile_row, tile_vector = (
    _matmul_tile(rows, vectors) for rows in (TILE_ROWS, 1) for vectors in (TILE_VECTORS, 1)
)
PIXELS = 6  # divides the widths of all maps of a crop 192 pixels wide
conv3, conv5, conv7 = (_depthwise(size, PIXELS) for size in (3, 5, 7))
conv3_one, conv5_one, conv7_one = (_depthwise(size, 1) for size in (3, 5, 7))


@compiled
def multiply(
    rows: int, columns: int, depth: int,
    a: Array, a_at: int, a_row: int, a_column: int,
    b: Array, b_at: int, b_row: int,
    c: Array, c_at: int, c_row: int,
) -> None:  # fmt: skip
    """c = a @ b, (rows, depth) @ (depth, columns), columns >= LANES; the last tiles may overlap."""
    j = 0
    while j < columns:
        wide = columns - j >= TILE_VECTORS * LANES
        if not wide:
            j = min(j, columns - LANES)
        i = 0
        while i < rows:
            if rows >= TILE_ROWS:
                i = min(i, rows - TILE_ROWS)
            a_i, b_j, c_ij = a_at + i * a_row, b_at + j, c_at + i * c_row + j
            if rows >= TILE_ROWS and wide:
                tile_full(depth, a, a_i, a_row, a_column, b, b_j, b_row, c, c_ij, c_row)
            elif rows >= TILE_ROWS:
                tile_narrow(depth, a, a_i, a_row, a_column, b, b_j, b_row, c, c_ij, c_row)
            elif wide:
                tile_row(depth, a, a_i, a_row, a_column, b, b_j, b_row, c, c_ij, c_row)
            else:
                tile_vector(depth, a, a_i, a_row, a_column, b, b_j, b_row, c, c_ij, c_row)
            i += TILE_ROWS if rows >= TILE_ROWS else 1
        j += TILE_VECTORS * LANES if wide else LANES


@compiled
def convolve(
    size: int, height: int, width: int,
    x: Array, x_at: int, x_pixel: int, padded: Array,
    w: Array, w_at: int, w_row: int,
    y: Array, y_at: int, y_pixel: int,
) -> None:  # fmt: skip
    """Depthwise 3x3, 5x5 or 7x7 convolution of LANES channels of a map, padded with zeros.

    Args:
        size: side of the kernel.
        height, width: of the map.
        x, x_at, x_pixel: array, offset of the first pixel's channels, stride of pixels.
        padded: scratch, (height + 6) (width + 6) LANES floats.
        w, w_at, w_row: array, offset of the first tap's channels, stride of taps.
        y, y_at, y_pixel: result, as x.
    """
    margin = size // 2
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
            if width >= PIXELS:
                j = min(j, width - PIXELS)
            start, to = i * row + j * LANES, y_at + (i * width + j) * y_pixel
            if width >= PIXELS and size == 3:
                conv3(padded, start, row, w, w_at, w_row, y, to, y_pixel)
            elif width >= PIXELS and size == 5:
                conv5(padded, start, row, w, w_at, w_row, y, to, y_pixel)
            elif width >= PIXELS:
                conv7(padded, start, row, w, w_at, w_row, y, to, y_pixel)
            elif size == 3:
                conv3_one(padded, start, row, w, w_at, w_row, y, to, y_pixel)
            elif size == 5:
                conv5_one(padded, start, row, w, w_at, w_row, y, to, y_pixel)
            else:
                conv7_one(padded, start, row, w, w_at, w_row, y, to, y_pixel)
            j += PIXELS if width >= PIXELS else 1
