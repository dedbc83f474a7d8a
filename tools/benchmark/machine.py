"""The machine: versions and processors, number formats, peak rates of matrix products."""

import contextlib
import datetime
import functools
import os
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from doctor import installed
from make_synthetic import cores

from benchmark.networks import DTYPES
from benchmark.timing import interleaved
from trunchier.files.decided import cpu_name
from trunchier.ops.cpu import onednn
from trunchier.ops.linear import cpu_linear

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ('numpy', 'mmengine', 'mmpose', 'mmpretrain', 'numba', 'triton', 'onnxruntime')


def environment(device: str = 'cpu') -> dict:
    """What measured times depend on, as {description: value}; printed with the tables."""
    facts = {
        'date': datetime.datetime.now().astimezone().isoformat(' ', 'minutes'),
        'commit': _commit(),
        'python': platform.python_version(),
        'torch': torch.__version__,
    }
    facts |= {name: number for name in PACKAGES if (number := installed(name))}
    facts |= {
        'CPU': f'{cpu_name()}, {cores()} cores',
        'threads': torch.get_num_threads(),
        'load average': f'{os.getloadavg()[0]:.1f}' if hasattr(os, 'getloadavg') else '?',
        'CPU capability': torch.backends.cpu.get_cpu_capability(),
        'MKL': torch.backends.mkl.is_available(),
        'oneDNN': torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled,
        'linear layers': ', '.join(f'{kind} {name}' for kind, name in cpu_linear().items()),
        'matmul precision': torch.get_float32_matmul_precision(),
    }
    if torch.device(device).type == 'cuda':
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            'GPU': f'{properties.name}, {properties.total_memory / 2**30:.0f} GiB',
            'CUDA': f'{torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}',
            'TF32': f'matmul {torch.backends.cuda.matmul.allow_tf32}, '
            f'cuDNN {torch.backends.cudnn.allow_tf32}',
        }
    return facts


def _commit():
    command = ['git', '-C', ROOT, 'describe', '--always', '--dirty', '--abbrev=10']
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    return run.stdout.strip() or 'no checkout'


@contextlib.contextmanager
def tf32(enabled: bool) -> Iterator[None]:
    """Allow TF32 in matrix products and convolutions on CUDA."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    if enabled:
        matmul.allow_tf32 = cudnn.allow_tf32 = True
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


@functools.cache
def peaks(device: str, dtype: str) -> dict[str, float]:
    """GMAC/s of a large matrix product by library: {'MKL': ..., 'oneDNN': ...} or {'GPU': ...}.

    Args:
        device: type of device. dtype: key of `networks.DTYPES`.
    """
    size = 8192 if torch.device(device).type == 'cuda' else 1024
    a, b = (torch.randn(size, size, device=device, dtype=DTYPES[dtype]) for _ in range(2))
    tasks = {'GPU' if a.is_cuda else 'MKL': lambda: F.linear(a, b)}
    if not a.is_cuda and onednn.available():
        with contextlib.suppress(RuntimeError):  # oneDNN lacks some types on some CPUs
            onednn.product(a, b)
            tasks['oneDNN'] = lambda: onednn.product(a, b)
    with torch.no_grad(), tf32(dtype == 'tf32'):
        times = interleaved(tasks, rounds=5, at_least=0.2, device=device)
    return {name: size**3 / time.median / 1e9 for name, time in times.items()}
