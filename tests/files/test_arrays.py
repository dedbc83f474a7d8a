"""Arrays of .npz files: those that are asked for, or an error that names the file."""

import io
import zipfile

import numpy as np
import pytest

from trunchier.files import read_npz


def npz(**arrays):
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def with_header(text):
    """A member whose header holds `text`."""
    header = text.encode().ljust(118) + b'\n'
    member = b'\x93NUMPY\x01\x00' + len(header).to_bytes(2, 'little') + header
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as archive:
        archive.writestr('a.npy', member)
    return file.getvalue()


def test_arrays_are_read_by_name(tmp_path):
    (tmp_path / 'a.npz').write_bytes(npz(a=np.arange(3), b=np.array(['x']), c=np.ones(2)))
    assert read_npz(tmp_path / 'a.npz', ['a', 'b', 'z']).keys() == {'a', 'b'}
    assert read_npz(tmp_path / 'a.npz')['c'].tolist() == [1, 1]


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='absent.npz'):
        read_npz(tmp_path / 'absent.npz')


WHOLE = npz(a=np.arange(100))
WITH_OBJECTS = np.array([None, {}], dtype=object)
DAMAGED = {
    'empty': b'',
    'cut off': WHOLE[:-30],
    'changed': WHOLE[:60] + bytes(8) + WHOLE[68:],
    'objects': npz(a=WITH_OBJECTS),
    'no literal': with_header("{'descr': '<f8', 'shape': (3"),
    'no tokens': with_header("{'descr': '''"),
    'no shape': with_header("{'descr': '<f8', 'fortran_order': False, 'shape': 'a'}"),
    'endless': with_header("{'descr': '<f8', 'fortran_order': False, 'shape': (2**60,)}"),
    'nothing behind': with_header(
        "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }"
    ),
    'text': b'hello',
}  # fmt: skip


@pytest.mark.parametrize('name', DAMAGED)
def test_a_damaged_file_is_a_value_error_that_names_it(tmp_path, name):
    (tmp_path / 'a.npz').write_bytes(DAMAGED[name])
    with pytest.raises(ValueError, match=r'a\.npz is damaged, not an npz, or holds objects'):
        read_npz(tmp_path / 'a.npz')


def test_an_array_beyond_the_limit_is_not_unpacked(tmp_path):
    (tmp_path / 'a.npz').write_bytes(npz(a=np.zeros(2**17), b=np.zeros(2)))
    assert (tmp_path / 'a.npz').stat().st_size < 10_000
    with pytest.raises(ValueError, match=r'more than 1000000 bytes .*a.npy has 10487\d\d bytes'):
        read_npz(tmp_path / 'a.npz', max_bytes=10**6)
    assert read_npz(tmp_path / 'a.npz', ['b'], max_bytes=10**6)['b'].tolist() == [0, 0]
