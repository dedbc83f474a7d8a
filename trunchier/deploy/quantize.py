"""ONNX files on 8-bit integers (QDQ), by the quantization tool of onnxruntime.

Weights are int8 with a scale for each output channel, inputs of layers uint8 with scales that are
found beforehand on crops of people; results of linear layers stay float32. Attention, norms, the
scan, and layers of fewer than 32 channels are not touched.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..files.optional import need
from ..ops.folding import fold, is_a
from ..ops.int8 import MIN_CHANNELS, PhasedDeconv2d, has_phases
from .runtime import INPUT

LAYERS = ('Conv', 'Gemm', 'MatMul')


def with_phases(model: nn.Module) -> nn.Module:
    """Replace transposed convolutions by what onnxruntime multiplies in 8 bits, in place."""
    for module in [*model.modules()]:
        if is_a(module, nn.Sequential):
            for index, part in enumerate(fold(*module)):
                module[index] = PhasedDeconv2d(part) if has_phases(part) else part
    return model


def quantize(source: Path, target: Path, crops: np.ndarray, allowed: float) -> list[str]:
    """Write a float32 ONNX file in 8 bits.

    Layers are left in float32, those that cost most first, until the error on crops that gave no
    scales is at most `allowed`.

    Args:
        source: of any number of crops, or of one at a time. target: new file.
        crops: (N, 3, H, W) float32, at least 3.
        allowed: root mean square error of an output, in standard deviations of it.

    Returns:
        Names of the layers left in float32.

    Raises:
        ValueError: fewer crops.
    """
    if not len(held_out(crops)):
        raise ValueError(
            f'{len(crops)} people to calibrate on; 3 or more are needed: two for the scales and '
            'one to check them'
        )
    onnx = need('onnx', 'writing ONNX')
    model = onnx.load(str(source), load_external_data=False)
    shapes = {each.name: tuple(each.dims) for each in model.graph.initializer}
    layers = [node.name for node in model.graph.node if _fits(node, shapes)]
    scales, others = np.delete(crops, np.s_[2::3], 0), held_out(crops)
    expected = run(source, others)
    _quantize(source, target, scales, layers)
    left: list[str] = []
    if error_of(run(target, others), expected) > allowed:
        left = _spare(source, target, scales, others, expected, layers, allowed)
    made = onnx.load(str(target))
    del made.metadata_props[:]  # the tool adds one of its own, which is no JSON
    made.metadata_props.extend(model.metadata_props)
    made.producer_name, made.producer_version = model.producer_name, model.producer_version
    onnx.save(made, str(target))
    return left


def _spare(source, target, scales, others, expected, layers, allowed):
    """Leave out the layers that cost most, until the error is allowed; returns them."""
    few, part = scales[:4], target.with_name('part.onnx')
    costs = {}
    for layer in layers:
        _quantize(source, part, few, [layer])
        costs[layer] = error_of(run(part, others), expected)
    part.unlink()
    ranked = sorted(layers, key=costs.get, reverse=True)
    for count in range(1, len(ranked)):
        _quantize(source, target, scales, ranked[count:])
        if error_of(run(target, others), expected) <= allowed:
            return ranked[:count]
    return ranked[:-1]


def held_out(crops: np.ndarray) -> np.ndarray:
    """The crops of those for `quantize` that give no scales."""
    return crops[2::3]


def _fits(node, shapes):
    """Whether a node of the graph multiplies by a constant matrix that is large enough."""
    shape = shapes.get(node.input[1], ()) if node.op_type in LAYERS else ()
    return len(shape) in (2, 4) and min(shape[:2]) >= MIN_CHANNELS


class _Reader:
    """Crops as onnxruntime's calibration asks for them."""

    def __init__(self, crops):
        self.rest = iter(crops)

    def get_next(self):
        crop = next(self.rest, None)
        return None if crop is None else {INPUT: crop[None]}


def _quantize(source, target, crops, layers):
    from onnxruntime import quantization

    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # its advice concerns other models
    try:
        quantization.quantize_static(
            str(source),
            str(target),
            _Reader(crops),
            quant_format=quantization.QuantFormat.QDQ,
            nodes_to_quantize=layers,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            extra_options=dict(
                MatMulConstBOnly=True, OpTypesToExcludeOutputQuantization=['MatMul', 'Gemm']
            ),
        )
    finally:
        logger.setLevel(level)


def run(path: Path, crops: np.ndarray) -> list[np.ndarray]:
    """Outputs of a file for all crops."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options)
    parts = [session.run(None, {INPUT: crop[None]}) for crop in crops]
    return [np.concatenate(each) for each in zip(*parts, strict=True)]


def error_of(found: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """The largest root mean square error of an output, in its standard deviations."""
    errors = [
        np.sqrt(np.mean((ours - theirs) ** 2)) / theirs.std()
        for ours, theirs in zip(found, expected, strict=True)
    ]
    return float(max(errors))
