"""Restricted unpickler: plain data and arrays, no code.

A pickle names functions to call and states to set. Here a name stands for a method of the
unpickler, which makes plain data or an array of numbers or text, and only new arrays and stand-ins
take a state: no numpy.dtype, class or function of the process comes into the hands of a file.
Matrices of scipy.sparse and objects of chumpy, which no longer installs, become arrays.

The interpreter is pickle's own in Python; that in C allocates its memo by an index in the file.
"""

import collections
import io
import math
import pickle
import re
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

# Bytes that a pickle may make of its content: so many, and so many times its own size.
LIMIT, GROWTH = 2**28, 16

DTYPE = re.compile(r'[<>=|]?([?]|[biu][1248]|f(2|4|8|16)|c(8|16|32)|[SU][1-9]\d{0,8}|O8?)')
NDARRAY = 'ndarray'  # handed out in place of the class, which pickles only pass to _reconstruct
MAX_CHARACTER = 0x10FFFF


class Refused(pickle.UnpicklingError):
    """A complete pickle with content that is not allowed."""


def load(source: str | Path | bytes | BinaryIO, encoding: str = 'latin1') -> Any:
    """Content of a pickle that holds only plain data and arrays.

    Args:
        source: path, bytes or binary file.
        encoding: of byte strings written by Python 2 ('latin1' also restores its numpy arrays).

    Returns:
        Plain Python data and numpy arrays, also in place of sparse matrices and chumpy objects.

    Raises:
        pickle.UnpicklingError: any other name, more content than LIMIT and GROWTH allow, or bytes
            that are not a pickle.
        FileNotFoundError: no such file.
    """
    if isinstance(source, str | Path):
        data, name = Path(source).read_bytes(), str(source)
    elif isinstance(source, bytes | bytearray | memoryview):
        data, name = bytes(source), 'a pickle in memory'
    else:
        data, name = source.read(), getattr(source, 'name', 'an open file')
    try:
        return Unpickler(io.BytesIO(data), len(data), encoding=encoding).load()
    except Refused as error:
        raise Refused(f'{name}: {error}') from None
    except Exception as error:  # a damaged stream may raise anything (see the docs of pickle)
        raise pickle.UnpicklingError(
            f'{name} is not a complete pickle ({type(error).__name__}: {error}); fetch it again'
        ) from error


class Dtype:
    """Stand-in of a numpy.dtype of a plain kind."""

    __slots__ = ('code', 'order')

    def plain(self) -> np.dtype:
        return np.dtype(self.order + self.code)


class StandIn:
    """An object of another library, of which only the state is kept; `value` takes its place."""

    __slots__ = ('state',)

    def value(self, unpickler: 'Unpickler') -> Any:
        raise NotImplementedError


class Chumpy(StandIn):
    """chumpy.ch.Ch, a constant, or chumpy.reordering.Select, a selection."""

    __slots__ = ()

    def value(self, unpickler: 'Unpickler') -> np.ndarray:
        state = self.state
        if 'x' in state:
            return checked_array(unpickler.resolve(state['x'])[0])
        if not {'a', 'idxs', 'preferred_shape'} <= set(state):
            kind = sorted(map(str, state))
            raise Refused(
                f'a chumpy expression of {kind} is not supported, only arrays and selections'
            )
        index = checked_array(state['idxs'], 'iu')
        unpickler.spend(8 * index.size)
        selected = checked_array(unpickler.resolve(state['a'])[0]).ravel()[index]
        return selected.reshape(state['preferred_shape'])


class Sparse(StandIn):
    """A matrix of scipy.sparse, by coordinates or compressed; its value is dense."""

    __slots__ = ()
    axis = None  # that `indptr` compresses

    def value(self, unpickler: 'Unpickler') -> np.ndarray:
        state = self.state
        shape = state['_shape'] if '_shape' in state else state['shape']
        data = checked_array(state['data'], 'biufc')
        if self.axis is None:
            pair = state['coords'] if 'coords' in state else (state['row'], state['col'])
            rows, columns = (checked_array(each, 'iu') for each in pair)
        else:
            starts = checked_array(state['indptr'], 'iu').astype(np.int64)
            counts, end = np.diff(starts), starts[-1]
            if len(counts) != shape[self.axis] or starts[0] or (counts < 0).any():
                raise Refused('a sparse matrix whose indptr does not fit its shape')
            data, minor = data[:end], checked_array(state['indices'], 'iu')[:end]
            if len(minor) != end:
                raise Refused('a sparse matrix with less indices than its indptr counts')
            major = np.repeat(np.arange(len(counts)), counts)
            rows, columns = (major, minor) if self.axis == 0 else (minor, major)
        unpickler.spend(count_of(shape) * data.itemsize)
        fits = {each.shape for each in (rows, columns, data)} == {(len(data),)}
        for index, size in zip((rows, columns), shape, strict=True):
            fits = fits and (not index.size or (index.min() >= 0 and index.max() < size))
        if not fits:
            raise Refused(f'a sparse matrix {shape} with indices outside of it')
        result = np.zeros(shape, data.dtype)
        np.add.at(result, (rows.astype(np.intp), columns.astype(np.intp)), data)
        return result


