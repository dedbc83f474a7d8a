"""In lower precision, a network keeps exactly what its modules say must stay float32."""

import pytest
import torch
from test_fuse import estimator

from trunchier.deploy.export import Graph
from trunchier.deploy.fuse import deploy
from trunchier.deploy.lower import PRECISIONS

EXACT = {'A_logs', 'Ds', 'dt_projs_bias', 'mean_pose', 'mean_betas', 'mean_camera'}
LOWERINGS = {
    'deploy': lambda model, precision: deploy(model, dtype=PRECISIONS[precision]),
    'export': lambda model, precision: Graph(model, precision).model,
}


@pytest.mark.parametrize('precision', ['bf16', 'fp16'])
@pytest.mark.parametrize('lowered', LOWERINGS.values(), ids=LOWERINGS)
def test_float32_tensors_keep_their_values(lowered, precision):
    model = estimator('mesh', 'vmamba')
    before = model.state_dict()
    found = set()
    for name, tensor in lowered(model, precision).state_dict().items():
        leaf = name.rpartition('.')[2]
        if leaf in EXACT:
            assert tensor.dtype == torch.float32, name
            assert torch.equal(tensor, before[name]), name
            found.add(leaf)
        elif name.startswith(('backbone.', 'neck.', 'head.')):
            assert tensor.dtype == PRECISIONS[precision], name
    assert found == EXACT
