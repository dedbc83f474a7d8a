"""Learning rates by depth, two optimizers, bfloat16 on a CPU, and a loop that resumes."""

import importlib
import logging

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from trunchier import zoo
from trunchier.engine.hooks import position_seed
from trunchier.engine.optimizers import GeneratorAndDiscriminator

ADAMW = dict(type='AdamW', lr=1e-3, weight_decay=0.1)


def optimizer(model, **paramwise):
    return build_optim_wrapper(
        model,
        dict(
            optimizer=ADAMW,
            constructor='DepthDecayOptimWrapperConstructor',
            paramwise_cfg=paramwise,
        ),
    )


def learning_rates(optim_wrapper):
    """{name of each parameter: (learning rate, weight decay)}."""
    return {
        name: (group['lr'], group['weight_decay'])
        for group in optim_wrapper.optimizer.param_groups
        for name in group['param_names']
    }


def pose_model(name):
    """Backbone and adapter of an encoder, and something for a head, without numbers."""
    init_default_scope('mmpose')
    cfg = zoo.model_cfg(name)
    with torch.device('meta'):
        model = nn.Module()
        model.backbone = MODELS.build(dict(cfg['backbone'], init_cfg=None))
        if 'neck' in cfg:
            model.neck = MODELS.build(cfg['neck'])
        model.head = nn.Conv2d(cfg['head']['in_channels'], 17, 1)
    return model


# Rate and number of depths of an encoder; parameters at its start, middle and end, their depths.
DEPTHS = {
    'swin-t-s3': (0.8, 12),
    'gmf-t-s3': (0.8, 22),
    'vm-t-s3': (0.8, 14),
    'vit-b': (0.75, 14),
}
PARAMETERS = {
    'swin-t-s3': {
        'stem.proj.weight': 0,
        'stages.1.blocks.1.attn.qkv.weight': 4,
        'stages.2.downsample.reduction.weight': 5,
        'stages.2.blocks.5.mlp.fc2.weight': 10,
        'norm2.weight': 11,
    },
    'gmf-t-s3': {
        'stages.0.blocks.0.mlp.fc1.weight': 1,
        'stages.1.blocks.3.mlp.fc1.weight': 8,
        'stages.2.blocks.11.mlp.fc2.weight': 20,
        'norm2.weight': 21,
    },
    'vm-t-s3': {
        'stages.0.blocks.0.mlp.fc1.weight': 1,
        'stages.1.blocks.1.mlp.fc1.weight': 4,
        'stages.2.blocks.7.mlp.fc2.weight': 12,
        'norm2.weight': 13,
    },
    'vit-b': {
        'patch_embed.projection.weight': 0,
        'layers.5.attn.qkv.weight': 6,
        'layers.11.ffn.layers.1.weight': 12,
        'ln1.weight': 13,
    },
}


@pytest.mark.parametrize('name', DEPTHS)
def test_learning_rates_grow_with_depth(name):
    rate, depths = DEPTHS[name]
    model = pose_model(name)
    rates = learning_rates(optimizer(model, layer_decay_rate=rate))
    for parameter, depth in PARAMETERS[name].items():
        lr = rates[f'backbone.{parameter}'][0]
        print(f'{name:10} {parameter:40} depth {depth:2} of {depths}: lr {lr:.3e}')
        assert lr == pytest.approx(1e-3 * rate ** (depths - 1 - depth))
    assert rates['head.weight'][0] == 1e-3
    stem = min(lr for lr, _ in rates.values())
    assert stem == pytest.approx(1e-3 * rate ** (depths - 1))


@pytest.mark.parametrize('name', ['swin-t-s2', 'gmf-t-s3', 'vm-t-s4', 'vit-s'])
def test_no_parameter_is_lost_or_doubled(name):
    model = pose_model(name)
    wrapper = optimizer(model, layer_decay_rate=0.8)
    given = [id(p) for group in wrapper.optimizer.param_groups for p in group['params']]
    assert sorted(given) == sorted(id(p) for p in model.parameters())
    assert set(learning_rates(wrapper)) == {n for n, _ in model.named_parameters()}


