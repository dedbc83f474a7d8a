"""Files of torch.save are read without torch.load: tensors as they were, and what mmengine adds."""

import pickle
import zipfile
from collections import Counter, defaultdict, deque
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer

from trunchier.files.pickles import Refused
from trunchier.weights.checkpoint import STORAGES, read_checkpoint

DTYPES = sorted(set(STORAGES.values()), key=str)


def saved(path, content, legacy=False):
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


@pytest.fixture(params=[False, True], ids=['zip', 'legacy'])
def legacy(request):
    return request.param


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
def test_tensors_of_every_kind_come_back(tmp_path, dtype, legacy):
    whole = torch.arange(-5, 19).reshape(4, 6).to(dtype)
    content = dict(whole=whole, empty=whole[:0], number=whole[1, 1], turned=whole.t()[1:, ::2])
    found = read_checkpoint(saved(tmp_path / 'a.pth', content, legacy))
    for name, tensor in content.items():
        assert torch.equal(found[name], tensor) and found[name].dtype == dtype
        assert found[name].stride() == tensor.stride()


def test_views_share_their_storage_as_they_did(tmp_path, legacy):
    weight = torch.zeros(3, 4)
    path = saved(tmp_path / 'a.pth', dict(a=weight, b=weight[1:], c=[weight]), legacy)
    found = read_checkpoint(path)
    found['a'][1] = 7
    assert found['b'][0].tolist() == [7] * 4 and found['c'][0][1].tolist() == [7] * 4


def test_parameters_states_and_plain_data_come_back(tmp_path, legacy):
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(4, 2)).sum().backward()
    optimizer.step()
    content = dict(
        state_dict=model.state_dict(),
        parameter=torch.nn.Parameter(torch.ones(2)),
        optimizer=optimizer.state_dict(),
        meta=dict(epoch=3, time='now', size=torch.Size([1, 2]), device=torch.device('cpu')),
        kinds=[torch.float32, {1, 2}, (3, None), b'four', 5j, Counter({6: 7}), deque([8], 9)],
    )
    found = read_checkpoint(saved(tmp_path / 'a.pth', content, legacy))
    model.load_state_dict(found['state_dict'])
    assert found['state_dict']._metadata == content['state_dict']._metadata
    optimizer.load_state_dict(found['optimizer'])
    assert torch.equal(found['parameter'], torch.ones(2))
    assert found['meta'] == content['meta'] and found['kinds'] == content['kinds']


def checkpoint_content():
    """What mmengine's Runner.save_checkpoint puts beside the weights."""
    losses = HistoryBuffer([0.5, 0.25], [1, 1])
    return {
        'state_dict': {'weight': torch.ones(2)},
        'message_hub': {
            'log_scalars': {'train/loss': losses, 'val/coco/AP': HistoryBuffer([0.1], [1])},
            'runtime_info': {'best_score': np.float64(0.5), 'iter': np.int64(3), 'mode': 'train'},
        },
        'meta': {
            'dataset_meta': {
                'sigmas': np.array([0.026, 0.025], dtype=np.float32),
                'skeleton': [(0, 1)],
                'names': np.array(['nose', 'eye']),
                'flip': np.array([[True]]),
                'colours': np.array([[51, 153, 255]], dtype=np.uint8),
            }
        },
    }


def same_as_written(found):
    losses = found['message_hub']['log_scalars']['train/loss']
    assert type(losses) is HistoryBuffer
    assert (losses.mean(), losses.current(), losses.max()) == (0.375, 0.25, 0.5)
    assert found['message_hub']['runtime_info']['best_score'] == 0.5
    wanted = checkpoint_content()['meta']['dataset_meta']
    for key in ('sigmas', 'names', 'flip', 'colours'):
        np.testing.assert_array_equal(found['meta']['dataset_meta'][key], wanted[key])
        assert found['meta']['dataset_meta'][key].dtype == wanted[key].dtype
    return True


def test_a_checkpoint_of_mmengine_is_read(tmp_path, legacy):
    path = saved(tmp_path / 'epoch_1.pth', checkpoint_content(), legacy)
    assert same_as_written(read_checkpoint(path))


