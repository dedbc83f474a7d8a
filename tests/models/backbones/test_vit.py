"""Plain ViT with the attention, strides, freezing and experts of ViTPose and ViTPose++."""

import re

import pytest
import torch
from golden_rule import assert_matches, golden_input, golden_state, load_golden, official_shapes
from mmengine.registry import MODELS
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from trunchier.engine.optimizers import DepthDecayOptimWrapperConstructor
from trunchier.ops.windows import window_layout
from trunchier.weights.experts import split_expert
from trunchier.weights.find import build_model, find
from trunchier.weights.load import load_checkpoint

pytest.importorskip('mmpretrain')
from mmpretrain.models.utils import ShiftWindowMSA

from trunchier.models.backbones.vit import PlainViT

ARCH = dict(embed_dims=24, num_layers=4, num_heads=2, feedforward_channels=48)
ATTENTION = ('window', 'shift', 'pool', 'shift+pool')


def little(size=(128, 96), **options):
    torch.manual_seed(0)
    model = PlainViT(options.pop('arch', ARCH), size, **options)
    model.init_weights()
    return model.eval().double()


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).double()


# --- attention -----------------------------------------------------------------------------------


@pytest.mark.parametrize('attention', ['window', 'shift'])
def test_a_window_as_large_as_the_map_is_full_attention(attention):
    full = little()
    windowed = little(attention=attention, window_size=(8, 6))
    windowed.load_state_dict(full.state_dict())
    images = noise(2, 3, 128, 96)
    assert (windowed(images)[0] - full(images)[0]).abs().max() < 1e-12


@pytest.mark.parametrize('size', [(12, 8), (9, 11)])
@pytest.mark.parametrize('shifted', [False, True])
def test_windows_shift_as_in_mmpretrain(shifted, size):
    layer = little(attention='shift', window_size=4).layers[1 if shifted else 0].attn
    nn.init.normal_(layer.relative_position_bias_table)
    theirs = ShiftWindowMSA(24, 2, 4, shift_size=2 * shifted).double().eval()
    state = {f'w_msa.{key}': value for key, value in layer.state_dict().items()}
    theirs.load_state_dict(state, strict=False)
    x = noise(2, size[0] * size[1], 24)
    assert (layer(x, size) - theirs(x, size)).abs().max() < 1e-12


def test_pooling_of_one_window_attends_to_the_mean_token_too():
    layer = little(attention='pool', window_size=(8, 6)).layers[0].attn
    x = noise(2, 48, 24)
    tokens = torch.cat((x, x.mean(1, keepdim=True)), 1)
    q, k, v = layer.qkv(tokens).view(2, 49, 3, 2, 12).permute(2, 0, 3, 1, 4)
    scores = q[:, :, :48] @ k.transpose(2, 3) / 12**0.5
    expected = layer.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
    assert (layer(x, (8, 6)) - expected).abs().max() < 1e-12


@pytest.mark.parametrize('size', [(8, 12), (7, 9)])
def test_every_window_attends_to_the_mean_of_every_window(size):
    layer = little(attention='pool', window_size=(4, 6)).layers[0].attn
    x = noise(1, size[0] * size[1], 24)
    q, k, v = layer.qkv(x).view(-1, 3, 2, 12).permute(1, 2, 0, 3)
    window = torch.tensor([i // 4 * 2 + j // 6 for i in range(size[0]) for j in range(size[1])])
    k_mean, v_mean = (torch.stack([t[:, window == w].mean(1) for w in range(4)], 1) for t in (k, v))
    padding_k, padding_v = layer.qkv.bias.view(3, 2, 12)[1:]
    found = layer(x, size)
    for i in (0, 5, len(x[0]) - 1):
        own = window == window[i]
        padded = 24 - int(own.sum())
        pads = (t[:, None].expand(-1, padded, -1) for t in (padding_k, padding_v))
        keys, values = (
            torch.cat((t[:, own], pad, mean), 1)
            for t, pad, mean in zip((k, v), pads, (k_mean, v_mean), strict=True)
        )
        weights = (keys @ q[:, i, :, None] / 12**0.5).softmax(1)
        expected = layer.proj((weights * values).sum(1).flatten())
        assert (found[0, i] - expected).abs().max() < 1e-12


def test_windows_of_unequal_sides_hold_each_token_once():
    layout = window_layout(10, 7, (4, 3), (2, 0), torch.device('cpu'))
    assert layout.windows == 9 and layout.tokens.shape == (9, 12)
    assert sorted(layout.tokens[layout.tokens >= 0].tolist()) == list(range(70))
    assert layout.offsets.max() == (2 * 4 - 1) * (2 * 3 - 1) - 1


# ViTPose's Table 5: ViT-B on maps of 1/8; ours counted here, the paper's beside.
@pytest.mark.parametrize(
    'options, gflops, paper',
    [
        (dict(attention='full'), 76.554, 76.59),
        (dict(attention='shift'), 66.589, 66.31),
        (dict(attention='shift+pool'), 66.759, 66.39),
        (dict(attention='window', full_blocks=4), 69.911, 69.94),
        (dict(attention='shift+pool', window_size=(16, 12)), 68.457, 68.46),
    ],
)
def test_operations_are_those_of_table_5(options, gflops, paper):
    with torch.device('meta'):
        model = PlainViT('base', stride=8, **options).eval()
    with torch.device('meta'), FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, 256, 192))
    counted = counter.get_total_flops() / 2e9
    assert counted == pytest.approx(gflops, abs=5e-4)
    assert counted == pytest.approx(paper, rel=0.006)


