"""What tools/benchmark and tools/export.py share: side-by-side timing, the machine, tables."""

import contextlib
import ctypes
import datetime
import os
import platform
import statistics
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
import torch.nn.functional as F

from trunchier.ops.linear import cpu_linear

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ('numpy', 'mmengine', 'mmpose', 'mmpretrain', 'numba', 'triton', 'onnxruntime')


# --- timing --------------------------------------------------------------------------------------


def interleaved(tasks, rounds=7, at_least=0.1, device='cpu'):
    """Seconds of a call of each task, measured in turn, so that a busy moment hits all alike.

    Each task is called until it is warm, then in `rounds` rounds, in each of them as often as fits
    into `at_least` seconds. The order is turned from round to round.

    Args:
        tasks: {name: function without arguments}.
        rounds: how many times each is measured.
        at_least: seconds of one measurement.
        device: where the work is done; CUDA is waited for.

    Returns:
        {name: Times}, in the order of `tasks`.
    """
    wait = torch.cuda.synchronize if torch.device(device).type == 'cuda' else lambda: None
    calls = {}
    for name, task in tasks.items():
        task()
        calls[name] = _calls_in(at_least, task, wait)
    times = {name: [] for name in tasks}
    names = list(tasks)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            times[name].append(_time(tasks[name], calls[name], wait))
    return {name: Times(seconds) for name, seconds in times.items()}


def _calls_in(seconds, task, wait):
    """How often `task` fits into `seconds`, at least once; runs it a few times more."""
    calls = 1
    while True:
        spent = _time(task, calls, wait) * calls
        if spent >= seconds / 4 or calls > 10_000:
            return max(1, round(calls * seconds / max(spent, 1e-9)))
        calls *= 4


def _time(task, calls, wait):
    wait()
    start = time.perf_counter()
    for _ in range(calls):
        task()
    wait()
    return (time.perf_counter() - start) / calls


class Times:
    """Measured seconds: their `median`, and `spread`, half the distance of the quartiles by it."""

    def __init__(self, seconds):
        self.seconds = seconds
        self.median = statistics.median(seconds)
        self.spread = 0.0
        if len(seconds) > 1:
            low, _, high = statistics.quantiles(seconds, n=4, method='inclusive')
            self.spread = (high - low) / 2 / self.median


# --- memory --------------------------------------------------------------------------------------


@contextlib.contextmanager
def peak_memory(device='cpu'):
    """`with peak_memory() as peak`: then `peak()` is what the block took at most, in bytes.

    On CUDA what torch allocated beyond what it held before; on the CPU how far the process grew
    (Linux; elsewhere NaN).
    """
    result = []
    if torch.device(device).type == 'cuda':
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield lambda: result[0]
        torch.cuda.synchronize()
        result.append(torch.cuda.max_memory_allocated() - before)
        return
    before = _reset_resident()
    yield lambda: result[0]
    result.append(_status('VmHWM') - before)


def _reset_resident():
    """Give freed memory back, forget the process's peak; bytes that it has now."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL('libc.so.6').malloc_trim(0)
        Path('/proc/self/clear_refs').write_text('5')
    return _status('VmRSS')


def _status(field):
    with contextlib.suppress(OSError):
        for line in Path('/proc/self/status').read_text().splitlines():
            if line.startswith(field + ':'):
                return 1024 * int(line.split()[1])
    return float('nan')


# --- the machine ---------------------------------------------------------------------------------


def environment(device='cpu'):
    """What a time depends on, as {what: value}; printed with every table."""
    device = torch.device(device)
    facts = {
        'date': datetime.datetime.now().astimezone().isoformat(' ', 'minutes'),
        'commit': _commit(),
        'python': platform.python_version(),
        'torch': torch.__version__,
    }
    facts |= {name: number for name in PACKAGES if (number := _version(name))}
    facts |= {
        'CPU': f'{_cpu_name()}, {len(os.sched_getaffinity(0))} cores'
        if hasattr(os, 'sched_getaffinity')
        else f'{_cpu_name()}, {os.cpu_count()} cores',
        'threads': torch.get_num_threads(),
        'load average': f'{os.getloadavg()[0]:.1f}' if hasattr(os, 'getloadavg') else '?',
        'CPU capability': torch.backends.cpu.get_cpu_capability(),
        'MKL': torch.backends.mkl.is_available(),
        'oneDNN': torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled,
        'linear layers': ', '.join(f'{kind} {name}' for kind, name in cpu_linear().items()),
        'matmul precision': torch.get_float32_matmul_precision(),
    }
    if device.type == 'cuda':
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            'GPU': f'{properties.name}, {properties.total_memory / 2**30:.0f} GiB',
            'CUDA': torch.version.cuda,
            'cuDNN': torch.backends.cudnn.version(),
            'TF32': f'matmul {torch.backends.cuda.matmul.allow_tf32}, '
            f'cuDNN {torch.backends.cudnn.allow_tf32}',
            'cuDNN benchmark': torch.backends.cudnn.benchmark,
        }
    return facts


def _commit():
    run = subprocess.run(
        ['git', '-C', ROOT, 'describe', '--always', '--dirty', '--abbrev=10'],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return run.stdout.strip() or 'no checkout'


def _version(name):
    with contextlib.suppress(PackageNotFoundError):
        return version(name)
    return None


def _cpu_name():
    with contextlib.suppress(OSError):
        for line in Path('/proc/cpuinfo').read_text().splitlines():
            if line.startswith('model name'):
                return line.partition(':')[2].strip()
    return platform.processor() or platform.machine()


def peaks(device='cpu', dtype=torch.float32, size=None):
    """GMAC/s of a large matrix product, by who multiplies: {'MKL': ..., 'oneDNN': ...} or {'GPU'}.

    Args:
        size: of the square matrices; None: 1024 on a CPU, 8192 on a GPU.
    """
    device = torch.device(device)
    size = size or (8192 if device.type == 'cuda' else 1024)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    tasks = {'GPU' if device.type == 'cuda' else 'MKL': lambda: F.linear(a, b)}
    if device.type == 'cpu' and torch.backends.mkldnn.is_available():
        linear = torch.ops.mkldnn._linear_pointwise
        with contextlib.suppress(RuntimeError):  # oneDNN has not every type on every CPU
            linear(a, b, None, 'none', [], '')
            tasks['oneDNN'] = lambda: linear(a, b, None, 'none', [], '')
    with torch.no_grad():
        times = interleaved(tasks, rounds=5, at_least=0.2, device=device)
    return {name: size**3 / time.median / 1e9 for name, time in times.items()}


# --- tables --------------------------------------------------------------------------------------


def markdown(columns, rows):
    """A table: `columns` is {key: heading}, `rows` are dicts; numbers get three digits."""
    lines = ['| ' + ' | '.join(columns.values()) + ' |', '|' + '---|' * len(columns)]
    for row in rows:
        lines.append('| ' + ' | '.join(_cell(row.get(key)) for key in columns) + ' |')
    return '\n'.join(lines) + '\n'


def _cell(value):
    if value is None:
        return ''
    if isinstance(value, float):
        if value != value:
            return '?'
        return f'{value:.0f}' if abs(value) >= 100 else f'{value:.3g}'
    return str(value)
