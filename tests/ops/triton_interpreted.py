"""Runs the Triton kernels in Triton's interpreter and prints their errors; see test_scan.py.

A process of its own, as Triton reads TRITON_INTERPRET when it is imported:
    TRITON_INTERPRET=1 python tests/ops/triton_interpreted.py
"""

import json

import torch
from test_scan import maps, output_and_gradients, sequences, worst_error

from trunchier.ops import selective_scan, selective_scan_2d


def strided(inputs):
    return {name: t.mT.contiguous().mT if t.dim() > 1 else t for name, t in inputs.items()}


def without(inputs, *names):
    return {name: t for name, t in inputs.items() if name not in names}


torch.manual_seed(0)
CASES = {
    'map': (selective_scan_2d, maps(2, 3, 4, 5), {}),
    'map with three states': (selective_scan_2d, maps(1, 5, 7, 9, states=3, rank=3), {}),
    'map in segments': (selective_scan_2d, maps(1, 9, 6, 4), {}),
    'map of one pixel': (selective_scan_2d, maps(1, 1, 1, 3), {}),
    'map with strides': (selective_scan_2d, strided(maps(2, 3, 4, 5)), {}),
    'map with hardly any decay': (selective_scan_2d, maps(1, 5, 5, 4, decay=0.01), {}),
    'map with strong decay': (selective_scan_2d, maps(1, 5, 5, 4, decay=1000), {}),
    'empty map': (selective_scan_2d, maps(1, 0, 3, 4), {}),
    'sequence of one step': (selective_scan, sequences(2, 2, 3, 2, 1), {}),
    'sequence': (selective_scan, sequences(2, 2, 5, 2, 40), {}),
    'sequence with strides': (selective_scan, strided(sequences(2, 2, 3, 1, 9)), {}),
    'no skip, no bias': (selective_scan, without(sequences(1, 2, 3, 1, 9), 'D', 'delta_bias'), {}),
    'delta as it is': (selective_scan, sequences(1, 2, 3, 1, 9), dict(delta_softplus=False)),
}


def errors():
    """{case: largest error in float32 relative to each tensor's largest value}, and for bfloat16
    the error of the output against float32 arithmetic on the same rounded numbers.
    """
    found = {}
    for name, (scan, inputs, options) in CASES.items():
        inputs = {key: t.float().double() for key, t in inputs.items()}
        if options:
            inputs['delta'] = inputs['delta'].abs()
        wanted = output_and_gradients(scan, inputs, backend='reference', **options)
        ours = output_and_gradients(scan, inputs, torch.float32, backend='triton', **options)
        found[name] = worst_error(ours, wanted)
    inputs = {name: t.bfloat16() for name, t in maps(1, 3, 4, 5).items()}
    ours = output_and_gradients(selective_scan_2d, inputs, torch.bfloat16, backend='triton')
    wanted = output_and_gradients(selective_scan_2d, inputs, backend='reference')
    found['bfloat16'] = worst_error(ours, wanted)
    return found


if __name__ == '__main__':
    print(json.dumps(errors()))
