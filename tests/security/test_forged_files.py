"""Pickles and checkpoints of strangers: no code runs, memory is neither corrupted nor unbounded."""

import contextlib
import copyreg
import io
import os
import pickle
import random
import re
import struct
import zipfile
from collections import OrderedDict

import numpy as np
import people
import pytest
import torch
from child import survive

from trunchier.files import pickles
from trunchier.weights.load import CheckpointError, read_weights

sparse = pytest.importorskip('scipy.sparse')


class Calls:
    """Pickles as a call, with a state."""

    def __init__(self, function, *arguments, state=None):
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.reduced


RECONSTRUCT = np.zeros(0).__reduce__()[0]


def array(shape, dtype, data):
    """An array as numpy pickles it, with any state."""
    return Calls(RECONSTRUCT, np.ndarray, (0,), b'b', state=(1, shape, dtype, False, data))


def dtype(code, *state):
    return Calls(np.dtype, code, False, True, state=(3, *state))


def matrix(kind, **changes):
    """A sparse matrix whose arrays do not fit it."""
    whole = getattr(sparse, f'{kind}_matrix')(np.eye(3, 5))
    for name, value in changes.items():
        setattr(whole, name, np.asarray(value, np.int32) if name != '_shape' else value)
    return whole


def stand_in(name, state):
    """An object of chumpy as it pickles."""
    return Calls(copyreg._reconstructor, Named('chumpy.ch', name), object, None, state=state)


class Named:
    """Pickles as a global."""

    def __init__(self, module, name):
        self.module, self.name = module, name

    def __reduce__(self):
        return f'{self.module}:{self.name}'


class Pickler(pickle._Pickler):
    """Writes `Named` as the global that it names."""

    def save_global(self, obj, name=None):
        if isinstance(obj, Named):
            self.write(b'c%s\n%s\n' % (obj.module.encode(), obj.name.encode()))
        else:
            super().save_global(obj, name)


def dumped(content, protocol=2):
    file = io.BytesIO()
    Pickler(file, protocol).dump(content)
    return file.getvalue()


def nested(depth, width):
    value = []
    for _ in range(depth):
        value = [value] * width
    return value


BYTES = b'\x01' * 8
CORRUPTING = {
    'object dtype without its flag': array(
        (1,), dtype('O8', '|', None, None, None, -1, -1, 0), BYTES
    ),
    'dtype with a field of objects': array(
        (1,), dtype('V8', '|', None, ('a',), {'a': (dtype('O8', '|'), 0)}, 8, 1, 0), BYTES
    ),
    'dtype with a subarray': array((1,), dtype('f8', '<', ('f8', (9,)), None, None), BYTES),
    'itemsize of another kind': array((1,), dtype('V8', '|', None, None, None, 800, 1, 0), BYTES),
    'array larger than its data': array((10**6,), dtype('f8', '<', None, None, None), BYTES),
    'array of negative size': array((-1,), dtype('f8', '<', None, None, None), BYTES),
    'array of too many items': array((2**62, 8), dtype('f8', '<', None, None, None), BYTES),
    'objects from bytes': array((1,), dtype('O8', '|', None, None, None), BYTES),
    'characters that do not exist': array(
        (2,), dtype('U1', '<', None, None, None), b'\xff' * 8
    ),
    'scalar of objects': Calls(np.float64(0).__reduce__()[0], dtype('O8', '|'), BYTES),
    'csc indices too large': matrix('csc', indices=[10**6, 1, 2]),
    'csc indices negative': matrix('csc', indices=[-(10**6), 1, 2]),
    'csc indptr too large': matrix('csc', indptr=[0, 1, 2, 3, 3, 10**6]),
    'csc indptr falling': matrix('csc', indptr=[0, 3, -9, 3, 3, 3]),
    'csr indptr too short': matrix('csr', indptr=[0, 3]),
    'csr of another shape': matrix('csr', _shape=(3, 1)),
    'coo outside': matrix('coo', row=[0, 1, 10**6]),
    'coo negative': matrix('coo', col=[0, 1, -(10**6)]),
}  # fmt: skip
BOMBS = {
    'set of a range': dumped(Calls(set, range(10**11))),
    'frozenset of a range': dumped(Calls(frozenset, range(10**11))),
    'tuple of a range': dumped(Calls(tuple, range(10**11))),
    'list of a range': dumped(Calls(list, range(10**11))),
    'bytes of a number': dumped(Calls(bytes, 10**11)),
    'bytearray of a number': dumped(Calls(bytearray, 10**11)),
    'empty text many times': dumped(
        array((10**12,), dtype('S0', '|', None, None, None, 0, 1, 0), b'')
    ),
    'a list in itself ten to the twentieth times': dumped(nested(20, 10)),
    'many sets of one list': dumped([Calls(set, large) for large in [[*range(5000)]] * 9000]),
    'a large sparse matrix': dumped(matrix('coo', _shape=(10**6, 10**6))),
    'a selection of a range': dumped(
        stand_in('Select', {'a': np.ones(3), 'idxs': range(10**11), 'preferred_shape': (3,)})
    ),
    'bytes that are not there': b'\x80\x04\x8e' + (2**40).to_bytes(8, 'little') + b'.',
    'bytearray that is not there': b'\x80\x05\x96' + (2**34).to_bytes(8, 'little') + b'.',
    'lists in lists': b'\x80\x02' + b']' * 10**5 + b'a' * (10**5 - 1) + b'.',
}
REACHING = {
    'a class of the reader': b'\x80\x02cchumpy.ch\nCh\n}X\x05\x00\x00\x00valueK\x01sb.',
    'a function of the reader': b'\x80\x02cnumpy.core\n_reconstruct\n}X\x01\x00\x00\x00aK\x01sb.',
    'a type': b'\x80\x02c__builtin__\nset\n}X\x01\x00\x00\x00aK\x01sb.',
    'an extension': b'\x80\x02\x82\x01.',
    'a persistent id': b'\x80\x02K\x01Q.',
}


