"""Recognize what a checkpoint holds by its keys and shapes alone, whatever its layout.

`recognize(state)` finds the backbone by the key names of its family below any prefix, and the
decoder by its names or shapes; the only 2x2 layer in between is the adapter. What had to be guessed
is listed. `identify` names the model of the zoo. Both also work on the meta device.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .. import zoo
from .experts import split_expert
from .families import LAYOUTS, Layout, State, from_hmr2, from_transformers_head, is_expert, rename


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read, or does not fit the model."""


class Recognized(NamedTuple):
    """Content of a checkpoint.

    Attributes:
        state: under our keys; what belongs to no known part has its own.
        layout: of the backbone.
        guesses: sentences about what names alone do not say.
        left_out: names of parts of the file that no model here needs.
    """

    state: State
    layout: Layout
    guesses: list[str]
    left_out: list[str]


PREFIX = r'(?P<prefix>(?:[^.]+\.)*?)'
# Below the prefix of a backbone: its first names in any layout, and a classifier.
BACKBONE = re.compile(
    r'(patch_embed|patch_embed_layers|conv_stem|stem|embeddings|encoder|layers|stages|blocks|'
    r'groupmixformer_backbone|pos_embed|cls_token|mask_token|(last_|fc_)?norm\d?|outnorm\d|'
    r'layernorm|ln1|classifier\.norm)(\.|$)'
)
CLASSIFIER = re.compile(r'(head|head\.fc|classifier|classifier\.head)\.(weight|bias)')
LEFT_OUT = {
    'a body model':           r'(.*\.)?smpl\.',
    'heads of further data sets': r'(.*\.)?associate_\w+\.',
    'statistics of the input': r'(.*\.)?data_preprocessor\.(mean|std)$|(.*\.)?initialized$',
}  # fmt: skip
# Keys of decoders below any prefix, and of ours.
MESH_HEAD = re.compile(PREFIX + r'decpose\.weight')
POSE_HEAD = re.compile(PREFIX + r'(final_layer|deconv_layers\.0|deconv1)\.weight')
DECONVOLUTION = re.compile(r'(.*\.)?(deconv_layers\.\d+|deconv\d)\.weight')
MOST_DECONVOLUTIONS = 4
MESH_LAYER = re.compile(PREFIX + r'(transformer\.)*layers\.0\.0\.fn\.to_qkv\.weight')
# Rows of the readouts of HMR2.0's head: 24 rotations of 6 numbers, betas, camera.
READOUTS = {
    144: ('decpose', 'init_body_pose'),
    10: ('decshape', 'init_betas'),
    3: ('deccam', 'init_cam'),
}


def parse_renames(texts: Sequence[str]) -> list[tuple[str, str]]:
    """`OLD=NEW` -> pairs for `recognize`; ValueError if one has no `=` or no OLD."""
    pairs = [text.partition('=') for text in texts]
    for text, (old, equals, _) in zip(texts, pairs, strict=True):
        if not old or not equals:
            raise ValueError(f'--rename {text}: expected OLD=NEW, two beginnings of keys')
    return [(old, new) for old, _, new in pairs]


def recognize(
    state: State,
    source: str | Path = 'checkpoint',
    renames: Sequence[tuple[str, str]] = (),
    expert: str | int | None = None,
) -> Recognized:
    """Bring a state_dict under our keys.

    Args:
        source: its name, for errors.
        renames: pairs (old, new): a key that begins with `old` begins with `new` instead; `-`
            leaves it out.
        expert: of ViTPose++, see `experts.split_expert`; None: that of COCO, the first.

    Raises:
        CheckpointError: no backbone that is known, or several things that could be one part.
        ValueError: there is no such expert.
    """
    for old, new in renames:
        found = [key for key in state if key.startswith(old)]
        if not found:
            raise CheckpointError(f'{source}: no key begins with {old!r}; {_outline(state)}')
        state = {
            new + key.removeprefix(old) if key in found else key: value
            for key, value in state.items()
            if key not in found or new != '-'
        }
    if expert is not None:
        state = split_expert(state, expert)
    layout, prefix = _backbone(state, source)
    backbone, rest, left_out = {}, {}, []
    for key, value in state.items():
        inner = key.removeprefix(prefix)
        if key.startswith(prefix) and BACKBONE.match(inner):
            backbone[inner] = value
        elif value.dim() < 3 and (
            CLASSIFIER.fullmatch(inner) or prefix and re.match(r'(head\.fc|classifier)\.', key)
        ):
            left_out.append('a classifier')
        elif what := [name for name, pattern in LEFT_OUT.items() if re.match(pattern, key)]:
            left_out += what
        else:
            rest[key] = value
    if any(map(is_expert, backbone)):
        left_out.append('experts of further data sets')
    ours, guesses = layout.convert(backbone), []
    parts, rest = _parts(rest, source, guesses)
    whole = bool(parts)
    if whole and layout.kind != 'VisionTransformer' and layout.name != 'trunchier':
        ours = _used(ours, parts, guesses)
    if whole or prefix:
        ours = {f'backbone.{key}': value for key, value in ours.items()}
    return Recognized(ours | parts | rest, layout, guesses, list(dict.fromkeys(left_out)))


