"""The selective scan: against the authors' numbers, against the equation, and at its edges."""

import json
import os
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_rule import golden_values, load_golden
from torch.utils._python_dispatch import TorchDispatchMode
from versions import needs_torch

from trunchier.ops import available_backends, backends, selective_scan, selective_scan_2d
from trunchier.ops import scan as choice
from trunchier.ops.scan import map_backend, parallel, reference
from trunchier.ops.scan.parallel import scan_sequence

GOLDEN = load_golden('selective_scan')
CASES = [name for name, case in GOLDEN.items() if isinstance(case, dict) and 'loss' in case]
NAMES = ('u', 'delta', 'A', 'B', 'C', 'D', 'delta_bias')
NAMES_2D = ('x', 'projection', 'A', 'D', 'delta_weight', 'delta_bias')
needs_numba = pytest.mark.skipif(find_spec('numba') is None, reason='numba is not installed')
# Fast backends on CPU and the precisions of their arithmetic: of sequences, and of maps.
SEQUENCE_BACKENDS = [('torch', torch.float64), ('torch', torch.float32)]
MAP_BACKENDS = [*SEQUENCE_BACKENDS, pytest.param('numba', torch.float32, marks=needs_numba)]
ALLOWED = {torch.float64: 1e-12, torch.float32: 1e-5}


def sequences(batch, groups, channels, states, length, decay=1.0):
    """Random arguments of `selective_scan`, float64; the mean |delta A| is about `decay`."""
    wide, exact = groups * channels, dict(dtype=torch.float64)
    return {
        'u': torch.randn(batch, wide, length, **exact),
        'delta': torch.randn(batch, wide, length, **exact),
        'A': -decay * torch.randn(wide, states, **exact).mul(0.5).exp(),
        'B': torch.randn(batch, groups, states, length, **exact),
        'C': torch.randn(batch, groups, states, length, **exact),
        'D': torch.randn(wide, **exact),
        'delta_bias': torch.randn(wide, **exact),
    }


def maps(batch, height, width, channels, states=1, rank=2, decay=1.0):
    """Random arguments of `selective_scan_2d`, float64."""
    exact = dict(dtype=torch.float64)
    return {
        'x': torch.randn(batch, height, width, channels, **exact),
        'projection': torch.randn(batch, height, width, 4, rank + 2 * states, **exact),
        'A': -decay * torch.randn(4, channels, states, **exact).mul(0.5).exp(),
        'D': torch.randn(4, channels, **exact),
        'delta_weight': torch.randn(4, channels, rank, **exact),
        'delta_bias': torch.randn(4, channels, **exact),
    }


def output_and_gradients(scan, inputs, dtype=torch.float64, **options):
    """{'out': y, input's name: gradient of sum(y * fixed noise)}."""
    leaves = {name: t.detach().to(dtype, copy=True).requires_grad_() for name, t in inputs.items()}
    y = scan(**leaves, **options)
    noise = np.random.Generator(np.random.PCG64(0)).standard_normal(tuple(y.shape))
    loss = (y * torch.from_numpy(noise).to(y)).sum()
    grads = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
    return {'out': y.detach(), **dict(zip(leaves, grads, strict=True))}


def worst_error(found, expected):
    """Largest error of any entry, relative to the largest value of its tensor."""
    errors = {
        name: float((found[name].double() - t.double()).abs().max() / t.double().abs().max())
        for name, t in expected.items()
        if t.numel() and t.abs().max()
    }
    return max(errors.values(), default=0.0)


# --- the authors' numbers ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('backend', 'dtype'),
    [('reference', torch.float64), ('reference', torch.float32), *SEQUENCE_BACKENDS],
)
@pytest.mark.parametrize('name', CASES)
def test_scan_and_its_seven_gradients_are_the_official_ones(name, backend, dtype):
    case = GOLDEN[name]
    batch, groups, channels, states, length = (case[key] for key in 'BKCNL')
    rng = np.random.Generator(np.random.PCG64(case['seed']))

    def normal(*shape):
        return torch.from_numpy(rng.standard_normal(size=shape))

    wide = groups * channels
    inputs = {
        'u': normal(batch, wide, length),
        'delta': case['delta_scale'] * normal(batch, wide, length),
        'A': -torch.exp(0.5 * normal(wide, states)),
        'B': normal(batch, groups, states, length),
        'C': normal(batch, groups, states, length),
        'D': normal(wide),
        'delta_bias': -1 + 0.5 * normal(wide),
    }
    inputs = {key: value.to(dtype).requires_grad_() for key, value in inputs.items()}
    y = selective_scan(**inputs, backend=backend)
    (y * normal(batch, wide, length).to(dtype)).sum().backward()

    found = {'out': y, **{f'grad_{key}': value.grad for key, value in inputs.items()}}
    # Where delta is above its threshold of 20, softplus is taken as linear: 2e-9 off.
    allowed = 1e-9 if dtype == torch.float64 else 1e-5
    for key, tensor in found.items():
        ours, golden = golden_values(tensor, case[key])
        assert np.abs(ours - golden).max() <= allowed * np.abs(golden).max(), key


