"""Stored features: what comes back, in which order, what is refused, and a head that learns."""

import join_head
import numpy as np
import pytest
import small_trainings
import store_features
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.runner import Runner
from people import write_shards
from safetensors.numpy import load_file, save_file

from trunchier.conventions import TARGETS
from trunchier.datasets import FeaturePeople
from trunchier.datasets.features import PATTERN, shard_path
from trunchier.weights.load import read_weights

pytest.importorskip('mmpose.models')
pytest.importorskip('smplx')


@pytest.fixture
def config(tmp_path):
    """Path of a small mesh model's config, with an encoder that has weights."""
    write_shards(tmp_path / 'shards')
    cfg = small_trainings.mesh(tmp_path)
    torch.manual_seed(0)
    init_default_scope('mmpose')
    torch.save(MODELS.build(cfg.model).state_dict(), tmp_path / 'encoder.pth')
    cfg.model.init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'encoder.pth'))
    cfg.dump(tmp_path / 'mesh.py')
    return tmp_path / 'mesh.py'


@pytest.fixture
def store(config, monkeypatch):
    """Stores features of the config with shards of four samples; returns their folder."""
    monkeypatch.setattr(store_features, 'SAMPLES', 4)

    def run(*options, folder='stored'):
        out = config.with_name(folder)
        arguments = [str(config), '--out', str(out), '--workers', '0', '--device', 'cpu']
        store_features.main([*arguments, *map(str, options)])
        return out

    return run


def built(config):
    cfg = Config.fromfile(config)
    model = MODELS.build(cfg.model)
    model.init_weights()
    return cfg, model.eval()


def test_features_and_targets_of_a_stream_come_back(store, config):
    people = FeaturePeople(store('--num', 10, '--seed', 3, '--batch-size', 3))
    cfg, model = built(config)
    stream = DATASETS.build(cfg.train_dataloader.dataset)
    assert len(people) == 10
    for index in (0, 3, 4, 9):
        found, packed = people[index], stream[3, index]
        with torch.no_grad():
            images = model.data_preprocessor(
                dict(inputs=[packed['inputs']], data_samples=[packed['data_samples']])
            )
            exact = model.extract_feat(images['inputs'])[-1][0]
        assert found['inputs'].dtype == torch.float16
        torch.testing.assert_close(found['inputs'].float(), exact, rtol=2e-3, atol=2e-3)
        fields, kept = packed['data_samples'].gt_instances, found['data_samples'].gt_instances
        for name in (*TARGETS, 'keypoints', 'bboxes', 'real_body_pose'):
            np.testing.assert_array_equal(kept[name], fields[name])
        assert found['data_samples'].key == packed['data_samples'].key
        np.testing.assert_allclose(
            found['data_samples'].input_center, packed['data_samples'].input_center
        )


def test_storing_goes_on_and_is_shared(store):
    whole = store('--num', 10)
    shared = store('--num', 10, '--first', 8, folder='shared')
    assert [path.name for path in shared.glob(PATTERN)] == [shard_path('', 2).name]
    store('--num', 10, folder='shared')
    for path in sorted(whole.glob(PATTERN)):
        other = load_file(shared / path.name)
        for name, array in load_file(path).items():
            np.testing.assert_array_equal(array, other[name])


def test_a_stream_of_positions_shows_everyone_once_a_pass(store):
    people = FeaturePeople(store('--num', 6))
    keys = [people[index]['data_samples'].warp for index in range(6)]
    for first in (0, 6):
        shown = [people[7, first + step]['data_samples'].warp for step in range(6)]
        assert sorted(shown) == sorted(keys)


@pytest.fixture
def head(store, config, tmp_path):
    """Checkpoint of a head that was trained on features alone."""
    cfg, _ = built(config)
    cfg.model.data_preprocessor = dict(type='PoseDataPreprocessor')
    cfg.model.backbone = dict(type='StoredFeatures')
    cfg.model.neck = cfg.model.init_cfg = None
    cfg.train_dataloader.update(num_workers=0, persistent_workers=False)
    cfg.train_dataloader.dataset = dict(type='FeaturePeople', folder=str(store('--num', 8)))
    cfg.work_dir = str(tmp_path / 'run')
    Runner.from_cfg(cfg).train()
    return tmp_path / 'run/iter_8.pth'


def test_a_head_learns_on_features_and_joins_its_encoder(head, config, tmp_path):
    cfg, model = built(config)
    trained = read_weights(head)['state_dict']
    assert {name.split('.')[0] for name in trained} == {'head', 'discriminator'}
    join_head.main([str(config), str(head), str(tmp_path / 'whole.pth')])
    joined, own = read_weights(tmp_path / 'whole.pth')['state_dict'], model.state_dict()
    assert joined.keys() == own.keys()
    for name, value in joined.items():
        of_head = name.startswith('head.')
        torch.testing.assert_close(value, trained[name] if of_head else own[name], rtol=0, atol=0)
    assert (joined['head.token'] != own['head.token']).any()


def test_only_a_head_that_fits_is_joined(head, config, tmp_path):
    cfg, model = built(config)
    out = tmp_path / 'whole.pth'
    with pytest.raises(SystemExit, match='expected a head alone'):
        join_head.main([str(config), str(tmp_path / 'encoder.pth'), str(out)])
    other = built(config)[1].state_dict()
    other['neck.proj.weight'] += 1
    torch.save(other, tmp_path / 'other.pth')
    changed = f'model.init_cfg.checkpoint={tmp_path / "other.pth"}'
    with pytest.raises(SystemExit, match='was trained on features of TruncatedSwin .* has Trunc'):
        join_head.main([str(config), str(head), str(out), '--cfg-options', changed])
    cfg.model.head.update(depth=2)
    with pytest.raises(ValueError, match='does not fit the config'):
        join_head.join(cfg, head, out)
    assert not out.exists()


def test_an_encoder_is_not_mixed_with_another(store, config, tmp_path):
    out = store('--num', 4)
    torch.manual_seed(1)
    cfg = Config.fromfile(config)
    torch.save(MODELS.build(cfg.model).state_dict(), tmp_path / 'encoder.pth')
    with pytest.raises(SystemExit, match='of the encoder .* not of'):
        store('--num', 8)
    other = store('--num', 8, folder='other')
    shard_path(other, 0).unlink()
    shard_path(out, 0).rename(shard_path(other, 0))
    with pytest.raises(ValueError, match='features-00001.safetensors is of'):
        len(FeaturePeople(other))


def test_bad_folders_and_files_are_named(store, tmp_path):
    with pytest.raises(FileNotFoundError, match=r'no features in .*store_features\.py'):
        len(FeaturePeople(tmp_path / 'nothing'))
    path = shard_path(store('--num', 4), 0)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match='is cut off'):
        len(FeaturePeople(path.parent))
    with pytest.raises(SystemExit, match='is cut off'):
        store('--num', 4)
    save_file(dict(other=np.zeros(3)), path)
    with pytest.raises(ValueError, match='holds no stored features'):
        len(FeaturePeople(path.parent))
    maps = np.zeros((2, 1, 4, 3), np.float16)
    save_file(dict(features=maps), path, dict(origin='x', samples='[{}]'))
    with pytest.raises(ValueError, match='describes 1 samples, but has'):
        len(FeaturePeople(path.parent))


def test_what_to_store_is_one_thing(config, capsys):
    for options in ([], ['--num', '4', '--test']):
        with pytest.raises(SystemExit):
            store_features.main([str(config), '--out', 'x', *options])
        assert 'give --num' in capsys.readouterr().err
