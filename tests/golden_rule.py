"""The rule behind the golden numbers in tests/golden, and how tensors are compared with them.

The numbers are outputs of the authors' code. No weights are stored: each entry of a state_dict is
drawn from its official checkpoint key, so that a converted checkpoint can be checked end to end.
A record of a tensor holds `shape`, `mean`, `std` (population) and either `samples`, the flattened
tensor at `np.linspace(0, numel - 1, 256)` or at `places`, or `data`, all of it.
"""

import json
import math
import re
import zlib
from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).parent / 'golden'


def load_golden(name):
    """Content of tests/golden/NAME.json."""
    return json.loads((GOLDEN / f'{name}.json').read_text())


def golden_weight(key, shape):
    """float32 values of the entry `key` of an official checkpoint; None: not drawn by the rule."""
    leaf = key.rsplit('.', 1)[-1]
    if leaf in ('relative_position_index', 'attn_mask', 'num_batches_tracked'):
        return None
    n = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode()))).standard_normal(tuple(shape))
    if leaf == 'running_var':
        w = 1 + 0.1 * np.abs(n)
    elif leaf in ('running_mean', 'A_logs'):
        w = 0.1 * n
    elif leaf == 'relative_position_bias_table':
        w = 0.02 * n
    elif leaf == 'Ds':
        w = 1 + 0.1 * n
    elif leaf == 'dt_projs_bias':
        w = -3 + 0.5 * n
    elif leaf in ('x_proj_weight', 'dt_projs_weight'):
        w = n / math.sqrt(shape[-1])
    elif leaf in ('pos_embed', 'pos_embedding'):
        w = 0.2 * n
    elif len(shape) >= 2:
        w = n / math.sqrt(math.prod(shape[1:])) * (0.1 if '.cpe.' in key else 1)
    elif len(shape) == 1 and leaf == 'weight':
        w = 1 + 0.1 * n
    else:
        w = 0.02 * n
    return np.asarray(w, dtype=np.float32)


def golden_lifting_weight(key, shape):
    """`golden_weight` of lifters, whose tokens and graph matrices have rows of their own."""
    leaf = key.rsplit('.', 1)[-1]
    scales = dict.fromkeys(
        ('Spatial_pos_embed', 'Temporal_pos_embed', 'temp_embed', 'pos_embed_token', 'pos_embed'),
        (0, 0.2),
    )
    scales |= dict(x_token=(0, 1), M=(1, 0.1), adj2=(0, 0.1))
    scales |= dict.fromkeys(('layer_scale_1', 'layer_scale_2'), (0.5, 0.1))
    if leaf == 'W':
        scales['W'] = 0, 1 / math.sqrt(shape[-2])
    if leaf not in scales:
        return golden_weight(key, shape)
    n = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode()))).standard_normal(tuple(shape))
    mean, scale = scales[leaf]
    return np.asarray(mean + scale * n, dtype=np.float32)


def golden_input(seed, shape):
    """Standard normal float32 tensor of `shape`."""
    n = np.random.Generator(np.random.PCG64(seed)).standard_normal(size=tuple(shape))
    return torch.from_numpy(n.astype(np.float32))


def official_shapes(name):
    """{key: shape} of an official checkpoint, from tests/golden/NAME.json.

    The file folds keys that differ only in a block number: 'blocks.{0-5}.norm1.weight' stands for
    six keys.
    """
    shapes = {}
    for key, shape in load_golden(name).items():
        span = re.search(r'\{(\d+)-(\d+)\}', key)
        numbers = range(int(span[1]), int(span[2]) + 1) if span else ['']
        for number in numbers:
            shapes[re.sub(r'\{.*\}', str(number), key)] = tuple(shape)
    return shapes


def golden_state(shapes, prefix='', rule=golden_weight):
    """An official checkpoint's state_dict by the rule; `prefix` is what the rule sees before a key.

    Entries outside the rule (indices, masks, counters) are zeros, as a converter must not use them.
    """
    state = {}
    for key, shape in shapes.items():
        weight = rule(prefix + key, shape)
        state[key] = torch.zeros(shape) if weight is None else torch.from_numpy(weight)
        if key.endswith(('relative_position_index', 'num_batches_tracked')):
            state[key] = state[key].long()
    return state


def golden_tensor(record):
    """The tensor of a record that holds all of its `data` ('NaN' and 'Infinity' are strings)."""
    data = np.array([float(value) for value in record['data']]).astype(record['dtype'])
    return torch.from_numpy(data.reshape(record['shape']))


def golden_values(tensor, record):
    """(ours, golden) as float64 arrays at the places that the record stores."""
    if list(tensor.shape) != list(record['shape']):
        raise AssertionError(f'shape {list(tensor.shape)}, golden {record["shape"]}')
    ours = tensor.detach().double().cpu().contiguous().flatten().numpy()
    if 'data' in record:
        return ours, np.asarray(record['data'], dtype=np.float64)
    places = record.get('places', np.linspace(0, ours.size - 1, len(record['samples'])))
    places = np.asarray(places, dtype=np.int64)
    return ours[places], np.asarray(record['samples'], dtype=np.float64)


def max_error_in_std(tensor, record):
    """Largest |ours - golden| over the stored values, in standard deviations of the tensor."""
    ours, golden = golden_values(tensor, record)
    std = record['std'] if 'std' in record else golden.std()
    return float(np.abs(ours - golden).max() / std)


def assert_matches(tensor, record, tol=1e-4):
    """Every stored value within `tol` std; mean and std of the whole tensor within tol / 10 std."""
    error = max_error_in_std(tensor, record)
    assert error <= tol, f'off by {error:.2e} std, allowed {tol:.0e}'
    whole = tensor.detach().double()
    for what, value in (('mean', whole.mean()), ('std', whole.std(unbiased=False))):
        if what in record:
            error = abs(float(value) - record[what]) / record['std']
            assert error <= tol / 10, f'{what} off by {error:.2e} std, allowed {tol / 10:.0e}'