def test_cross_scan_reads_in_the_official_directions():
    golden = GOLDEN['cross_scan']
    x = torch.arange(2 * golden['H'] * golden['W']).view(1, 2, golden['H'], golden['W'])
    ours, expected = golden_values(reference.cross_scan(x), golden['scan_output'])
    assert (ours == expected).all()


def test_cross_merge_adds_in_the_official_directions():
    golden = GOLDEN['cross_scan']
    y = torch.arange(4 * 2 * golden['H'] * golden['W']).view(1, 4, 2, -1)
    merged = reference.cross_merge(y, golden['H'], golden['W']).flatten(2)
    ours, expected = golden_values(merged, golden['merge_output'])
    assert (ours == expected).all()


# --- against the equation ------------------------------------------------------------------------


@pytest.mark.parametrize('length', [0, 1, 2, 3, 5, 8, 31, 64, 100])
@pytest.mark.parametrize(('backend', 'dtype'), SEQUENCE_BACKENDS)
def test_any_length_equals_the_loop(length, backend, dtype):
    inputs = sequences(2, 3, 4, 2, length)
    expected = output_and_gradients(selective_scan, inputs, backend='reference')
    found = output_and_gradients(selective_scan, inputs, dtype, backend=backend)
    assert worst_error(found, expected) < ALLOWED[dtype]


@pytest.mark.parametrize('absent', ['D', 'delta_bias'])
@pytest.mark.parametrize(('backend', 'dtype'), SEQUENCE_BACKENDS)
def test_skip_and_bias_may_be_absent(absent, backend, dtype):
    inputs = sequences(2, 2, 3, 1, 9)
    del inputs[absent]
    expected = output_and_gradients(selective_scan, inputs, backend='reference')
    found = output_and_gradients(selective_scan, inputs, dtype, backend=backend)
    assert worst_error(found, expected) < ALLOWED[dtype]


@pytest.mark.parametrize(('backend', 'dtype'), SEQUENCE_BACKENDS)
def test_delta_without_softplus(backend, dtype):
    inputs = sequences(2, 2, 3, 1, 9)
    inputs['delta'] = inputs['delta'].abs()
    options = dict(delta_softplus=False)
    expected = output_and_gradients(selective_scan, inputs, backend='reference', **options)
    found = output_and_gradients(selective_scan, inputs, dtype, backend=backend, **options)
    assert worst_error(found, expected) < ALLOWED[dtype]


@pytest.mark.parametrize('states', [1, 3])
@pytest.mark.parametrize(
    'size', [(1, 1), (3, 4), (8, 6), (5, 7), (1, 9), (9, 1), (90, 1), (2, 150)]
)
@pytest.mark.parametrize(('backend', 'dtype'), MAP_BACKENDS)
def test_any_map_equals_the_loop(size, states, backend, dtype):
    inputs = maps(2, *size, 5, states)
    expected = output_and_gradients(selective_scan_2d, inputs, backend='reference')
    found = output_and_gradients(selective_scan_2d, inputs, dtype, backend=backend)
    assert worst_error(found, expected) < ALLOWED[dtype]


@pytest.mark.parametrize('elements', [1, 1000, 2500])
@pytest.mark.parametrize(('backend', 'dtype'), MAP_BACKENDS)
def test_map_in_parts_equals_the_map_at_once(elements, backend, dtype, monkeypatch):
    inputs = maps(5, 6, 4, 40)
    whole = output_and_gradients(selective_scan_2d, inputs, dtype, backend=backend)
    limit = dict(torch='parallel.MAX_ELEMENTS', numba='cpu.CACHED')[backend]
    monkeypatch.setattr(f'trunchier.ops.scan.{limit}', elements)
    parts = output_and_gradients(selective_scan_2d, inputs, dtype, backend=backend)
    assert worst_error(parts, whole) < ALLOWED[dtype]


