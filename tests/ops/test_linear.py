"""Linear layers: equal values on each backend, and the choice of the backend."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from versions import needs_torch

from trunchier.ops import linear as module
from trunchier.ops.cpu import onednn
from trunchier.ops.linear import cpu_linear, linear

HALF = pytest.param(torch.float16, marks=needs_torch('2.4', 'float16 products on CPU'))
pytestmark = pytest.mark.skipif(
    not onednn.available(), reason='this torch has no linear layer of oneDNN'
)


@pytest.fixture(autouse=True)
def choose(monkeypatch, tmp_path):
    """Function that sets the variable; before and after a test nothing is chosen or measured."""
    monkeypatch.setenv('TRUNCHIER_HOME', str(tmp_path))

    def choose(name):
        monkeypatch.setenv(module.VARIABLE, name)
        module._choice.cache_clear()
        module.faster.cache_clear()

    choose('')
    yield choose
    choose('')


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return nn.Linear(96, 160)


@pytest.fixture
def products(monkeypatch):
    """Activations of the products that oneDNN computed, in order."""
    computed, product = [], onednn.product

    def listed(x, weight, bias=None, activation=None):
        computed.append(activation)
        return product(x, weight, bias, activation)

    monkeypatch.setattr(onednn, 'product', listed)
    return computed


def by_hand(x, layer, gelu):
    y = x.double() @ layer.weight.double().t()
    if layer.bias is not None:
        y = y + layer.bias.double()
    return F.gelu(y) if gelu else y


# --- values --------------------------------------------------------------------------------------

INPUTS = {
    'vector': lambda: torch.randn(96),
    'one row': lambda: torch.randn(1, 96),
    'rows': lambda: torch.randn(300, 96),
    'map': lambda: torch.randn(2, 5, 7, 96),
    'map that was channels first': lambda: torch.randn(2, 96, 5, 7).permute(0, 2, 3, 1),
    'every other row': lambda: torch.randn(40, 96)[::2],
    'columns of a wider map': lambda: torch.randn(40, 200)[:, 50:146],
    'one row many times': lambda: torch.randn(1, 96).expand(40, 96),
    'no rows': lambda: torch.randn(0, 96),
    'no samples': lambda: torch.randn(0, 4, 4, 96),
}


@pytest.mark.parametrize('choice', ['mkl', 'onednn'])
@pytest.mark.parametrize('kind', INPUTS)
@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('gelu', [True, False])
@torch.no_grad()
def test_values_equal_those_computed_by_hand(choose, choice, kind, bias, gelu):
    choose(choice)
    torch.manual_seed(0)
    layer, x = nn.Linear(96, 160, bias), INPUTS[kind]()
    y, expected = linear(x, layer, gelu), by_hand(x, layer, gelu)
    assert y.shape == expected.shape
    if y.numel():
        assert (y - expected).abs().max() / expected.abs().max() < 1e-6


@torch.no_grad()
def test_a_transposed_weight_is_supported(choose, layer):
    choose('onednn')
    layer.weight = nn.Parameter(torch.randn(96, 160).t())
    x = torch.randn(40, 96)
    torch.testing.assert_close(linear(x, layer), layer(x))


@pytest.mark.parametrize('choice', ['mkl', 'onednn'])
@torch.no_grad()
def test_a_map_of_another_width_is_an_error(choose, layer, choice):
    choose(choice)
    with pytest.raises(RuntimeError, match='shapes cannot be multiplied'):
        linear(torch.randn(40, 95), layer)


# --- choice of backend ----------------------------------------------------------------------------


@pytest.mark.parametrize('faster', ['mkl', 'onednn'])
@torch.no_grad()
def test_the_faster_backend_is_used(monkeypatch, products, faster):
    measured = []

    def measure(kind):
        measured.append(kind)
        return {'mkl': 1.0, 'onednn': 1.0, faster: 0.5}

    monkeypatch.setattr(module, 'measure', measure)
    layer = nn.Linear(512, 512)
    for rows in (module.FEW_ROWS - 1, module.FEW_ROWS, 200):
        linear(torch.randn(rows, 512), layer)
    assert products == ([None] * 3 if faster == 'onednn' else [])
    assert cpu_linear() == dict.fromkeys(module.KINDS, faster)
    assert sorted(measured) == sorted(module.KINDS), 'each is measured once'


def test_the_next_process_chooses_the_same_without_measuring(monkeypatch, choose):
    monkeypatch.setattr(module, 'measure', lambda kind: {'mkl': 1.0, 'onednn': 0.5})
    assert cpu_linear() == dict.fromkeys(module.KINDS, 'onednn')
    choose('')
    monkeypatch.setattr(module, 'measure', lambda kind: pytest.fail('measured'))
    assert cpu_linear() == dict.fromkeys(module.KINDS, 'onednn')


@torch.no_grad()
def test_few_and_many_rows_are_measured_separately(monkeypatch, products):
    won = {'few rows': 'mkl', 'many rows': 'onednn'}
    monkeypatch.setattr(module, 'measure', lambda kind: {'mkl': 1, 'onednn': 1, won[kind]: 0})
    layer = nn.Linear(512, 512)
    linear(torch.randn(module.FEW_ROWS - 1, 512), layer)
    assert products == []
    linear(torch.randn(module.FEW_ROWS, 512), layer)
    assert products == [None]


@torch.no_grad()
def test_small_products_are_not_measured(monkeypatch, products):
    monkeypatch.setattr(module, 'measure', lambda kind: pytest.fail('measured'))
    linear(torch.randn(100, 96), nn.Linear(96, 100))
    linear(torch.randn(4, 1024), nn.Linear(1024, 1024))
    assert products == []


def test_measuring_compares_two_products_and_draws_no_random_number():
    state = torch.get_rng_state()
    for kind in module.KINDS:
        seconds = module.measure(kind)
        assert set(seconds) == {'mkl', 'onednn'}
        assert all(0 < value < 1 for value in seconds.values())
    assert torch.equal(torch.get_rng_state(), state)


@torch.no_grad()
def test_the_environment_variable_selects_the_backend(monkeypatch, products, layer):
    monkeypatch.setenv(module.VARIABLE, 'onednn')
    linear(torch.randn(2, 96), layer)
    assert products == [None]
    assert cpu_linear() == dict.fromkeys(module.KINDS, 'onednn')


@torch.no_grad()
def test_mkl_can_be_chosen_too(choose, products):
    choose('mkl')
    linear(torch.randn(200, 512), nn.Linear(512, 512))
    assert products == []
    assert cpu_linear() == dict.fromkeys(module.KINDS, 'mkl')


def test_unknown_names_are_refused(choose):
    choose('mlk')
    with pytest.raises(ValueError, match="CPU_LINEAR is 'mlk'; give one of auto, mkl, onednn"):
        cpu_linear()


@torch.no_grad()
def test_a_torch_without_onednn_uses_mkl(monkeypatch, products, choose):
    monkeypatch.setattr(onednn, 'available', lambda: False)
    linear(torch.randn(200, 512), nn.Linear(512, 512))
    assert products == []
    assert cpu_linear() == dict.fromkeys(module.KINDS, 'mkl')
    choose('onednn')
    with pytest.raises(
        RuntimeError,
        match="'onednn', which is not available in this build of torch .*; give 'auto'",
    ):
        cpu_linear()


@torch.no_grad()
def test_mkl_is_used_where_onednn_is_hardly_faster(monkeypatch, products):
    monkeypatch.setattr(module, 'measure', lambda kind: {'mkl': 1.0, 'onednn': 0.98})
    linear(torch.randn(200, 512), nn.Linear(512, 512))
    assert products == []


# --- training ------------------------------------------------------------------------------------


@pytest.mark.parametrize('kind', sorted(INPUTS))
@pytest.mark.parametrize('shape', [(96, 160), (96, 40)])
@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('gelu', [True, False])
def test_gradients_equal_those_of_mkl(choose, kind, shape, bias, gelu, products):
    found = []
    for choice in ('mkl', 'onednn'):
        choose(choice)
        torch.manual_seed(0)
        layer, x = nn.Linear(*shape, bias), INPUTS[kind]().requires_grad_()
        y = linear(x, layer, gelu)
        (y * torch.randn_like(y)).sum().backward()
        found.append([y, x.grad, *(parameter.grad for parameter in layer.parameters())])
    for expected, got in zip(*found, strict=True):
        assert got.shape == expected.shape
        if got.numel():
            assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert len(products) == (3 if y.numel() else 0)


@pytest.mark.parametrize('learns', ['x', 'weight', 'bias'])
def test_only_required_gradients_are_computed(choose, layer, products, learns):
    choose('onednn')
    layer.requires_grad_(False)
    x = torch.randn(40, 96)
    tensor = dict(x=x, weight=layer.weight, bias=layer.bias)[learns].requires_grad_()
    linear(x, layer).sum().backward()
    assert len(products) == (1 if learns == 'bias' else 2)
    assert tensor.grad is not None


@pytest.mark.parametrize('shape', [(96, 160), (96, 40)])
def test_second_gradients_equal_those_of_mkl(choose, shape):
    found = []
    for choice in ('mkl', 'onednn'):
        choose(choice)
        torch.manual_seed(0)
        layer, x = nn.Linear(*shape), torch.randn(2, 20, 96, requires_grad=True)
        tensors = x, *layer.parameters()
        first = torch.autograd.grad(linear(x, layer).pow(3).mean(), tensors, create_graph=True)
        found.append(torch.autograd.grad(sum(each.square().sum() for each in first), tensors))
    for expected, got in zip(*found, strict=True):
        assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_the_gradient_of_a_sum_is_not_multiplied_with_strides_of_0(choose, layer, monkeypatch):
    choose('onednn')
    strides, product = [], onednn.product

    def listed(x, weight, *others):
        strides.extend(x.stride() + weight.stride())
        return product(x, weight, *others)

    monkeypatch.setattr(onednn, 'product', listed)
    linear(torch.randn(40, 96, requires_grad=True), layer).sum().backward()
    assert len(strides) == 3 * 4
    assert 0 not in strides


@torch.enable_grad()
def test_blocks_may_be_recomputed(choose, layer):
    from torch.utils.checkpoint import checkpoint

    choose('onednn')
    x = torch.randn(40, 96, requires_grad=True)
    checkpoint(lambda x: linear(x, layer, gelu=True), x, use_reentrant=False).sum().backward()
    found, x.grad = x.grad, None
    linear(x, layer, gelu=True).sum().backward()
    torch.testing.assert_close(found, x.grad)


# --- left to F.linear ----------------------------------------------------------------


def test_frozen_layers_need_no_gradient(choose, layer, products):
    choose('onednn')
    linear(torch.randn(40, 96), layer.requires_grad_(False))
    assert products == [None]


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16, HALF])
@torch.no_grad()
def test_other_dtypes_are_left_to_torch(choose, layer, products, dtype):
    choose('onednn')
    layer, x = layer.to(dtype), torch.randn(40, 96, dtype=dtype)
    assert torch.equal(linear(x, layer, gelu=True), F.gelu(layer(x)))
    assert products == []


@torch.no_grad()
def test_autocast_casts_the_inputs(choose, layer, products):
    choose('onednn')
    x = torch.randn(40, 96)
    with torch.autocast('cpu', torch.bfloat16):
        y = linear(x, layer)
        assert y.dtype == torch.bfloat16
        assert torch.equal(y, layer(x))
        with torch.autocast('cpu', enabled=False):
            assert linear(x, layer).dtype == torch.float32
    assert products == [None], 'only where it is off'


@torch.no_grad()
def test_onednn_is_not_used_where_it_is_switched_off(choose, layer, products):
    choose('onednn')
    with torch.backends.mkldnn.flags(enabled=False):
        linear(torch.randn(40, 96), layer)
    assert products == []


@needs_torch('2.6', 'torch.export')
@torch.no_grad()
def test_compiled_and_exported_graphs_have_the_standard_operation(choose, layer, products):
    choose('onednn')

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return linear(x, self.layer)

    x, expected = torch.randn(40, 96), layer(torch.zeros(1, 96))
    torch.compiler.reset()
    compiled = torch.compile(Layer(), backend='eager', fullgraph=True)
    torch.testing.assert_close(compiled(0 * x)[:1], expected)
    graph = torch.export.export(Layer(), (x,)).graph
    assert any('aten.linear' in str(node.target) for node in graph.nodes)
    traced = torch.jit.trace(Layer(), x, check_trace=False)  # the check runs it untraced
    assert 'aten::linear' in str(traced.inlined_graph)
    assert products == []


@torch.no_grad()
def test_vmap_and_jvp_are_right(choose, layer, products):
    choose('onednn')
    x = torch.randn(3, 40, 96)
    torch.testing.assert_close(torch.vmap(lambda x: linear(x, layer))(x), layer(x))
    _, tangent = torch.func.jvp(lambda x: linear(x, layer), (x,), (torch.ones_like(x),))
    torch.testing.assert_close(tangent, layer.weight.sum(1).expand_as(tangent))
    assert products == []


@torch.no_grad()
def test_operations_are_counted(choose, layer):
    from torch.utils.flop_counter import FlopCounterMode

    choose('onednn')
    with FlopCounterMode(display=False) as counter:
        linear(torch.randn(40, 96), layer)
    assert counter.get_total_flops() == 2 * 40 * 96 * 160
