import collections
import os
import pickle
import struct
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from trunchier.files import pickles

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)

SAMPLE = {
    'floats': np.arange(12, dtype=np.float32).reshape(3, 4),
    'fortran': np.asfortranarray(np.arange(6).reshape(2, 3)),
    'scalar': np.float64(1.5),
    'flag': np.bool_(True),
    'names': np.array(['a', 'bc']),
    'objects': np.array([{'a': 1}, None], dtype=object),
    'list': [1, 'two', 3.0, None, True, (4,), {5}, b'six', 1j],
}


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    return type(a) is type(b) and a == b


@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_plain_data_and_arrays_come_back(protocol):
    assert same(pickles.load(pickle.dumps(SAMPLE, protocol)), SAMPLE)


@pytest.mark.parametrize('kind', [str, Path, 'file'])
def test_paths_and_files_are_read_too(tmp_path, kind):
    path = tmp_path / 'sample.pkl'
    path.write_bytes(pickle.dumps(SAMPLE))
    if kind == 'file':
        with open(path, 'rb') as file:
            assert same(pickles.load(file), SAMPLE)
    else:
        assert same(pickles.load(kind(path)), SAMPLE)


def test_text_of_python_2_is_read():
    # cPickle.dumps({'pose': np.array([1., 2.]), 'name': 'caf\xe9'}, 2) under Python 2.7
    written = (
        b'\x80\x02}q\x01(U\x04poseq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\n'
        b'q\x04K\x00\x85U\x01b\x87Rq\x05(K\x01K\x02\x85cnumpy\ndtype\nq\x06U\x02f8K\x00K\x01\x87Rq'
        b'\x07(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x10\x00\x00\x00\x00\x00'
        b'\x00\xf0?\x00\x00\x00\x00\x00\x00\x00@tbU\x04nameq\x08U\x04caf\xe9q\tu.'
    )
    loaded = pickles.load(written)
    assert loaded['pose'].tolist() == [1, 2]
    assert loaded['name'] == 'café'


@pytest.mark.parametrize('protocol', PROTOCOLS)
@pytest.mark.parametrize('name', ['csc_matrix', 'csr_matrix', 'coo_matrix', 'csr_array'])
def test_sparse_matrices_come_back_dense(protocol, name):
    sparse = pytest.importorskip('scipy.sparse')
    dense = np.zeros((3, 5), np.float32)
    dense[0, 4], dense[2, 1], dense[2, 2] = 1.5, 2, 3
    written = pickle.dumps({'J': getattr(sparse, name)(dense)}, protocol)
    found = pickles.load(written)['J']
    assert np.array_equal(found, dense) and found.dtype == dense.dtype


CHUMPY = 'chumpy', 'chumpy.ch', 'chumpy.reordering'


@pytest.fixture
def chumpy(monkeypatch):
    """Modules whose objects pickle as chumpy's do: an instance __dict__ under chumpy's names."""
    modules = {name: types.ModuleType(name) for name in CHUMPY}
    for module, name in ((CHUMPY[1], 'Ch'), (CHUMPY[2], 'Select')):
        cls = type(name, (), {'__module__': module})
        setattr(modules[module], name, cls)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return types.SimpleNamespace(
        Ch=modules['chumpy.ch'].Ch, Select=modules['chumpy.reordering'].Select
    )


def filled(cls, **state):
    thing = cls()
    vars(thing).update(state)
    return thing


@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_chumpy_objects_become_their_arrays(chumpy, protocol):
    array = np.arange(24.0).reshape(2, 3, 4)
    constant = filled(chumpy.Ch, x=array, _dirty_vars={'x'})
    index = np.arange(24).reshape(2, 3, 4)[..., :2].ravel()
    selection = filled(chumpy.Select, a=constant, idxs=index, preferred_shape=(2, 3, 2))
    written = pickle.dumps({'model': [constant, selection]}, protocol)
    for name in CHUMPY:
        del sys.modules[name]

    first, second = pickles.load(written)['model']
    assert np.array_equal(first, array)
    assert np.array_equal(second, array[..., :2])


def test_other_chumpy_expressions_are_an_error_not_a_guess(chumpy):
    written = pickle.dumps(filled(chumpy.Select, a=np.ones(3), b=np.ones(3)))
    with pytest.raises(pickle.UnpicklingError, match="chumpy expression of .'a', 'b'."):
        pickles.load(written)