@needs_numba
@pytest.mark.parametrize('threads', [1, 3], indirect=True)
@pytest.mark.parametrize('channels', [5, 16, 50])
@pytest.mark.parametrize('states', [1, 2])
def test_threads_share_the_channels_of_numba(threads, channels, states, monkeypatch):
    from trunchier.ops.cpu import threads as module

    monkeypatch.setattr(module, 'MIN_PARALLEL_CYCLES', 0)
    inputs = maps(2, 7, 5, channels, states)
    expected = output_and_gradients(selective_scan_2d, inputs, backend='reference')
    found = output_and_gradients(selective_scan_2d, inputs, torch.float32, backend='numba')
    assert worst_error(found, expected) < 1e-5


@pytest.mark.parametrize('decay', [0.01, 0.1, 1, 10, 100, 1000])
@pytest.mark.parametrize('backend', ['torch', pytest.param('numba', marks=needs_numba)])
def test_float32_is_exact_to_1e_5_at_any_decay(decay, backend):
    scans = [(selective_scan_2d, maps(1, 24, 18, 8, decay=decay))]
    if backend == 'torch':
        scans.append((selective_scan, sequences(1, 2, 4, 1, 400, decay)))
    for scan, inputs in scans:
        inputs = {name: t.float().double() for name, t in inputs.items()}
        expected = output_and_gradients(scan, inputs, backend='reference')
        found = output_and_gradients(scan, inputs, torch.float32, backend=backend)
        assert worst_error(found, expected) < 1e-5


@pytest.mark.parametrize('name', NAMES_2D)
@pytest.mark.parametrize('value', [float('nan'), float('inf')])
@pytest.mark.parametrize('backend', ['torch', pytest.param('numba', marks=needs_numba)])
def test_nan_and_infinity_are_not_hidden(name, value, backend):
    inputs = {key: t.float() for key, t in maps(1, 3, 4, 5).items()}
    inputs[name].view(-1)[0] = value
    assert not selective_scan_2d(**inputs, backend=backend).isfinite().all()


def test_gradients_are_those_of_finite_differences():
    inputs = [t.requires_grad_() for t in sequences(1, 2, 2, 2, 5).values()]
    assert torch.autograd.gradcheck(lambda *a: selective_scan(*a, backend='torch'), inputs)
    inputs = [t.requires_grad_() for t in maps(1, 3, 2, 3, states=2).values()]
    assert torch.autograd.gradcheck(lambda *a: selective_scan_2d(*a, backend='torch'), inputs)


@pytest.mark.parametrize(('backend', 'dtype'), MAP_BACKENDS)
def test_backward_keeps_the_inputs_alone(backend, dtype):
    inputs = {name: t.to(dtype).requires_grad_() for name, t in maps(2, 8, 6, 16).items()}
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        selective_scan_2d(**inputs, backend=backend)
    kept = [t for t in kept if t.numel()]  # torch 2.1's checkpoint adds an empty one
    assert {t.data_ptr() for t in kept} == {t.data_ptr() for t in inputs.values()}


# --- kinds of tensors ----------------------------------------------------------------------------


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('backend', ['torch', pytest.param('numba', marks=needs_numba)])
def test_half_precision_is_rounded_only_at_the_end(dtype, backend):
    inputs = {name: t.to(dtype) for name, t in maps(2, 7, 5, 8).items()}
    y = selective_scan_2d(**inputs, backend=backend)
    exact = {name: t.double() for name, t in inputs.items()}
    expected = selective_scan_2d(**exact, backend='reference')
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-5)


def test_half_precision_gradients_have_their_inputs_dtypes():
    inputs = {name: t.float() for name, t in sequences(2, 2, 3, 1, 9).items()}
    inputs['u'], inputs['B'] = inputs['u'].bfloat16(), inputs['B'].bfloat16()
    for t in inputs.values():
        t.requires_grad_()
    selective_scan(**inputs).sum().backward()
    assert all(t.grad.dtype == t.dtype for t in inputs.values())


def test_autocast_changes_nothing_inside():
    inputs = {name: t.float() for name, t in maps(1, 6, 5, 8).items()}
    expected = output_and_gradients(selective_scan_2d, inputs, torch.float32)
    with torch.autocast('cpu', torch.bfloat16):
        found = output_and_gradients(selective_scan_2d, inputs, torch.float32)
    assert worst_error(found, expected) == 0


