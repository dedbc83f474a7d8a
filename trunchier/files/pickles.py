"""Restricted unpickler: plain data and arrays, no code.

A pickle names functions to be called. This reader resolves only those that rebuild plain Python
data, numpy arrays and scipy.sparse matrices; any other name is an error. SMPL's files hold objects
of chumpy, which no longer installs; these become the arrays that they represent.
"""

import builtins
import io
import pickle
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .optional import need

PLAIN_TYPES = {
    'bool', 'bytearray', 'bytes', 'complex', 'dict', 'float', 'frozenset', 'int', 'list',
    'object', 'range', 'set', 'slice', 'str', 'tuple',
}  # fmt: skip
NUMPY_TYPES = {
    'ndarray', 'dtype', 'bool_', 'str_', 'bytes_', 'complex64', 'complex128',
    'int8', 'int16', 'int32', 'int64', 'uint8', 'uint16', 'uint32', 'uint64',
    'float16', 'float32', 'float64',
}  # fmt: skip
SPARSE_TYPES = {
    'csc_matrix', 'csr_matrix', 'coo_matrix', 'csc_array', 'csr_array', 'coo_array',
}  # fmt: skip


def load(source: str | Path | bytes | BinaryIO, encoding: str = 'latin1') -> Any:
    """Content of a pickle that holds only plain data and arrays.

    Args:
        source: path, bytes or binary file.
        encoding: of byte strings written by Python 2 ('latin1' also restores its numpy arrays).

    Returns:
        Plain Python data, numpy arrays and scipy.sparse matrices; chumpy objects are arrays.

    Raises:
        pickle.UnpicklingError: any other name, or bytes that are not a pickle.
        FileNotFoundError: no such file.
    """
    if isinstance(source, str | Path):
        with open(source, 'rb') as file:
            return _load(file, encoding, str(source))
    if isinstance(source, bytes | bytearray | memoryview):
        return _load(io.BytesIO(source), encoding, 'a pickle in memory')
    return _load(source, encoding, getattr(source, 'name', 'an open file'))


def _load(file, encoding, name):
    try:
        return _without_chumpy(_ArrayUnpickler(file, encoding=encoding).load())
    except (_Refused, ImportError) as error:
        raise type(error)(f'{name}: {error}') from None
    except Exception as error:  # a damaged stream may raise anything (see the docs of pickle)
        raise pickle.UnpicklingError(
            f'{name} is not a complete pickle ({type(error).__name__}: {error}); fetch it again'
        ) from error


class _Refused(pickle.UnpicklingError):
    """A complete pickle with content that is not allowed."""


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module, name):
        top = module.partition('.')[0]
        if top in ('builtins', '__builtin__') and name in PLAIN_TYPES:
            return getattr(builtins, name)
        if top == 'numpy' and name in NUMPY_TYPES:
            return getattr(np, name)
        if top == 'numpy' and name in NUMPY_FUNCTIONS:
            return NUMPY_FUNCTIONS[name]
        if module.startswith('scipy.sparse') and name in SPARSE_TYPES:
            return getattr(need('scipy.sparse', 'reading sparse matrices'), name)
        if top == 'chumpy' and name in ('Ch', 'Select'):
            return _Chumpy
        if (module, name) in OTHERS:
            return OTHERS[module, name]
        raise _Refused(
            f'forbidden class {module}.{name}: only plain data and arrays of numpy, scipy.sparse '
            'and chumpy are read; do not open this file with pickle unless you trust its author'
        )


class _Chumpy:
    """Stand-in of chumpy.ch.Ch and chumpy.reordering.Select that only keeps the state."""

    def array(self):
        state = vars(self)
        if 'x' in state:  # Ch: a constant
            return np.asarray(state['x'])
        if {'a', 'idxs', 'preferred_shape'} <= set(state):  # Select: a.ravel()[idxs]
            array = np.asarray(_without_chumpy(state['a']))
            return array.ravel()[state['idxs']].reshape(state['preferred_shape'])
        raise _Refused(
            f'a chumpy expression of {sorted(state)} is not supported, only arrays and selections'
        )


def _without_chumpy(value):
    if isinstance(value, _Chumpy):
        return value.array()
    if type(value) is dict:
        return {key: _without_chumpy(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_without_chumpy(item) for item in value)
    return value


def _encode(text, encoding):
    """Python 3 pickles bytes in protocols of Python 2 as latin1 text."""
    if encoding != 'latin1':
        raise _Refused(f'forbidden encoding {encoding!r}')
    return text.encode('latin1')


def _reconstructor(kind, base, state):
    """`copyreg._reconstructor`, which rebuilds objects in protocols 0 and 1."""
    if base is not object:
        raise _Refused(f'forbidden base class {base.__name__}')
    return object.__new__(kind)


# The functions with which numpy pickles arrays and scalars; their modules moved, not their names.
NUMPY_FUNCTIONS = {
    function.__name__: function
    for function in (
        np.zeros(0).__reduce__()[0],         # _reconstruct
        np.float64(0).__reduce__()[0],       # scalar
        np.zeros(1).__reduce_ex__(5)[0],     # _frombuffer
    )
}  # fmt: skip

OTHERS = {
    ('_codecs', 'encode'): _encode,
    ('copy_reg', '_reconstructor'): _reconstructor,
    ('copyreg', '_reconstructor'): _reconstructor,
}
