"""Exported pose models predict without torch what they predict with it."""

import json
import subprocess
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import small_models
from versions import require_torch

from trunchier.deploy import export
from trunchier.deploy.graph import describe
from trunchier.inference import exported
from trunchier.inference.exported import ExportedPose, exported_models
from trunchier.inference.pose import PosePredictor
from trunchier.weights.find import find_config

BOXES = np.array([[10.0, 5, 70, 55, 1], [30, 20, 50, 90, 1]], np.float32)


@pytest.fixture(scope='module')
def file(tmp_path_factory):
    require_torch('2.6', 'ONNX')
    path = tmp_path_factory.mktemp('exported') / 'small.onnx'
    found = find_config(small_models.config('pose'))._replace(name='small')
    export.write(small_models.estimator('pose'), path, describe(found), dynamic_batch=False)
    return found._replace(weights=path)


@pytest.mark.parametrize('flip_test', [False, True])
def test_numpy_and_torch_predict_alike(file, flip_test):
    (light,) = exported_models([], [file.weights], 'cpu')
    image = small_models.noise(60, 80)
    results = []
    for predictor in (
        ExportedPose.load(light, flip_test=flip_test),
        PosePredictor.load(file, 'cpu', flip_test=flip_test),
    ):
        crops = [predictor.crop(image, box) for box in BOXES]
        results.append(predictor.decode(predictor.forward(crops), crops))
    for ours, theirs in zip(*results, strict=True):
        assert ours.keys() == theirs.keys()
        np.testing.assert_allclose(ours['keypoints'], theirs['keypoints'], atol=1e-3)
        np.testing.assert_allclose(ours['keypoint_scores'], theirs['keypoint_scores'], atol=1e-6)


def test_a_file_with_damaged_metadata_is_left_to_torch_which_says_why(file, monkeypatch):
    for damage in (dict(keypoint_names=3), dict(codec=dict(type='UDPHeatmap')), dict(mean='x')):
        (light,) = exported_models([], [file.weights], 'cpu')
        texts = {key: json.dumps(each) for key, each in (light.metadata | damage).items()}
        meta = SimpleNamespace(custom_metadata_map=texts)
        session = SimpleNamespace(get_modelmeta=lambda meta=meta: meta)
        with monkeypatch.context() as patch:
            patch.setattr(exported, 'onnx_session', lambda path, device, s=session: s)
            assert exported_models([], [file.weights], 'cpu') is None


def test_what_needs_torch_is_left_to_it(file):
    weights = [file.weights]
    assert exported_models(['another'], weights, 'cpu') is None
    assert exported_models([], weights, 'cuda') is None
    assert exported_models([], weights, 'cpu', trust=True) is None
    assert exported_models([], [file.weights, 'pose.pth'], 'cpu') is None
    assert exported_models(['SMALL'], weights, 'cpu')[0].row.estimator == 'TopdownPoseEstimator'


def test_the_command_predicts_an_exported_model_without_importing_torch(file, tmp_path):
    cv2.imwrite(str(tmp_path / 'photo.png'), small_models.noise(60, 80))
    script = (
        'import runpy, sys\n'
        "sys.orig_argv = ['python', '-m', 'trunchier']\n"
        "sys.argv = ['-m', 'predict', 'photo.png', '--detector', 'whole_image', '--save',\n"
        f"            'json,npz,images', '--model', {str(file.weights)!r}]\n"
        "try: runpy.run_module('trunchier', run_name='__main__')\n"
        'except SystemExit as stop: print(stop.code)\n'
        "others = ('torch', 'mmengine', 'mmpose', 'mmcv', 'numba', 'scipy', 'matplotlib', 'PIL')\n"
        'print([name for name in others if name in sys.modules])'
    )
    process = subprocess.run(
        [sys.executable, '-c', script], capture_output=True, text=True, cwd=tmp_path
    )
    assert process.stdout.splitlines() == ['0', '[]'], process.stderr
    content = json.loads((tmp_path / 'outputs/predictions/photo.json').read_text())
    ((person,), names) = content['instance_info'], content['meta_info']['keypoint_names']
    assert len(person['keypoints']) == len(names) == 17 and names[0] == 'nose'
    assert (tmp_path / 'outputs/predictions/photo.npz').is_file()
    assert cv2.imread(str(tmp_path / 'outputs/visualizations/photo.jpg')).shape == (60, 80, 3)