def test_four_of_twelve_blocks_are_the_last_of_every_three():
    arch = dict(ARCH, num_layers=12)
    model = PlainViT(arch, (128, 96), attention='window', full_blocks=4)
    assert model.full_blocks == (2, 5, 8, 11)
    tables = [hasattr(layer.attn, 'relative_position_bias_table') for layer in model.layers]
    assert tables == [True, True, False] * 4


@pytest.mark.parametrize('attention', ('full', *ATTENTION))
def test_every_parameter_of_each_attention_learns(attention):
    model = little(attention=attention, window_size=(4, 4)).train()
    (model(noise(2, 3, 128, 96))[0] * noise(2, 24, 8, 6)).sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


# --- grids and published weights -----------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    'case, options',
    [('ratio2_256x192', dict(stride=8)), ('384x288', dict(img_size=(384, 288)))],
)
def test_other_grids_have_the_official_values(case, options, tmp_path):
    golden = load_golden('vitpose_grids')[case]
    height, width = golden['backbone']['shape'][2:]
    shapes = official_shapes('vitpose_small_keys')
    shapes = {k: v for k, v in shapes.items() if k.startswith('backbone.')}
    shapes['backbone.pos_embed'] = (1, height * width + 1, 384)
    torch.save(dict(state_dict=golden_state(shapes)), tmp_path / 'vit.pth')
    model = PlainViT('small', **options).eval()
    load_checkpoint(model, tmp_path / 'vit.pth')
    with torch.no_grad():
        (features,) = model(golden_input(**golden['input']))
    assert_matches(features, golden['backbone'])


@pytest.mark.parametrize('attention', ['full', 'shift+pool'])
def test_a_published_file_fits_every_grid_and_attention(attention, tmp_path):
    published = little((256, 192))
    torch.save(dict(state_dict=published.state_dict()), tmp_path / 'vit.pth')
    model = little((384, 288), stride=8, attention=attention, window_size=(4, 4))
    load_checkpoint(model, tmp_path / 'vit.pth')
    expected = nn.functional.interpolate(
        published.pos_embed.detach().float().view(1, 16, 12, 24).permute(0, 3, 1, 2),
        size=(48, 36), mode='bicubic',
    )  # fmt: skip
    embed = model.pos_embed.view(1, 48, 36, 24).permute(0, 3, 1, 2)
    assert torch.allclose(embed.float(), expected, atol=1e-6)
    assert torch.equal(model.layers[2].attn.qkv.weight, published.layers[2].attn.qkv.weight)


def test_an_odd_number_of_positions_has_no_class_token(tmp_path):
    published = little((208, 208))
    nn.init.normal_(published.pos_embed)
    state = {f'backbone.{name}': value for name, value in published.state_dict().items()}
    torch.save(dict(state_dict=state), tmp_path / 'vit.pth')
    model = little((208, 208))
    load_checkpoint(model, tmp_path / 'vit.pth')
    assert torch.equal(model.pos_embed, published.pos_embed)


def test_a_square_embedding_with_a_class_token_fits(tmp_path):
    state = little((256, 192)).state_dict()
    state['pos_embed'] = torch.arange(197.0)[None, :, None].expand(1, 197, 24).double()
    model = little((224, 224))
    model.load_state_dict(dict(state))
    assert torch.equal(model.pos_embed, state['pos_embed'][:, 1:])
    state['pos_embed'] = torch.zeros(1, 7, 24)
    with pytest.raises(ValueError, match='7 entries, neither of a 4:3 nor of a square'):
        model.load_state_dict(state)


# --- freezing and learning rates -----------------------------------------------------------------


