"""tools/train_heads.py: its configs, and what a run that ended leaves for `trunchier report`."""

import json
from types import SimpleNamespace

import pytest
import torch
import train_heads
from mmengine.registry import MODELS, init_default_scope
from report import work_dirs

pytest.importorskip('mmpose.models')
pytest.importorskip('smplx')


@pytest.fixture
def args(tmp_path):
    return SimpleNamespace(
        train=tmp_path / 'train.npz', test=tmp_path / 'test.npz', out=tmp_path, num=8, steps=20
    )


@pytest.mark.parametrize('name', ['swin-t-s4', 'gmf-t-s3', 'vm-t-s2'])
def test_head_and_whole_model_are_of_one_kind(name, args, tmp_path):
    cfg = train_heads.whole_cfg(name, tmp_path / 'pose.pth', args)
    found = train_heads.head_cfg(cfg, tmp_path / 'features', 20)
    init_default_scope('mmpose')
    with torch.device('meta'):
        whole, alone = MODELS.build(cfg.model), MODELS.build(found.model)
    shapes = [
        {key: value.shape for key, value in model.head.state_dict().items()}
        for model in (whole, alone)
    ]
    assert shapes[0] == shapes[1] and len(shapes[0]) > 10
    assert not hasattr(alone, 'neck') and not [*alone.backbone.parameters()]
    assert cfg.train_dataloader.dataset.datasets[0].img_dir == str(tmp_path / 'train/images')
    assert cfg.test_dataloader.dataset.datasets[0].ann_file == str(tmp_path / 'test.npz')
    assert [each.end for each in found.param_scheduler] == [2, 20]


def test_a_run_that_ended_is_read_and_not_repeated(args, tmp_path, monkeypatch):
    run = tmp_path / 'runs/vm-t-s2-seed0'
    run.mkdir(parents=True)
    (run / 'td-hm_vm-t-s2_seed0.py').write_text('model = None\n')
    cfg = train_heads.whole_cfg('vm-t-s2', run / 'iter_2.pth', args)
    pose = MODELS.build(dict(cfg.model, init_cfg=None))
    torch.save(dict(state_dict=pose.state_dict()), run / 'iter_2.pth')
    (run / 'last_checkpoint').write_text(str(run / 'iter_2.pth'))
    head = tmp_path / 'vm-t-s2/head'
    (head / '20260101_000000/vis_data').mkdir(parents=True)
    scores = dict.fromkeys(train_heads.SCORES, 12.34)
    lines = [dict(loss=1.0), scores]
    (head / '20260101_000000/vis_data/scalars.json').write_text('\n'.join(map(json.dumps, lines)))
    own = {f'head.{key}': value + 1 for key, value in pose.head.state_dict().items()}
    torch.save(dict(state_dict=own), head / 'iter_20.pth')
    monkeypatch.setattr(train_heads, 'call', None)
    row = train_heads.train(run, args)
    assert train_heads.table([row]).endswith('| vm-t-s2 | 12.3 | 12.3 | 12.3 | 12.3 |\n')
    assert work_dirs.model_of(tmp_path / 'vm-t-s2') == 'VMHMR2.0-T-S2'
    config, checkpoint = work_dirs.checkpoint_of(tmp_path / 'vm-t-s2')
    assert config.name == 'hmr2_vm-t-s2_frozen.py'
    joined = torch.load(checkpoint, weights_only=True)['state_dict']
    assert torch.equal(joined['head.token'], pose.head.token + 1)
    assert torch.equal(joined['neck.proj.weight'], pose.neck.proj.weight)
