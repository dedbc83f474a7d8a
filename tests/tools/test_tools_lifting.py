"""The configs of configs/pose3d train and test by the tools, on videos drawn here."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from lifters import golden_checkpoint, lifter
from mmengine.config import Config
from test_tools_train import run_tool

from trunchier.datasets import mpi_inf_3dhp_sequences
from trunchier.weights.load import load_checkpoint

pytest.importorskip('mmpose')
ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / 'configs' / 'pose3d').glob('*.py'))
FRAMES = 18


def write_video(folder, names, root):
    """Annotations of a person who waves for 18 frames, in mmpose's layout, and a camera's file."""
    rng = np.random.default_rng(0)
    pose = rng.normal(0, 0.3, (1, 17, 3)) + [0, 0, 4]
    joints = pose + 0.1 * np.sin(np.arange(FRAMES)[:, None, None] / 3 + rng.normal(0, 1, (17, 3)))
    joints[:, root] = pose[:, root]
    keypoints = 500 + 1000 * joints[..., :2] / joints[..., 2:]
    ones = np.ones((FRAMES, 17, 1))
    content = dict(S=np.concatenate((joints, ones), 2), part=np.concatenate((keypoints, ones), 2))
    content |= dict(center=np.full((FRAMES, 2), 500.0), scale=np.ones(FRAMES), imgname=names)
    np.savez(folder / 'video.npz', **content)
    camera = dict(w=1000, h=1000, f=np.full((2, 1), 1000.0), c=np.full((2, 1), 500.0))
    (folder / 'cameras.pkl').write_bytes(pickle.dumps({('S1', '54138969'): camera}))


def little(path, folder):
    """A config with a model and windows of 9 frames, for the video in `folder`."""
    config = Config.fromfile(path)
    backbone = config.model.backbone
    network = backbone.get('backbone', backbone)
    if network.type == 'DSTFormer':
        network.update(feat_size=16, depth=4, seq_len=9)
    else:
        network.update(width=16, depth=4, num_heads=2, seq_len=9)
    if 'schedule' in backbone:
        backbone.schedule = {1: 7, 3: 3}
    head = config.model.head
    head.update(in_channels=16, embedding_size=head.get('embedding_size') and 16)
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        dataset = loader.dataset
        dataset.update(data_root=str(folder), ann_file='video.npz')
        if dataset.camera_param_file:
            dataset.camera_param_file = 'cameras.pkl'
        if dataset.multiple_target:
            dataset.update(multiple_target=9, multiple_target_step=9)
        else:
            dataset.seq_len = 9
        loader.update(num_workers=0, persistent_workers=False, batch_size=2)
    config.train_cfg.update(max_epochs=1, val_interval=5)
    config.default_hooks.checkpoint.interval = 1
    config.dump(folder / 'little.py')
    return folder / 'little.py'


NAMES = {
    'h36m': [f'S1_Walk_1.54138969_{frame:06}.jpg' for frame in range(FRAMES)],
    '3dhp': [f'TS1_{frame:06}.jpg' for frame in range(FRAMES)],
}


FAST = 'mixste_tpc-n7f61_243frm_h36m', 'mixste_243frm_mpi-inf-3dhp'


@pytest.mark.parametrize(
    'path',
    [
        pytest.param(path, id=path.stem, marks=[] if path.stem in FAST else pytest.mark.slow)
        for path in CONFIGS
    ],
)
def test_lifters_train_and_are_tested(path, tmp_path):
    kind = path.stem[-4:]
    write_video(tmp_path, NAMES[kind], 14 if kind == '3dhp' else 0)
    config = little(path, tmp_path)
    run_tool('train', config, cwd=tmp_path)
    checkpoint = tmp_path / 'work_dirs/little/epoch_1.pth'
    run_tool('test', config, checkpoint, '--out', 'metrics.json', cwd=tmp_path)
    metrics = json.loads((tmp_path / 'metrics.json').read_text())
    assert metrics['track_3d/MPJPE'] == pytest.approx(1000 * metrics['MPJPE'], rel=1e-5)
    assert metrics['track_3d/PA-MPJPE'] == pytest.approx(1000 * metrics['P-MPJPE'], rel=1e-3)
    assert 0 < metrics['track_3d/MPJVE'] < 200 and 0 < metrics['track_3d/ACC-ERR'] < 200
    assert metrics['track_3d/jitter of truth'] > 0


def test_an_official_file_is_tested_by_its_path(tmp_path):
    write_video(tmp_path, NAMES['h36m'], 0)
    path = little(ROOT / 'configs/pose3d/mixste_243frm_h36m.py', tmp_path)
    config = Config.fromfile(path)
    config.model.backbone = dict(type='MixSTE', depth=1, seq_len=9)
    config.model.head.in_channels = 512
    config.dump(path)
    model = lifter(config.model.backbone)
    official = golden_checkpoint(model, 'mixste_keys', tmp_path)
    load_checkpoint(model, official)
    torch.save(model.state_dict(), tmp_path / 'ours.pth')
    for name in (official, 'ours.pth'):
        run_tool('test', path, name, '--out', f'{Path(name).stem}.json', cwd=tmp_path)
    metrics = [json.loads((tmp_path / f'{name}.json').read_text()) for name in ('official', 'ours')]
    assert metrics[0] == metrics[1] and metrics[0]['MPJPE'] > 0


def test_videos_of_mpi_inf_3dhp_are_cut_into_windows(tmp_path):
    training = [f'S2_Seq1_Cam4_{frame:06}.jpg' for frame in range(9)]
    names = training + [f'TS5_{frame:06}.jpg' for frame in range(9)]
    write_video(tmp_path, names, 14)
    path = str(tmp_path / 'video.npz')
    dataset = mpi_inf_3dhp_sequences(ann_file=path, multiple_target=4, pipeline=[])
    first, last = dataset[0], dataset[3]
    assert len(dataset) == 4 and [Path(name).name for name in last['img_paths']] == names[13:17]
    assert first['camera_param'] == dict(w=2048, h=2048)
    assert last['camera_param'] == dict(w=1920, h=1080)
    assert np.array_equal(first['lifting_target'], np.load(path)['S'][:4, :, :3].astype('f4'))
    padded = dict(seq_len=9, causal=False, pad_video_seq=True)
    centered = mpi_inf_3dhp_sequences(ann_file=path, pipeline=[], **padded)
    assert len(centered) == 18 and centered[9]['img_paths'][:5] == names[9:10] * 5


def test_other_names_and_pickled_arrays_are_refused(tmp_path):
    write_video(tmp_path, [f'walk_{frame}.jpg' for frame in range(FRAMES)], 14)
    with pytest.raises(ValueError, match=r'walk_0.jpg is no frame of MPI-INF-3DHP; names are S1'):
        mpi_inf_3dhp_sequences(ann_file=str(tmp_path / 'video.npz'), multiple_target=9)
    np.savez(tmp_path / 'pickled.npz', imgname=np.array([{}], object))
    with pytest.raises(ValueError, match='holds objects'):
        mpi_inf_3dhp_sequences(ann_file=str(tmp_path / 'pickled.npz'), multiple_target=9)
