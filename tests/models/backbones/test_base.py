"""What holds for every truncated backbone, whatever its family."""

import copy
import pickle
import re

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from torch import nn
from versions import needs_torch

from trunchier.models import TruncatedGMF, TruncatedSwin, TruncatedVMamba
from trunchier.models.backbones.base import Stage, drop_path

# Each family with few channels and blocks: its second stage has one of every kind of block.
LITTLE = {
    TruncatedSwin: dict(channels=(16, 32, 48, 64), depths=(1, 2, 1, 1), num_heads=(1, 2, 3, 4)),
    TruncatedGMF: dict(channels=(20, 40, 60, 80), depths=(1, 2, 1, 1), mlp_ratios=(2, 2, 2, 2)),
    TruncatedVMamba: dict(channels=(16, 32, 48, 64), depths=(1, 2, 1, 1)),
}
BACKBONES = pytest.mark.parametrize('backbone', LITTLE, ids=lambda b: b.__name__)
STAGES = (1, 2, 3, 4)


def little(backbone, num_stages=4, drop_path_rate=0.0, **options):
    arch = {**backbone.ARCHS['tiny'], **LITTLE[backbone]}
    return backbone(arch, num_stages, drop_path_rate=drop_path_rate, **options)


def backward(outputs):
    """Gradients of a loss in which every value counts, and differently."""
    sum((y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum() for y in outputs).backward()


# --- what is built -------------------------------------------------------------------------------


@BACKBONES
@pytest.mark.parametrize('arch', ['tiny', 'small', 'base'])
def test_builds_by_name_from_any_library(backbone, arch):
    with DefaultScope.overwrite_default_scope('mmpose'):
        model = MODELS.build(dict(type=backbone.__name__, arch=arch, num_stages=1))
    assert type(model) is backbone
    assert model.arch is backbone.ARCHS[arch]


@BACKBONES
@pytest.mark.parametrize('num_stages', STAGES)
def test_dropped_stages_are_never_built(backbone, num_stages):
    keys = set(little(backbone, num_stages, out_norm=False).state_dict())
    full = set(little(backbone, 4, out_norm=False).state_dict())
    dropped = tuple(f'stages.{i}.' for i in range(num_stages, 4))
    assert keys == {key for key in full if not key.startswith(dropped)}


@BACKBONES
@pytest.mark.parametrize('num_stages', STAGES)
def test_every_parameter_learns(backbone, num_stages):
    model = little(backbone, num_stages)
    backward(model(torch.randn(2, 3, 64, 48)))
    idle = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().max()]
    assert idle == []


@BACKBONES
@pytest.mark.parametrize('num_stages', STAGES)
def test_a_truncated_model_gives_the_maps_of_the_full_one(backbone, num_stages):
    full = little(backbone, out_indices=(0, 1, 2, 3)).eval()
    cut = little(backbone, num_stages, out_indices=range(num_stages)).eval()
    cut.load_state_dict({key: full.state_dict()[key] for key in cut.state_dict()})
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for ours, theirs in zip(cut(x), full(x), strict=False):
            torch.testing.assert_close(ours, theirs)


@BACKBONES
@torch.no_grad()
def test_what_a_forward_hook_keeps_is_not_overwritten(backbone):
    model, kept = little(backbone).eval(), []
    for module in model.modules():
        module.register_forward_hook(
            lambda module, args, y: kept.append((y, y.clone())) if torch.is_tensor(y) else None
        )
    model(torch.randn(1, 3, 64, 64))
    assert kept
    assert all(torch.equal(now, then) for now, then in kept)


