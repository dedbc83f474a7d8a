"""Files and folders appear complete or not at all; a missing package is named with its remedy."""

import errno
import os
import sys

import numpy as np
import pytest

from trunchier.files import need, save_npz, whole_file, whole_folder


def test_a_file_appears_when_it_is_complete(tmp_path):
    path = tmp_path / 'new' / 'a.txt'
    with whole_file(path) as part:
        part.write_text('1')
        assert part.suffix == '.txt' and not path.exists()
    assert path.read_text() == '1' and [*path.parent.iterdir()] == [path]


def test_a_failure_leaves_the_old_file(tmp_path):
    path = tmp_path / 'a.txt'
    path.write_text('old')
    with pytest.raises(RuntimeError), whole_file(path) as part:
        part.write_text('half')
        raise RuntimeError
    assert path.read_text() == 'old' and [*tmp_path.iterdir()] == [path]


def test_a_folder_appears_when_it_is_complete(tmp_path):
    with whole_folder(tmp_path / 'set') as part:
        (part / 'a').touch()
        assert not (tmp_path / 'set').exists()
    assert [p.name for p in tmp_path.rglob('*')] == ['set', 'a']


def test_a_failure_leaves_no_folder(tmp_path):
    with pytest.raises(RuntimeError), whole_folder(tmp_path / 'set') as part:
        (part / 'a').touch()
        raise RuntimeError
    assert not any(tmp_path.iterdir())


def test_a_folder_with_content_is_not_replaced(tmp_path):
    (tmp_path / 'set').mkdir()
    (tmp_path / 'set' / 'mine').touch()
    with pytest.raises(OSError), whole_folder(tmp_path / 'set') as part:
        (part / 'a').touch()
    assert [p.name for p in tmp_path.rglob('*')] == ['set', 'mine']


def test_arrays_are_written_without_pickles(tmp_path):
    save_npz(tmp_path / 'a.npz', x=np.arange(3))
    with np.load(tmp_path / 'a.npz', allow_pickle=False) as file:
        assert file['x'].tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="array 'x' holds Python objects"):
        save_npz(tmp_path / 'b.npz', x=np.array([None]))
    assert not (tmp_path / 'b.npz').exists()


def test_a_missing_package_is_named_with_its_remedy():
    assert need('json', 'reading') is __import__('json')
    with pytest.raises(ImportError, match='drawing needs no_such: pip install no_such'):
        need('no_such.part', 'drawing')
    with pytest.raises(ImportError, match='drawing needs no_such: see README'):
        need('no_such', 'drawing', 'see README')


def test_the_remedy_for_a_package_of_an_extra_is_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, 'av', None)
    with pytest.raises(ImportError, match=r"videos needs av: pip install 'trunchier\[video\]'"):
        need('av', 'videos')


# --- What others do meanwhile, or have left -------------------------------------------------------
def test_what_a_killed_process_left_is_taken_over(tmp_path):
    (tmp_path / '.a.part.txt').write_text('half')
    (tmp_path / '.set.part' / 'images').mkdir(parents=True)
    (tmp_path / '.set.part' / 'b').touch()
    with whole_file(tmp_path / 'a.txt') as part:
        part.write_text('1')
    with whole_folder(tmp_path / 'set') as part:
        assert not any(part.iterdir())
        (part / 'c').touch()
    assert sorted(p.name for p in tmp_path.rglob('*')) == ['a.txt', 'c', 'set']


def test_the_second_run_that_writes_a_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr('trunchier.files.whole.PATIENCE', 0)
    with whole_folder(tmp_path / 'set') as part:
        (part / 'a').touch()
        with (
            pytest.raises(FileExistsError, match='set is being written by another run'),
            whole_folder(tmp_path / 'set'),
        ):
            pass
    assert [p.name for p in tmp_path.rglob('*')] == ['set', 'a']


@pytest.mark.parametrize('whole', [whole_file, whole_folder])
def test_what_the_next_writer_begins_before_the_first_has_ended_stays(whole, tmp_path, monkeypatch):
    replace, second = os.replace, []

    def slow(part, path):
        replace(part, path)
        if not second:
            second.append(whole(path))
            second.append(second[0].__enter__())

    monkeypatch.setattr(os, 'replace', slow)
    with whole(tmp_path / 'b') as first:
        first.touch()
    writer, part = second
    assert part == first and part.exists()
    (part if whole is whole_file else part / 'c').write_text('2')
    writer.__exit__(None, None, None)
    assert [path.name for path in tmp_path.iterdir()] == ['b']


def test_of_two_that_write_a_file_the_last_one_wins(tmp_path):
    with whole_file(tmp_path / 'a.txt') as one:
        one.write_text('1')
        with whole_file(tmp_path / 'a.txt') as other:
            other.write_text('2')
        assert (tmp_path / 'a.txt').read_text() == '2'
    assert (tmp_path / 'a.txt').read_text() == '1'
    assert [p.name for p in tmp_path.iterdir()] == ['a.txt']


def test_a_name_of_the_greatest_length_is_written(tmp_path):
    path = tmp_path / ('ü' * 125 + '.json')  # 255 bytes
    with whole_file(path) as part:
        part.write_text('1')
    assert [*tmp_path.iterdir()] == [path]


def test_an_error_of_writing_names_the_file(tmp_path):
    for whole in (whole_file, whole_folder):
        with (
            pytest.raises(OSError, match="No space left on device: '.*/a.b'") as caught,
            whole(tmp_path / 'a.b'),
        ):
            raise OSError(errno.ENOSPC, 'No space left on device')
        assert caught.value.errno == errno.ENOSPC
    assert not any(tmp_path.iterdir())
