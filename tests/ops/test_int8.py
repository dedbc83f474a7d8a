"""8-bit layers equal float32 layers up to the steps that they round to."""

import copy
import pickle

import pytest
import torch
from torch import nn

from trunchier.ops import int8, linear
from trunchier.ops.folding import pack

pytestmark = pytest.mark.skipif(not int8.available(), reason=int8.ABSENT)

LAYERS = {
    'linear': (nn.Linear(96, 64), (2, 7, 96)),
    'linear of one row': (nn.Linear(96, 64), (96,)),
    'linear without bias': (nn.Linear(96, 64, bias=False), (5, 96)),
    'convolution': (nn.Conv2d(64, 48, 3, 2, 1), (2, 64, 9, 7)),
    'pointwise': (nn.Conv2d(64, 48, 1), (1, 64, 4, 4)),
    'dilated': (nn.Conv2d(64, 48, 3, padding=(2, 1), dilation=(2, 1)), (1, 64, 8, 8)),
    'deconvolution': (nn.ConvTranspose2d(64, 48, 4, 2, 1, bias=False), (2, 64, 5, 7)),
    'deconvolution of one tap': (nn.ConvTranspose2d(64, 48, 2, 2), (1, 64, 5, 7)),
}


@pytest.fixture(params=LAYERS)
@torch.no_grad()
def case(request):
    torch.manual_seed(0)
    layer, shape = LAYERS[request.param]
    return layer, int8.as_int8(pack(layer)), torch.randn(shape) + 0.5


@torch.no_grad()
def test_a_layer_is_within_its_rounding(case):
    layer, rounded, x = case
    expected, found = layer(x), rounded(x)
    assert rounded is not layer
    assert found.shape == expected.shape
    assert found.dtype == torch.float32
    # 1 / 255 of the range of x and 1 / 254 of that of each channel's weights, as uniform errors
    assert 1e-4 < float((found - expected).norm() / expected.norm()) < 0.012


@torch.no_grad()
def test_integers_are_multiplied_exactly():
    layer = nn.Linear(64, 32, bias=False)
    layer.weight.data = torch.randint(-127, 128, (32, 64)).float()
    layer.weight.data[:, 0] = 127
    x = torch.randint(-128, 128, (6, 64)).float()
    x[0, :2] = torch.tensor([-128.0, 127.0])
    assert torch.equal(int8.Int8Linear(pack(layer))(x), layer(x))


def test_the_input_is_rounded_to_the_nearest_of_256_steps():
    x = torch.linspace(-1, 3, 1001).view(7, 143)
    steps, scale, zero = int8.quantize(x)
    assert scale == pytest.approx(4 / 255)
    assert (int(steps.min()), int(steps.max())) == (0, 255)
    assert float(((steps.float() - zero) * scale - x).abs().max()) <= scale / 2 + 1e-6
    assert int(int8.quantize(x + 10)[0].min()) > 0  # 0 stays a step


@torch.no_grad()
@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_numbers_that_are_not_finite_are_not_hidden(case, bad):
    _, rounded, x = case
    x.view(-1)[3] = bad
    assert rounded(x).isnan().all()


@torch.no_grad()
def test_zeros_and_no_rows_are_possible():
    layer = nn.Linear(96, 64)
    rounded = int8.as_int8(pack(layer))
    assert torch.equal(rounded(torch.zeros(3, 96)), layer.bias.expand(3, -1))
    assert rounded(torch.zeros(0, 96)).shape == (0, 64)


@torch.no_grad()
def test_activations_follow_as_in_float32():
    layer, x = pack(nn.Linear(96, 64)), torch.randn(4, 96)
    layer.activation = 'hardswish'
    rounded = int8.as_int8(layer)
    for gelu in (False, True):
        expected = linear.linear(x, layer, gelu)
        torch.testing.assert_close(linear.linear(x, rounded, gelu), expected, atol=0.02, rtol=0.02)