@BACKBONES
@pytest.mark.parametrize('size', [(64, 48), (32, 32), (61, 35), (9, 2)])
def test_outputs_have_the_announced_shapes_at_any_size(backbone, size):
    model = little(backbone, out_indices=(1, 3)).eval()
    with torch.no_grad():
        outputs = model(torch.randn(2, 3, *size))
    assert model.strides == (8, 32)
    for y, channels, stride in zip(outputs, model.channels, model.strides, strict=True):
        assert y.shape == (2, channels, -(-size[0] // stride), -(-size[1] // stride))
        assert y.is_contiguous() or y.is_contiguous(memory_format=torch.channels_last)
        assert y.isfinite().all()


@BACKBONES
def test_a_batch_gives_the_results_of_its_images(backbone):
    model = little(backbone, 2).eval()
    x = torch.randn(3, 3, 40, 72)
    with torch.no_grad():
        (together,), apart = model(x), [model(image[None])[0] for image in x]
        assert model(x[:0])[0].shape == (0, *together.shape[1:])
    torch.testing.assert_close(together, torch.cat(apart), atol=1e-5, rtol=1e-5)


@BACKBONES
def test_out_norm_normalizes_the_raw_output(backbone):
    normed = little(backbone, 2).eval()
    raw = little(backbone, 2, out_norm=False).eval()
    raw.load_state_dict({k: v for k, v in normed.state_dict().items() if not k.startswith('norm')})
    nn.init.normal_(normed.norm1.weight)
    x = torch.randn(1, 3, 32, 32)
    (y,) = raw(x)
    if isinstance(normed.norm1, nn.LayerNorm):
        y = normed.norm1(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    else:
        y = normed.norm1(y)
    torch.testing.assert_close(normed(x)[0], y)


@BACKBONES
def test_state_dict_holds_nothing_that_depends_on_the_image(backbone):
    model = little(backbone, 2).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        model(torch.randn(1, 3, 40, 40))
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@BACKBONES
def test_copies_and_pickles_work_after_use(backbone):
    model = little(backbone, 2).eval()
    x = torch.randn(1, 3, 40, 40)
    (y,) = model(x)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(twin(x)[0], y)


# --- training ------------------------------------------------------------------------------------


@BACKBONES
@pytest.mark.parametrize('frozen', [-1, 0, 1, 2])
def test_frozen_stages_stay_as_they_are(backbone, frozen):
    model = little(backbone, 2, out_indices=(0, 1), frozen_stages=frozen, drop_path_rate=0.5)
    assert model.eval() is model
    assert model.train() is model
    still = [] if frozen < 0 else ['stem.', *(f'stages.{i}.' for i in range(frozen))]
    still = tuple(still + [f'norm{i}.' for i in range(frozen)])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    outputs = model(torch.randn(2, 3, 32, 32))
    if frozen < 2:
        backward(outputs)
    for name, param in model.named_parameters():
        assert param.requires_grad != name.startswith(still), name
        assert (param.grad is None) == name.startswith(still), name
    for name, module in model.named_modules():
        if name:
            assert module.training != f'{name}.'.startswith(still), name
    changed = {key for key, value in model.state_dict().items() if not value.equal(before[key])}
    assert not [key for key in changed if key.startswith(still)]


FIRST = {TruncatedSwin: 'attn', TruncatedGMF: 'attn', TruncatedVMamba: 'ss2d'}


@BACKBONES
def test_kinds_of_layers_freeze_with_the_norm_before_them(backbone):
    still = {
        FIRST[backbone]: re.compile(r'.*blocks\.\d+\.(attn?|ss2d|norm1)(\..*)?'),
        'ffn': re.compile(r'.*blocks\.\d+\.(mlp|norm2)(\..*)?'),
    }
    for kind, pattern in still.items():
        model = little(backbone, 2, freeze=(kind,), drop_path_rate=0.5).train()
        backward(model(torch.randn(2, 3, 32, 32)))
        for name, param in model.named_parameters():
            assert (param.grad is None) == bool(pattern.fullmatch(name)), name
        for name, module in model.named_modules():
            assert module.training != bool(pattern.fullmatch(name)), name
        assert any(pattern.fullmatch(name) for name, _ in model.named_parameters())
    with pytest.raises(
        ValueError, match=f"freeze='mlp'; give a tuple of '{FIRST[backbone]}', 'ffn'"
    ):
        little(backbone, 2, freeze=('mlp',))


@BACKBONES
@pytest.mark.parametrize('frozen', [-1, 0])
def test_checkpointing_changes_nothing_but_memory(backbone, frozen):
    options = dict(drop_path_rate=0.5, frozen_stages=frozen)
    plain = little(backbone, 2, **options)
    saving = little(backbone, 2, with_cp=True, **options)
    saving.load_state_dict(plain.state_dict())
    x = torch.randn(3, 3, 40, 32)
    for model in (plain, saving):
        torch.manual_seed(1)  # the same paths dropped
        backward(model(x))
    for (name, p), q in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, msg=name)
    for (name, p), q in zip(plain.named_buffers(), saving.buffers(), strict=True):
        torch.testing.assert_close(q, p, msg=f'{name}: a batch norm counted the batch twice')


@BACKBONES
def test_autocast_to_bf16_stays_near_fp32(backbone):
    model = little(backbone, 3)
    x = torch.randn(2, 3, 64, 48)
    with torch.no_grad():
        (full,) = copy.deepcopy(model)(x)
    with torch.autocast('cpu', torch.bfloat16):
        (half,) = model(x)
    backward([half.float()])
    assert (half.float() - full).abs().mean() < 0.03 * full.std()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@BACKBONES
def test_training_works_after_inference_mode(backbone):
    model = little(backbone, 1)
    x = torch.randn(1, 3, 44, 76)  # a size of its own: nothing is cached yet
    with torch.inference_mode():
        expected = model(x)
    found = model(x)
    backward(found)
    torch.testing.assert_close(found[0], expected[0])
    assert all(p.grad is not None for p in model.parameters())


@BACKBONES
def test_drop_path_grows_with_depth_for_any_truncation(backbone):
    full, cut = little(backbone, 4, 0.4), little(backbone, 2, 0.4)
    rates = [block.drop_path_rate for stage in full.stages for block in stage.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    kept = [block.drop_path_rate for stage in cut.stages for block in stage.blocks]
    assert kept == rates[:3]


@BACKBONES
def test_default_drop_path_is_that_of_the_arch(backbone):
    arch = backbone.ARCHS['base']
    second = backbone('base', num_stages=1).stages[0].blocks[1]
    assert second.drop_path_rate * (sum(arch['depths']) - 1) == pytest.approx(
        arch['drop_path_rate']
    )


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    x = torch.ones(4000, 2, 3)
    y = drop_path(x, 0.25, training=True)
    assert y.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert (y == y[:, :1, :1]).all()
    assert y.mean() == pytest.approx(1, abs=0.05)
    assert drop_path(x, 0.25, training=False) is x


@BACKBONES
@pytest.mark.parametrize('num_stages', STAGES)
def test_layer_depth_grows_by_one_per_block(backbone, num_stages):
    model = little(backbone, num_stages)
    blocks = sum(LITTLE[backbone]['depths'][:num_stages])
    depth = {
        n: model.get_layer_depth(f'backbone.{n}', 'backbone.') for n, _ in model.named_parameters()
    }
    assert {count for _, count in depth.values()} == {blocks + 2}
    assert sorted({layer for layer, _ in depth.values()}) == list(range(blocks + 2))
    order = [('stem.', 0)]
    for i, stage in enumerate(model.stages):
        order.append((f'stages.{i}.downsample.', order[-1][1] + 1))
        first = order[-1][1]
        order += [(f'stages.{i}.blocks.{j}.', first + j) for j in range(len(stage.blocks))]
    order.append(('norm', blocks + 1))
    for name, (layer, _) in depth.items():
        assert [layer] == [expected for start, expected in order if name.startswith(start)], name
    assert model.get_layer_depth('head.weight', 'backbone.') == (blocks + 1, blocks + 2)


# --- tracing -------------------------------------------------------------------------------------


@needs_torch('2.6', 'torch.export')
@BACKBONES
def test_export_keeps_the_batch_size_dynamic(backbone):
    model = little(backbone, 1).eval()
    batch = {'x': {0: torch.export.Dim('batch', min=1, max=64)}}
    with torch.no_grad():
        exported = torch.export.export(model, (torch.randn(2, 3, 32, 32),), dynamic_shapes=batch)
        x = torch.randn(5, 3, 32, 32)
        torch.testing.assert_close(exported.module()(x)[0], model(x)[0])


@needs_torch('2.6', 'one graph')
@BACKBONES
def test_compiles_as_one_graph(backbone):
    model = little(backbone, 1).eval()
    torch.compiler.reset()
    x = torch.randn(1, 3, 32, 24)
    with torch.no_grad():
        y = torch.compile(model, fullgraph=True, backend='eager')(x)
        torch.testing.assert_close(y, model(x))


# --- bad input -----------------------------------------------------------------------------------


@BACKBONES
@pytest.mark.parametrize(
    'options, message',
    [
        (dict(arch='huge'), r"arch='huge'; give one of \['tiny', 'small', 'base'\] or a dict"),
        (dict(arch=dict(depths=(1, 1))), 'arch has the keys .*; give '),
        (dict(num_stages=0), 'num_stages=0; this arch has stages 1 to 4'),
        (dict(num_stages=5), 'num_stages=5; this arch has stages 1 to 4'),
        (dict(num_stages=2, out_indices=(2,)), r'out_indices=\(2,\) with num_stages=2; .* 0 to 1'),
        (dict(out_indices=(1, 0)), 'increasing'),
        (dict(out_indices=(-1,)), 'increasing'),
        (dict(out_indices=()), 'increasing'),
        (dict(num_stages=2, frozen_stages=3), 'frozen_stages=3; give -1 .* 1 to 2'),
        (dict(drop_path_rate=1), 'drop_path_rate=1; give a probability below 1'),
    ],
)
def test_bad_arguments_are_refused_with_the_remedy(backbone, options, message):
    with pytest.raises(ValueError, match=message):
        backbone(**options)


@BACKBONES
def test_rows_of_unequal_length_are_refused(backbone):
    arch = dict(backbone.ARCHS['tiny'], depths=(1, 1, 1))
    with pytest.raises(ValueError, match='rows of unequal length .*one value a stage'):
        backbone(arch)


@BACKBONES
@pytest.mark.parametrize('shape', [(3, 32, 32), (1, 1, 32, 32), (1, 3, 0, 32)])
def test_a_tensor_that_is_no_batch_of_images_is_refused(backbone, shape):
    with pytest.raises(ValueError, match=r'got \(.*\); give \(B, 3, H, W\)'):
        little(backbone, 1)(torch.zeros(shape))


# --- samples a few at a time ---------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch):
    """How many samples went through the blocks at a time, where few may."""
    monkeypatch.setattr('trunchier.models.backbones.base.PART_ELEMENTS', 2 * 16 * 12 * 20)
    seen = []
    run = Stage._run

    def listed(stage, x):
        seen.append(len(x))
        return run(stage, x)

    monkeypatch.setattr(Stage, '_run', listed)
    return seen


def test_a_batch_in_parts_equals_the_whole_batch(calls):
    model = TruncatedGMF(dict(channels=(20,), depths=(2,), mlp_ratios=(2,)), 1).eval()
    images = torch.randn(5, 3, 64, 48)
    with torch.no_grad():
        (parts,) = model(images)
        assert calls == [2, 2, 1]
        each = torch.cat([model(image[None])[0] for image in images])
    torch.testing.assert_close(parts, each)


@pytest.mark.parametrize('why', ['training', 'gradients'])
def test_a_batch_that_records_gradients_is_not_divided(calls, why):
    model = TruncatedGMF(dict(channels=(20,), depths=(2,), mlp_ratios=(2,)), 1)
    images = torch.randn(5, 3, 64, 48)
    if why == 'training':
        with torch.no_grad():
            model.train()(images)
    else:
        model.eval()(images)
    assert calls == [5]
