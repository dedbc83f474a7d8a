"""Every model of the zoo is recognized by keys and shapes alone, in each naming.

Shapes of backbones are those of the official key lists in golden/; nothing is computed, tensors are
on the meta device.
"""

import re

import pytest
import torch
from golden_rule import load_golden, official_shapes

import trunchier
from trunchier import zoo
from trunchier.weights.recognize import CheckpointError, identify, recognize

pytest.importorskip('mmpose')
OFFICIAL = {
    **{f'swin-{size[0]}': f'swin_{size}_keys' for size in ('tiny', 'small', 'base')},
    **{f'gmf-{size[0]}': f'gmf_{size}_keys' for size in ('tiny', 'small', 'base')},
    **{f'vm-{size[0]}': f'vmamba_{size}_keys' for size in ('tiny', 'small', 'base')},
}
STAGE = re.compile(r'(?:layers|groupmixformer_backbone|patch_embed_layers)\.(\d)\.')
NORM = {'swin': 'norm{}.', 'gmf': 'norm{}.', 'vm': 'outnorm{}.'}
QUICK = ('SwinPose-T-S3', 'GMFHMR2.0-S-S4', 'VMPose-B-S2', 'VMHMR2.0-T-S3', 'HMR2.0-L', 'ViTPose-B')


def meta(shapes):
    return {key: torch.empty(shape, device='meta') for key, shape in shapes.items()}


def shapes_of(state):
    return {key: tuple(value.shape) for key, value in state.items()}


def backbone_shapes(name):
    """Official keys and shapes of an encoder's backbone, cut to its stages."""
    row = zoo.encoder(name)
    if row.num_stages is None:
        return vit_shapes(
            row.channels, zoo.ARCHS['VisionTransformer'][row.backbone.arch]['depths'][0]
        )
    shapes = official_shapes(OFFICIAL[row.backbone_name])
    kept = {}
    for key, shape in shapes.items():
        stage = STAGE.match(key)
        if stage and int(stage[1]) < row.num_stages or re.match(r'(patch_embed|conv_stem)\.', key):
            kept[key] = shape
        elif not stage and 'norm' in key:
            kept[key] = shape if shape in ((), ()) else (row.channels,)
    return kept


def vit_shapes(channels, depth):
    scale = {384: channels, 1152: 3 * channels, 1536: 4 * channels}
    shapes = {}
    for key, shape in official_shapes('vitpose_small_keys').items():
        found = re.match(r'backbone\.(blocks\.(\d+)\.)?(.*)', key)
        if found is None or int(found[2] or 0):
            continue
        shape = tuple(scale.get(size, size) for size in shape)
        for block in range(depth if found[1] else 1):
            shapes[f'blocks.{block}.{found[3]}' if found[1] else found[3]] = shape
    return shapes


def head_shapes(name, task):
    """Official keys and shapes of a decoder, without prefix."""
    row = zoo.encoder(name)
    if task == 'pose':
        shapes = official_shapes('vitpose_small_keys').items()
        shapes = {k.partition('.')[2]: s for k, s in shapes if k.startswith('keypoint_head.')}
        return shapes | {'deconv_layers.0.weight': (row.decoder_channels, 256, 4, 4)}
    decoder = zoo.MESH_DECODERS[row.backbone.decoder]
    inner, mlp = decoder['num_heads'] * decoder['head_dim'], decoder['mlp_dim']
    sizes = {
        '0.fn.to_qkv.weight': (3 * inner, 1024), '0.fn.to_out.0.weight': (1024, inner),
        '1.fn.to_kv.weight': (2 * inner, row.decoder_channels), '1.fn.to_q.weight': (inner, 1024),
        '1.fn.to_out.0.weight': (1024, inner), '2.fn.net.0.weight': (mlp, 1024),
        '2.fn.net.0.bias': (mlp,), '2.fn.net.3.weight': (1024, mlp),
    }  # fmt: skip
    shapes = {}
    for key, shape in load_golden('hmr2_head_S')['keys'].items():
        found = re.match(r'smpl_head\.(.*layers\.)(\d)\.(.*)', key)
        if found is None:
            shapes[key.partition('.')[2]] = tuple(shape)
        elif found[2] == '0':
            for layer in range(decoder['depth']):
                shapes[f'{found[1]}{layer}.{found[3]}'] = sizes.get(found[3], tuple(shape))
    return shapes


def adapter_shapes(name):
    row = zoo.encoder(name)
    channels, decoder = row.channels, row.decoder_channels
    if row.num_stages == 2:
        return dict(weight=(decoder, channels, 2, 2), bias=(decoder,))
    return dict(weight=(channels, decoder, 2, 2), bias=(decoder,)) if row.num_stages == 4 else {}


