"""How models are trained: learning rates by depth."""

from mmengine.logging import MMLogger
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS

# As ViTPose: no weight decay on these, nor on anything one-dimensional or marked by its module.
UNDECAYED = ('pos_embed', 'position_bias_table', '_bias')


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class DepthDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Layer-wise learning rate decay for any backbone that knows its depth.

    A backbone parameter at depth `d` of `n` (the backbone's `get_layer_depth(name, prefix)`, as in
    mmpretrain: stem 0, one step a block, output norm n - 1) gets lr * rate ** (n - 1 - d); all else
    gets lr. One-dimensional parameters, biases, position embeddings and bias tables, and parameters
    with a true attribute `_no_weight_decay`, get no weight decay. Depth is counted over the blocks
    that were built: a truncated backbone starts its decay at its own last block.

    Unlike mmpose's LayerDecayOptimWrapperConstructor it knows every backbone, not ViT alone, reads
    `custom_keys`, and prints nothing.

    Args:
        optim_wrapper_cfg (dict): see mmengine.
        paramwise_cfg (dict): `layer_decay_rate` (float, default 1) and `custom_keys`: {part of a
            parameter's name: dict(lr_mult=..., decay_mult=...)}, longest match first.

    Raises:
        ValueError: an unknown option, or a rate outside (0, 1].
        TypeError: a rate below 1 for a backbone without `get_layer_depth`.
    """

    def __init__(self, optim_wrapper_cfg, paramwise_cfg=None):
        super().__init__(optim_wrapper_cfg, dict(paramwise_cfg or {}, layer_decay_rate=1.0))
        self.paramwise_cfg.update(paramwise_cfg or {})
        unknown = set(self.paramwise_cfg) - {'layer_decay_rate', 'custom_keys'}
        if unknown:
            raise ValueError(
                f'paramwise_cfg knows layer_decay_rate and custom_keys, got {sorted(unknown)}'
            )
        rate = self.paramwise_cfg['layer_decay_rate']
        if not 0 < rate <= 1:
            raise ValueError(f'layer_decay_rate must be in (0, 1], got {rate}')

    def add_params(self, params, module, prefix=''):
        """Appends to `params` one group for each (learning rate, weight decay) of the model."""
        depth = self._depth_of(module)
        groups, seen = {}, set()
        for owner_name, owner in module.named_modules():
            for leaf, param in owner.named_parameters(recurse=False):
                if not param.requires_grad or id(param) in seen:
                    continue
                seen.add(id(param))
                name = f'{owner_name}.{leaf}' if owner_name else leaf
                lr_mult, decay_mult = self._multipliers(name, param, depth)
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
            return lambda name: backbone.get_layer_depth(name, prefix)
        if self.paramwise_cfg['layer_decay_rate'] != 1:
            raise TypeError(
                f'{type(backbone).__name__} has no get_layer_depth(param_name, prefix), which a '
                'layer_decay_rate below 1 needs; add the method or set layer_decay_rate=1'
            )
        return lambda name: (0, 1)

    def _multipliers(self, name, param, depth):
        layer, layers = depth(name)
        lr_mult = self.paramwise_cfg['layer_decay_rate'] ** (layers - 1 - layer)
        undecayed = (
            param.ndim <= 1
            or getattr(param, '_no_weight_decay', False)
            or name.endswith(('.bias', *UNDECAYED))
        )
        decay_mult = 0.0 if undecayed else 1.0
        keys = sorted(self.paramwise_cfg.get('custom_keys', {}), key=lambda k: (-len(k), k))
        for key in keys:
            if key in name:
                custom = self.paramwise_cfg['custom_keys'][key]
                return (
                    lr_mult * custom.get('lr_mult', 1.0),
                    decay_mult * custom.get('decay_mult', 1.0),
                )
        return lr_mult, decay_mult


def learning_rates(optim_wrapper):
    """Dict from the name of each parameter to its (learning rate, weight decay)."""
    return {
        name: (group['lr'], group['weight_decay'])
        for group in optim_wrapper.optimizer.param_groups
        for name in group['param_names']
    }
