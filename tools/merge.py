#!/usr/bin/env python
"""Make one data set of what the workers of `annotate` have done."""

import sys

import idle_threads  # noqa: F401  before torch

from trunchier.annotation.command import main_of_merge

if __name__ == '__main__':
    sys.exit(main_of_merge())