def _backbone(state, source):
    """Layout and prefix of the backbone."""
    for layout in LAYOUTS:
        matches = (re.fullmatch(PREFIX + layout.anchor, key) for key in state)
        prefixes = sorted({match['prefix'] for match in matches if match})
        if len(prefixes) > 1:
            raise CheckpointError(
                f'{source} holds {len(prefixes)} backbones: '
                + ', '.join(f'{prefix}*' for prefix in prefixes)
                + f'; leave the others out, as by --rename {prefixes[-1]}=-'
            )
        if prefixes:
            return layout, prefixes[0]
    kinds = ', '.join(dict.fromkeys(f'{PAPER[x.kind]} ({x.name})' for x in LAYOUTS))
    raise CheckpointError(
        f'{source} has none of the known layouts: {kinds}; {_outline(state)}. --rename OLD=NEW '
        'changes the beginning of keys'
    )


PAPER = {row.type: row.paper for row in zoo.BACKBONES.values()}


def _outline(state, most=12):
    """What keys look like: numbers folded, with the shape of one."""
    folded = {}
    for key, value in state.items():
        folded.setdefault(re.sub(r'(?<=\.)\d+(?=\.)', '*', key), tuple(value.shape))
    lines = [f'{key} {shape}' for key, shape in folded.items()]
    more = f' and {len(lines) - most} more' if len(lines) > most else ''
    return f'its {len(state)} keys look like ' + ', '.join(lines[:most]) + more


def _parts(rest, source, guesses):
    """Adapter, decoder and discriminator under our keys; the keys that are left."""
    parts = {key: value for key, value in rest.items() if re.match(r'neck\.proj\.', key)}
    critics = {
        key[match.start(1) :]: value
        for key, value in rest.items()
        if (match := re.match(r'(?:[^.]+\.)*?(discriminator\.)', key))
    }
    rest = {
        k: v for k, v in rest.items() if not re.match(r'neck\.proj\.|(.*\.)?discriminator\.', k)
    }
    rest = rename(rest, [(r'^head\.conv\.', 'head.final_layer.')])  # transformers, simple decoder
    rest = _name_pose_head(_name_mesh_head(rest, source, guesses), source, guesses)
    for pattern, convert in ((MESH_HEAD, _mesh_head), (POSE_HEAD, from_transformers_head)):
        found = sorted({match['prefix'] for key in rest if (match := pattern.fullmatch(key))})
        if len(found) > 1:
            raise CheckpointError(
                f'{source} holds {len(found)} decoders: {", ".join(f"{each}*" for each in found)}; '
                f'leave the others out, as by --rename {found[-1]}=-'
            )
        if found:
            below = {k.removeprefix(found[0]): v for k, v in rest.items() if k.startswith(found[0])}
            parts |= {f'head.{key}': value for key, value in convert(below).items()}
            rest = {k: v for k, v in rest.items() if not k.startswith(found[0])}
            break
    else:
        parts |= {k: v for k, v in rest.items() if re.match(r'head\.', k)}
        rest = {k: v for k, v in rest.items() if not re.match(r'head\.', k)}
    if not any(key.startswith('neck.') for key in parts):
        adapter, rest = _adapter(rest, source, guesses)
        parts |= adapter
    return parts | from_hmr2(critics), rest


