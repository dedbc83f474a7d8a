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
from timm.utils import reparameterize_model
from torch import Tensor, nn

from ...weights.load import WRAPPERS, read_weights
from ...zoo.encoders import STRIDES, stage_feature

REFUSED = {
    'nest': 'runs on square images alone',
    'jx_nest': 'runs on square images alone',
    'efficientformer_': 'has an attention bias for 7 x 7 tokens alone; take efficientformerv2',
}
SQUARE = ('mvitv2', 'mvitv1')  # built for a square, then run on other sizes
# Modules of a block by kind, see `freeze`: those that name it, and the norms before them.
KINDS = {
    'attn': (('attn', 'token_mixer'), ('norm1',)),
    'ffn': (('mlp', 'channel_mixer'), ('norm2', 'norm')),
}


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
        frozen_stages: -1 freezes nothing, 0 the stem, n the stem and the first n stages. Frozen
            modules stay in eval mode.
        with_cp: recompute blocks in the backward pass, by timm's own checkpointing.
        init_cfg: of mmengine.
        freeze: kinds of layers, keys of `KINDS`, that are not trained in any block and stay in
            eval mode with the norm before them.

    Raises:
        ValueError: an unknown name, a family that does not fit, a stage that it does not have,
            options that it cannot take.
    """

    def __init__(
        self,
        model_name: str,
        num_stages: int = 3,
        out_indices: Sequence[int] | None = None,
        img_size: tuple[int, int] = (256, 192),
        drop_path_rate: float | None = None,
        frozen_stages: int = -1,
        with_cp: bool = False,
        init_cfg: dict | None = None,
        freeze: Sequence[str] = (),
    ):
        super().__init__(init_cfg)
        _check_name(model_name)
        self.model_name, self.img_size = model_name, tuple(img_size)
        options = {} if drop_path_rate is None else dict(drop_path_rate=drop_path_rate)
        model, self.is_fixed = _build(model_name, self.img_size, **options)
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
        if with_cp:
            try:
                model.set_grad_checkpointing(True)
            except (AssertionError, AttributeError) as error:
                raise ValueError(f'with_cp=True: timm cannot recompute {model_name}') from error
        if frozen_stages not in range(-1, num_stages + 1):
            raise ValueError(
                f'frozen_stages={frozen_stages}; give -1 (none), 0 (stem) or 1 to {num_stages}'
            )
        last = [infos[stage_feature(infos, i, model_name)]['module'] for i in range(frozen_stages)]
        self._freeze_up_to(last, frozen_stages)
        for module in self._of_kinds(freeze):
            module.requires_grad_(False)
        self._frozen = [
            module
            for module in self.net.modules()
            if (own := [*module.parameters()]) and not any(p.requires_grad for p in own)
        ]
        self.train()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) -> tuple of (B, C_i, H / stride, W / stride), one for each out index."""
        if self.is_fixed and tuple(x.shape[2:]) != self.img_size:
            size = tuple(x.shape[2:])
            raise ValueError(
                f'{self.model_name} was built for images of {self.img_size} (height, width), got '
                f'{size}; give the backbone img_size={size}'
            )
        return tuple(self.net(x))

    def before_fuse(self) -> None:
        """Join the branches of training, as of RepViT and FastViT, by timm's own way."""
        reparameterize_model(self.net, inplace=True)

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def _freeze_up_to(self, modules, frozen_stages):
        """Freeze the layers up to the last one of these modules, or the stem alone."""
        if frozen_stages < 0:
            return
        inside = tuple(f'model.{name}.' for name in modules)
        depth = max((d for name, d in self._depths.items() if name.startswith(inside)), default=0)
        for name, param in self.net.named_parameters():
            param.requires_grad_(self._depths[name] > depth)

    def _of_kinds(self, freeze):
        if isinstance(freeze, str) or (unknown := [kind for kind in freeze if kind not in KINDS]):
            wrong = freeze if isinstance(freeze, str) else unknown[0]
            raise ValueError(f'freeze={wrong!r}; give a tuple of {", ".join(map(repr, KINDS))}')
        for kind in freeze:
            named, norms = KINDS[kind]
            blocks = [dict(block.named_children()) for block in self.net.modules()]
            blocks = [block for block in blocks if block.keys() & set(named)]
            if not blocks:
                raise ValueError(f'no block of {self.model_name} has {kind} layers to freeze')
            for block in blocks:
                yield from (block[name] for name in (*named, *norms) if name in block)

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """(layer, num_layers) of a parameter for layer-wise decay, by timm's groups of layers."""
        last = max(self._depths.values()) + 1
        name = param_name[len(prefix) :] if param_name.startswith(prefix) else ''
        return self._depths.get(name.removeprefix('net.'), last), last + 1


@WEIGHT_INITIALIZERS.register_module()
class TimmPretrained:
    """`init_cfg=dict(type='TimmPretrained')`: start a `TruncatedTimm` from timm's own weights.

    timm downloads them once (Hugging Face, safetensors), states their license, and fits them to
    the image size.

    Args:
        checkpoint: file of the whole network in timm's layout or in one that timm converts, read
            without running what is in it; None: download.
    """

    def __init__(self, checkpoint: str | None = None):
        self.checkpoint = checkpoint

    def __call__(self, module: nn.Module) -> None:
        options = {} if self.checkpoint is None else self._of_file(module.model_name)
        model, _ = _build(module.model_name, module.img_size, pretrained=True, **options)
        whole, own = model.state_dict(), module.net.model.state_dict()
        module.net.model.load_state_dict({key: whole[key] for key in own})
        for each in module.modules():
            each._is_init = True
        license = timm.get_pretrained_cfg(module.model_name).license
        MMLogger.get_current_instance().info(
            f'{module.model_name}: timm weights, license {license or "not stated"}'
        )

    def _of_file(self, name):
        """Options of timm for the weights of the file, with as many classes as it has."""
        state = read_weights(self.checkpoint)
        state = next((state[key] for key in WRAPPERS if key in state), state)
        classifier = timm.get_pretrained_cfg(name).classifier
        first = classifier if isinstance(classifier, str) else classifier[0]
        classes = len(state.get(f'{first}.weight', ()))
        overlay = dict(state_dict=state, num_classes=classes)
        return dict(num_classes=classes, pretrained_cfg_overlay=overlay)


def _check_name(name):
    bare = name.partition('.')[0]
    if not is_model(bare):
        near = difflib.get_close_matches(bare, list_models(), 3)
        raise ValueError(f'timm has no {name!r}' + (f'; near: {", ".join(near)}' if near else ''))
    for start, reason in REFUSED.items():
        if bare.startswith(start):
            raise ValueError(f'{name} {reason}')


def _build(name, size, **options):
    """The whole network, built for `size` where its family asks for one, and whether it does."""
    create = partial(timm.create_model, name, **options)
    if name.startswith(SQUARE):
        return create(img_size=max(size)), False
    try:
        model = create(img_size=size)
    except TypeError as error:
        if 'img_size' not in str(error):
            raise
        return create(), False
    if size[0] % 32 or size[1] % 32:
        raise ValueError(
            f'{name} is built for one size of images, got img_size={size}; give multiples of 32'
        )
    return model, True


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
