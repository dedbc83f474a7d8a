"""`trunchier annotate --engine ray` makes the data set that the workers make."""

import json
import os
import tarfile

import cv2
import pytest
from small_models import noise, pose_config, write_clip, write_weights

from trunchier.annotation import command

ray = pytest.importorskip('ray', reason="pip install 'trunchier[ray]'")
pytest.importorskip('mmpose')
pytest.importorskip('av')
pytestmark = pytest.mark.slow
os.environ.setdefault('RAY_worker_niceness', '0')  # 15 starves beside other programs
ANYTHING = ('--agreement=0', '--keypoint-score=-9', '--keypoints=0', '--duplicate=-1', '--quiet')


@pytest.fixture(scope='module')
def cluster():
    variables = dict(PYTHONPATH=os.environ.get('PYTHONPATH', ''), OMP_NUM_THREADS='1')
    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False,
        runtime_env=dict(env_vars=variables),
    )  # fmt: skip
    yield
    ray.shutdown()


@pytest.fixture
def given(tmp_path, monkeypatch):
    """Photos, one of them broken, and a model, in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'photos').mkdir()
    for index in range(3):
        cv2.imwrite(f'photos/{index}.png', noise(96, 72, seed=index))
    (tmp_path / 'photos/1.png').write_bytes(b'no image')
    cfg = pose_config()
    cfg.dump('model.py')
    write_weights(cfg, 'model.pth')
    return ['photos', '--model', 'model.py', '--weights', 'model.pth', '--device', 'cpu',
            '--batch-size', '1', '--detector', 'whole_image', '--check-pose', 'model.py',
            '--check-weights', 'model.pth', *ANYTHING]  # fmt: skip


def people(out):
    content = json.loads((out / 'person_keypoints.json').read_text())
    return content['images'], content['annotations']


def test_the_data_set_is_that_of_the_workers(cluster, given, tmp_path):
    write_clip(tmp_path / 'photos/clip.mp4', frames=6)
    assert command.main([*given, '--out', 'plain']) == command.EXIT_INCOMPLETE
    of_ray = [*given, '--out', 'rayed', '--engine', 'ray', '--workers', '2', '--chunk', '4']
    assert command.main(of_ray) == command.EXIT_INCOMPLETE
    images, labels = people(tmp_path / 'rayed')
    _, expected = people(tmp_path / 'plain')
    for label in labels:
        assert (tmp_path / 'rayed' / images[label['image_id'] - 1]['file_name']).is_file()
    assert len(labels) == 8

    def sorted_(rows):
        return sorted((row['keypoints'], row['bbox'], row['keypoint_agreement']) for row in rows)

    assert sorted_(labels) == sorted_(expected)
    # A tar comes later; the rest is done. What is not there is missing.
    with tarfile.open('more.tar', 'w') as tar:
        tar.add('photos/0.png', 'zero.png')
    assert command.main(['more.tar', *of_ray]) == command.EXIT_INCOMPLETE
    images, labels = people(tmp_path / 'rayed')
    assert len(labels) == 9
    assert any(image['file_name'].startswith('images/') for image in images)


def test_machines_without_the_package_are_an_error_that_says_so(cluster, given, capsys):
    ray.shutdown()
    # Comes first on the workers' path, whose rest Ray takes from this process and its environment.
    os.mkdir('machine')
    with open('machine/sitecustomize.py', 'w') as file:
        file.write("import sys\n\nsys.modules['trunchier'] = None  # not installed\n")
    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False,
        runtime_env=dict(working_dir=os.path.abspath('machine')),
    )  # fmt: skip
    assert command.main([*given, '--out', 'out', '--engine', 'ray']) == command.EXIT_ERROR
    assert 'lack trunchier: install it' in capsys.readouterr().err