def refused(data):
    with pytest.raises(pickle.UnpicklingError):
        pickles.load(data)


@pytest.mark.parametrize('name', CORRUPTING)
@pytest.mark.parametrize('protocol', [2, 4])
def test_forged_arrays_are_refused(name, protocol):
    survive(refused, dumped([CORRUPTING[name]], protocol))


@pytest.mark.parametrize('name', BOMBS)
def test_memory_is_bounded(name):
    survive(refused, BOMBS[name], memory=2**30)


@pytest.mark.parametrize('number', [b'r\xff\xff\xff\x7f', b'p2147483647\n'])
def test_the_index_of_a_memo_costs_no_memory(number):
    def load():
        assert pickles.load(b'\x80\x02K\x01' + number + b'.') == 1

    survive(load, memory=2**28)


@pytest.mark.parametrize('name', REACHING)
def test_no_state_of_the_reader_is_in_reach(name):
    refused(REACHING[name])
    whole = stand_in('Ch', {'x': np.arange(3.0)})
    assert pickles.load(dumped(whole)).tolist() == [0, 1, 2]


def test_nothing_that_is_handed_out_is_a_dtype_or_a_function():
    for module, name in (('numpy', 'dtype'), ('numpy', 'ndarray')):
        found = pickles.load(dumped([Named(module, name)]))
        assert found != [getattr(np, name)]
    value = pickles.load(dumped(Calls(np.dtype, 'f8', False, True)))
    assert not isinstance(value, np.dtype)


# --- checkpoints ----------------------------------------------------------------------------------
def zipped(content, edit=lambda pickled: pickled, compression=zipfile.ZIP_STORED, more=()):
    """A file of torch.save with a changed pickle, and right checksums."""
    whole, changed = io.BytesIO(), io.BytesIO()
    torch.save(content, whole)
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(changed, 'w', compression) as target:
        for name in source.namelist():
            data = source.read(name)
            target.writestr(name, edit(data) if name.endswith('/data.pkl') else data)
        for name, data in more:
            target.writestr(name, data)
    return changed.getvalue()


def tensor(offset, size, stride):
    storage = torch.arange(4.0).storage()
    arguments = storage, offset, size, stride, False, OrderedDict()
    return Calls(torch._utils._rebuild_tensor_v2, *arguments)