class Command:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


FORBIDDEN = {
    'system': Command(os.system, 'true'),
    'eval': Command(eval, '1'),
    'getattr': Command(getattr, 'a', 'upper'),
    'import': Command(__import__, 'os'),
    'numpy loader': Command(np.load, 'x.npy'),
    'codec': Command(__import__('_codecs').encode, 'a', 'rot13'),
    'counter': collections.Counter('a'),
    'path': Path('x'),
}


@pytest.mark.parametrize('name', FORBIDDEN)
@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_nothing_else_is_called(name, protocol):
    written = pickle.dumps([FORBIDDEN[name]], protocol)
    with pytest.raises(pickle.UnpicklingError, match='forbidden'):
        pickles.load(written)


def test_dotted_names_do_not_lead_out_of_the_list():
    written = b'\x80\x04\x8c\x05numpy\x8c\x12ndarray.__class__.x\x93.'.replace(b'\x12', b'\x13')
    with pytest.raises(pickle.UnpicklingError, match=r'forbidden class numpy.ndarray.__class__'):
        pickles.load(written)


@pytest.mark.parametrize('cut', [0, 1, 50, -1])
def test_cut_pickle_is_an_unpickling_error_that_names_the_file(tmp_path, cut):
    path = tmp_path / 'half.pkl'
    path.write_bytes(pickle.dumps(SAMPLE)[:cut])
    with pytest.raises(pickle.UnpicklingError, match='half.pkl is not a complete pickle'):
        pickles.load(path)


def test_error_names_the_forbidden_class_and_the_file(tmp_path):
    path = tmp_path / 'bad.pkl'
    path.write_bytes(pickle.dumps(FORBIDDEN['system']))
    with pytest.raises(pickle.UnpicklingError, match=r'bad.pkl: forbidden class posix.system'):
        pickles.load(path)


def named(module, name):
    return b'\x8c%c%b\x8c%c%b\x93' % (len(module), module, len(name), name)


@pytest.mark.parametrize('start', [b'\x96' + struct.pack('<Q', 1) + b'x', b']N\x61'])
@pytest.mark.parametrize('opcode', [b's', b'u'])
def test_slices_do_not_double_a_list_or_bytearray(start, opcode):
    whole = named(b'builtins', b'slice') + b'K\x00K\x00\x86R\x94'  # slice(0, 0)
    mark = b'(' if opcode == b'u' else b''
    written = b'\x80\x05' + start + b'\x94' + whole + b'0'
    written += (b'h\x00' + mark + b'h\x01h\x00' + opcode) * 12 + b'.'
    with pytest.raises(pickles.Refused, match='only those of dicts'):
        pickles.load(written)


# A pair of a pair of a pair..., each in the memo, so that text of the last has 2**200 parts.
PAIRS = b'\x80\x04)\x94' + b''.join(b'h%ch%c\x86\x94' % (i, i) for i in range(200))
HUGE = named(b'numpy', b'dtype') + b'h\xc8\x85R.', named(b'_codecs', b'encode') + b'Nh\xc8\x86R.'


@pytest.mark.parametrize('call', HUGE)
def test_messages_about_small_files_are_small(call):
    with pytest.raises(pickles.Refused) as caught:
        pickles.load(PAIRS + call)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize('ending', [b'}h\xc8Ns.', b'}(h\xc8Nu.', b'(h\xc8Nd.', b'\x8f(h\xc8\x90.'])
def test_keys_that_take_for_ever_to_hash_are_refused(ending):
    with pytest.raises(pickles.Refused, match='keys are plain'):
        pickles.load(PAIRS + ending)


@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_keys_of_data_come_back(protocol):
    content = {('S1', 2): 1, 3: {4, (5, 'a')}, None: frozenset([6]), b'b': {'x': 1.5}}
    assert pickles.load(pickle.dumps(content, protocol)) == content


@pytest.mark.parametrize(
    'value, text',
    [
        ((1, 'a', b'b', None, 2.5), "(1, 'a', b'b', None, ...)"),
        (10**100, '<int of 333 bits>'),
        (np.zeros(3), '<ndarray>'),
        ([[[[1]]]], '[[[...]]]'),
        ('x' * 1000, 80),
    ],
)
def test_values_in_messages_are_short(value, text):
    found = pickles.short(value)
    assert found == text if isinstance(text, str) else len(found) == text