@pytest.mark.parametrize(
    'arch, freeze, trained',
    [
        ('small', (), 21_663_744),
        ('small', ('attn',), 14_558_208),
        ('small', ('ffn',), 7_106_304),
        ('small', ('attn', 'ffn'), 768),
        ('base', ('attn',), 57_427_968),
        ('base', ('ffn',), 28_368_384),
        ('large', ('attn',), 202_485_760),
        ('large', ('ffn',), 100_812_800),
        ('huge', ('attn',), 420_951_040),
        ('huge', ('ffn',), 209_963_520),
    ],
)
def test_as_many_parameters_are_trained_as_by_the_authors(arch, freeze, trained):
    with torch.device('meta'):
        model = PlainViT(arch, freeze=freeze)
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    # The authors' position embedding has an entry more, that of the class token.
    assert parameters + model.embed_dims * model.pos_embed.requires_grad == trained


@pytest.mark.parametrize(
    'freeze, patterns',
    [
        (('attn',), {'layers.N.ln1', 'layers.N.attn.qkv', 'layers.N.attn.proj'}),
        (('ffn',), {'layers.N.ln2', 'layers.N.ffn.layers.0.0', 'layers.N.ffn.layers.1',
                    'patch_embed.projection'}),
    ],
)  # fmt: skip
def test_exactly_what_the_authors_freeze_is_frozen(freeze, patterns):
    with torch.device('meta'):
        model = PlainViT('base', freeze=freeze)
    frozen = [name for name, each in model.named_parameters() if not each.requires_grad]
    expected = {f'{name}.{kind}' for name in patterns for kind in ('weight', 'bias')}
    if 'ffn' in freeze:
        expected.add('pos_embed')
    assert {re.sub(r'layers\.\d+', 'layers.N', name, count=1) for name in frozen} == expected


def test_frozen_parts_stay_in_eval_mode():
    model = little(freeze=('ffn',), drop_rate=0.1).train()
    modes = {name: module.training for name, module in model.named_modules()}
    assert not modes['layers.3.ffn.layers.0'] and not modes['layers.0.ln2']
    assert not modes['patch_embed.projection'] and modes['layers.3.attn.qkv'] and modes['ln1']
    assert model.eval() is model


@pytest.mark.parametrize('frozen', [2, 4])
def test_frozen_stages_are_those_blocks_with_all_that_is_before(frozen):
    model = little(attention='window', experts=EXPERTS, frozen_stages=frozen).train()
    trained = {name for name, each in model.named_parameters() if each.requires_grad}
    blocks = tuple(f'layers.{i}.' for i in range(frozen, 4))
    after = ('ln1.',) if frozen < 4 else ()
    assert trained == {n for n, _ in model.named_parameters() if n.startswith(blocks + after)}
    training = {n.split('.')[1] for n, m in model.named_modules() if m.training and 'layers.' in n}
    assert training == {str(i) for i in range(frozen, 4)}


def test_learning_rates_decay_as_the_authors():
    model = nn.Module()
    model.backbone = PlainViT(dict(ARCH, num_layers=12), (128, 96), attention='window')
    model.head = nn.Linear(2, 2)
    wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.1))
    constructor = DepthDecayOptimWrapperConstructor(wrapper, dict(layer_decay_rate=0.75))
    groups = constructor(model).param_groups
    rate = {id(param): group['lr'] for group in groups for param in group['params']}
    rates = {name: rate[id(param)] for name, param in model.named_parameters()}
    expected = {
        'backbone.pos_embed': 0.023757264018058777,
        'backbone.patch_embed.projection.weight': 0.023757264018058777,
        'backbone.layers.0.attn.qkv.weight': 0.03167635202407837,
        'backbone.layers.5.attn.qkv.weight': 0.13348388671875,
        'backbone.layers.11.attn.qkv.weight': 0.75,
        'backbone.layers.11.attn.relative_position_bias_table': 0.75,
        'backbone.ln1.weight': 1.0,
        'head.weight': 1.0,
    }
    assert {name: rates[name] for name in expected} == pytest.approx(expected)


# --- experts -------------------------------------------------------------------------------------

EXPERTS = dict(num=6, width=8)


@pytest.mark.parametrize(
    'arch, width, parameters',
    [
        ('small', 192, 39_369_984),
        ('base', 192, 121_195_776),
        ('large', 256, 429_156_352),
        ('huge', 320, 893_107_200),
    ],
)
def test_experts_have_as_many_parameters_as_the_authors(arch, width, parameters):
    with torch.device('meta'):
        model = PlainViT(arch, experts=dict(num=6, width=width))
    assert sum(p.numel() for p in model.parameters()) + model.embed_dims == parameters


