"""Read the records of tests/golden/hmr2_*.json (official outputs on fixed inputs, as numbers)."""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch

FOLDER = Path(__file__).parent / 'golden'


def load(name):
    return json.loads((FOLDER / f'{name}.json').read_text())


def tensor(record):
    """A full record {shape, dtype, data} as a tensor; 'NaN' and 'Infinity' are strings there."""
    data = np.array([float(x) for x in record['data']])
    return torch.from_numpy(data.reshape(record['shape']).astype(record['dtype']))


def standard_normal(seed, shape):
    rng = np.random.Generator(np.random.PCG64(seed))
    return torch.from_numpy(rng.standard_normal(size=shape).astype(np.float32))


def golden_weight(key, shape):
    """The value that the golden runs gave the entry `key` of the official head or discriminator."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))
    n = rng.standard_normal(size=tuple(shape))
    if key.endswith('pos_embedding'):
        n = 0.2 * n
    elif len(shape) >= 2:
        n = n / math.sqrt(math.prod(shape[1:]))
    elif key.endswith('.weight'):
        n = 1 + 0.1 * n
    else:
        n = 0.02 * n
    return torch.from_numpy(n.astype(np.float32))


def sample_error(value, record):
    """Largest error over the samples of a sampled record, in units of the tensor's std."""
    assert list(value.shape) == record['shape']
    index = np.linspace(0, value.numel() - 1, 256).astype(np.int64)
    samples = torch.tensor(record['samples'])
    return ((value.detach().flatten()[index] - samples).abs().max() / record['std']).item()
