"""Importing this before torch lets idle threads of OpenMP sleep, unless the user chose otherwise.

By default they spin: on a machine with other busy processes they take the cores from the threads
that they wait for. OpenMP reads the variable once, when torch is imported.
"""

import os

CHOSEN_BY = ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT', 'KMP_BLOCKTIME')

if not any(name in os.environ for name in CHOSEN_BY):
    os.environ['OMP_WAIT_POLICY'] = 'passive'