def test_each_sample_passes_through_the_expert_of_its_data_set():
    model = little(experts=EXPERTS)
    images, datasets = noise(3, 3, 128, 96), torch.tensor([0, 5, 3])
    (mixed,) = model(images, datasets)
    for image, dataset, features in zip(images, datasets, mixed, strict=True):
        assert torch.allclose(model(image[None], int(dataset))[0][0], features, atol=1e-12)
    assert not torch.allclose(model(images, 0)[0], model(images, 1)[0])
    with pytest.raises(IndexError, match='dataset 6; experts are 0 to 5'):
        model(images, 6)


@pytest.mark.parametrize('expert', [0, 4])
def test_a_split_model_is_bit_equal_to_its_expert(expert):
    model, plain = little(experts=EXPERTS), little()
    plain.load_state_dict(split_expert(model.state_dict(), expert))
    images = noise(2, 3, 128, 96)
    assert torch.equal(plain(images)[0], model(images, expert)[0])


def test_only_the_expert_of_the_batch_learns():
    model = little(experts=EXPERTS).train()
    (model(noise(2, 3, 128, 96), torch.tensor([2, 2]))[0] * noise(2, 24, 8, 6)).sum().backward()
    learning = [bool(expert.weight.grad.any()) for expert in model.layers[0].ffn.experts]
    assert learning == [False, False, True, False, False, False]


def test_each_expert_begins_with_the_last_rows_of_a_plain_file(tmp_path):
    plain = little((256, 192))
    torch.save(dict(state_dict=plain.state_dict()), tmp_path / 'mae.pth')
    model = little(experts=EXPERTS)
    load_checkpoint(model, tmp_path / 'mae.pth')
    images = noise(1, 3, 256, 192)
    assert all(torch.allclose(model(images, k)[0], little_of(plain, images)) for k in range(6))


def little_of(plain, images):
    """Features of a plain model of 256 x 192 on the map of one of 128 x 96."""
    smaller = little()
    smaller.load_state_dict(plain.state_dict())
    return smaller(images)[0]


@pytest.mark.slow
def test_vitpose_plus_has_the_official_values(tmp_path):
    golden = load_golden('vitposeplus_small')
    plain, shapes = official_shapes('vitpose_small_keys'), {}
    for key, shape in plain.items():
        fc2 = '.mlp.fc2.' in key
        shapes[key] = (192, *shape[1:]) if fc2 else shape
        for number in range(6) if fc2 else ():
            shapes[key.replace('fc2', f'experts.{number}')] = (192, *shape[1:])
        for number, joints in enumerate((14, 16, 17, 17, 133) if 'keypoint_head' in key else ()):
            name = key.replace('keypoint_head', f'associate_keypoint_heads.{number}')
            shapes[name] = (joints, *shape[1:]) if 'final' in key else shape
    state = golden_state(shapes)
    torch.save(dict(state_dict=state), tmp_path / 'plus.pth')
    model = PlainViT('small', experts=dict(num=6, width=192)).eval()
    load_checkpoint(model, tmp_path / 'plus.pth')
    images = golden_input(**golden['input'])
    with torch.no_grad():
        assert_matches(model(images, torch.tensor(golden['datasets']))[0], golden['backbone'])
    for image, name in zip(images, ('0_coco', '3_ap10k', '5_wholebody'), strict=True):
        path = tmp_path / f'{name}.pth'
        torch.save(dict(state_dict=split_expert(state, name[2:])), path)
        found = find(None, path)
        split = build_model(found.cfg)
        load_checkpoint(split, path)
        with torch.no_grad():
            heatmaps = split.head(split.extract_feat(image[None]))
        assert_matches(heatmaps, golden[f'split_{name}_heatmap'])


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'options, words',
    [
        (dict(attention='windows'), "give 'window' or one of"),
        (dict(stride=4), 'give 16'),
        (dict(freeze=('mlp',)), "give a tuple of 'attn', 'ffn'"),
        (dict(freeze='attn'), "give a tuple of 'attn', 'ffn'"),
        (dict(full_blocks=3), 'does not divide 4 blocks'),
        (dict(full_blocks=(4,)), 'indices from 0 to 3'),
        (dict(attention='window', with_cls_token=True), 'class token'),
        (dict(attention='window', window_size=(0, 4)), 'in tokens'),
        (dict(attention='window', window_size=(4, 4, 4)), 'in tokens'),
        (dict(attention='window', window_size=0.5), 'in tokens'),
        (dict(arch='tiny'), 'choose from small, base'),
        (dict(experts=dict(num=6, width=24)), 'a width below 24'),
    ],
)
def test_wrong_options_are_refused_with_the_remedy(options, words):
    with pytest.raises(ValueError, match=words):
        MODELS.build(dict(dict(type='PlainViT', arch=ARCH, img_size=(128, 96)), **options))
