#!/usr/bin/env python
"""Poses or bodies of the people in pictures and videos: see `python tools/predict.py --help`."""

import sys

from trunchier.predict import main

if __name__ == '__main__':
    sys.exit(main())
