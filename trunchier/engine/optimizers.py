"""Optimizers: learning rates by depth, bfloat16, a generator and its discriminator."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.logging import MMLogger
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper, OptimWrapperDict
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS
from torch import nn

# As ViTPose: no weight decay on these, nor on anything one-dimensional or marked by its module.
UNDECAYED = ('pos_embed', 'position_bias_table', '_bias')
NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)
OPTIONS = {
    *('layer_decay_rate', 'num_layers', 'custom_keys', 'bias_lr_mult'),
    *('norm_decay_mult', 'bias_decay_mult', 'dwconv_decay_mult', 'flat_decay_mult'),
}
# The last is what mmpose's configs of ViTPose have; it has no effect there either.
OF_KEYS = {'lr_mult', 'decay_mult', 'decay_multi'}


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class DepthDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Layer-wise learning rate decay for any backbone that knows its depth.

    A backbone parameter at depth `d` of `n` (the backbone's `get_layer_depth(name, prefix)`, as in
    mmpretrain: stem 0, one step a block, output norm n - 1) gets lr * rate ** (n - 1 - d); all else
    gets lr. One-dimensional parameters, biases, position embeddings, bias tables and parameters
    with a true attribute `_no_weight_decay` get no weight decay. The decay of a truncated backbone
    starts at its own last block. mmpose's LayerDecayOptimWrapperConstructor supports ViT alone.

    mmpose's constructor, named in a config, is replaced by this one for a backbone that it does not
    know (see `compat.patches`).

    Args:
        paramwise_cfg: `layer_decay_rate` (default 1) and `custom_keys`: {part of a parameter's
            name: dict(lr_mult=..., decay_mult=...)}, longest match first; its `decay_mult` is in
            the place of the rules above. mmengine's
            `norm_decay_mult`, `bias_decay_mult`, `bias_lr_mult`, `dwconv_decay_mult` and
            `flat_decay_mult` override the rules above with mmengine's meaning. mmpose's
            `num_layers` is not needed; one that differs from the backbone's is reported.

    Raises:
        ValueError: an unknown option, or a rate outside (0, 1].
        TypeError: a rate below 1 for a backbone without `get_layer_depth`.
    """

    def __init__(
        self, optim_wrapper_cfg: dict[str, Any], paramwise_cfg: dict[str, Any] | None = None
    ):
        super().__init__(optim_wrapper_cfg, {'layer_decay_rate': 1.0, **(paramwise_cfg or {})})
        unknown = set(self.paramwise_cfg) - OPTIONS
        if unknown:
            raise ValueError(f'paramwise_cfg takes {sorted(OPTIONS)}, got {sorted(unknown)}')
        for key, custom in self.paramwise_cfg.get('custom_keys', {}).items():
            if unknown := set(custom) - OF_KEYS:
                raise ValueError(
                    f'custom_keys[{key!r}] takes lr_mult and decay_mult, got {sorted(unknown)}'
                )
        rate = self.paramwise_cfg['layer_decay_rate']
        if not 0 < rate <= 1:
            raise ValueError(f'layer_decay_rate must be in (0, 1], got {rate}')

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = '') -> None:
        """Append one group to `params` for each (learning rate, weight decay) of the model."""
        depth = self._depth_of(module)
        groups, seen = {}, set()
        for owner_name, owner in module.named_modules():
            for leaf, param in owner.named_parameters(recurse=False):
                if not param.requires_grad or id(param) in seen:
                    continue
                seen.add(id(param))
                name = f'{owner_name}.{leaf}' if owner_name else leaf
                lr_mult, decay_mult = self._multipliers(owner, name, param, depth)
                group = groups.setdefault((lr_mult, decay_mult), dict(params=[], param_names=[]))
                group['params'].append(param)
                group['param_names'].append(name)
        for (lr_mult, decay_mult), group in sorted(groups.items()):
            group['lr'] = self.base_lr * lr_mult
            if self.base_wd is not None:
                group['weight_decay'] = self.base_wd * decay_mult
            params.append(group)
        log = MMLogger.get_current_instance().debug
        for group in params:
            log(f'lr {group["lr"]:.3g}: {", ".join(group["param_names"])}')

    def _depth_of(self, model):
        """Function from a parameter's name to its (depth, number of depths)."""
        backbone = getattr(model, 'backbone', model)
        prefix = 'backbone.' if backbone is not model else ''
        if hasattr(backbone, 'get_layer_depth'):
            self._compare_num_layers(backbone, prefix)
            return lambda name: backbone.get_layer_depth(name, prefix)
        if self.paramwise_cfg['layer_decay_rate'] != 1:
            raise TypeError(
                f'{type(backbone).__name__} has no get_layer_depth(param_name, prefix), which '
                'layer_decay_rate below 1 requires; add the method or set layer_decay_rate=1'
            )
        return lambda name: (0, 1)

    def _compare_num_layers(self, backbone, prefix):
        stated = self.paramwise_cfg.get('num_layers')
        blocks = backbone.get_layer_depth(f'{prefix}patch_embed', prefix)[1] - 2  # stem, norm
        if stated is not None and stated != blocks:
            MMLogger.get_current_instance().warning(
                f'paramwise_cfg has num_layers={stated}, but {type(backbone).__name__} has '
                f'{blocks} blocks; learning rates decay over these. Remove num_layers.'
            )

    def _multipliers(self, owner, name, param, depth):
        layer, layers = depth(name)
        options = self.paramwise_cfg
        is_norm = isinstance(owner, NORMS)
        is_bias = name.endswith('.bias')
        is_depthwise = isinstance(owner, nn.Conv2d) and owner.in_channels == owner.groups
        lr_mult = options['layer_decay_rate'] ** (layers - 1 - layer)
        if is_bias and not is_norm:
            lr_mult *= options.get('bias_lr_mult', 1.0)

        undecayed = (
            param.ndim <= 1
            or getattr(param, '_no_weight_decay', False)
            or name.endswith(('.bias', *UNDECAYED))
        )
        decay_mult = 0.0 if undecayed else 1.0
        rules = (
            (is_norm, 'norm_decay_mult'),
            (is_bias, 'bias_decay_mult'),
            (is_depthwise, 'dwconv_decay_mult'),
            (param.ndim == 1, 'flat_decay_mult'),
        )
        for applies, option in rules:
            if applies and option in options:
                decay_mult = options[option]
                break

        keys = options.get('custom_keys', {})
        matching = sorted((key for key in keys if key in name), key=lambda k: (-len(k), k))
        custom = keys[matching[0]] if matching else {}
        return lr_mult * custom.get('lr_mult', 1.0), custom.get('decay_mult', decay_mult)


