"""Every model of the zoo: its config, its backbone, its gradients."""

from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from trunchier import zoo
from trunchier.zoo.releases import RELEASES

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = dict(pose='pose2d', mesh='mesh')
pytest.importorskip('mmpose')


def build(name, task, part=None):
    """The model of a leaf config, or a part of it, on the meta device: shapes, but no numbers."""
    cfg = Config.fromfile(ROOT / zoo.config_path(name, task))
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        model = MODELS.build(cfg.model[part] if part else cfg.model)
    return model.to('meta')


def test_there_are_31_encoders():
    assert len(zoo.ENCODERS) == 31
    assert sum(row.num_stages is not None for row in zoo.ENCODERS.values()) == 27


@pytest.mark.parametrize('task', zoo.TASKS)
def test_leaves_are_the_zoo(task):
    leaves = {
        str(path.relative_to(ROOT)) for path in (ROOT / 'configs' / FOLDERS[task]).glob('*.py')
    }
    assert leaves == {zoo.config_path(name, task) for name in zoo.ENCODERS}


@pytest.mark.parametrize('task', zoo.TASKS)
def test_a_leaf_states_only_a_difference(task):
    for name in zoo.ENCODERS:
        assert len((ROOT / zoo.config_path(name, task)).read_text().splitlines()) <= 5


@pytest.mark.parametrize('task', zoo.TASKS)
def test_model_index_knows_every_paper_name(task):
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
    path = f'configs/{FOLDERS[task]}/metafile.yml'
    assert path in index
    models = {m['Alias']: m for m in yaml.safe_load((ROOT / path).read_text())['Models']}
    assert set(models) == {zoo.paper_name(name, task) for name in zoo.ENCODERS}
    for name in zoo.ENCODERS:
        model = models[zoo.paper_name(name, task)]
        assert model['Config'] == zoo.config_path(name, task)
        assert model['Name'] == Path(model['Config']).stem


@pytest.mark.parametrize('name', zoo.ENCODERS)
def test_pose_models_are_their_rows_and_every_parameter_learns(name):
    model, row = build(name, 'pose').train(), zoo.ENCODERS[name]
    feats = model.backbone(torch.empty(2, 3, 128, 96, device='meta'))
    assert feats[0].shape == (2, row.channels, 128 // row.stride, 96 // row.stride)
    if row.num_stages is not None:
        feats = model.neck(feats)
    assert feats[0].shape == (2, row.decoder_channels, 8, 6)
    heatmaps = model.head(feats)
    assert heatmaps.shape == (2, 17, 32, 24)
    heatmaps.sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize('name', zoo.ENCODERS)
def test_every_parameter_of_a_mesh_model_learns(name):
    head, judge = build(name, 'mesh', 'head'), build(name, 'mesh', 'discriminator')
    channels = zoo.ENCODERS[name].decoder_channels
    pred = head(torch.empty(2, channels, 16, 12, device='meta'))
    assert pred['body_pose'].shape == (2, 23, 3, 3)
    scores = judge(pred['body_pose'], pred['betas'])
    (sum(value.sum() for value in pred.values()) + scores.sum()).backward()
    for part in (head, judge):
        assert [n for n, p in part.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize('task', ['depth', 'Pose'])
def test_unknown_task_is_named(task):
    with pytest.raises(ValueError, match=f'{task}.*pose, mesh'):
        zoo.model_cfg('swin-t-s3', task)


def test_unknown_encoder_lists_the_known():
    with pytest.raises(ValueError, match="'swin-t-s5'.*swin-t-s3"):
        zoo.model_cfg('swin-t-s5')


def test_paper_names():
    assert zoo.paper_name('swin-t-s3', 'pose') == 'SwinPose-T-S3'
    assert zoo.paper_name('vm-b-s2', 'mesh') == 'VMHMR2.0-B-S2'
    assert zoo.paper_name('vit-h', 'pose') == 'ViTPose-H'
    assert zoo.paper_name('vit-h', 'mesh') == 'HMR2.0-H'


def test_metafiles_name_the_official_weights_that_have_an_address():
    folder = Path(__file__).resolve().parents[2] / 'configs'
    for task, row in zoo.TASKS.items():
        text = (folder / row.folder / 'metafile.yml').read_text()
        models = {model['Alias']: model['Weights'] for model in yaml.safe_load(text)['Models']}
        expected = {
            name: RELEASES[name].urls[0] if name in RELEASES and RELEASES[name].urls else None
            for name, (_, own) in zoo.models().items()
            if own == task
        }
        archives = {name for name in expected if name in RELEASES and RELEASES[name].member}
        assert models == expected | dict.fromkeys(archives)
