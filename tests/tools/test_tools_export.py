"""The export command, and the example that runs its file without torch or this package."""

import runpy
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import small_models
from versions import require_torch

pytest.importorskip('mmpose')
pytest.importorskip('onnxruntime')
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / 'tools'))
import export  # noqa: E402

EXAMPLE = ROOT / 'examples' / 'onnx_pose.py'
BOX = (30.0, 20.0, 300.0, 200.0)


@pytest.fixture(scope='module')
def work(tmp_path_factory):
    """Folder with a small pose model: config, weights, pose.onnx, and an image."""
    require_torch('2.6', 'ONNX')
    folder = tmp_path_factory.mktemp('export')
    cfg = small_models.pose_config()
    cfg.dump(folder / 'pose.py')
    small_models.write_weights(cfg, folder / 'pose.pth')
    image = small_models.noise(211, 333)
    cv2.imwrite(str(folder / 'noise.png'), image)
    np.save(folder / 'noise.npy', image[..., ::-1])
    files = [str(folder / name) for name in ('pose.py', 'pose.pth', 'pose.onnx')]
    export.main([*files[:2], '--dynamic-batch', '--output', files[2]])
    return folder


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        export.main([str(argument) for argument in arguments])
    return f'{stop.value.code} {capsys.readouterr().err}'


def test_the_report_states_error_and_speed(work, capsys):
    files = work / 'pose.py', work / 'pose.pth'
    export.main([*map(str, files), '--format', 'torchscript', '--output', str(work / 'pose.pt')])
    report = capsys.readouterr().out
    assert 'pose.pt: ' in report
    assert 'largest error in standard deviations: heatmaps ' in report
    assert 'torchscript ' in report
    assert ' ms, eager fp32 ' in report


def test_the_suffix_of_the_output_chooses_the_format(work, capsys):
    files = [str(work / name) for name in ('pose.py', 'pose.pth')]
    export.main([*files, '--output', str(work / 'by_suffix.pt')])
    assert 'torchscript ' in capsys.readouterr().out
    report = refused(capsys, *files, '--format', 'onnx', '--output', work / 'other.pt')
    assert 'onnx files end in .onnx, got ' in report and not (work / 'other.pt').exists()


def test_random_weights_must_be_asked_for(work, capsys):
    assert '--allow-random' in refused(capsys, work / 'pose.py', 'random')


def test_unknown_names_get_the_nearest(capsys):
    assert 'did you mean VMPose-T-S2' in refused(capsys, 'VMPoose-T-S2', 'random', '--allow-random')


def test_absent_files_are_named(work, capsys):
    assert 'no config absent.py' in refused(capsys, 'absent.py', 'random', '--allow-random')
    assert 'absent.pth' in refused(capsys, work / 'pose.py', 'absent.pth')


def test_unknown_formats_are_refused(work, capsys):
    report = refused(capsys, work / 'pose.py', work / 'pose.pth', '--format', 'tflite')
    assert "invalid choice: 'tflite'" in report


def test_weights_of_another_model_are_refused(work, capsys):
    assert 'missing' in refused(capsys, 'SwinPose-T-S2', work / 'pose.pth').lower()
    assert not Path('SwinPose-T-S2.onnx').exists()


def test_pose_models_take_no_body(work, capsys):
    report = refused(
        capsys, work / 'pose.py', 'random', '--allow-random', '--body-model', 'SMPL_NEUTRAL.npz'
    )
    assert 'has no body' in report


class TestExample:
    """A file needs only numpy, onnxruntime and an image reader."""

    @pytest.fixture
    def names(self, work, monkeypatch):
        """What the example leaves in its namespace."""
        files = str(work / 'pose.onnx'), str(work / 'noise.png')
        monkeypatch.setattr(sys, 'argv', [str(EXAMPLE), *files, *map(str, BOX)])
        return runpy.run_path(str(EXAMPLE))

    def test_runs_without_torch_and_this_package(self, work):
        script = (
            'import sys, runpy\n'
            "sys.modules |= dict.fromkeys(('torch', 'mmengine', 'mmpose', 'trunchier'))\n"
            "sys.modules |= dict.fromkeys(('cv2', 'PIL', 'scipy'))\n"
            f"sys.argv = ['x', {str(work / 'pose.onnx')!r}, {str(work / 'noise.npy')!r}]\n"
            f'runpy.run_path({str(EXAMPLE)!r})\n'
        )
        run = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        assert [line.split()[0] for line in run.stdout.splitlines()][:2] == ['nose', 'left_eye']

    def test_crops_as_the_model_was_trained(self, work, names):
        from trunchier.inference.pose import PoseInferencer

        reference = PoseInferencer(work / 'pose.py', work / 'pose.pth', flip_test=False)
        image = cv2.imread(str(work / 'noise.png'))
        crop = reference.predictor.crop(image, np.float32(BOX)).pixels.numpy()[::-1]
        std = np.array(names['meta']['std'])[:, None, None]
        mean = np.array(names['meta']['mean'])[:, None, None]
        grey = np.abs(names['crop'][0] * std + mean - crop)
        assert grey.max() <= 4  # OpenCV knows a 32nd of a pixel
        assert grey.mean() < 0.05

        (result,) = reference(str(work / 'noise.png'), bboxes=np.array([BOX]))
        scores = names['heatmaps'].max((1, 2))
        np.testing.assert_allclose(scores, result.pred_instances.keypoint_scores[0], atol=0.01)

    def test_decodes_as_mmpose(self, names):
        from mmpose.codecs import UDPHeatmap

        codec = UDPHeatmap((192, 256), (48, 64), sigma=2)
        rng = np.random.default_rng(0)
        points = rng.uniform((0, 0), (191, 255), (1, 40, 2))
        heatmaps = codec.encode(points, np.ones((1, 40)))['heatmaps']
        heatmaps += rng.normal(0, 0.01, heatmaps.shape).astype(np.float32)
        found = np.array([names['locate'](heatmap) for heatmap in heatmaps])
        expected = codec.decode(heatmaps)[0][0] / (192, 256) * (47, 63)
        np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.slow
def test_the_example_of_meshes_places_bodies_as_the_inferencer(work, monkeypatch, capsys, tmp_path):
    from trunchier.inference.mesh import MeshInferencer

    cfg, weights, model = small_models.mesh_config(), work / 'mesh.pth', work / 'mesh.onnx'
    cfg.dump(work / 'mesh.py')
    small_models.write_weights(cfg, weights)
    export.main([str(work / 'mesh.py'), str(weights), '--with-body', '--output', str(model)])
    capsys.readouterr()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['x', str(model), str(work / 'noise.png'), *map(str, BOX)])
    runpy.run_path(str(EXAMPLE.with_name('onnx_mesh.py')))
    infer = MeshInferencer(work / 'mesh.py', weights, device='cpu')
    (result,) = infer(work / 'noise.png', bboxes=np.array([BOX]))
    people = result.pred_instances
    with np.load('body.npz') as found:
        # OpenCV knows a 32nd of a pixel.
        np.testing.assert_allclose(found['translation'], people.translation[0], rtol=5e-3)
        np.testing.assert_allclose(found['vertices'], people.vertices[0], atol=5e-3)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 44
    pixels = np.array([line.split()[-5:-3] for line in lines[1:]], float)
    np.testing.assert_allclose(pixels, people.keypoints[0], atol=1.0)
