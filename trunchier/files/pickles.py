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
import reprlib
import struct
from collections.abc import Iterable
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
        reason = f'{type(error).__name__}: {error!s:.200}'
        raise pickle.UnpicklingError(
            f'{name} is not a complete pickle ({reason}); fetch it again'
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
            kind = short(list(state))
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
            raise Refused(f'a sparse matrix {short(shape)} with indices outside of it')
        result = np.zeros(shape, data.dtype)
        np.add.at(result, (rows.astype(np.intp), columns.astype(np.intp)), data)
        return result


class Csr(Sparse):
    __slots__ = ()
    axis = 0


class Csc(Sparse):
    __slots__ = ()
    axis = 1


class _Short(reprlib.Repr):
    """Short text of values, however much they unfold to."""

    def __init__(self):
        super().__init__()
        self.maxlevel, self.maxstring = 2, 80
        self.maxtuple = self.maxlist = self.maxset = self.maxfrozenset = 4

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if abs(x) < 2**64 else f'<int of {x.bit_length()} bits>'

    def repr_bytes(self, x: bytes, level: int) -> str:
        return repr(x[: self.maxstring])

    def repr_instance(self, x: Any, level: int) -> str:
        plain = x is None or isinstance(x, bool | float | type | np.dtype)
        return repr(x) if plain else f'<{type(x).__name__}>'

    repr_dict = repr_array = repr_deque = repr_instance


short = _Short().repr


def count_of(shape: Any) -> int:
    """Number of elements of an array; Refused unless `shape` is one."""
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise Refused(f'an array of shape {short(shape)}')
    if len(shape) > 32 or max(shape, default=0) > 2**40:
        raise Refused(f'an array of shape {short(shape)}')
    return math.prod(shape)


def check_keys(keys: Iterable) -> None:
    """Refused for nested tuples: these are hashed anew wherever they are shared."""
    for key in keys:
        items = key if isinstance(key, tuple) else (key,)
        if any(isinstance(item, slice | tuple) for item in items):
            raise Refused(f'the key {short(key)}; keys are plain, or tuples of plain values')


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
                f'forbidden class {module:.80}.{name:.80}: only plain data and arrays of numpy, '
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
            raise Refused(f'forbidden encoding {short(encoding)}')
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
        check_keys(items)
        return set(items)

    def new_frozenset(self, items: Any = ()) -> frozenset:
        return frozenset(self.new_set(items))

    def new_stand_in(self, kind: type, base: type, state: None) -> StandIn:
        """`copyreg._reconstructor`, which rebuilds objects in protocols 0 and 1."""
        if base is not object or not isinstance(kind, type) or not issubclass(kind, StandIn):
            raise Refused(f'forbidden base class {short(base)} of {short(kind)}')
        return kind()

    def new_dtype(self, code: str, *flags: Any) -> Dtype:
        if not isinstance(code, str) or not DTYPE.fullmatch(code):
            raise Refused(f'forbidden dtype {short(code)}: only numbers, text and objects are read')
        dtype = Dtype()
        dtype.order, dtype.code = '', code.rstrip('8') if code.startswith('O') else code
        return dtype

    def new_array(self, kind: str, shape: tuple, code: Any) -> np.ndarray:
        """numpy's `_reconstruct`: an empty array, which its state fills."""
        if kind != NDARRAY:
            raise Refused(f'forbidden kind of array {short(kind)}')
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
            raise Refused(f'forbidden dtype {short(dtype)} of an array of bytes')
        plain = dtype.plain()
        size = count_of(shape) * plain.itemsize
        if not isinstance(data, bytes | bytearray) or len(data) != size:
            raise Refused(f'an array {short(shape)} of {plain} needs {size} bytes of data')
        self.spend(size)
        if plain.kind == 'U' and size:
            characters = np.frombuffer(data, np.dtype('u4').newbyteorder(plain.byteorder))
            if characters.max() > MAX_CHARACTER:
                raise Refused('text with characters that do not exist')
        return plain

    # --- states ---------------------------------------------------------------------------------
    def fill_dtype(self, dtype: Dtype, state: tuple) -> None:
        if len(state) < 5 or state[1] not in ('<', '>', '=', '|') or any(state[2:5]):
            raise Refused(f'forbidden dtype with the state {short(state)}')
        dtype.order = state[1] if state[1] in '<>' else ''

    def fill_array(self, array: np.ndarray, state: tuple) -> None:
        _, shape, dtype, fortran, data = state
        if array.size or array.base is not None:
            raise Refused('an array that is filled twice')
        if isinstance(dtype, Dtype) and dtype.code == 'O':
            if not isinstance(data, list) or len(data) != count_of(shape):
                raise Refused(f'an array {short(shape)} of objects without as many objects')
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

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    def load_setitems(self) -> None:
        self.set_items(self.pop_mark())

    def set_items(self, items: list) -> None:
        """Fill the dict on the stack. Lists and bytearrays could be doubled by slices."""
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise Refused(f'items of a {type(target).__name__} are set; only those of dicts are')
        check_keys(items[::2])
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[key] = value

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self.set_items(items)

    def load_additems(self) -> None:
        items = self.pop_mark()
        if type(self.stack[-1]) is not set:
            raise Refused(f'items are added to a {type(self.stack[-1]).__name__}')
        check_keys(items)
        self.stack[-1].update(items)

    def load_frozenset(self) -> None:
        items = self.pop_mark()
        self.append(self.new_frozenset(items))

    def load_bytearray8(self) -> None:
        (size,) = struct.unpack('<Q', self.read(8))
        self.append(bytearray(self.read(min(size, self.size))))

    def load_extension(self) -> None:
        raise Refused('forbidden extension code')

    dispatch = {
        **pickle._Unpickler.dispatch,
        pickle.BUILD[0]: load_build,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.DICT[0]: load_dict,
        pickle.ADDITEMS[0]: load_additems,
        pickle.FROZENSET[0]: load_frozenset,
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