def _mesh_head(state):
    state = from_hmr2({f'smpl_head.{key}': value for key, value in state.items()})
    return {key.removeprefix('head.'): value for key, value in state.items()}


def _name_mesh_head(rest, source, guesses):
    """Official names for the readouts of HMR2.0's decoder, found by their shapes."""
    anchors = [match for key in rest if (match := MESH_LAYER.fullmatch(key))]
    if len(anchors) != 1 or any(map(MESH_HEAD.fullmatch, rest)):
        return rest
    width, prefix = rest[anchors[0].string].shape[1], anchors[0]['prefix']
    for rows, (readout, mean) in READOUTS.items():
        for name, shape in ((f'{readout}.', (rows, width)), (mean, (1, rows))):
            known = any(key.startswith(prefix + name) for key in rest)
            found = [key for key, value in rest.items() if value.shape == shape]
            if known or not found:
                continue
            what = f"HMR2.0's {name.removesuffix('.')}"
            old = _only(found, f'{prefix}{name}', what, rest, source, guesses)
            rest = rename(rest, [(f'^{re.escape(old)}', prefix + name)])
    return rest


def _name_pose_head(rest, source, guesses):
    """Our names for the decoder of a pose model, found by the shapes of its layers.

    That is: 4x4 deconvolutions, each with a BatchNorm, or none; then a convolution with a bias.
    """
    layers = {k.removesuffix('weight'): v for k, v in rest.items() if v.dim() == 4}
    ups = sorted((k for k, v in layers.items() if v.shape[2:] == (4, 4)), key=_natural)
    lasts = [
        name
        for name, value in layers.items()
        if value.shape[2:] in ((1, 1), (3, 3)) and f'{name}bias' in rest and name not in ups
    ]
    named = any(map(POSE_HEAD.fullmatch, rest)) or any(map(MESH_LAYER.fullmatch, rest))
    if named and all(DECONVOLUTION.fullmatch(f'{name}weight') for name in ups):
        return rest
    if not ups and (len(lasts) != 1 or len(rest) > len(layers) * 2):
        return rest  # of another network
    chains = [
        chain
        for chain in itertools.permutations(ups if len(ups) <= MOST_DECONVOLUTIONS else ())
        if all(layers[a].shape[1] == layers[b].shape[0] for a, b in itertools.pairwise(chain))
    ]
    norms = [key.removesuffix('running_var') for key in rest if key.endswith('.running_var')]
    norm_of = dict(zip(ups, sorted(norms, key=_natural), strict=False))
    if len(ups) > MOST_DECONVOLUTIONS or not chains or len(norms) != len(ups):
        raise CheckpointError(
            f'{source}: {len(ups)} deconvolutions of 4x4 ({", ".join(ups)}) and {len(norms)} norms '
            f'({", ".join(norms)}) are no decoder that is known; leave others out by --rename OLD=-'
        )
    ups = chains[0]  # by channels; equal ones in the order of their names
    lasts = [n for n in lasts if not ups or layers[n].shape[1] == layers[ups[-1]].shape[1]]
    if not lasts:
        return rest
    weights = [f'{name}weight' for name in lasts]
    last = _only(weights, 'head.final_layer.', 'the layer of heatmaps', rest, source, guesses)
    places = {last: 'head.final_layer.'}
    for i, up in enumerate(ups):
        norm = norm_of[up]
        places |= {up: f'head.deconv_layers.{3 * i}.', norm: f'head.deconv_layers.{3 * i + 1}.'}
        guesses.append(
            f'deconvolution {i + 1} is {up}* {tuple(layers[up].shape)}, its norm {norm}*'
        )
    return rename(rest, [(f'^{re.escape(old)}', new) for old, new in places.items()])


def _natural(name):
    """Key to sort names with numbers in them."""
    return [int(part) if part.isdigit() else part for part in re.split(r'(\d+)', name)]


def _only(found, new, what, state, source, guesses):
    """The only one of the keys that could be a part, which is a guess to print."""
    if len(found) > 1:
        raise CheckpointError(
            f'{source} has {len(found)} layers that could be {what}: '
            + ', '.join(f'{key} {tuple(state[key].shape)}' for key in found)
            + f'; decide by --rename {found[0].removesuffix("weight")}={new}'
        )
    name = found[0].removesuffix('weight')
    guesses.append(f'{what} is {name}*, the only {tuple(state[found[0]].shape)}')
    return name