@pytest.mark.parametrize('name', ['swin-t-s2', 'gmf-t-s2', 'vm-t-s2', 'vit-s'])
def test_vectors_biases_and_tables_do_not_decay(name):
    model = pose_model(name)
    rates = learning_rates(optimizer(model, layer_decay_rate=0.8))
    for key, parameter in model.named_parameters():
        leaf = key.rsplit('.', 1)[-1]
        fixed = leaf in ('pos_embed', 'relative_position_bias_table') or leaf.endswith('bias')
        fixed |= getattr(parameter, '_no_weight_decay', False) or parameter.ndim <= 1
        assert rates[key][1] == (0 if fixed else 0.1), key
    assert any(decay for _, decay in rates.values())


def test_a_frozen_parameter_is_left_out():
    model = pose_model('swin-t-s2')
    model.backbone.stem.requires_grad_(False)
    rates = learning_rates(optimizer(model, layer_decay_rate=0.8))
    assert not [key for key in rates if key.startswith('backbone.stem')]


def test_a_shared_parameter_is_taken_once():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    assert set(learning_rates(optimizer(model))) == {'0.weight', '0.bias', '1.bias'}


def test_custom_keys_multiply_and_the_longest_wins():
    model = pose_model('swin-t-s2')
    keys = {'head': dict(lr_mult=0.1), 'head.weight': dict(lr_mult=10, decay_mult=0.5)}
    rates = learning_rates(optimizer(model, layer_decay_rate=0.8, custom_keys=keys))
    assert rates['head.weight'] == (pytest.approx(1e-2), pytest.approx(0.05))
    assert rates['head.bias'] == (pytest.approx(1e-4), 0)


def test_custom_keys_restore_decay():
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    rates = learning_rates(optimizer(model, custom_keys={'0.bias': dict(decay_mult=1.0)}))
    assert rates['0.bias'] == rates['0.weight']
    assert rates['1.bias'][1] == 0


def test_unknown_options_are_named():
    with pytest.raises(ValueError, match="custom_keys.'head'. takes .*, got .'lr_mul'"):
        optimizer(nn.Linear(1, 1), custom_keys={'head': dict(lr_mul=0.1)})
    with pytest.raises(ValueError, match="got .'norm_decay'"):
        optimizer(nn.Linear(1, 1), norm_decay=0)


def test_options_of_mmengine_have_their_meaning():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.LayerNorm(4), nn.Linear(4, 4))
    options = dict(norm_decay_mult=0.5, bias_decay_mult=0.25, bias_lr_mult=2, dwconv_decay_mult=0)
    assert learning_rates(optimizer(model, **options)) == {
        '0.weight': (1e-3, 0),
        '0.bias': (2e-3, pytest.approx(0.025)),
        '1.weight': (1e-3, pytest.approx(0.05)),
        '1.bias': (1e-3, pytest.approx(0.05)),
        '2.weight': (1e-3, 0.1),
        '2.bias': (2e-3, pytest.approx(0.025)),
    }
    flat = learning_rates(optimizer(model, flat_decay_mult=1.0))
    assert flat['1.weight'][1] == flat['2.bias'][1] == 0.1


@pytest.mark.parametrize('name', ['swin-t-s3', 'gmf-t-s2', 'vm-t-s2'])
def test_layer_decay_of_mmpose_decays_our_backbones(name):
    importlib.import_module('mmpose.engine')
    model = pose_model(name)
    # as mmpose's configs of ViTPose write it, for a backbone of 12 layers
    stock = dict(num_layers=12, layer_decay_rate=0.8, custom_keys={'norm': dict(decay_multi=0.0)})
    cfg = dict(constructor='LayerDecayOptimWrapperConstructor', paramwise_cfg=stock)
    logged = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = logged.append
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    wrapper = build_optim_wrapper(model, dict(cfg, optimizer=ADAMW))
    logger.removeHandler(handler)
    assert learning_rates(wrapper) == learning_rates(optimizer(model, layer_decay_rate=0.8))
    assert ['num_layers=12' in record.getMessage() for record in logged] == [True]


