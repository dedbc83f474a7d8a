"""Operations with several implementations: each has one function, and backends chosen by name.

    selective_scan, selective_scan_2d        VMamba; scan/
    window_attention                         Swin; attention.py, windows.py
    group_attention, linear_attention        GroupMixFormer; attention.py
    linear, product                          all families; linear.py

`available_backends()` is the table of all backends. Compiled kernels for the CPU lie in cpu/.
"""

from . import attention, linear, scan
from .attention import group_attention, linear_attention, window_attention
from .scan import selective_scan, selective_scan_2d

__all__ = [
    'available_backends',
    'group_attention',
    'linear_attention',
    'selective_scan',
    'selective_scan_2d',
    'window_attention',
]


def available_backends() -> dict[str, dict[str, str]]:
    """{operation: {backend: 'available', or the reason why it is not and the remedy}}."""
    tables: dict[str, dict] = {
        'selective_scan': scan.SEQUENCE_BACKENDS,
        'selective_scan_2d': scan.MAP_BACKENDS,
        'window_attention': attention.BACKENDS,
        'group_attention': attention.BACKENDS,
        'linear': linear.BACKENDS,
    }
    return {
        operation: {name: absent() or 'available' for name, absent in backends.items()}
        for operation, backends in tables.items()
    }