def _adapter(rest, source, guesses):
    """The only 2x2 convolution or deconvolution, by its shape."""
    found = [k for k, v in rest.items() if k.endswith('.weight') and v.shape[2:] == (2, 2)]
    if not found:
        return {}, rest
    name = _only(found, 'neck.proj.', 'the adapter', rest, source, guesses)
    parts = {f'neck.proj.{k.removeprefix(name)}': v for k, v in rest.items() if k.startswith(name)}
    return parts, {k: v for k, v in rest.items() if not k.startswith(name)}


def _used(backbone, parts, guesses):
    """Stages of a hierarchical backbone that a whole model uses, with the norm of its output."""
    channels = stage_channels(backbone)
    kept = kept_stages(channels, parts)
    dead = {k for k in backbone if (m := re.match(r'stages\.(\d+)\.', k)) and int(m[1]) >= kept}
    if dead:
        stages = sorted({key.split('.')[1] for key in dead})
        guesses.append(f'stage {", ".join(str(int(i) + 1) for i in stages)} is in the file, unused')
    norms = [key for key in backbone if re.match(r'norm\d\.', key)]
    fitting = [k for k in norms if k.startswith(f'norm{kept - 1}.')]
    others = [k for k in norms if k not in fitting]
    state = {k: v for k, v in backbone.items() if k not in dead and k not in others}
    if not fitting:
        width = channels[kept - 1]
        same = [k for k in others if len(backbone[k].shape) == 0 or len(backbone[k]) == width]
        same = [k for k in same if k.split('.')[0] == 'norm3']  # a classifier's `norm`
        if any(k.endswith('.weight') for k in same):
            guesses.append(f'the norm of {width} channels is that of the output')
            state |= {re.sub(r'^norm3', f'norm{kept - 1}', k): backbone[k] for k in same}
        else:
            guesses.append('the output of the backbone has no norm, since the file has none')
    return state


def stage_channels(backbone: State) -> list[int]:
    """Channels of each stage that has blocks, of a hierarchical backbone under our keys."""
    widths = {}
    for key, value in backbone.items():
        if found := re.match(r'(?:backbone\.)?stages\.(\d+)\.blocks\.\d+\.norm1\.weight$', key):
            widths[int(found[1])] = len(value)
    return [widths[stage] for stage in sorted(widths)]


def stage_depths(backbone: State) -> dict[int, int]:
    """{stage from 0: number of its blocks} of a hierarchical backbone under our keys."""
    pattern = re.compile(r'(?:backbone\.)?stages\.(\d+)\.blocks\.(\d+)\.')
    blocks = {(int(m[1]), int(m[2])) for key in backbone if (m := pattern.match(key))}
    stages = [stage for stage, _ in blocks]
    return {stage: stages.count(stage) for stage in sorted(set(stages))}


def kept_stages(channels: list[int], parts: State) -> int:
    """Stages that a whole model uses: the shapes of adapter and decoder tell."""
    adapter = parts.get('neck.proj.weight')
    if adapter is not None and len(channels) > 1:
        return 2 if adapter.shape[1] == channels[1] else len(channels)
    inputs = ('head.deconv_layers.0.weight', 0), ('head.layers.0.to_kv.weight', 1)
    for key, axis in inputs:
        if key in parts and len(channels) == 4 and parts[key].shape[axis] == channels[2]:
            return 3 if channels[2] != channels[3] else 4
    return len(channels)


class Identity(NamedTuple):
    """What a recognized checkpoint is a model of.

    Attributes:
        backbones: keys of `zoo.BACKBONES` that fit; several are equal as far as the file goes.
        num_stages: of a hierarchical backbone.
        task: key of `zoo.TASKS`, or None: a backbone alone.
        names: the paper's names of the models that fit.
        head: options of the config's head that the shapes decide.
        decoder: in words.
        image_size: (width, height) in pixels, if a position embedding states it.
    """

    backbones: tuple[str, ...]
    num_stages: int | None
    task: str | None
    names: tuple[str, ...]
    head: dict[str, Any]
    decoder: str
    image_size: tuple[int, int] | None

    def __str__(self) -> str:
        sizes = ' or '.join(name.replace('-', ' ').title() for name in self.backbones) or 'unknown'
        return ', '.join(self.names) or f'a backbone of the size {sizes}'


