"""Runs the Triton kernels in Triton's interpreter and prints their errors; see test_scan.py.

A process of its own, as Triton reads TRITON_INTERPRET when it is imported:
    TRITON_INTERPRET=1 python tests/ops/triton_interpreted.py
"""

import json

import torch
from poison import poison
from test_scan import maps, output_and_gradients, worst_error

from trunchier.ops import selective_scan_2d


def strided(inputs):
    return {name: t.mT.contiguous().mT if t.dim() > 1 else t for name, t in inputs.items()}


torch.manual_seed(0)
CASES = {
    'map': maps(2, 3, 4, 5),
    'map with three states': maps(1, 5, 7, 9, states=3, rank=3),
    'map in segments': maps(1, 9, 6, 4),
    'map of one pixel': maps(1, 1, 1, 3),
    'map with strides': strided(maps(2, 3, 4, 5)),
    'map with hardly any decay': maps(1, 5, 5, 4, decay=0.01),
    'map with strong decay': maps(1, 5, 5, 4, decay=1000),
    'empty map': maps(1, 0, 3, 4),
}


def errors():
    """{case: largest error in float32, relative to each tensor's largest value}; for bfloat16
    against float32 arithmetic on the same rounded numbers.
    """
    found = {}
    for name, inputs in CASES.items():
        inputs = {key: t.float().double() for key, t in inputs.items()}
        expected = output_and_gradients(selective_scan_2d, inputs, backend='reference')
        ours = output_and_gradients(selective_scan_2d, inputs, torch.float32, backend='triton')
        found[name] = worst_error(ours, expected)
    inputs = {name: t.bfloat16() for name, t in maps(1, 3, 4, 5).items()}
    ours = output_and_gradients(selective_scan_2d, inputs, torch.bfloat16, backend='triton')
    expected = output_and_gradients(selective_scan_2d, inputs, backend='reference')
    found['bfloat16'] = worst_error(ours, expected)
    return found


if __name__ == '__main__':
    poison(setattr)
    print(json.dumps(errors()))