def with_count(number):
    """The pickle with another number of elements of its storages of four."""
    count = struct.pack('<i', number)
    return lambda data: re.sub(rb'(cpuq.)K\x04', lambda m: m[1] + b'J' + count, data)


FOUR = {'state_dict': {'a': torch.arange(4.0)}}
CHECKPOINTS = {
    'storage larger than its member': lambda: zipped(FOUR, with_count(2**30)),
    'storage smaller than its member': lambda: zipped(FOUR, with_count(3)),
    'storage of negative size': lambda: zipped(FOUR, with_count(-4)),
    'tensor beyond its storage': lambda: zipped({'a': tensor(0, (2**20,), (1,))}),
    'tensor behind its storage': lambda: zipped({'a': tensor(2**40, (1,), (1,))}),
    'tensor before its storage': lambda: zipped({'a': tensor(-4, (1,), (1,))}),
    'tensor of negative stride': lambda: zipped({'a': tensor(3, (4,), (-1,))}),
    'tensor of wide stride': lambda: zipped({'a': tensor(0, (2, 2), (2**61, 2**61))}),
    'tensor of ten gigabytes': lambda: zipped({'a': tensor(0, (2**33,), (0,))}),
    'dtype of objects': lambda: zipped({'meta': CORRUPTING['object dtype without its flag']}),
    'sparse matrix': lambda: zipped({'meta': CORRUPTING['csc indices too large']}),
    'compressed members': lambda: zipped(
        {'a': torch.zeros(2**20)}, compression=zipfile.ZIP_DEFLATED
    ),
    'getattr of a tensor': lambda: zipped({'meta': Calls(getattr, torch.Tensor, 'min')}),
    'whole module': lambda: zipped({'model': torch.nn.Linear(1, 1)}),
    'memo': lambda: zipped(FOUR, lambda data: data[:2] + b'K\x01r\xff\xff\xff\x7f0' + data[2:-9]),
    'legacy storage larger than the file': lambda: legacy(
        FOUR, lambda data: with_count(2**30)(data)
    ),
    'legacy storage of another size': lambda: legacy(FOUR, lambda data: data[:-24] + data[-16:]),
}  # fmt: skip


def legacy(content, edit=lambda data: data):
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=False)
    return edit(file.getvalue())


def refused_checkpoint(path):
    with pytest.raises(CheckpointError, match='cannot be read as weights'):
        read_weights(path)


@pytest.mark.parametrize('name', CHECKPOINTS)
def test_forged_checkpoints_are_refused(name, tmp_path):
    (tmp_path / 'a.pth').write_bytes(CHECKPOINTS[name]())
    survive(refused_checkpoint, tmp_path / 'a.pth', memory=2**31)


def test_crafted_files_are_right_but_for_the_forgery(tmp_path):
    """What the tests above change, unchanged, is read."""
    for number, data in enumerate(
        (zipped(FOUR), legacy(FOUR), zipped({'a': tensor(1, (3,), (1,))}))
    ):
        (tmp_path / f'{number}.pth').write_bytes(data)
        read_weights(tmp_path / f'{number}.pth')
    assert with_count(3)(legacy(FOUR)) != legacy(FOUR)
    for kind in ('csc', 'csr', 'coo'):
        assert np.array_equal(pickles.load(dumped(matrix(kind))), np.eye(3, 5))
    good = array((1,), dtype('f8', '<', None, None, None, -1, -1, 0), struct.pack('<d', 2.5))
    assert pickles.load(dumped(good)).tolist() == [2.5]


