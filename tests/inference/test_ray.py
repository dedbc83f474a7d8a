"""Prediction on a local Ray of two CPUs: the inferencer's results, whoever dies."""

import json
import os
import signal
import tarfile

import cv2
import numpy as np
import pytest
from small_models import noise, pose_config, write_clip, write_weights

from trunchier.inference.distributed import (
    Predict,
    join_tracks,
    predict_on_ray,
    read_rows,
)
from trunchier.inference.inferencer import Inferencer

ray = pytest.importorskip('ray', reason="pip install 'trunchier[ray]'")
pytest.importorskip('ray.data')
pytest.importorskip('mmpose')
pytest.importorskip('av')
pytestmark = pytest.mark.slow
os.environ.setdefault('RAY_worker_niceness', '0')  # 15 starves beside other programs


class Dies(Predict):
    """Kills its process in the second batch, once."""

    calls = 0

    def __call__(self, batch):
        self.calls += 1
        marker = os.environ['DIES_ONCE']
        if self.calls == 2 and not os.path.exists(marker):
            open(marker, 'w').close()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(batch)


@pytest.fixture(scope='module')
def cluster(tmp_path_factory):
    marker = tmp_path_factory.mktemp('marker') / 'died'
    here = os.path.dirname(__file__)
    path = os.pathsep.join([here, os.path.dirname(here), os.environ.get('PYTHONPATH', '')])
    variables = dict(DIES_ONCE=str(marker), PYTHONPATH=path, OMP_NUM_THREADS='1')
    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False,
        runtime_env=dict(env_vars=variables),
    )  # fmt: skip
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield marker
    ray.shutdown()


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    folder, cfg = tmp_path_factory.mktemp('model'), pose_config()
    cfg.dump(folder / 'model.py')
    write_weights(cfg, folder / 'model.pth')
    return str(folder / 'model.py'), dict(
        weights=str(folder / 'model.pth'), device='cpu', detector='whole_image', batch_size=1
    )


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    """Six images, of which one is broken, two more in a tar, and a video."""
    folder = tmp_path_factory.mktemp('photos')
    for index in range(8):
        cv2.imwrite(str(folder / f'{index}.png'), noise(96, 72, seed=index))
    (folder / '3.png').write_bytes(b'no image')
    (folder / 'tars').mkdir()
    with tarfile.open(folder / 'tars/0.tar', 'w') as tar:
        for index in (6, 7):
            tar.add(folder / f'{index}.png', f'{index}.png')
            (folder / f'{index}.png').unlink()
    write_clip(folder / 'clip.mp4', frames=10)
    return folder


def check(rows, model, photos):
    infer = Inferencer(model[0], **model[1])
    stills = {row['path']: row for row in rows if row['path'].endswith('.png')}
    assert sorted(stills) == [str(photos / f'{index}.png') for index in range(6)]
    for path, row in stills.items():
        if path.endswith('3.png'):
            assert 'decode' in row['error'] and len(row['keypoints']) == 0
            continue
        (result,) = infer(path)
        assert row['error'] == ''
        expected = np.float32(result.pred_instances.keypoints)
        np.testing.assert_array_equal(row['keypoints'], expected)
    assert sorted(r['member'] for r in rows if r['member']) == ['6.png', '7.png']
    joined = join_tracks([row for row in rows if row['path'].endswith('.mp4')])
    results = list(infer(str(photos / 'clip.mp4')))
    assert [row['frame'] for row in joined] == list(range(10)) and len(results) == 10
    for row, result in zip(joined, results, strict=True):
        expected = np.float32(result.pred_instances.keypoints)
        np.testing.assert_array_equal(row['keypoints'], expected)


@pytest.mark.parametrize('worker', [Predict, Dies])
def test_rows_equal_the_inferencers_also_if_an_actor_dies(cluster, model, photos, tmp_path, worker):
    inputs = [*map(str, photos.glob('*.png')), str(photos / 'clip.mp4'), str(photos / 'tars')]
    options = dict(concurrency=2, batch=2, chunk=4, overlap=2, worker=worker)
    assert predict_on_ray(inputs, tmp_path, *model, **options) == 0
    assert cluster.exists() is (worker is Dies)
    check(list(read_rows(tmp_path / 'rows')), model, photos)
    # A second run finds everything done, but what was lost and what is new.
    files = sorted((tmp_path / 'rows').glob('*.parquet'))
    files[0].write_bytes(files[0].read_bytes()[:50])
    extra = photos / 'extra.png'
    cv2.imwrite(str(extra), noise(96, 72, seed=99))
    before = predict_on_ray([*inputs, str(extra)], tmp_path, *model, **options)
    assert 0 < before < 11
    rows = list(read_rows(tmp_path / 'rows'))
    assert len([row for row in rows if row['path'] == str(extra)]) == 1
    check([row for row in rows if row['path'] != str(extra)], model, photos)
    extra.unlink()


def test_webdataset_holds_images_and_people(cluster, model, photos, tmp_path):
    inputs = [str(photos / '0.png'), str(photos / '3.png')]
    options = dict(batch=2, file_format='webdataset')
    assert predict_on_ray(inputs, tmp_path, *model, **options) == 0
    found = {}
    for path in (tmp_path / 'rows').glob('*.tar'):
        with tarfile.open(path) as tar:
            found |= {each.name: tar.extractfile(each).read() for each in tar}
    suffixes = sorted(name.rpartition('.')[2] for name in found)
    assert suffixes == ['jpg', 'json', 'json']
    (picture,) = (data for name, data in found.items() if name.endswith('jpg'))
    assert cv2.imdecode(np.frombuffer(picture, np.uint8), 1).shape == (96, 72, 3)
    errors = [json.loads(data)['error'] for name, data in found.items() if name.endswith('json')]
    assert sum(map(bool, errors)) == 1
    assert predict_on_ray(inputs, tmp_path, *model, **options) == 2
