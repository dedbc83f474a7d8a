"""Measure speed and memory of models, scans, data loaders and exported files."""

import os
import sys
from pathlib import Path

if not __package__:  # started as a folder, which is then on the path instead of its parent
    sys.path[0] = str(Path(__file__).resolve().parents[1])
if 'pipeline' in sys.argv:  # before torch starts its threads; as tools/predict.py does
    os.environ.setdefault('OMP_WAIT_POLICY', 'passive')

from benchmark.commands import main  # noqa: E402

if __name__ == '__main__':
    main()
