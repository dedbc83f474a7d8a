"""Run-length masks: the functions are pycocotools' own."""

from pycocotools.mask import *  # noqa: F403
