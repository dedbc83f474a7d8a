"""Inferencers take every form of input, and refuse options that make no sense at once."""

import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from small_models import keypoints, noise, pose_config

from trunchier.inference.inferencer import provenance
from trunchier.inference.mesh import MeshInferencer
from trunchier.inference.pose import PoseInferencer
from trunchier.weights.find import find


def test_every_form_of_an_image_gives_the_same(infer, image, tmp_path, boxes):
    cv2.imwrite(str(tmp_path / 'a.png'), image)
    rgb = np.ascontiguousarray(image[..., ::-1])
    forms = [
        image, str(tmp_path / 'a.png'), tmp_path / 'a.png', Image.fromarray(rgb),
        torch.from_numpy(rgb).permute(2, 0, 1),
    ]  # fmt: skip
    expected, *others = keypoints(infer, forms, bboxes=boxes, batch_size=len(boxes))
    for found in others:
        np.testing.assert_allclose(found, expected, atol=1e-2)


def test_a_result_becomes_a_dict(infer, image, boxes):
    (result,) = infer(image, bboxes=boxes)
    content = result.to_dict()
    assert content['pred_instances']['keypoints'].shape == (3, *infer.predictor.fields['keypoints'])
    assert result.metainfo.keys() >= {'img_path', 'source', 'ori_shape', 'frame_id'}


def test_images_come_with_the_result_on_request(infer, image, boxes):
    (result,) = infer(image, bboxes=boxes, return_vis=True, return_image=True, draw_bbox=True)
    np.testing.assert_array_equal(result.image, image)
    assert result.visualization.shape == image.shape
    assert (result.visualization != image).any()
    (plain,) = infer(image, bboxes=boxes)
    assert 'visualization' not in plain and 'image' not in plain


@pytest.mark.parametrize(
    'change, says',
    [
        (dict(precision='fp8'), "precision must be one of .*, got 'fp8'"),
        (dict(batch_size=0), 'batch_size must be 1 or more'),
        (dict(detector='nowhere.onnx'), 'no file nowhere.onnx'),
        (dict(flip=True), 'flip'),
    ],
)
def test_options_that_make_no_sense_are_refused(weights, change, says):
    with pytest.raises((ValueError, FileNotFoundError, TypeError), match=says):
        PoseInferencer(pose_config(), weights['pose'], device='cpu', **change)


def test_calls_that_make_no_sense_are_refused_before_any_work(infer, image, monkeypatch, tmp_path):
    monkeypatch.delenv('DISPLAY', raising=False)
    monkeypatch.delenv('WAYLAND_DISPLAY', raising=False)
    (tmp_path / 'file').touch()
    for options, error, says in (
        (dict(show=True), RuntimeError, 'requires a display'),
        (dict(resume=True), ValueError, 'requires the out_dir'),
        (dict(out_dir=tmp_path, save=['png']), ValueError, r"cannot save \['png'\]"),
        (dict(out_dir=tmp_path, save='json,png'), ValueError, r"cannot save \['png'\]"),
        (dict(detector_every=0), ValueError, 'detector_every must be 1 or more'),
        (dict(out_dir=tmp_path / 'file' / 'x'), OSError, 'nothing can be written to'),
        (dict(hue='red'), TypeError, 'hue'),
    ):
        with pytest.raises(error, match=says):
            infer(image, **options)


def test_it_is_said_where_weights_are_from(weights, tmp_path):
    name = 'td-hm_ViTPose-small_8xb64-210e_coco-256x192-62d7a712_20230314.pth'
    found = find(pose_config(), weights['pose'])
    assert provenance(found, None) == f'{found.name}: weights {weights["pose"]}'
    found = found._replace(weights=tmp_path / name)
    text = 'official, trained on people of COCO, 17 keypoints; license: Apache-2.0'
    assert provenance(found, None).endswith(f'{name}; {text}')


def test_models_of_other_kinds_are_refused(weights):
    with pytest.raises(ValueError, match='is a pose model, not mesh; use PoseInferencer'):
        MeshInferencer(pose_config(), weights['pose'], device='cpu')
    classifier = pose_config()
    classifier.model.type = 'ImageClassifier'
    with pytest.raises(ValueError, match='runs a TopdownPoseEstimator'):
        PoseInferencer(classifier, weights['pose'], device='cpu')


def test_all_files_of_images(infer, image, tmp_path, boxes):
    cv2.imwrite(str(tmp_path / 'a.png'), image)
    has_meshes = infer.predictor.faces is not None
    formats = ['json', 'npz', 'images'] + (['obj', 'glb'] if has_meshes else [])
    list(infer(tmp_path / 'a.png', bboxes=boxes, out_dir=tmp_path / 'out', save=formats))
    found = {str(p.relative_to(tmp_path / 'out')) for p in (tmp_path / 'out').rglob('*.*')}
    expected = {'run.json', 'predictions/a.json', 'predictions/a.npz', 'visualizations/a.jpg'}
    if has_meshes:
        expected |= {'meshes/a.glb', *(f'meshes/a_{i}.obj' for i in range(3))}
    assert found == expected


def test_a_single_folder_can_be_named(infer, image, tmp_path):
    list(infer(image, pred_out_dir=tmp_path / 'p', save='json'))
    assert {p.name for p in tmp_path.rglob('*.*')} == {'run.json', '000000.json'}
    list(infer(image, vis_out_dir=tmp_path / 'v'))
    assert {p.name for p in (tmp_path / 'v').iterdir()} == {'run.json', '000000.jpg'}


def test_mmpose_inferencer_takes_the_papers_names_after_an_import(tmp_path):
    """In a process of its own; the model is real, its weights are not."""
    cv2.imwrite(str(tmp_path / 'a.png'), noise(64, 48))
    script = f"""
import torch, trunchier
from mmpose.apis import MMPoseInferencer, init_model
from mmengine.config import Config
from trunchier.weights.find import find_config
model = init_model(find_config('SwinPose-T-S2').cfg, None, 'cpu')
torch.save(dict(state_dict=model.state_dict()), r'{tmp_path}/a.pth')
infer = MMPoseInferencer('SwinPose-T-S2', r'{tmp_path}/a.pth', device='cpu',
                         det_model='whole_image')
print(len(next(infer(r'{tmp_path}/a.png'))['predictions'][0][0]['keypoints']))
try:
    MMPoseInferencer('SwinPose-T-S9', device='cpu', det_model='whole_image')
except ValueError as error:
    print(error)
infer = MMPoseInferencer('VMPose-T-S2', device='cpu', det_model='whole_image')
ours = trunchier.create_model('VMPose-T-S2', weights='shipped').state_dict()
state = infer.inferencer.model.state_dict()
print(all(torch.equal(state[key], value) for key, value in ours.items()))
try:
    MMPoseInferencer('SwinPose-T-S3', device='cpu', det_model='whole_image')
except ValueError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, '-W', 'ignore', '-c', script], capture_output=True,
                         text=True, cwd=tmp_path)  # fmt: skip
    printed = [line for line in run.stdout.splitlines() if not line.startswith('Loads ')]
    *_, points, unknown, equal, refusal = printed
    assert (points, equal) == ('17', 'True'), run.stderr
    assert unknown == 'Cannot find model: swinpose-t-s9 in mmpose'
    assert 'no weights of td-hm_swin-t-s3_8xb64-210e_coco-256x192 are known' in refusal
