"""How models are trained: learning rates by depth, two optimizers, bfloat16, loops that resume."""

import zlib
from contextlib import contextmanager

import torch
from mmengine.dist import get_rank
from mmengine.logging import MMLogger
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper, OptimWrapperDict
from mmengine.registry import LOOPS, OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS
from mmengine.runner.loops import IterBasedTrainLoop, _InfiniteDataloaderIterator

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


@OPTIM_WRAPPERS.register_module()
class AutocastOptimWrapper(OptimWrapper):
    """Forward passes under autocast in bfloat16, on any device, without loss scaling.

    mmengine's AmpOptimWrapper refuses to run without a GPU; `tools/train.py --amp` takes this one
    there.

    Args:
        dtype (str): 'bfloat16' (float16 needs loss scaling: take AmpOptimWrapper).
        **kwargs: as mmengine's OptimWrapper.
    """

    def __init__(self, dtype='bfloat16', **kwargs):
        if dtype != 'bfloat16':
            raise ValueError(
                f'AutocastOptimWrapper trains in bfloat16, got {dtype!r}; float16 needs a GPU and '
                'AmpOptimWrapper'
            )
        super().__init__(**kwargs)

    @contextmanager
    def optim_context(self, model):
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device, torch.bfloat16):
            yield


class GeneratorAndDiscriminator(OptimWrapperDict):
    """Two optimizers that count the same iterations, so that both accumulate alike."""

    def initialize_count_status(self, model, cur_iter, max_iters):
        for wrapper in self.values():
            wrapper.initialize_count_status(model, cur_iter, max_iters)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class TwoOptimWrapperConstructor:
    """One optimizer for a model's `discriminator`, another of the same kind for all else.

    The config is that of a single optimizer, so that `--amp`, `--auto-scale-lr` and gradient
    accumulation work as with one. `paramwise_cfg` applies to the generator. A model without a
    discriminator gets one plain optimizer.

    Args:
        optim_wrapper_cfg (dict): see mmengine; `discriminator` overrides the optimizer's options
            for the discriminator.
        paramwise_cfg (dict): as DepthDecayOptimWrapperConstructor's.
    """

    def __init__(self, optim_wrapper_cfg, paramwise_cfg=None):
        cfg = dict(optim_wrapper_cfg)
        self.overrides = cfg.pop('discriminator', {})
        self.generator = cfg
        self.paramwise_cfg = paramwise_cfg

    def __call__(self, model):
        model = getattr(model, 'module', model)
        generator = {n: m for n, m in model.named_children() if n != 'discriminator'}
        wrapper = self._build(generator, self.generator, self.paramwise_cfg)
        if not hasattr(model, 'discriminator'):
            return wrapper
        optimizer = dict(self.generator['optimizer'], **self.overrides)
        cfg = dict(self.generator, optimizer=optimizer)
        judge = self._build({'discriminator': model.discriminator}, cfg, None)
        return GeneratorAndDiscriminator(generator=wrapper, discriminator=judge)

    def _build(self, children, cfg, paramwise_cfg):
        part = torch.nn.ModuleDict(
            {name: getattr(child, 'module', child) for name, child in children.items()}
        )
        constructor = DefaultOptimWrapperConstructor
        if paramwise_cfg:
            constructor = DepthDecayOptimWrapperConstructor
        return constructor(cfg, paramwise_cfg)(part)


@LOOPS.register_module()
class StreamTrainLoop(IterBasedTrainLoop):
    """Iteration-based training on an endless stream that is resumed at its position, at once.

    mmengine's loop replays every batch that was seen, which takes hours. Here the sampler (such as
    MixSampler) has a `position`, which is saved in the checkpoint, and the random numbers of an
    iteration (drop path, dropout) are seeded by (seed, rank, iteration), so that a resumed run goes
    on as the uninterrupted one would have.

    Raises:
        TypeError: the dataloader's sampler has no `position`.
    """

    def __init__(self, runner, dataloader, max_iters, **kwargs):
        super().__init__(runner, dataloader, max_iters, **kwargs)
        if not hasattr(self.dataloader.sampler, 'position'):
            raise TypeError(
                'StreamTrainLoop resumes a sampler with a `position`, such as MixSampler; got '
                f'{type(self.dataloader.sampler).__name__}. Use type="IterBasedTrainLoop"'
            )

    def run(self):
        """Train until `max_iters`."""
        sampler, hub = self.dataloader.sampler, self.runner.message_hub
        self.runner.call_hook('before_train')
        self.runner.call_hook('before_train_epoch')
        if self._iter > 0:
            sampler.load_state_dict(hub.get_info('stream'))
            # Workers may have begun at the start of the stream.
            self.dataloader_iterator = _InfiniteDataloaderIterator(self.dataloader)
        start, first = sampler.position, self._iter
        while self._iter < self._max_iters and not self.stop_training:
            self.runner.model.train()
            batch = next(self.dataloader_iterator)
            torch.manual_seed(iteration_seed(sampler.seed, get_rank(), self._iter))
            seen = (self._iter + 1 - first) * self.dataloader.batch_size * sampler.world
            hub.update_info('stream', dict(seed=sampler.seed, position=start + seen))
            self.run_iter(batch)
            self._decide_current_val_interval()
            if self._validates_now():
                self.runner.val_loop.run()
        self.runner.call_hook('after_train_epoch')
        self.runner.call_hook('after_train')
        return self.runner.model

    def _validates_now(self):
        due = self._iter % self.val_interval == 0 or self._iter == self._max_iters
        return self.runner.val_loop is not None and self._iter >= self.val_begin and due


def iteration_seed(seed, rank, iteration):
    """A 32-bit seed that differs between seeds, ranks and iterations."""
    return zlib.crc32(f'{seed} {rank} {iteration}'.encode())
