"""Truncated Swin: windows by hand, and the official output norms."""

import pytest
import torch
import torch.nn.functional as F
from golden_rule import assert_matches, golden_input, golden_state, load_golden, official_shapes
from versions import needs_torch

from trunchier.models import TruncatedSwin
from trunchier.models.backbones import swin
from trunchier.models.backbones.swin import WINDOW, WindowAttention
from trunchier.ops.plans import MAX_PLANS
from trunchier.ops.windows import window_layout
from trunchier.weights.families import from_swin

# Maps: whole windows, partial ones, less than one; rows and columns differ.
MAPS = [(14, 7), (16, 12), (8, 6), (3, 20), (1, 1)]


@pytest.mark.parametrize('variant', ['tiny', 'small'])
def test_output_norms_have_the_official_values(variant):
    golden = load_golden(f'swin_{variant}_det')
    model = TruncatedSwin(variant, out_indices=(0, 1, 2, 3)).eval()
    # The detection code's keys: norms of every stage, no head.
    shapes = {
        key: s for key, s in official_shapes(f'swin_{variant}_keys').items() if 'head' not in key
    }
    for i, channels in enumerate(model.channels):
        shapes |= {f'norm{i}.weight': (channels,), f'norm{i}.bias': (channels,)}
    del shapes['norm.weight'], shapes['norm.bias']
    model.load_state_dict(from_swin(golden_state(shapes)))
    with torch.no_grad():
        outputs = model(golden_input(**golden['input']))
    for stage, output in enumerate(outputs, start=1):
        assert_matches(output, golden[f'stage{stage}_normdet'])


# --- windows by hand -----------------------------------------------------------------------------