class Csr(Sparse):
    __slots__ = ()
    axis = 0


class Csc(Sparse):
    __slots__ = ()
    axis = 1


def count_of(shape: Any) -> int:
    """Number of elements of an array; Refused unless `shape` is one."""
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise Refused(f'an array of shape {shape!r}')
    if len(shape) > 32 or max(shape, default=0) > 2**40:
        raise Refused(f'an array of shape {shape!r}')
    return math.prod(shape)


def checked_array(value: Any, kinds: str = 'biufcSUO') -> np.ndarray:
    """`value`; Refused unless it is an array of these kinds."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in kinds:
        raise Refused(f'a {type(value).__name__} in place of an array')
    return value


class Unpickler(pickle._Unpickler):
    """Reads one pickle from a file.

    Args:
        file: its `read(n)` must not allocate more than is there.
        size: of the file, bytes.
    """

    # By the first part of the module, since numpy and scipy move theirs: a method, or plain data.
    NAMES = {
        ('builtins', 'object'): object,
        ('builtins', 'complex'): complex,
        ('builtins', 'range'): range,
        ('builtins', 'slice'): slice,
        ('builtins', 'bytes'): 'new_bytes',
        ('builtins', 'bytearray'): 'new_bytearray',
        ('builtins', 'set'): 'new_set',
        ('builtins', 'frozenset'): 'new_frozenset',
        ('_codecs', 'encode'): 'encode',
        ('copyreg', '_reconstructor'): 'new_stand_in',
        ('numpy', 'ndarray'): NDARRAY,
        ('numpy', 'dtype'): 'new_dtype',
        ('numpy', '_reconstruct'): 'new_array',
        ('numpy', '_frombuffer'): 'array_of_buffer',
        ('numpy', 'scalar'): 'scalar',
        ('chumpy', 'Ch'): Chumpy,
        ('chumpy', 'Select'): Chumpy,
        **{('scipy', f'coo_{kind}'): Sparse for kind in ('matrix', 'array')},
        **{('scipy', f'csr_{kind}'): Csr for kind in ('matrix', 'array')},
        **{('scipy', f'csc_{kind}'): Csc for kind in ('matrix', 'array')},
    }
    PYTHON_2 = {'__builtin__': 'builtins', 'copy_reg': 'copyreg'}

    def __init__(self, file: BinaryIO, size: int, encoding: str = 'ASCII'):
        super().__init__(file, encoding=encoding)
        self.size, self.budget, self.seen = size, LIMIT + GROWTH * size, {}

    def load(self) -> Any:
        return self.resolve(super().load())[0]

    def find_class(self, module: str, name: str) -> Any:
        top = module.partition('.')[0]
        found = self.NAMES.get((self.PYTHON_2.get(top, top), name))
        if found is None:
            raise Refused(
                f'forbidden class {module}.{name}: only plain data and arrays of numpy, '
                'scipy.sparse and chumpy are read; do not open this file with pickle unless you '
                'trust its author'
            )
        return getattr(self, found) if isinstance(found, str) and found != NDARRAY else found

    def spend(self, size: int) -> None:
        """Count `size` bytes of content; raises Refused beyond the limit."""
        self.budget -= size
        if self.budget < 0:
            raise Refused(f'{self.size} bytes that unfold to more than is read, {LIMIT} and more')

    # --- functions ------------------------------------------------------------------------------
    def encode(self, text: str, encoding: str) -> bytes:
        """Python 3 pickles bytes in protocols of Python 2 as latin1 text."""
        if encoding not in ('latin1', 'latin-1'):
            raise Refused(f'forbidden encoding {encoding!r}')
        self.spend(len(text))
        return text.encode('latin1')

    def new_bytes(self, data: bytes | str = b'', encoding: str = 'latin1') -> bytes:
        data = self.encode(data, encoding) if isinstance(data, str) else data
        if not isinstance(data, bytes | bytearray):
            raise Refused(f'bytes of a {type(data).__name__}')
        self.spend(len(data))
        return bytes(data)

    def new_bytearray(self, *arguments: Any) -> bytearray:
        return bytearray(self.new_bytes(*arguments))

    def new_set(self, items: Any = ()) -> set:
        if not isinstance(items, list | tuple | set | frozenset):
            raise Refused(f'a set of a {type(items).__name__}')
        self.spend(64 * len(items))
        return set(items)

    def new_frozenset(self, items: Any = ()) -> frozenset:
        return frozenset(self.new_set(items))

    def new_stand_in(self, kind: type, base: type, state: None) -> StandIn:
        """`copyreg._reconstructor`, which rebuilds objects in protocols 0 and 1."""
        if base is not object or not isinstance(kind, type) or not issubclass(kind, StandIn):
            raise Refused(f'forbidden base class {base!r} of {kind!r}')
        return kind()

    def new_dtype(self, code: str, *flags: Any) -> Dtype:
        if not isinstance(code, str) or not DTYPE.fullmatch(code):
            raise Refused(f'forbidden dtype {code!r}: only numbers, text and objects are read')
        dtype = Dtype()
        dtype.order, dtype.code = '', code.rstrip('8') if code.startswith('O') else code
        return dtype

    def new_array(self, kind: str, shape: tuple, code: Any) -> np.ndarray:
        """numpy's `_reconstruct`: an empty array, which its state fills."""
        if kind != NDARRAY:
            raise Refused(f'forbidden kind of array {kind!r}')
        return np.zeros(0, np.int8)

    def array_of_buffer(
        self, data: bytes | bytearray, dtype: Dtype, shape: tuple, order: str = 'C'
    ) -> np.ndarray:
        """numpy's `_frombuffer`, of protocol 5."""
        kind = self.checked(dtype, shape, data)
        return np.frombuffer(data, kind).reshape(shape, order='F' if order == 'F' else 'C')

    def scalar(self, dtype: Dtype, data: bytes | str) -> np.generic:
        data = data.encode('latin1') if isinstance(data, str) else data
        return np.frombuffer(data, self.checked(dtype, (), data))[0]

    def checked(self, dtype: Dtype, shape: tuple, data: Any) -> np.dtype:
        """The numpy.dtype of an array of numbers or text; Refused if `data` does not fit it."""
        if not isinstance(dtype, Dtype) or dtype.code == 'O':
            raise Refused(f'forbidden dtype {dtype!r} of an array of bytes')
        plain = dtype.plain()
        size = count_of(shape) * plain.itemsize
        if not isinstance(data, bytes | bytearray) or len(data) != size:
            raise Refused(f'an array {shape} of {plain} needs {size} bytes of data')
        self.spend(size)
        if plain.kind == 'U' and size:
            characters = np.frombuffer(data, np.dtype('u4').newbyteorder(plain.byteorder))
            if characters.max() > MAX_CHARACTER:
                raise Refused('text with characters that do not exist')
        return plain

    # --- states ---------------------------------------------------------------------------------
    def fill_dtype(self, dtype: Dtype, state: tuple) -> None:
        if len(state) < 5 or state[1] not in ('<', '>', '=', '|') or any(state[2:5]):
            raise Refused(f'forbidden dtype with the state {state!r}')
        dtype.order = state[1] if state[1] in '<>' else ''

    def fill_array(self, array: np.ndarray, state: tuple) -> None:
        _, shape, dtype, fortran, data = state
        if array.size or array.base is not None:
            raise Refused('an array that is filled twice')
        if isinstance(dtype, Dtype) and dtype.code == 'O':
            if not isinstance(data, list) or len(data) != count_of(shape):
                raise Refused(f'an array {shape} of objects without as many objects')
            self.spend(8 * len(data))
            plain = np.dtype('O')
        else:
            data = data.encode('latin1') if isinstance(data, str) else data
            plain, data = self.checked(dtype, shape, data), bytes(data)
        array.__setstate__((1, shape, plain, fortran is True, data))

    # --- opcodes --------------------------------------------------------------------------------
    def build(self, target: Any, state: Any) -> None:
        """Set the state of `target`, a new object."""
        if isinstance(target, StandIn) and type(state) is dict:
            target.state = state
        elif type(target) is Dtype:
            self.fill_dtype(target, state)
        elif type(target) is np.ndarray:
            self.fill_array(target, state)
        else:
            raise Refused(f'forbidden state of a {type(target).__name__}')

    def load_build(self) -> None:
        state = self.stack.pop()
        self.build(self.stack[-1], state)

    def load_bytearray8(self) -> None:
        (size,) = struct.unpack('<Q', self.read(8))
        self.append(bytearray(self.read(min(size, self.size))))

    def load_extension(self) -> None:
        raise Refused('forbidden extension code')

    dispatch = {
        **pickle._Unpickler.dispatch,
        pickle.BUILD[0]: load_build,
        pickle.BYTEARRAY8[0]: load_bytearray8,
        **dict.fromkeys((pickle.EXT1[0], pickle.EXT2[0], pickle.EXT4[0]), load_extension),
    }

    # --- stand-ins ------------------------------------------------------------------------------
    def resolve(self, value: Any) -> tuple[Any, int]:
        """`value` with arrays for stand-ins, and its number of values, shared ones counted again.

        Raises:
            Refused: containers that contain themselves, or that unfold to too many values.
        """
        kind = type(value)
        if kind not in (dict, list, tuple, collections.OrderedDict) and not isinstance(
            value, StandIn
        ):
            return value, 1
        if id(value) in self.seen:
            _, result, count = self.seen[id(value)]
            if count is None:
                raise Refused('an object that contains itself')
            return result, count
        self.seen[id(value)] = value, value, None
        result, count = value, 1
        if isinstance(value, StandIn):
            result = value.value(self)
        elif kind is tuple:
            pairs = [self.resolve(item) for item in value]
            result, count = tuple(item for item, _ in pairs), 1 + sum(n for _, n in pairs)
        else:
            for key in value if kind is not list else range(len(value)):
                value[key], number = self.resolve(value[key])
                count += number
        if count > GROWTH * self.size + LIMIT // 64:
            raise Refused(f'{self.size} bytes that unfold to more than {count} values')
        self.seen[id(value)] = value, result, count
        return result, count
