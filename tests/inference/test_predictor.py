"""Predictors are pure: crops, a network and decoding give the same wherever they run."""

import cv2
import numpy as np
import pytest
from mmengine.registry import Registry
from small_models import CONFIGS, keypoints, noise
from versions import needs_torch

from trunchier.deploy import export
from trunchier.deploy.graph import describe
from trunchier.inference import predictor, topdown
from trunchier.ops import int8
from trunchier.weights.find import Found, build_model
from trunchier.weights.load import load_checkpoint

INT8 = pytest.param('int8', marks=pytest.mark.skipif(not int8.available(), reason=int8.ABSENT))


def test_a_predictor_alone_gives_what_a_run_does(infer, image, boxes):
    alone = infer.predictor
    crops = [alone.crop(image, box) for box in boxes]
    people = alone.decode(alone.forward(crops), crops)
    (result,) = infer(image, bboxes=boxes)
    for name, shape in alone.fields.items():
        assert people[0][name].shape == shape
        found = np.stack([person[name] for person in people])
        np.testing.assert_array_equal(found, result.pred_instances[name], err_msg=name)


@pytest.mark.parametrize('task', CONFIGS)
@pytest.mark.parametrize('precision', ['fp32', 'bf16', INT8])
def test_models_are_deployed_for_float32_and_int8_on_cpu(
    task, precision, weights, inferencer_types, monkeypatch
):
    deployed = []
    deploy = predictor.deploy
    monkeypatch.setattr(
        predictor,
        'deploy',
        lambda model, precision, **options: (
            deployed.append(precision) or deploy(model, precision=precision, **options)
        ),
    )
    inferencer_types[task](CONFIGS[task](), weights[task], device='cpu', precision=precision)
    assert deployed == ([] if precision == 'bf16' else [precision])


@pytest.mark.parametrize('limit', [150, 300])
def test_huge_images_give_what_small_ones_do(infer, image, monkeypatch, limit):
    """OpenCV warps 32767 pixels per side; a lower limit runs the same code."""
    (expected,) = keypoints(infer, image, bboxes=[[40, 20, 100, 120]])
    monkeypatch.setattr(topdown, 'WARP_LIMIT', limit)
    (found,) = keypoints(infer, image, bboxes=[[40, 20, 100, 120]])
    # Below the size of the crop the image is made smaller first, which blurs it.
    assert np.median(np.abs(found - expected)) < (0.01 if limit == 300 else 8)


def test_images_wider_than_opencv_can_warp_are_predicted_on(inferencers):
    wide = np.zeros((40, 40_000, 3), np.uint8)
    (result,) = inferencers['pose'](wide, bboxes=[[39_000, 0, 39_040, 40]])
    x = result.pred_instances.keypoints[..., 0]
    assert ((x > 38_900) & (x < 39_200)).all()


@pytest.mark.parametrize('size', [(1, 1), (2, 500), (37, 51)])
def test_tiny_images_are_predicted_on(infer, size):
    (result,) = infer(noise(*size))
    assert np.isfinite(result.pred_instances.keypoints).all()
    assert result.ori_shape == size


def test_keypoints_move_with_the_image(infer, image, boxes):
    """A black margin is what crops show outside of an image anyway."""
    framed = cv2.copyMakeBorder(image, 30, 0, 50, 0, cv2.BORDER_CONSTANT)
    (plain,), (moved,) = (
        keypoints(infer, image, bboxes=boxes),
        keypoints(infer, framed, bboxes=boxes + np.float32([50, 30, 50, 30])),
    )
    np.testing.assert_allclose(moved, plain + [50, 30], atol=0.05)


def export_model(infer, weights, path, dynamic_batch):
    cfg = CONFIGS[infer.task]()
    model = build_model(cfg)
    load_checkpoint(model, weights)
    metadata = describe(Found(infer.name, infer.task, cfg), infer.predictor.dataset_meta)
    export.write(model, path, metadata, dynamic_batch=dynamic_batch)


@pytest.fixture
def no_models(monkeypatch):
    """Building an estimator or a backbone is an error."""
    build = Registry.build

    def refuse(registry, cfg, *args, **options):
        kind = cfg['type'] if isinstance(cfg['type'], str) else cfg['type'].__name__
        assert not kind.endswith(('Estimator', 'Head')) and 'backbone' not in kind.lower(), kind
        assert kind not in ('TruncatedSwin', 'StageAdapter'), kind
        return build(registry, cfg, *args, **options)

    monkeypatch.setattr(Registry, 'build', refuse)


@needs_torch('2.6', 'ONNX')
@pytest.mark.parametrize('dynamic', [True, False])
def test_exported_models_predict_the_same_and_build_no_module(
    infer, weights, image, tmp_path, dynamic, boxes, inferencer_types, request
):
    pytest.importorskip('onnxscript', reason='writing ONNX needs onnxscript')
    export_model(infer, weights[infer.task], tmp_path / 'a.onnx', dynamic)
    request.getfixturevalue('no_models')
    cfg, kind = CONFIGS[infer.task](), inferencer_types[infer.task]
    with pytest.raises(AssertionError, match='Estimator|TruncatedSwin'):
        kind(cfg, weights[infer.task], device='cpu')
    exported = kind(cfg, tmp_path / 'a.onnx', device='cpu')
    (expected,), (found,) = (keypoints(each, image, bboxes=boxes) for each in (infer, exported))
    # Refining the maxima of nearly flat heatmaps enlarges what is rounded differently.
    assert np.median(np.abs(found - expected)) < 1e-3 and np.abs(found - expected).max() < 2
    with pytest.raises(ValueError, match=r'a.onnx is .*, not (VMPose|VMHMR2.0)-T-S2'):
        kind('vm-t-s2', tmp_path / 'a.onnx', device='cpu')


def test_results_do_not_depend_on_the_batch(infer, image, boxes):
    given = [image, image[:, ::-1].copy(), image[::-1].copy()]
    boxes = [boxes, boxes[:1], boxes[1:]]
    expected = keypoints(infer, given, bboxes=boxes, batch_size=64)
    for batch_size in (1, 2, 4):
        for a, b in zip(
            keypoints(infer, given, bboxes=boxes, batch_size=batch_size), expected, strict=True
        ):
            np.testing.assert_allclose(a, b, atol=1e-2)
