"""Measure speed and memory of models, scans, data loaders and exported files."""

import sys
from pathlib import Path

if not __package__:  # started as a folder, which is then on the path instead of its parent
    sys.path[0] = str(Path(__file__).resolve().parents[1])
import idle_threads  # noqa: E402, F401  before torch; as in training and prediction

from benchmark.commands import main  # noqa: E402

if __name__ == '__main__':
    main()