@pytest.mark.parametrize('core', ['core', '_core'], ids=['numpy 1', 'numpy 2'])
def test_a_checkpoint_is_read_whichever_numpy_it_was_written_under(tmp_path, core):
    path = saved(tmp_path / 'a.pth', checkpoint_content(), legacy=True)
    content = path.read_bytes()
    for written in (b'cnumpy.core.', b'cnumpy._core.'):
        content = content.replace(written, f'cnumpy.{core}.'.encode())
    assert f'cnumpy.{core}.multiarray\n_reconstruct'.encode() in content
    path.write_bytes(content)
    assert same_as_written(read_checkpoint(path))


def test_a_resumed_history_goes_on(tmp_path):
    path = saved(tmp_path / 'a.pth', {'loss': HistoryBuffer([1.0, 3.0], [1, 1], max_length=2)})
    buffer = read_checkpoint(path)['loss']
    buffer.update(5.0)
    assert buffer.data[0].tolist() == [3.0, 5.0]


@pytest.mark.parametrize('dtype', [torch.float32, torch.int64], ids=str)
def test_torch_load_agrees(tmp_path, dtype, legacy):
    content = [torch.randn(5, 3).to(dtype), torch.randn(2).expand(4, 2)]
    path = saved(tmp_path / 'a.pth', content, legacy)
    for ours, theirs in zip(read_checkpoint(path), torch.load(path), strict=True):
        assert torch.equal(ours, theirs) and ours.stride() == theirs.stride()


def test_only_the_storages_that_are_used_are_read(tmp_path):
    """As torch does: a member of a zip file that no tensor names is left alone."""
    path = saved(tmp_path / 'a.pth', dict(a=torch.ones(2)))
    with zipfile.ZipFile(path, 'a') as archive:
        archive.writestr('a/data/9', bytes(8))
    assert read_checkpoint(path)['a'].tolist() == [1, 1]


def test_a_plain_pickle_is_no_checkpoint(tmp_path):
    (tmp_path / 'a.pth').write_bytes(pickle.dumps(dict(state_dict={})))
    with pytest.raises(pickle.UnpicklingError, match='not a file of torch.save'):
        read_checkpoint(tmp_path / 'a.pth')


def largest(history, window_size=None):
    return max(history.data[0])


def forbidden():
    """A function that no file may name."""


class Code:
    """Pickled as a call of `forbidden`."""

    def __reduce__(self):
        return forbidden, ()


def test_what_configs_and_users_leave_beside_the_weights_becomes_plain_data(tmp_path, legacy):
    lists = defaultdict(list)
    lists['a'].append(1)
    content = dict(
        config=ConfigDict(skeleton=dict(link=[0, 1])),
        lists=lists,
        path=Path('/data/coco'),
        part=slice(1, 3),
        time=datetime(2026, 1, 2, 3, 4, 5),
    )
    assert read_checkpoint(saved(tmp_path / 'a.pth', content, legacy)) == dict(
        config=dict(skeleton=dict(link=[0, 1])),
        lists=dict(a=[1]),
        path='/data/coco',
        part=slice(1, 3),
        time=datetime(2026, 1, 2, 3, 4, 5),
    )


def test_a_history_is_read_without_the_statistics_of_its_user(tmp_path, legacy, monkeypatch):
    monkeypatch.setattr(
        HistoryBuffer, '_statistics_methods', dict(HistoryBuffer._statistics_methods)
    )
    HistoryBuffer.register_statistics(largest)
    path = saved(tmp_path / 'a.pth', [HistoryBuffer([3.0, 1.0], [1, 1])], legacy)
    assert b'largest' in path.read_bytes()
    (history,) = read_checkpoint(path)
    assert history.statistics('largest') == 3.0  # registered in this process


@pytest.mark.parametrize(
    'content',
    [forbidden, [largest], dict(a=Code()), {'k': (Code(),)}],
    ids=['function', 'list', 'call', 'tuple'],
)
def test_other_names_are_refused_wherever_they_stand(tmp_path, content, legacy):
    history = HistoryBuffer([1.0], [1])
    history.extra = content if isinstance(content, dict) else None  # a state that is not read
    path = saved(tmp_path / 'a.pth', [history, content], legacy)
    with pytest.raises(Refused, match='forbidden class .*(forbidden|largest)'):
        read_checkpoint(path)