def test_strides_do_not_matter():
    inputs = maps(2, 6, 4, 8)
    expected = output_and_gradients(selective_scan_2d, inputs)
    strided = {name: t.mT.contiguous().mT if t.dim() > 1 else t for name, t in inputs.items()}
    strided['x'] = inputs['x'].permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert not strided['x'].is_contiguous()
    assert worst_error(output_and_gradients(selective_scan_2d, strided), expected) < 1e-12

    inputs = sequences(2, 2, 3, 2, 9)
    expected = output_and_gradients(selective_scan, inputs)
    strided = {name: t.mT.contiguous().mT if t.dim() > 1 else t for name, t in inputs.items()}
    assert worst_error(output_and_gradients(selective_scan, strided), expected) < 1e-12


def test_empty_maps_give_empty_results():
    for shape in ((0, 4, 3), (2, 0, 3), (2, 4, 0)):
        found = output_and_gradients(selective_scan_2d, maps(*shape, 5))
        assert found['out'].shape == (*shape, 5)
        assert not found['A'].any()


# --- graphs --------------------------------------------------------------------------------------


@pytest.mark.parametrize('length', [1, 2, 7, 12, 13, 64, 100, 293])
def test_tree_is_the_recurrence(length):
    a, b = torch.rand(2, length, 3).double(), torch.randn(2, length, 3).double()
    h, expected = torch.zeros(2, 3).double(), []
    for t in range(length):
        h = a[:, t] * h + b[:, t]
        expected.append(h)
    torch.testing.assert_close(scan_sequence(a, b), torch.stack(expected, 1))


@needs_torch('2.6', 'one graph')
@pytest.mark.parametrize('dimensions', [1, 2])
def test_compiled_without_breaks_it_is_the_same(dimensions):
    scan = [selective_scan, selective_scan_2d][dimensions - 1]
    inputs = sequences(2, 2, 3, 2, 11) if dimensions == 1 else maps(2, 5, 3, 4, states=2)
    compiled = torch.compile(scan, fullgraph=True, backend='aot_eager')
    expected = output_and_gradients(scan, inputs)
    assert worst_error(output_and_gradients(compiled, inputs), expected) < 1e-12


class Scan2d(torch.nn.Module):
    def forward(self, *inputs):
        return selective_scan_2d(*inputs)


@needs_torch('2.6', 'torch.export')
def test_graph_grows_with_the_logarithm_of_the_pixels():
    def nodes(height, width):
        inputs = tuple(t.float() for t in maps(2, height, width, 4).values())
        return len(torch.export.export(Scan2d(), inputs).graph.nodes)

    small, large = nodes(4, 4), nodes(32, 32)
    assert large - small < 150  # three more levels of groups, not 1008 more steps


@needs_torch('2.6', 'torch.export')
@pytest.mark.parametrize('cached', [0, 2**18])  # read in parts, and at once
@pytest.mark.parametrize('size', [(1, 1), (1, 14), (13, 1), (5, 7), (12, 9)])
def test_exported_map_equals_the_loop(size, cached, monkeypatch):
    monkeypatch.setattr(parallel, 'CACHED', cached)
    inputs = maps(2, *size, 3, states=2)
    exported = torch.export.export(Scan2d(), tuple(inputs.values())).module()
    expected = selective_scan_2d(**inputs, backend='reference')
    torch.testing.assert_close(exported(*inputs.values()), expected, rtol=1e-12, atol=1e-12)


@needs_torch('2.6', 'one graph')
@pytest.mark.parametrize('decay', [0.01, 1, 1000])
def test_traced_gradients_are_exact_to_1e_5_at_any_decay(decay):
    inputs = {name: t.float().double() for name, t in maps(1, 24, 18, 4, decay=decay).items()}
    inputs['delta_bias'] += torch.tensor([-100.0, 0, 30, 200])
    expected = output_and_gradients(selective_scan_2d, inputs, backend='reference')
    torch.compiler.reset()  # or maps of another size before this make its size dynamic
    traced = torch.compile(selective_scan_2d, fullgraph=True, backend='aot_eager')
    assert worst_error(output_and_gradients(traced, inputs, torch.float32), expected) < 1e-5


@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning', 'ignore::FutureWarning')
def test_jit_trace_is_the_same_for_another_batch():
    inputs = tuple(maps(2, 6, 4, 4).values())
    traced = torch.jit.trace(Scan2d(), inputs)
    other = tuple(maps(3, 6, 4, 4).values())
    torch.testing.assert_close(traced(*other), selective_scan_2d(*other))