@torch.no_grad()
def test_layers_can_be_copied_and_saved(case):
    _, rounded, x = case
    expected = rounded(x)
    for again in (copy.deepcopy(rounded), pickle.loads(pickle.dumps(rounded))):
        assert torch.equal(again(x), expected)


def test_layers_work_in_inference_mode(case):
    layer, rounded, x = case
    with torch.no_grad():
        expected = rounded(x)
    with torch.inference_mode():
        made_here = int8.as_int8(pack(copy.deepcopy(layer)))
        assert not made_here.weight.is_inference(), 'it would be packed at each call'
        for again in (copy.deepcopy(rounded), made_here):
            assert torch.equal(again(x), expected)
            again.weight.zero_()  # no older copy is multiplied
            assert not torch.equal(again(x), expected)


@pytest.mark.parametrize(
    'layer',
    [
        nn.Linear(16, 64),
        nn.Conv2d(64, 17, 1),
        nn.Conv2d(64, 64, 3, groups=64),
        nn.Conv2d(64, 64, 3, padding='same'),
        nn.Conv2d(64, 64, 3, padding=1, padding_mode='reflect'),
        nn.ConvTranspose2d(64, 64, 3, 2, 1, 1),
        nn.LayerNorm(64),
    ],
    ids=str,
)
def test_other_layers_stay_as_they_are(layer):
    layer = pack(layer)
    assert int8.as_int8(layer) is layer


def test_weights_take_a_quarter():
    layer = nn.Linear(512, 512)
    rounded = int8.as_int8(pack(layer))
    size = sum(each.nbytes for each in rounded.buffers())
    assert size < 0.27 * sum(each.nbytes for each in layer.parameters())


def test_another_device_is_refused():
    rounded = int8.as_int8(pack(nn.Linear(96, 64)))
    with pytest.raises(
        RuntimeError, match='deployed in int8, for CPU; the input is on meta. Deploy'
    ):
        rounded(torch.empty(2, 96, device='meta'))


@pytest.mark.parametrize('kernel', [4, 2])
def test_the_phases_of_a_deconvolution_are_the_deconvolution(kernel):
    layer = nn.ConvTranspose2d(6, 5, kernel, 2, kernel // 2 - 1)
    x = torch.randn(2, 6, 5, 7)
    with torch.no_grad():
        torch.testing.assert_close(int8.PhasedDeconv2d(layer)(x), layer(x))


@torch.no_grad()
def test_fixed_scales_are_those_of_all_that_was_seen():
    torch.manual_seed(0)
    model = nn.Sequential(pack(nn.Linear(64, 48)), pack(nn.Linear(48, 64)))
    dynamic = nn.Sequential(*map(int8.as_int8, model))
    seen = torch.rand(50, 64) * 4 - 1
    fixed = copy.deepcopy(dynamic)
    int8.fix_scales(fixed, lambda: [fixed(part) for part in seen.split(10)])
    torch.testing.assert_close(fixed(seen), dynamic(seen), rtol=0, atol=0.1)
    scale, zero = fixed[0].fixed
    assert scale == pytest.approx(float(seen.max() - seen.min()) / 255)
    assert zero == round(-float(seen.min()) / scale)
    cut = seen[:1].clone()
    cut[0, 0] = 100.0  # beyond what was seen, the others keep their steps
    assert float((fixed[0](cut) - fixed[0](seen[:1].clone())).abs().max()) < 3
    assert fixed[0].seen is None and dynamic[0].fixed is None
    assert (pickle.loads(pickle.dumps(fixed))(seen) == fixed(seen)).all()


@torch.no_grad()
def test_layers_that_see_nothing_or_no_numbers_keep_scales_of_their_own():
    model = nn.ModuleList(int8.as_int8(pack(nn.Linear(32, 32))) for _ in range(2))
    int8.fix_scales(model, lambda: model[0](torch.full((1, 32), float('inf'))))
    assert [each.fixed for each in model] == [None, None]
