"""Small models of each task, their weights, and an image."""

import numpy as np
import pytest
import torch
from small_models import CONFIGS, noise, write_weights

from trunchier.inference.mesh import MeshInferencer
from trunchier.inference.pose import PoseInferencer


@pytest.fixture(autouse=True)
def chosen_threads(monkeypatch):
    """Rounding depends on the number of threads, which otherwise follows the load."""
    monkeypatch.setenv('OMP_NUM_THREADS', str(torch.get_num_threads()))


@pytest.fixture(scope='session')
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp('weights')
    files = {task: folder / f'{task}.pth' for task in CONFIGS}
    for task, file in files.items():
        write_weights(CONFIGS[task](), file)
    return files


@pytest.fixture(scope='session')
def inferencer_types():
    return {'pose': PoseInferencer, 'mesh': MeshInferencer}


@pytest.fixture(scope='session')
def inferencers(weights, inferencer_types):
    """One of each task, on the CPU."""
    return {
        task: kind(CONFIGS[task](), weights[task], device='cpu', batch_size=4)
        for task, kind in inferencer_types.items()
    }


@pytest.fixture(params=['pose', 'mesh'])
def infer(request, inferencers):
    return inferencers[request.param]


@pytest.fixture(scope='session')
def image():
    return noise(240, 320)


@pytest.fixture
def undeployed(monkeypatch):
    """Random heatmaps are so flat that rounding moves what is decoded from them."""
    monkeypatch.setattr('trunchier.inference.predictor.deploy', lambda model, **options: model)


@pytest.fixture(scope='session')
def boxes():
    return np.float32([[40, 20, 120, 200], [100, 30, 230, 190], [-20, -10, 90, 260]])