# --- triton --------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def interpreted():
    """{case: error} of the Triton kernels, run on CPU by Triton's interpreter."""
    pytest.importorskip('triton', minversion='3.2')
    script = Path(__file__).with_name('triton_interpreted.py')
    path = os.pathsep.join(str(folder) for folder in script.parents[1:3])  # golden_rule, trunchier
    environment = {**os.environ, 'TRITON_INTERPRET': '1', 'PYTHONPATH': path}
    run = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def test_triton_kernels_equal_the_loop(interpreted):
    rounded = interpreted.pop('bfloat16')
    assert len(interpreted) >= 8
    wrong = {case: error for case, error in interpreted.items() if not error < 1e-5}
    assert wrong == {}
    assert rounded < 2 * torch.finfo(torch.bfloat16).eps


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
@pytest.mark.parametrize('states', [1, 4])
@pytest.mark.parametrize('size', [(1, 1), (64, 48), (33, 7)])
def test_triton_on_the_device_equals_the_loop(size, states):
    inputs = {name: t.cuda() for name, t in maps(2, *size, 40, states).items()}
    expected = output_and_gradients(selective_scan_2d, inputs, backend='reference')
    found = output_and_gradients(selective_scan_2d, inputs, torch.float32, backend='triton')
    assert worst_error(found, expected) < 1e-5


# --- backends and bad input ----------------------------------------------------------------------


def test_a_named_backend_never_falls_back():
    inputs = maps(1, 2, 2, 2)
    with pytest.raises(RuntimeError, match="no backend 'cuda'; give 'auto' or one of"):
        selective_scan_2d(**inputs, backend='cuda')
    with pytest.raises(RuntimeError, match="'triton' needs CUDA tensors.*use backend='torch'"):
        selective_scan_2d(**inputs, backend='triton')
    with pytest.raises(RuntimeError, match="'numba' computes in float32.*use backend='torch'"):
        selective_scan_2d(**inputs, backend='numba')
    with pytest.raises(RuntimeError, match="'numba' needs CPU tensors"):
        selective_scan_2d(**{k: t.float().to('meta') for k, t in inputs.items()}, backend='numba')


@pytest.mark.parametrize('backend', ['numba', 'triton'])
def test_backends_of_maps_refuse_sequences(backend):
    with pytest.raises(RuntimeError, match="scans maps only; use selective_scan_2d or backend='to"):
        selective_scan(**sequences(1, 1, 2, 1, 3), backend=backend)


def test_an_absent_backend_says_what_to_do(monkeypatch):
    assert available_backends()['selective_scan_2d']['torch'] == 'available'
    monkeypatch.setattr(backends.importlib.util, 'find_spec', lambda name: None)
    backends.missing.cache_clear()
    inputs = {name: t.float() for name, t in maps(1, 2, 2, 2).items()}
    try:
        assert 'pip install triton' in available_backends()['selective_scan_2d']['triton']
        with pytest.raises(RuntimeError, match='pip install numba'):
            selective_scan_2d(**inputs, backend='numba')
        assert map_backend(inputs['x']) == 'torch'
    finally:
        backends.missing.cache_clear()


def test_auto_says_once_that_it_falls_back_because_a_package_is_missing(monkeypatch):
    monkeypatch.setitem(choice.MAP_BACKENDS, 'numba', lambda: 'needs the package numba')
    choice._warn_of_slow_scan.cache_clear()
    inputs = {name: t.float() for name, t in maps(1, 2, 2, 2).items()}
    with pytest.warns(UserWarning, match="falls back to torch.*'numba' needs the package numba"):
        selective_scan_2d(**inputs)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        selective_scan_2d(**inputs)
        selective_scan_2d(**inputs, backend='torch')


@needs_numba
def test_auto_takes_the_fastest_backend_that_supports_the_map():
    x = torch.zeros(1)
    assert map_backend(x) == 'numba'
    assert map_backend(x.double()) == map_backend(x.to('meta')) == 'torch'


@pytest.mark.parametrize('backend', ['numba', 'triton'])
def test_kernels_of_float32_refuse_float64(backend, monkeypatch):
    monkeypatch.setitem(choice.MAP_BACKENDS, backend, lambda: '')
    monkeypatch.setenv('TRITON_INTERPRET', '1')  # or it refuses CPU tensors
    assert map_backend(torch.zeros(1), backend) == backend
    with pytest.raises(RuntimeError, match=f"'{backend}' computes in float32, got torch.float64"):
        map_backend(torch.zeros(1).double(), backend)


