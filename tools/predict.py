#!/usr/bin/env python
"""Predict poses or bodies of the people in images and videos."""

import os
import sys

# Idle threads of the network sleep instead of spinning. OpenMP reads this when torch is imported.
os.environ.setdefault('OMP_WAIT_POLICY', 'passive')

from trunchier.inference.command import main  # noqa: E402

if __name__ == '__main__':
    sys.exit(main())
