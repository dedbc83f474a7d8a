"""In lower precision, a network keeps exactly what its modules say must stay float32."""

import pytest
import torch
from small_models import config, estimator
from versions import require_torch

from trunchier.deploy import export
from trunchier.deploy.fuse import deploy
from trunchier.deploy.graph import describe
from trunchier.deploy.lower import PRECISIONS
from trunchier.weights.find import find_config

EXACT = {'A_logs', 'Ds', 'dt_projs_bias', 'mean_pose', 'mean_betas', 'mean_camera'}


def deployed(model, precision, path):
    return deploy(model, precision=precision).state_dict()


def exported(model, precision, path):
    facts = describe(find_config(config('mesh', 'vmamba')))
    export.write(model, path, facts, precision, tolerance=100)
    state = torch.jit.load(path).state_dict()
    return {name.removeprefix('model.'): tensor for name, tensor in state.items()}


@pytest.mark.parametrize('precision', ['bf16', 'fp16'])
@pytest.mark.parametrize('lowered', [deployed, exported])
@pytest.mark.filterwarnings('ignore:.*torch.jit')
def test_float32_tensors_keep_their_values(lowered, precision, tmp_path):
    if (lowered, precision) == (exported, 'fp16'):
        require_torch('2.4', 'float16 convolutions on CPU')
    model = estimator('mesh', 'vmamba')
    before, found = model.state_dict(), set()
    for name, tensor in lowered(model, precision, tmp_path / 'model.pt').items():
        leaf = name.rpartition('.')[2]
        if leaf in EXACT:
            assert tensor.dtype == torch.float32, name
            assert torch.equal(tensor, before[name]), name
            found.add(leaf)
        elif name.startswith(('backbone.', 'neck.', 'head.')):
            assert tensor.dtype == PRECISIONS[precision], name
    assert found == EXACT