@pytest.mark.parametrize('name', NAMES)
def test_wrong_shapes_of_sequences_are_named(name):
    inputs = sequences(2, 3, 4, 2, 5)
    inputs[name] = inputs[name][..., :-1]
    with pytest.raises(ValueError, match='shape.*expected|shape.*give|channels in'):
        selective_scan(**inputs)


@pytest.mark.parametrize('name', NAMES_2D)
def test_wrong_shapes_of_maps_are_named(name):
    inputs = maps(2, 3, 4, 5)
    inputs[name] = inputs[name][..., :-1]
    with pytest.raises(ValueError, match='has shape .* expected'):
        selective_scan_2d(**inputs)


def test_integers_and_scattered_devices_are_refused():
    inputs = sequences(1, 1, 2, 1, 3)
    with pytest.raises(TypeError, match='int64; give a floating-point tensor'):
        selective_scan(**{**inputs, 'u': inputs['u'].long()})
    with pytest.raises(ValueError, match='B is on meta, the scanned tensor on cpu'):
        selective_scan(**{**inputs, 'B': inputs['B'].to('meta')})


def test_channels_must_divide_into_groups():
    inputs = sequences(1, 3, 2, 1, 3)
    inputs['u'] = inputs['u'][:, :5]
    with pytest.raises(ValueError, match='5 channels in 3 groups'):
        selective_scan(**inputs)


@needs_numba
def test_a_process_that_may_end_soon_scans_the_first_maps_by_torch():
    x = torch.zeros(1, 4, 5, 6)  # 120 elements
    with choice.begin_with_torch(300):
        assert [map_backend(x), map_backend(x)] == ['torch', 'torch']
        assert map_backend(x, 'reference') == 'reference'
        assert [map_backend(x), map_backend(x)] == ['numba', 'numba']
    with choice.begin_with_torch(300):
        pass
    assert map_backend(x) == 'numba'


@needs_numba
def test_a_decay_below_the_range_of_float32_is_exactly_zero():
    """Also times a state of 1e38, forward and backward."""
    x = torch.zeros(1, 1, 6, 16)
    x[:, :, 0] = 1e36
    x.requires_grad_()
    delta, lowest = 80.0, torch.zeros(4, 16, 1)
    projection = torch.ones(1, 1, 6, 4, 3)
    bias = torch.full((4, 16), delta)
    y = selective_scan_2d(x, projection, lowest - 1, lowest[..., 0], lowest, bias, backend='numba')
    assert not y[:, :, 1:].any()
    (gradient,) = torch.autograd.grad(y[:, :, 1:].sum(), x)
    assert not gradient[:, :, 0].any()
    assert gradient[:, :, 1:].any()


@pytest.mark.parametrize('depth', [60, 80, 95])
def test_strong_decays_give_no_subnormal_numbers_and_right_gradients(depth):
    """Forward and backward, of the torch scan; exp(-60) twice, or exp(-80), are below 1e-30."""
    torch.manual_seed(0)
    given = [torch.rand(1, 4, 12) + 0.5, torch.full((1, 4, 12), float(depth)), -torch.ones(4, 1)]
    given += [torch.rand(1, 1, 1, 12) + 0.5, torch.rand(1, 1, 1, 12) + 0.5]
    inputs = [tensor.requires_grad_() for tensor in given]
    exact = [tensor.detach().double().requires_grad_() for tensor in given]
    tiny, seen = torch.finfo(torch.float32).tiny, []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            made = function(*args, **(kwargs or {}))
            empty = 'empty' in str(function)  # holds anything
            for each in made if isinstance(made, tuple | list) else [made]:
                if torch.is_tensor(each) and each.is_floating_point() and not empty:
                    small = (each != 0) & (each.abs() < tiny)
                    # a product may be, before it becomes 0
                    seen.extend([str(function)] * bool(small.any()))
            return made

    with Watch():
        found = selective_scan(*inputs, delta_softplus=False, backend='torch')
        found.sum().backward()
    expected = selective_scan(*exact, delta_softplus=False, backend='reference')
    expected.sum().backward()
    assert {*seen} <= ({'aten.mul.Tensor'} if depth == 60 else set())
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
    for ours, theirs in zip(inputs, exact, strict=True):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-5, atol=1e-6)
