#!/usr/bin/env python
"""Predict poses or bodies of the people in images and videos."""

import sys

import idle_threads  # noqa: F401  before torch

from trunchier.inference.command import main

if __name__ == '__main__':
    sys.exit(main())
