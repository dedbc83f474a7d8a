"""Small models and what they are exported to."""

import pytest
import small_models
from versions import require_torch

from trunchier.deploy import export
from trunchier.deploy.graph import describe
from trunchier.weights.find import find_config


@pytest.fixture(scope='session')
def exported(tmp_path_factory):
    """Small model and file of a task and suffix; written once."""
    folder, made = tmp_path_factory.mktemp('exported'), {}

    def get(task, suffix, dynamic_batch=False):
        path = folder / f'{task}-{dynamic_batch}{suffix}'
        if suffix != '.pt':
            require_torch('2.6', 'ONNX and torch.export')
        if path not in made:
            made[path] = small_models.estimator(task)
            found = find_config(small_models.config(task))._replace(name=f'small {task}')
            export.write(made[path], path, describe(found), dynamic_batch=dynamic_batch)
        return made[path], path

    return get
