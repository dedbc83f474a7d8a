#!/usr/bin/env python
"""Poses or bodies of the people in pictures and videos: see `python tools/predict.py --help`."""

import os
import sys

# Idle threads of the network leave their core to those that decode and crop. Read with torch.
os.environ.setdefault('OMP_WAIT_POLICY', 'passive')

from trunchier.inference.command import main  # noqa: E402

if __name__ == '__main__':
    sys.exit(main())
