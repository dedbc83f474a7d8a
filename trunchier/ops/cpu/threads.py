"""Kernels on the threads of torch's own OpenMP pool.

`in_parallel` runs a kernel on each thread of a `ThreadPool`; the kernel computes its part, which
`thread_range` gives.
"""

import ctypes
import functools
import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .compile import inlined


class ThreadPool(NamedTuple):
    """Addresses of OpenMP's functions, and the number of threads for one kernel."""

    parallel: int  # GOMP_parallel
    thread_num: int  # omp_get_thread_num
    num_threads: int  # omp_get_num_threads
    threads: int


def thread_pool(cycles: int) -> ThreadPool:
    """The threads for a kernel of about `cycles` CPU cycles: those of torch, or one if few cycles.

    They belong to torch's own OpenMP, so that kernels and torch do not compete as two pools.
    One thread where that is not GNU OpenMP (Windows, macOS).
    """
    addresses = openmp_addresses()
    threads = torch.get_num_threads() if addresses and cycles > MIN_PARALLEL_CYCLES else 1
    return ThreadPool(*(addresses or (0, 0, 0)), threads)


MIN_PARALLEL_CYCLES = 50_000  # starting the threads takes about 5000


@functools.lru_cache
def openmp_addresses() -> tuple[int, int, int] | None:
    """Addresses of the three functions of a `ThreadPool` in torch's GNU OpenMP, or None."""
    torch_cpu = Path(torch.__file__).with_name('lib') / 'libtorch_cpu.so'
    # None: symbols of the whole process. On aarch64 torch keeps those of its OpenMP to itself.
    for library in (None, str(torch_cpu)):
        with suppress(AttributeError, OSError, TypeError):
            return addresses_in(library)
    return None


def addresses_in(library: str | None) -> tuple[int, int, int]:
    """As `openmp_addresses`, of the OpenMP that a loaded library depends on; None: the process.

    Raises:
        AttributeError, OSError, TypeError: there is none.
    """
    symbol, found = _Symbol(), ctypes.CDLL(library).GOMP_parallel
    ctypes.CDLL(None).dladdr(ctypes.cast(found, ctypes.c_void_p), ctypes.byref(symbol))
    openmp = ctypes.CDLL(os.fsdecode(symbol.file))  # several OpenMP libraries may be loaded
    functions = openmp.GOMP_parallel, openmp.omp_get_thread_num, openmp.omp_get_num_threads
    addresses = (ctypes.cast(function, ctypes.c_void_p).value for function in functions)
    parallel, thread_num, num_threads = (address or 0 for address in addresses)
    return parallel, thread_num, num_threads


class _Symbol(ctypes.Structure):
    """Dl_info of dladdr."""

    _fields_ = (
        ('file', ctypes.c_char_p), ('base', ctypes.c_void_p),
        ('name', ctypes.c_char_p), ('address', ctypes.c_void_p),
    )  # fmt: skip


@intrinsic
def in_parallel(typing: object, kernel: object, pool: ThreadPool, arguments: tuple) -> None:
    """Call kernel(thread, num_threads, *arguments) on each thread of `pool`, 0 <= thread.

    The kernel is `compiled`, selects its part of the work (`thread_range`), and must not raise.
    """
    each = kernel.get_call_type(typing, (types.intp, types.intp, *arguments.types), {})

    def emit(context, builder, signature, values):
        _, pool, arguments = values
        result = kernel.dispatcher.overloads[each.args]
        context.active_code_library.add_linking_library(result.library)
        integer, pointer, number = ir.IntType(64), ir.IntType(8).as_pointer(), ir.IntType(32)
        packed = ir.LiteralStructType([pool.type, arguments.type])

        def run(builder, thread, num_threads, packed):
            unpacked = cgutils.unpack_tuple(builder, builder.extract_value(packed, 1))
            values = [thread, num_threads, *unpacked]
            context.call_internal_no_propagate(builder, result.fndesc, each, values)

        def call(builder, address, kind, values):
            return builder.call(builder.inttoptr(address, kind.as_pointer()), values)

        # void body(void *packed), which OpenMP calls on each thread.
        body = ir.Function(
            builder.module, ir.FunctionType(ir.VoidType(), [pointer]),
            builder.module.get_unique_name('body'),
        )  # fmt: skip
        body.linkage = 'internal'
        inner = ir.IRBuilder(body.append_basic_block())
        loaded = inner.load(inner.bitcast(body.args[0], packed.as_pointer()))
        members = cgutils.unpack_tuple(inner, inner.extract_value(loaded, 0))
        kind = ir.FunctionType(number, [])
        thread, num_threads = (
            inner.sext(call(inner, function, kind, []), integer) for function in members[1:3]
        )
        run(inner, thread, num_threads, loaded)
        inner.ret_void()

        struct = builder.insert_value(ir.Constant(packed, ir.Undefined), pool, 0)
        struct = builder.insert_value(struct, arguments, 1)
        parallel, _, _, threads = cgutils.unpack_tuple(builder, pool)
        several = builder.icmp_signed('>', threads, ir.Constant(integer, 1))
        with builder.if_else(several) as (then, otherwise):
            with then:  # GOMP_parallel(body, packed, threads, 0)
                memory = cgutils.alloca_once(builder, packed)
                builder.store(struct, memory)
                kind = ir.FunctionType(ir.VoidType(), [body.type, pointer, number, number])
                memory = builder.bitcast(memory, pointer)
                threads = builder.trunc(threads, number)
                call(builder, parallel, kind, [body, memory, threads, ir.Constant(number, 0)])
            with otherwise:
                run(builder, ir.Constant(integer, 0), ir.Constant(integer, 1), struct)
        return context.get_dummy_value()

    return types.void(kernel, pool, arguments), emit


@inlined
def thread_range(thread: int, num_threads: int, count: int) -> tuple[int, int]:
    """(first, end) of the part of `count` items that a thread computes."""
    return count * thread // num_threads, count * (thread + 1) // num_threads
