"""Importing this before torch lets idle threads of OpenMP sleep soon, unless the user chose.

By default they spin for long: on a machine with other busy processes they take the cores from the
threads that they wait for. Sleeping at once costs a third of the speed of an idle machine, since
waking takes longer than most operations. OpenMP reads the variables when torch is imported.
"""

import os

SETTINGS = dict(GOMP_SPINCOUNT='30000', KMP_BLOCKTIME='1')  # rounds; milliseconds
CHOSEN_BY = ('OMP_WAIT_POLICY', *SETTINGS)

if not any(name in os.environ for name in CHOSEN_BY):
    os.environ.update(SETTINGS)