# Prefixes of backbone, adapter and decoder in plausible files.
NAMINGS = {
    '4D-Humans':        ('backbone.',            'adapter.',         'smpl_head.'),
    'mmpose 0.x':       ('backbone.',            'neck.conv.',       'keypoint_head.'),
    'in the backbone':  ('backbone.',            'backbone.adapt.',  'head.decoder.'),
    'Lightning':        ('model.encoder.body.',  'model.deconv.',    'model.decoder.'),
    'no prefix':        ('',                     'reduce.',          'smpl_head.'),
}  # fmt: skip


def file_of(name, naming):
    encoder, task = zoo.models()[name]
    prefixes = NAMINGS[naming]
    parts = backbone_shapes(encoder), adapter_shapes(encoder), head_shapes(encoder, task)
    shapes = {
        prefix + key: shape
        for prefix, part in zip(prefixes, parts, strict=True)
        for key, shape in part.items()
    }
    extras = {'smpl.v_template': (6890, 3), 'initialized': ()} if task == 'mesh' else {}
    return meta(shapes | extras)


def expected_of(name):
    with torch.device('meta'):
        return shapes_of(trunchier.create_model(name).state_dict())


def check(name, state):
    found = recognize(state)
    identity = identify(found)
    assert name in identity.names
    assert all(name[-3:] == other[-3:] for other in identity.names)
    assert shapes_of(found.state) == expected_of(name)
    return found


def every(name):
    encoder, task = zoo.models()[name]
    for naming in NAMINGS:
        found = check(name, file_of(name, naming))
        has_adapter = zoo.encoder(encoder).num_stages in (2, 4)
        assert has_adapter == any('the adapter is' in guess for guess in found.guesses), naming
    ours = meta(expected_of(name))
    assert check(name, ours).guesses == []


@pytest.mark.parametrize('name', QUICK)
def test_a_model_is_recognized_in_each_naming(name):
    every(name)


@pytest.mark.slow
@pytest.mark.parametrize('name', zoo.models())
def test_every_model_is_recognized_in_each_naming(name):
    every(name)


# Other names of decoders, in files whose keys are sorted (safetensors).
RENAMED = {
    'SwinPose-T-S2': [
        ('deconv_layers.0.', 'up.10.0.'), ('deconv_layers.1.', 'up.10.1.'),
        ('deconv_layers.3.', 'up.9.0.'), ('deconv_layers.4.', 'up.9.1.'),
        ('final_layer.', 'heat.'),
    ],
    'ViTPose-B': [('deconv_layers.', 'upsample.')],
    'GMFHMR2.0-T-S4': [
        ('decpose.', 'to_pose.'), ('decshape.', 'to_betas.'), ('init_cam', 'mean_camera'),
    ],
}  # fmt: skip


def renamed(name):
    state = file_of(name, '4D-Humans')
    for old, new in RENAMED[name]:
        state = {key.replace(f'smpl_head.{old}', f'dec.{new}'): v for key, v in state.items()}
    return {key.replace('smpl_head.', 'dec.'): state[key] for key in sorted(state)}


@pytest.mark.parametrize('name', RENAMED)
def test_decoders_under_other_names_are_found_by_their_shapes(name):
    state = renamed(name)
    found = check(name, state)
    assert any('is dec.' in guess for guess in found.guesses)
    ours = {'decpose.': 'pose_out.', 'decshape.': 'betas_out.', 'init_cam': 'mean_camera'}
    for key, value in state.items():
        for old, new in RENAMED[name]:
            if key.startswith(f'dec.{new}'):
                theirs = key.removeprefix(f'dec.{new}')
                assert found.state[f'head.{ours.get(old, old)}{theirs}'] is value, key


def test_of_two_layers_that_could_be_one_part_the_user_decides():
    state = renamed('SwinPose-T-S2')
    state |= {f'aux.{kind}': state[f'dec.heat.{kind}'] for kind in ('weight', 'bias')}
    with pytest.raises(CheckpointError, match=r'2 layers .* heatmaps: dec\.heat\.weight .*aux'):
        recognize(state)
    check('SwinPose-T-S2', {k: v for k, v in state.items() if not k.startswith('aux')})
    found = recognize(state, renames=[('aux.', '-')])
    assert 'SwinPose-T-S2' in identify(found).names
    state = renamed('GMFHMR2.0-T-S4')
    state['dec.other.weight'] = state['dec.to_pose.weight']
    with pytest.raises(
        CheckpointError, match=r"could be HMR2.0's decpose: dec\.to_pose.* dec\.other"
    ):
        recognize(state)
    found = recognize(state, renames=[('dec.other.', '-')])
    assert identify(found).names == ('GMFHMR2.0-T-S4',)
