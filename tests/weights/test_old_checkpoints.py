"""Checkpoints of earlier versions load, and mean the same.

golden/checkpoints_9f45cea.json holds keys, shapes and outputs of that commit, with weights and
input drawn by the rule of golden_rule.py.
"""

import numpy as np
import pytest
import torch
from golden_rule import golden_input, golden_state, load_golden
from mmengine.logging import HistoryBuffer

import trunchier
from trunchier.weights.load import load_checkpoint

pytest.importorskip('mmpose')
OLD = load_golden('checkpoints_9f45cea')


def write_checkpoint(path, shapes):
    """A .pth as mmengine's runner writes it: weights, optimizer, log buffers, metainfo."""
    state = golden_state({key: tuple(shape) for key, shape in shapes.items()})
    loss = HistoryBuffer([0.5, 0.25], [1, 1])
    hub = dict(log_scalars={'train/loss': loss}, runtime_info={'iter': 2}, resumed_keys={})
    meta = dict(epoch=1, iter=2, dataset_meta=dict(dataset_name='old', num_keypoints=17))
    optimizer = dict(state={0: dict(step=torch.tensor(2.0))}, param_groups=[dict(lr=np.float64(1))])
    torch.save(dict(meta=meta, state_dict=state, message_hub=hub, optimizer=optimizer), path)


@pytest.mark.parametrize('name', OLD)
def test_an_old_checkpoint_gives_the_old_outputs(name, tmp_path):
    write_checkpoint(tmp_path / 'old.pth', OLD[name]['shapes'])
    model = trunchier.create_model(name)
    meta = load_checkpoint(model, tmp_path / 'old.pth')
    assert meta['dataset_name'] == 'old'
    with torch.no_grad():
        features = model.extract_feat(golden_input(7, (1, 3, 256, 192)))
        found = model.head(features if 'heatmaps' in OLD[name]['outputs'] else features[-1])
    found = found if isinstance(found, dict) else dict(heatmaps=found)
    for output, numbers in OLD[name]['outputs'].items():
        values = found[output].double().flatten().numpy()
        values = values[np.linspace(0, len(values) - 1, len(numbers)).astype(int)]
        assert np.abs(values - numbers).max() < 1e-4 * np.std(numbers), output
