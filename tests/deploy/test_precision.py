"""The precision that `auto` takes is the fastest within the allowed error."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import trunchier
from trunchier.deploy import precision
from trunchier.deploy.fuse import DEPLOYED
from trunchier.deploy.precision import Measured, choose, fastest_precision, measure
from trunchier.files.decided import decisions

FP32 = Measured(1.0, 0.0)
IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    monkeypatch.setenv('TRUNCHIER_HOME', str(tmp_path / 'home'))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3))


@pytest.fixture
def says(monkeypatch):
    """Let measurements say what a test wants; returns how often one was made."""

    def says(rows):
        calls = []
        monkeypatch.setattr(precision, 'measure', lambda *_: calls.append(1) or rows)
        return calls

    return says


@pytest.mark.parametrize(
    ('others', 'taken'),
    [
        (dict(int8=Measured(0.5, 0.05), bf16=Measured(0.7, 0.01)), 'int8'),
        (dict(int8=Measured(0.5, 0.2), bf16=Measured(0.7, 0.01)), 'bf16'),
        (dict(bf16=Measured(5.0, 0.01)), 'fp32'),  # slower
        (dict(bf16=Measured(0.97, 0.01)), 'fp32'),  # no more than noise
        (dict(int8=Measured(0.5, math.nan)), 'fp32'),
        ({}, 'fp32'),
    ],
)
def test_the_fastest_within_the_tolerance_is_taken(others, taken):
    assert choose(dict(fp32=FP32, **others), 0.1) == taken


def test_each_precision_of_this_machine_is_measured_against_float32(network):
    rows = measure(network, IMAGES)
    assert 'fp32' in rows.keys() <= {*DEPLOYED}
    assert rows['fp32'].error == 0
    assert all(1e-4 < row.error < 0.05 for name, row in rows.items() if name != 'fp32')
    assert all(row.seconds > 0 for row in rows.values())


def test_a_precision_whose_products_are_emulated_is_not_tried(network, monkeypatch):
    seconds = {torch.float32: 1.0, torch.bfloat16: 100.0, torch.float16: 3.0}
    monkeypatch.setattr(precision, '_convolution', seconds.__getitem__)
    assert {'fp32', 'fp16'} <= measure(network, IMAGES).keys() <= {'fp32', 'fp16', 'int8'}


def test_a_model_is_measured_once_and_deployed_as_decided(network, says):
    calls = says(dict(fp32=FP32, bf16=Measured(0.5, 0.01)))
    for _ in range(2):
        deployed = trunchier.deploy(network, precision='auto', images=IMAGES)
        assert {each.dtype for each in deployed.parameters()} == {torch.bfloat16}
    assert len(calls) == 1
    assert list(decisions().values()) == ['bf16']
    with torch.no_grad():
        network[0].weight.mul_(2)
    fastest_precision(network, IMAGES)  # other weights may have another error
    fastest_precision(network, IMAGES, 0.001)
    assert len(calls) == 3


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(precision='auto'), 'give images'),
        (dict(precision='auto', images=IMAGES, tolerance=0), 'a positive number'),
        (dict(precision='int4'), 'give one of fp32, fp16, bf16, int8, auto'),
    ],
)
def test_what_cannot_be_measured_is_refused(network, options, message):
    with pytest.raises(ValueError, match=message):
        trunchier.deploy(network, **options)


def test_a_predictor_runs_in_the_precision_that_is_fastest(says, monkeypatch):
    says(dict(fp32=FP32, bf16=Measured(0.5, 0.01)))
    crops = np.zeros((2, 3, 256, 192), np.float32)
    monkeypatch.setattr(precision, 'calibration_crops', lambda facts, num: crops[:num])
    infer = trunchier.PoseInferencer('VMPose-T-S2', device='cpu', precision='auto')
    assert infer.settings['precision'] == infer.predictor.precision == 'bf16'
    assert infer.predictor.dtype == torch.float32  # no autocast: the network casts
    backbone = infer.predictor.network.network.graph.model.backbone
    assert torch.bfloat16 in {each.dtype for each in backbone.parameters()}
    result = next(infer(np.zeros((64, 48, 3), np.uint8), bboxes=[[0, 0, 48, 64]]))
    assert np.isfinite(result.pred_instances.keypoints).all()
