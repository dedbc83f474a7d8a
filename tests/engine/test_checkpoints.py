"""Which checkpoint a training resumes from."""

import logging
import os
import pickle

import pytest
import torch
from mmengine.logging import MMLogger

from trunchier.engine.checkpoints import WholeFileBackend, newest_checkpoint

CONTENT = dict(meta={}, state_dict={}, message_hub={}, optimizer={})


def save(folder, *numbers):
    """Checkpoints, each written a second after the one before; the pointer to the last."""
    for time, number in enumerate(numbers):
        path = folder / f'epoch_{number}.pth'
        torch.save(CONTENT, path)
        os.utime(path, (time, time))
    (folder / 'last_checkpoint').write_text(str(path))


def newest(folder):
    found = newest_checkpoint(folder, 'epoch_{}.pth')
    return found and os.path.relpath(found, folder)


def test_the_last_one_is_the_newest(tmp_path):
    save(tmp_path, 1, 2, 10)
    assert newest(tmp_path) == 'epoch_10.pth'


def test_a_later_one_to_which_nothing_points_yet_is_newer(tmp_path):
    save(tmp_path, 1, 2, 10)
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_2.pth'))
    assert newest(tmp_path) == 'epoch_10.pth'


def test_a_higher_number_of_a_former_run_is_not_newer(tmp_path):
    save(tmp_path, 210, 1, 2)
    assert newest(tmp_path) == 'epoch_2.pth'


@pytest.mark.parametrize('pointer', ['', 'epoch_9.pth', '\0\xff', None])
def test_a_pointer_that_says_nothing_is_ignored(tmp_path, pointer):
    save(tmp_path, 1, 2)
    if pointer is None:
        (tmp_path / 'last_checkpoint').unlink()
    else:
        (tmp_path / 'last_checkpoint').write_text(pointer)
    assert newest(tmp_path) == 'epoch_2.pth'


def test_a_folder_may_be_moved(tmp_path):
    (tmp_path / 'old').mkdir()
    save(tmp_path / 'old', 1, 2)
    (tmp_path / 'old').rename(tmp_path / 'new')
    assert newest(tmp_path / 'new') == 'epoch_2.pth'


@pytest.fixture
def logged():
    """The warnings that mmengine's logger gets."""
    messages, handler = [], logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


def torn(path):
    path.write_bytes(path.read_bytes()[:-100])


def without_optimizer(path):
    content = {key: value for key, value in CONTENT.items() if key != 'optimizer'}
    torch.save(content, path)


@pytest.mark.parametrize(
    ('spoil', 'reason'),
    [
        (torn, ''),
        (lambda path: path.write_bytes(b''), ''),
        (lambda path: path.write_bytes(pickle.dumps([1])), ''),
        (without_optimizer, "without .'optimizer'"),
    ],
)
def test_what_cannot_be_resumed_is_passed_over_and_named(tmp_path, logged, spoil, reason):
    save(tmp_path, 1, 2, 3)
    spoil(tmp_path / 'epoch_3.pth')
    assert newest(tmp_path) == 'epoch_2.pth'
    (message,) = logged
    assert message.startswith(f'passed over {tmp_path / "epoch_3.pth"}: ')
    spoil(tmp_path / 'epoch_2.pth')
    spoil(tmp_path / 'epoch_1.pth')
    with pytest.raises(RuntimeError, match=rf'no checkpoint can be read.*epoch_1\.pth: .*{reason}'):
        newest(tmp_path)


def test_without_any_checkpoint_training_begins(tmp_path):
    assert newest(tmp_path) is None


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    backend = WholeFileBackend()
    backend.put(b'first', tmp_path / 'file')
    with pytest.raises(TypeError):
        backend.put(object(), tmp_path / 'file')
    assert (tmp_path / 'file').read_bytes() == b'first'
    assert [path.name for path in tmp_path.iterdir()] == ['file']