def identify(found: Recognized) -> Identity:
    """Size, stages, task, decoder and names of a recognized checkpoint, from its shapes."""
    state = found.state
    backbone = {key.removeprefix('backbone.'): value for key, value in state.items()}
    sizes = [
        name
        for name, row in zoo.BACKBONES.items()
        if row.type == found.layout.kind and _fits(zoo.ARCHS[row.type][row.arch], backbone)
    ]
    plain = found.layout.kind == 'VisionTransformer'
    stages = None if plain else len(stage_channels(backbone))
    task, head, decoder = _head(state)
    encoders = [name if plain else f'{name}-s{stages}' for name in sizes]
    known = [name for name in encoders if task and name in zoo.ENCODERS]
    names = tuple(zoo.paper_name(name, task) for name in known)
    return Identity(
        tuple(sizes), stages, task, names, head, decoder, _image_size(backbone) if plain else None
    )


def _fits(arch, backbone):
    """Whether the blocks in the file are those of a row of `zoo.ARCHS`."""
    channels, depths = arch['channels'], arch['depths']
    if len(channels) == 1:
        first, last = 'layers.0.ln1.weight', f'layers.{depths[0] - 1}.ln1.weight'
        further = f'layers.{depths[0]}.ln1.weight'
        return (
            first in backbone
            and len(backbone[first]) == channels[0]
            and last in backbone
            and further not in backbone
        )
    found = stage_channels(backbone)
    if tuple(found) != channels[: len(found)]:
        return False
    if tuple(stage_depths(backbone).values()) != depths[: len(found)]:
        return False
    block = 'stages.0.blocks.0.'
    widths = {f'{block}ss2d.out_proj.weight': (1, arch.get('ssm_ratio'))}
    widths |= {f'{block}mlp.fc1.weight': (0, arch.get('mlp_ratios', [arch.get('mlp_ratio')])[0])}
    return all(
        ratio is None or key not in backbone or backbone[key].shape[axis] == ratio * channels[0]
        for key, (axis, ratio) in widths.items()
    )


def _head(state):
    """Task, options of its head, decoder in words."""
    final = state.get('head.final_layer.weight')
    if final is not None and final.dim() == 4:
        weights = [v for k, v in state.items() if re.match(r'head\.deconv_layers\.', k)]
        channels = tuple(v.shape[1] for v in weights if v.dim() == 4)
        head = dict(out_channels=final.shape[0], deconv_out_channels=channels)
        head |= dict(deconv_kernel_sizes=tuple(v.shape[-1] for v in weights if v.dim() == 4))
        kernel = final.shape[-1]
        if kernel != 1:
            head |= dict(final_layer=dict(kernel_size=kernel, padding=kernel // 2))
        kind = f'classic, {len(channels)} deconvolutions' if channels else 'simple, upsampling by 4'
        return 'pose', head, f'{kind}, {final.shape[0]} keypoints'
    if 'head.pose_out.weight' not in state:
        return None, {}, 'none'
    depth = 1 + max(int(m[1]) for k in state if (m := re.match(r'head\.layers\.(\d+)\.', k)))
    inner, mlp = (state[f'head.layers.0.{k}.weight'].shape[0] for k in ('to_q', 'mlp_in'))
    for row in zoo.MESH_DECODERS.values():
        if (depth, inner, mlp) == (
            row['depth'],
            row['num_heads'] * row['head_dim'],
            row['mlp_dim'],
        ):
            words = f'{depth} layers, {row["num_heads"]} heads of {row["head_dim"]}, MLP of {mlp}'
            return 'mesh', dict(row), f'HMR2.0, {words}'
    return 'mesh', {}, f'HMR2.0, {depth} layers, {inner} channels in unknown heads, MLP of {mlp}'


def _image_size(backbone):
    """(width, height) of a plain ViT of 16-pixel patches: 3:4, as in ViTPose, else square."""
    embed = backbone.get('pos_embed')
    for width, height in ((3, 4), (1, 1)):
        factor = 0 if embed is None else math.isqrt(embed.shape[1] // (width * height))
        if factor and factor * factor * width * height == embed.shape[1]:
            return 16 * width * factor, 16 * height * factor
    return None