def test_layer_decay_of_mmpose_is_left_alone_for_its_own_backbone():
    importlib.import_module('mmpose.engine')
    model = pose_model('vit-s')
    wrapper = build_optim_wrapper(
        model,
        dict(
            optimizer=ADAMW,
            constructor='LayerDecayOptimWrapperConstructor',
            paramwise_cfg=dict(num_layers=12, layer_decay_rate=0.8),
        ),
    )
    assert all('lr_scale' in group for group in wrapper.optimizer.param_groups)


@pytest.mark.parametrize('rate', [0, 1.5])
def test_impossible_rates_are_refused(rate):
    with pytest.raises(ValueError, match=f'got {rate}'):
        optimizer(nn.Linear(1, 1), layer_decay_rate=rate)


def test_a_backbone_without_depth_says_what_it_needs():
    with pytest.raises(TypeError, match='Linear has no get_layer_depth'):
        optimizer(nn.Linear(1, 1), layer_decay_rate=0.8)


# --- two optimizers ------------------------------------------------------------------------------


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone, self.head = nn.Linear(2, 3), nn.Linear(3, 4)
        self.discriminator = nn.Linear(4, 1)


def two(model, **options):
    cfg = dict(optimizer=ADAMW, constructor='TwoOptimWrapperConstructor', **options)
    return build_optim_wrapper(model, cfg)


def test_each_optimizer_has_its_own_parameters_and_all_have_one():
    model = Pair()
    wrapper = two(model, discriminator=dict(lr=5e-4))
    assert isinstance(wrapper, GeneratorAndDiscriminator)
    owned = {
        name: {id(p) for g in w.optimizer.param_groups for p in g['params']}
        for name, w in wrapper.items()
    }
    assert owned['discriminator'] == {id(p) for p in model.discriminator.parameters()}
    everything = {id(p) for p in model.parameters()}
    assert owned['generator'] == everything - owned['discriminator']
    assert wrapper.get_lr() == {'generator.lr': [1e-3], 'discriminator.lr': [5e-4]}


def test_without_a_discriminator_one_plain_optimizer_is_made():
    model = Pair()
    del model.discriminator
    assert type(two(model)) is OptimWrapper


def test_both_accumulate_alike_to_the_last_iteration():
    model = Pair()
    wrapper = two(model, accumulative_counts=2)
    wrapper.initialize_count_status(model, 0, 3)
    before = model.discriminator.weight.clone()
    for step in range(3):
        wrapper['discriminator'].update_params(model.discriminator(torch.ones(1, 4)).sum())
        moved = not torch.equal(model.discriminator.weight, before)
        assert moved == (step >= 1)
        if step == 1:
            before = model.discriminator.weight.clone()
    assert not torch.equal(model.discriminator.weight, before)


def test_a_cpu_trains_in_bfloat16():
    model = nn.Linear(4, 4)
    wrapper = build_optim_wrapper(model, dict(type='AutocastOptimWrapper', optimizer=ADAMW))
    with wrapper.optim_context(model):
        out = model(torch.ones(2, 4))
    assert out.dtype == torch.bfloat16
    before = model.weight.clone()
    wrapper.update_params(out.float().sum())
    assert model.weight.dtype == torch.float32 and not torch.equal(model.weight, before)


def test_float16_without_loss_scaling_is_refused():
    with pytest.raises(ValueError, match='AmpOptimWrapper'):
        build_optim_wrapper(
            nn.Linear(1, 1),
            dict(type='AutocastOptimWrapper', dtype='float16', optimizer=ADAMW),
        )


def test_iterations_ranks_and_seeds_draw_differently():
    seeds = {position_seed(s, r, i) for s in range(5) for r in range(5) for i in range(200)}
    assert len(seeds) == 5000