def attention_by_hand(attn, x):
    """Window attention of one (H, W, C) map, position by position.

    A window sees a torus of zero-padded tokens from `shift` on; positions that were carried across
    the torus' seam and positions that were not do not see each other.
    """
    height, width, channels = x.shape
    rows, columns = (-(-n // WINDOW) * WINDOW for n in (height, width))
    x = F.pad(x, (0, 0, 0, columns - width, 0, rows - height))
    q, k, v = (
        F.linear(x, attn.qkv.weight, attn.qkv.bias).unflatten(2, (3, attn.num_heads, -1)).unbind(2)
    )
    scale = (channels // attn.num_heads) ** -0.5
    mixed = torch.zeros_like(x)
    for top in range(0, rows, WINDOW):
        for left in range(0, columns, WINDOW):
            positions = []
            for i in range(top + attn.shift, top + attn.shift + WINDOW):
                for j in range(left + attn.shift, left + attn.shift + WINDOW):
                    positions.append((i % rows, j % columns, i, j, (i >= rows, j >= columns)))
            for row, column, i, j, side in positions:
                scores = []
                for other_row, other_column, other_i, other_j, other_side in positions:
                    offset = (
                        (i - other_i + WINDOW - 1) * (2 * WINDOW - 1) + j - other_j + WINDOW - 1
                    )
                    score = scale * (q[row, column] * k[other_row, other_column]).sum(-1)
                    score = score + attn.relative_position_bias_table[offset]
                    scores.append(score - 100.0 * (side != other_side))
                weights = torch.stack(scores).softmax(0)  # (positions, heads)
                values = torch.stack([v[position[0], position[1]] for position in positions])
                mixed[row, column] = (weights[..., None] * values).sum(0).flatten()
    return F.linear(mixed[:height, :width], attn.proj.weight, attn.proj.bias)


@pytest.fixture(params=[0, swin.SHIFT], ids=['straight', 'shifted'])
def attn(request):
    attn = WindowAttention(channels=8, num_heads=2, shift=request.param).double()
    for param in attn.parameters():
        torch.nn.init.normal_(param)
    return attn


@pytest.mark.parametrize('size', [(8, 6), (3, 9)])
@torch.no_grad()
def test_attention_equals_a_loop_over_positions(attn, size):
    x = torch.randn(1, *size, 8, dtype=torch.float64)
    torch.testing.assert_close(attn(x)[0], attention_by_hand(attn, x[0]))


@pytest.mark.parametrize('size', MAPS)
def test_training_equals_inference(attn, size):
    x = torch.randn(3, *size, 8, dtype=torch.float64)
    trained = attn(x)
    assert trained.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(attn(x), trained.detach())


def test_gradients_are_right(attn):
    x = torch.randn(2, 2, 8, 8, dtype=torch.float64, requires_grad=True)
    names, params = zip(*attn.named_parameters(), strict=True)

    def run(x, *params):
        return torch.func.functional_call(attn, dict(zip(names, params, strict=True)), x)

    assert torch.autograd.gradcheck(run, (x, *params), fast_mode=True)


@pytest.mark.parametrize('size', MAPS)
@pytest.mark.parametrize('shift', [0, swin.SHIFT])
def test_every_token_has_one_position_and_every_position_a_token_or_padding(size, shift):
    layout = window_layout(*size, WINDOW, shift, torch.device('cpu'))
    back, padded = layout.back.tolist(), layout.padded.tolist()
    assert layout.sources[layout.back].tolist() == list(range(size[0] * size[1]))
    assert sorted(back + padded) == list(range(layout.windows * WINDOW**2))


def test_layouts_are_made_once_and_the_oldest_is_dropped():
    window_layout.plans.clear()
    cpu = torch.device('cpu')
    first = window_layout(5, 5, WINDOW, 0, cpu)
    assert window_layout(5, 5, WINDOW, 0, cpu) is first
    for height in range(MAX_PLANS):
        window_layout(height + 6, 5, WINDOW, 0, cpu)
    assert len(window_layout.plans) == MAX_PLANS
    assert window_layout(5, 5, WINDOW, 0, cpu) is not first


def test_a_tracers_layout_is_not_kept():
    from torch._subclasses.fake_tensor import FakeTensorMode

    window_layout.plans.clear()
    attn = WindowAttention(8, 2, swin.SHIFT)
    x = torch.randn(1, 9, 9, 8)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        attn(mode.from_tensor(x))
    assert attn(x).isfinite().all()


@needs_torch('2.6', 'one graph')
def test_shifted_windows_compile_as_one_graph_at_any_size():
    attn = WindowAttention(8, 2, swin.SHIFT)
    torch.compiler.reset()
    compiled = torch.compile(attn, fullgraph=True, backend='eager', dynamic=True)
    for size in ((2, 9, 9), (1, 9, 9), (2, 14, 5)):
        x = torch.randn(*size, 8)
        torch.testing.assert_close(compiled(x), attn(x))


@needs_torch('2.6', 'one graph')
def test_layouts_compile_where_parameters_are_folded():
    import torch._inductor.config as settings

    attn, x = WindowAttention(8, 2, swin.SHIFT), torch.randn(2, 9, 9, 8)
    torch.compiler.reset()
    with torch.no_grad(), settings.patch(freezing=True):
        compiled = torch.compile(attn, fullgraph=True, backend='eager')
        torch.testing.assert_close(compiled(x), attn(x))


def test_initial_weights_are_the_official_ones():
    model = TruncatedSwin('tiny', num_stages=2)
    for name, param in model.named_parameters():
        if 'stem.proj' in name:
            continue
        if name.endswith('bias'):
            assert not param.any(), name
        elif 'norm' in name:
            assert (param == 1).all(), name
        else:
            assert param.std().item() == pytest.approx(0.02, rel=0.15), name


def test_channels_that_cannot_be_split_into_heads_are_refused():
    with pytest.raises(ValueError, match='96 channels in 5 heads; give a multiple'):
        TruncatedSwin(dict(TruncatedSwin.ARCHS['tiny'], num_heads=(5, 6, 12, 24)))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float64])
def test_trains_in_other_precisions(dtype):
    attn = WindowAttention(8, 2, swin.SHIFT).to(dtype)
    x = torch.randn(1, 9, 9, 8, dtype=dtype)
    y = attn(x)
    y.sum().backward()
    assert y.dtype == attn.relative_position_bias_table.grad.dtype == dtype
    with torch.no_grad():
        assert attn(x).dtype == dtype
