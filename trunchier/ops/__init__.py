"""Operations with several implementations: each has one function, and backends chosen by name.

    selective_scan, selective_scan_2d        VMamba; scan/
    window_attention                         Swin; attention.py, windows.py
    group_attention, linear_attention        GroupMixFormer; attention.py
    linear, product                          all families; linear.py

`available_backends()` is the table of all backends. Compiled kernels for the CPU lie in cpu/.
"""

from .attention import group_attention, linear_attention, window_attention
from .backends import available_backends
from .scan import selective_scan, selective_scan_2d

__all__ = [
    'available_backends',
    'group_attention',
    'linear_attention',
    'selective_scan',
    'selective_scan_2d',
    'window_attention',
]