@OPTIM_WRAPPERS.register_module()
class AutocastOptimWrapper(OptimWrapper):
    """Forward passes under autocast in bfloat16, on any device, without loss scaling.

    mmengine's AmpOptimWrapper requires a GPU; without one `tools/train.py --amp` uses this class.

    Args:
        dtype: 'bfloat16' (float16 requires loss scaling, hence a GPU and AmpOptimWrapper).
    """

    def __init__(self, dtype: str = 'bfloat16', **kwargs: Any):
        if dtype != 'bfloat16':
            raise ValueError(f'expected bfloat16, got {dtype!r}; float16 requires AmpOptimWrapper')
        super().__init__(**kwargs)

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device, torch.bfloat16):
            yield


class GeneratorAndDiscriminator(OptimWrapperDict):
    """Two optimizers that count the same iterations, so that both accumulate gradients alike."""

    def initialize_count_status(self, model: nn.Module, cur_iter: int, max_iters: int) -> None:
        for wrapper in self.values():
            wrapper.initialize_count_status(model, cur_iter, max_iters)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class TwoOptimWrapperConstructor:
    """One optimizer for a model's `discriminator`, another of the same kind for all else.

    The config is that of a single optimizer, so that `--amp`, `--auto-scale-lr` and gradient
    accumulation work unchanged. `paramwise_cfg` applies to the generator. A model without a
    discriminator gets one plain optimizer.

    Args:
        optim_wrapper_cfg: `discriminator` overrides options of the discriminator's optimizer.
        paramwise_cfg: as DepthDecayOptimWrapperConstructor's.
    """

    def __init__(
        self, optim_wrapper_cfg: dict[str, Any], paramwise_cfg: dict[str, Any] | None = None
    ):
        cfg = dict(optim_wrapper_cfg)
        self.overrides = cfg.pop('discriminator', {})
        self.generator = cfg
        self.paramwise_cfg = paramwise_cfg

    def __call__(self, model: nn.Module) -> OptimWrapper | OptimWrapperDict:
        model = getattr(model, 'module', model)
        generator = {n: m for n, m in model.named_children() if n != 'discriminator'}
        wrapper = self._build(generator, self.generator, self.paramwise_cfg)
        if not hasattr(model, 'discriminator'):
            return wrapper
        optimizer = dict(self.generator['optimizer'], **self.overrides)
        cfg = dict(self.generator, optimizer=optimizer)
        discriminator = self._build({'discriminator': model.discriminator}, cfg, None)
        return GeneratorAndDiscriminator(generator=wrapper, discriminator=discriminator)

    def _build(self, children, cfg, paramwise_cfg):
        part = nn.ModuleDict({name: getattr(m, 'module', m) for name, m in children.items()})
        if paramwise_cfg:
            return DepthDecayOptimWrapperConstructor(cfg, paramwise_cfg)(part)
        return DefaultOptimWrapperConstructor(cfg)(part)
