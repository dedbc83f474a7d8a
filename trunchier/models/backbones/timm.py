"""The first stages of any encoder of timm with a pyramid of features."""

import difflib
import re
from collections.abc import Sequence
from functools import partial

import timm
from mmengine.logging import MMLogger
from mmengine.model import BaseModule
from mmengine.registry import WEIGHT_INITIALIZERS
from timm.models import group_parameters, is_model, list_models
from timm.models._features import FeatureGetterNet
from torch import Tensor, nn

from ...zoo.encoders import STRIDES, stage_feature

REFUSED = {
    'nest': 'runs on square images alone',
    'jx_nest': 'runs on square images alone',
    'efficientformer_': 'has an attention bias for 7 x 7 tokens alone; take efficientformerv2',
}
SQUARE = ('mvitv2', 'mvitv1')  # built for a square, then run on other sizes


class TruncatedTimm(BaseModule):
    """An encoder of timm up to the last feature of a stage; later parts are never kept.

    Stages 1 to 4 have strides 4, 8, 16 and 32. The cut is exact: with the same weights the feature
    is that of the whole network.

    Args:
        model_name: of timm, such as `convnext_tiny` or `convnext_tiny.fb_in22k`.
        num_stages: number of stages to keep, 1 to 4.
        out_indices: stages (from 0) to return, increasing; the last kept one by default.
        img_size: (height, width), pixels, for families that are built for one size.
        drop_path_rate: of the whole network; None: timm's default.
        init_cfg: of mmengine.

    Raises:
        ValueError: an unknown name, a family that does not fit, a stage that it does not have.
    """

    def __init__(
        self,
        model_name: str,
        num_stages: int = 3,
        out_indices: Sequence[int] | None = None,
        img_size: tuple[int, int] = (256, 192),
        drop_path_rate: float | None = None,
        init_cfg: dict | None = None,
    ):
        super().__init__(init_cfg)
        _check_name(model_name)
        self.model_name, self.img_size = model_name, tuple(img_size)
        options = {} if drop_path_rate is None else dict(drop_path_rate=drop_path_rate)
        model = _build(model_name, self.img_size, False, options)
        infos = list(model.feature_info)
        indices = (num_stages - 1,) if out_indices is None else tuple(out_indices)
        kept = sorted(set(indices) & set(range(num_stages)))
        if not 1 <= num_stages <= 4 or list(indices) != kept or not indices:
            raise ValueError(
                f'num_stages={num_stages}, out_indices={indices}; give 1 to 4 stages and '
                'increasing indices of them from 0'
            )
        places = [stage_feature(infos, i, model_name) for i in indices]
        self.num_stages, self.out_indices = num_stages, indices
        self.strides = tuple(STRIDES[i] for i in indices)
        self.channels = tuple(infos[place]['num_chs'] for place in places)
        if not hasattr(model, 'prune_intermediate_layers'):
            raise ValueError(f'timm cannot cut {model_name} (no prune_intermediate_layers)')
        self.net = FeatureGetterNet(model, places)  # cuts, and returns (B, C, H, W)
        self._depths = _depths(self.net)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) -> tuple of (B, C_i, H / stride, W / stride), one for each out index."""
        return tuple(self.net(x))

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """(layer, num_layers) of a parameter for layer-wise decay, by timm's groups of layers."""
        last = max(self._depths.values()) + 1
        name = param_name[len(prefix) :] if param_name.startswith(prefix) else ''
        return self._depths.get(name.removeprefix('net.'), last), last + 1


@WEIGHT_INITIALIZERS.register_module()
class TimmPretrained:
    """`init_cfg=dict(type='TimmPretrained')`: start a `TruncatedTimm` from timm's own weights.

    timm downloads them once (Hugging Face, safetensors) and states their license.
    """

    def __call__(self, module: nn.Module) -> None:
        whole = _build(module.model_name, module.img_size, True, {}).state_dict()
        own = module.net.model.state_dict()
        module.net.model.load_state_dict({key: whole[key] for key in own})
        for each in module.modules():
            each._is_init = True
        license = timm.get_pretrained_cfg(module.model_name).license
        MMLogger.get_current_instance().info(
            f'{module.model_name}: timm weights, license {license or "not stated"}'
        )


def _check_name(name):
    bare = name.partition('.')[0]
    if not is_model(bare):
        near = difflib.get_close_matches(bare, list_models(), 3)
        raise ValueError(f'timm has no {name!r}' + (f'; near: {", ".join(near)}' if near else ''))
    for start, reason in REFUSED.items():
        if bare.startswith(start):
            raise ValueError(f'{name} {reason}')


def _build(name, size, pretrained, options):
    """The whole network, built for `size` where its family asks for one."""
    create = partial(timm.create_model, name, pretrained=pretrained, **options)
    if name.startswith(SQUARE):
        return create(img_size=max(size))
    try:
        return create(img_size=size)
    except TypeError as error:
        if 'img_size' not in str(error):
            raise
    return create()


def _depths(net):
    """{parameter: layer} by timm's own groups, else by stage and block, from 0 without gaps."""
    names = [name for name, _ in net.model.named_parameters()]
    if hasattr(net.model, 'group_matcher'):
        layers = group_parameters(net.model, net.model.group_matcher(), reverse=True)
    else:  # MetaFormers: stem.conv.weight, stages.1.downsample.norm.weight, stages.1.blocks.0...
        places = (re.match(r'stages\.(\d+)\.(?:blocks\.(\d+)\.)?', name) for name in names)
        layers = {
            name: tuple(int(n) for n in place.groups('-1')) if place else ()
            for name, place in zip(names, places, strict=True)
        }
    order = sorted(set(layers.values()))
    return {f'model.{name}': order.index(layers[name]) for name in names}
