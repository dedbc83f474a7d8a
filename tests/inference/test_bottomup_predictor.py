"""Everybody in whole images, without boxes, by mmpose's bottom-up models on our encoders."""

import json

import numpy as np
import pytest
import torch
from mmengine.config import Config
from small_models import ROOT, SWIN, noise

from trunchier.deploy.export import export
from trunchier.inference.bottomup import BottomupPredictor
from trunchier.inference.command import main
from trunchier.inference.inferencer import Inferencer
from trunchier.weights.find import build_model, find

CONFIG = ROOT / 'configs' / 'bottomup' / 'ae_vm-t-s2_synthetic-192x192.py'


@pytest.fixture(scope='module')
def config():
    """The config of synthetic crowds with a small encoder and decoder, at 128 x 128 pixels."""
    cfg = Config.fromfile(CONFIG)
    cfg.model.update(init_cfg=None)
    cfg.model.backbone = dict(type='TruncatedSwin', arch=SWIN, num_stages=2)
    cfg.model.neck.update(in_channels=32, out_channels=64)
    cfg.model.head.update(in_channels=64, deconv_out_channels=(16, 16))
    cfg.model.head.decoder.update(input_size=(128, 128), heatmap_size=(32, 32))
    cfg.test_dataloader.dataset.pipeline[1].input_size = (128, 128)
    return cfg


@pytest.fixture(scope='module')
def weights(config, tmp_path_factory):
    """Random weights whose heatmaps have maxima above the codec's threshold."""
    torch.manual_seed(0)
    model = build_model(config)
    model.head.final_layer.weight.data.normal_(0, 0.1)
    path = tmp_path_factory.mktemp('weights') / 'crowds.pth'
    torch.save(dict(state_dict=model.state_dict()), path)
    return path


@pytest.mark.parametrize('flip_test', [True, False])
def test_people_are_those_that_mmpose_finds(config, weights, flip_test, monkeypatch):
    from mmpose.apis import inference_bottomup, init_model

    # Random heatmaps are so flat that rounding moves what is decoded from them.
    monkeypatch.setattr('trunchier.inference.predictor.deploy', lambda model, **options: model)
    image = noise(90, 140)
    cfg = config.copy()
    cfg.model.test_cfg.flip_test = flip_test
    (expected,) = inference_bottomup(init_model(cfg, str(weights), 'cpu'), image)
    expected = expected.pred_instances
    best = np.argsort(-expected.bbox_scores, kind='stable')
    infer = Inferencer(config, weights, device='cpu', score_thr=-9.0, flip_test=flip_test)
    (result,) = infer(image)
    found = result.pred_instances
    assert len(found) == len(best) > 1
    np.testing.assert_allclose(found.keypoints, expected.keypoints[best], atol=1e-3)
    np.testing.assert_allclose(found.keypoint_scores, expected.keypoint_scores[best], atol=1e-5)
    np.testing.assert_allclose(found.bbox_scores, expected.bbox_scores[best], atol=1e-5)


@pytest.mark.parametrize('size', [(128, 128), (100, 300), (300, 100)])  # (height, width)
def test_everybody_is_found_where_they_are_in_images_of_any_shape(config, size):
    """A head that gives the heatmaps and tags of two people, as training would make it."""
    (height, width), rng = size, np.random.default_rng(0)
    model = build_model(config)
    predictor = BottomupPredictor(config, model)
    people = rng.uniform((0.15, 0.25), (0.35, 0.75), (2, 17, 2)) * (width, height)
    people[1, :, 0] += width / 2
    crop = predictor.crop(noise(height, width), np.float32([0, 0, width, height, 1]))
    points = (people - crop.center + crop.size / 2) / crop.size * 128
    maps = model.head.decoder.encode(np.float32(points))['heatmaps']
    tags = np.broadcast_to(np.float32([0] * 16 + [5] * 16), maps.shape)  # left, right
    outputs = tuple(torch.tensor(each)[None] for each in (maps, tags))
    model.head.forward = lambda feats: outputs
    (found,) = predictor.decode(predictor.forward([crop]), [crop])
    assert len(found) == 2
    near = 1.5 * crop.size.max() / 32  # cells of the heatmaps
    for person, expected in zip(
        sorted(found, key=lambda each: each['keypoints'][:, 0].mean()), people, strict=True
    ):
        assert np.abs(person['keypoints'] - expected).max() < near
        low, high = expected.min(0), expected.max(0)
        assert np.abs(person['box'][:4] - [*low, *high]).max() < near


def test_images_of_different_sizes_are_one_batch(config, weights):
    infer = Inferencer(config, weights, device='cpu', score_thr=-9.0)
    images = [noise(90, 140), noise(128, 64, seed=1)]
    together = [each.pred_instances for each in infer(images)]
    alone = [each.pred_instances for image in images for each in infer(image)]
    for one, other in zip(together, alone, strict=True):
        assert len(one) == len(other)
        np.testing.assert_allclose(one.bbox_scores, other.bbox_scores, atol=1e-5)


def test_the_command_finds_people_without_boxes(config, weights, tmp_path, monkeypatch, capsys):
    import cv2

    monkeypatch.chdir(tmp_path)
    cv2.imwrite('crowd.png', noise(90, 140))
    config.dump('crowds.py')
    command = ['crowd.png', '--model', 'crowds.py', '--weights', str(weights), '--json', '-']
    assert main([*command, '--score-thr', '0.01']) == 0
    people = json.loads(capsys.readouterr().out)['instances']
    assert len(people) > 1 and all(each['bbox_score'] >= 0.01 for each in people)
    assert main([*command, '--score-thr', '1e9']) == 0
    assert json.loads(capsys.readouterr().out)['instances'] == []
    for option in (['--detector', 'whole_image'], ['--boxes', 'boxes.json']):
        (tmp_path / 'boxes.json').write_text('[[0, 0, 9, 9]]')
        assert main([*command, *option]) == 1
        assert 'crowds finds people itself; leave out the' in capsys.readouterr().err


def test_a_bottom_up_model_is_a_pose_model_by_its_estimator(config, weights):
    found = find(config, weights)
    assert (found.task, found.row.load('predictor')) == ('pose', BottomupPredictor)
    with pytest.raises(ValueError, match='mesh'):
        find(config, task='mesh')


def test_it_is_neither_exported_nor_lifted_and_says_what_to_do(config, weights, tmp_path):
    with pytest.raises(ValueError, match='predict with its checkpoint, or export a model'):
        export(config, tmp_path / 'crowds.onnx', weights)
    assert [path.name for path in tmp_path.iterdir()] == []
    config.dump(tmp_path / 'crowds.py')
    with pytest.raises(ValueError, match='crowds is a BottomupPoseEstimator, from which no bodies'):
        find(f'{tmp_path}/crowds.py+lift', weights)
    network = type('ExportedNetwork', (), {})()
    with pytest.raises(ValueError, match='bottom-up models are not exported; give a checkpoint'):
        BottomupPredictor(config, network)
