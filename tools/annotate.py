#!/usr/bin/env python
"""Annotate images and videos by a teacher: a data set to train on."""

import sys

import idle_threads  # noqa: F401  before torch

from trunchier.annotation.command import main

if __name__ == '__main__':
    sys.exit(main())
