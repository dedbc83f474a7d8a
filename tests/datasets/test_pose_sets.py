"""The data sets of ViTPose and ViTPose++, and the configs that train on them together."""

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, init_default_scope
from pose_sets import write_pose_sets
from small_models import ROOT

from trunchier import zoo
from trunchier.weights.experts import split_expert
from trunchier.weights.find import build_model

pytest.importorskip('mmpretrain')
import mmpose.datasets  # noqa: E402, F401  registers what the configs name

CONFIGS = sorted((ROOT / 'configs' / 'pose2d_sets').glob('*.py'))
PACK = dict(type='PackPoseInputs', meta_keys=('dataset_name',))
PIPELINE = [dict(type='LoadImage'), dict(type='GetBBoxCenterScale'), PACK]


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    root = tmp_path_factory.mktemp('sets')
    return f'{root}/', write_pose_sets(root)


def test_every_format_is_read_as_it_was_written(drawn):
    init_default_scope('mmpose')
    root, points = drawn
    mixed = DATASETS.build(zoo.mixed_data_cfg(list(points), PIPELINE, root))
    assert len(mixed) == 2 * len(points)
    for index, (name, expected) in enumerate(points.items()):
        for number in range(2):
            sample = mixed[2 * index + number]['data_samples']
            assert sample.dataset_name == name
            np.testing.assert_allclose(sample.gt_instances.keypoints[0], expected[number])


@pytest.mark.parametrize(
    'encoder, total',
    [
        ('vit-s', 55_159_766),
        ('vit-b', 146_422_742),
        ('vit-l', 460_674_774),
        ('vit-h', 930_917_078),
    ],
)
def test_whole_models_have_as_many_parameters_as_the_authors(encoder, total):
    path = next(path for path in CONFIGS if f'{encoder}_8xb128' in path.name)
    with torch.device('meta'):
        model = build_model(Config.fromfile(path))
    # Theirs count the position embedding's entry of the class token too.
    assert sum(p.numel() for p in model.parameters()) + model.backbone.embed_dims == total


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_a_config_has_a_head_and_data_for_each_of_its_sets(path):
    cfg = Config.fromfile(path)
    sets = list(zoo.POSE_SETS) if 'six' in path.stem else ['coco', 'aic', 'mpii']
    heads, data = cfg.model.head.heads, cfg.train_dataloader.dataset
    assert list(heads) == list(cfg.sets) == sets
    assert [each.type for each in data.datasets] == [zoo.POSE_SETS[name].type for name in sets]
    assert [head.out_channels for head in heads.values()] == [
        zoo.POSE_SETS[name].keypoints for name in sets
    ]
    assert (cfg.model.backbone.get('experts') or {'num': 0})['num'] == (
        6 if 'six' in path.stem and 'vit' in path.stem else 0
    )
    assert [each.pipeline[-1].type for each in data.datasets] == ['GenerateTarget'] * len(sets)
    assert [step.type for step in data.pipeline] == ['PackPoseInputs']


@pytest.mark.parametrize('encoder, channels', [('vit-s', 384), ('vm-t-s3', 384)])
def test_every_data_set_can_have_the_simple_decoder(encoder, channels):
    cfg = Config.fromfile(next(path for path in CONFIGS if encoder in path.name))
    single = Config.fromfile(ROOT / zoo.config_path(encoder, 'pose')).model.head
    cfg.model = zoo.mixed_model_cfg(encoder, cfg.sets, single, decoder='simple')
    cfg.model.update(type='TopdownPoseEstimator', head=dict(cfg.model.head))
    cfg.model.head.pop('_delete_')
    with torch.device('meta'):
        model = build_model(cfg)
        feats = model.neck(tuple(model.backbone(torch.zeros(2, 3, 256, 192))))
    for name, head in model.head.heads.items():
        count = zoo.POSE_SETS[name].keypoints
        assert {key: value.shape for key, value in head.state_dict().items()} == {
            'final_layer.weight': (count, channels, 3, 3), 'final_layer.bias': (count,),
        }  # fmt: skip
        assert head(feats).shape == (2, count, 64, 48)


def test_heads_alone_are_split_as_well():
    heads = {name: torch.randn(n, 4, 1, 1) for name, n in (('coco', 17), ('aic', 14))}
    state = {f'head.heads.{name}.final_layer.weight': each for name, each in heads.items()}
    state['backbone.stem.weight'] = torch.randn(4, 3)
    plain = split_expert(state, 'aic')
    assert set(plain) == {'head.final_layer.weight', 'backbone.stem.weight'}
    assert plain['head.final_layer.weight'] is heads['aic']
    with pytest.raises(ValueError, match='no head for data set 2, only for'):
        split_expert(state, 'mpii')


def test_what_does_not_exist_is_refused_with_the_choices():
    with pytest.raises(ValueError, match=r"no data set 'coc'; choose from coco, aic, mpii"):
        zoo.mixed_data_cfg(['coc'], PIPELINE)
    with pytest.raises(ValueError, match=r'vm-t-s3 has no experts; only plain ViTs have: vit-s'):
        zoo.mixed_model_cfg('vm-t-s3', ['coco'], {}, experts=True)
    with pytest.raises(ValueError, match='at least one data set'):
        MODELS.build(dict(type='MultiDatasetHead', heads={}))