# --- fuzzing --------------------------------------------------------------------------------------
def corpus():
    """{name: (content of a small file, function that reads it)}."""
    rng = np.random.default_rng(0)
    smpl = {
        'v_template': stand_in('Ch', {'x': rng.random((4, 3))}),
        'shapedirs': stand_in('Ch', {'x': rng.random((4, 3, 2))}),
        'J_regressor': sparse.csc_matrix(np.eye(3, 4)),
        'weights': rng.random((4, 3)),
        'kintree_table': np.array([[2**32 - 1, 0, 1], [0, 1, 2]], np.uint32),
        'f': np.arange(6, dtype=np.uint32).reshape(2, 3),
        'bs_type': 'lrotmin',
    }
    person = people.annotation()
    checkpoint = {
        'meta': {'epoch': 1, 'sigmas': np.arange(3, dtype=np.float32), 'best': np.float64(0.5)},
        'state_dict': OrderedDict(a=torch.arange(4.0), b=torch.ones(2, 3, dtype=torch.int64)),
    }
    cases = {
        'smpl': dumped(smpl),
        'j19': dumped(rng.random((2, 4))),
        'j19 sparse': dumped(sparse.csr_matrix(np.eye(2, 4))),
        'pyd': pickle.dumps([person], protocol=4),
        'protocol 0': pickle.dumps({'a': np.arange(3.0), 'b': [1, {2}, 'three']}, protocol=0),
        'protocol 5': pickle.dumps({'a': np.arange(3.0), 'b': bytearray(3)}, protocol=5),
    }
    found = {name: (data, lambda data, path: pickles.load(data)) for name, data in cases.items()}

    def read_file(data, path):
        path.write_bytes(data)
        return read_weights(path)

    def read_pickle_in_zip(data, path):
        return read_file(zipped(FOUR, lambda _: data), path)

    with zipfile.ZipFile(io.BytesIO(zipped(FOUR))) as archive:
        inner = archive.read(next(n for n in archive.namelist() if n.endswith('data.pkl')))
    found['pickle in a pth'] = inner, read_pickle_in_zip
    found['pth'] = zipped(checkpoint), read_file
    found['legacy pth'] = legacy(checkpoint), read_file
    return found


OPCODES = bytes(
    value[0] for value in vars(pickle).values() if isinstance(value, bytes) and len(value) == 1
)
NUMBERS = [struct.pack('<I', n) for n in (0, 1, 0xFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)]


def mutated(data, rng):
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        place, kind = rng.randrange(len(data)), rng.randrange(7)
        if kind == 0:
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[place] = rng.randrange(256)
        elif kind == 2:
            data[place] = rng.choice(OPCODES)
        elif kind == 3:
            data[place : place + 4] = rng.choice(NUMBERS)
        elif kind == 4:
            del data[place : place + rng.randrange(1, 9)]
        elif kind == 5:
            start = rng.randrange(len(data))
            data[place:place] = data[start : start + rng.randrange(1, 40)]
        else:
            data[place:place] = bytes([rng.choice(OPCODES)])
        data = data or bytearray(b'.')
    return bytes(data)


def used(value):
    """Touch everything in `value`."""
    if isinstance(value, np.ndarray):
        repr(value.tolist() if value.size < 10**6 else value.sum())
    elif isinstance(value, torch.Tensor):
        repr(value.flatten()[:9].tolist())
    elif isinstance(value, dict):
        [used(item) for item in value.values()]
    elif isinstance(value, (list, tuple)):
        [used(item) for item in value]


def fuzz(count, seed, folder):
    cases, progress = [*corpus().items()], os.open(folder / 'progress', os.O_CREAT | os.O_WRONLY)
    for number in range(count):
        rng = random.Random(seed * 10**6 + number)
        name, (data, read) = cases[number % len(cases)]
        os.pwrite(progress, f'seed {seed}, case {number}, {name:20}'.encode(), 0)
        with contextlib.suppress(pickle.UnpicklingError, CheckpointError):
            used(read(mutated(data, rng), folder / 'a.pth'))


@pytest.mark.parametrize('count, seed', [(600, 1), pytest.param(10_000, 2, marks=pytest.mark.slow)])
def test_mutated_files_never_end_the_process_nor_raise_anything_else(count, seed, tmp_path):
    try:
        survive(fuzz, count, seed, tmp_path)
    except AssertionError as error:
        raise AssertionError(f'{(tmp_path / "progress").read_text()}: {error}') from None


def test_the_corpus_is_read_unchanged(tmp_path):
    for data, read in corpus().values():
        assert read(data, tmp_path / 'a.pth') is not None
