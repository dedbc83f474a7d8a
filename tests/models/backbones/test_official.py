"""Each family: the authors' numbers through the authors' keys."""

import pytest
import torch
from golden_rule import assert_matches, golden_input, golden_state, load_golden, official_shapes

from trunchier.models import TruncatedGMF, TruncatedSwin, TruncatedVMamba
from trunchier.weights.families import from_groupmixformer, from_swin, from_vmamba
from trunchier.weights.load import CheckpointError

FAMILIES = {
    'swin': (TruncatedSwin, from_swin),
    'gmf': (TruncatedGMF, from_groupmixformer),
    'vmamba': (TruncatedVMamba, from_vmamba),
}
VARIANTS = ('tiny', 'small', 'base')


def official_state(family, variant):
    return golden_state(official_shapes(f'{family}_{variant}_keys'))


@pytest.mark.parametrize(
    'name',
    [
        'swin_tiny_det',  # 256 x 192
        'swin_small_det',  # 97 x 131: every stage pads
        'swin_tiny_cls',  # 224 x 224; the classifier's stage 4 has no windows to shift
        'swin_base_cls',
        *(f'{family}_{variant}' for family in ('gmf', 'vmamba') for variant in VARIANTS),
    ],
)
def test_every_stage_has_the_official_values(name):
    family, variant = name.split('_')[:2]
    (backbone, convert), golden = FAMILIES[family], load_golden(name)
    stages = [i for i in range(4) if f'stage{i + 1}_raw' in golden]
    assert len(stages) >= 3
    model = backbone(variant, len(stages), out_indices=stages, out_norm=False).eval()
    state = convert(official_state(family, variant))
    model.load_state_dict({key: state[key] for key in model.state_dict()})
    with torch.no_grad():
        outputs = model(golden_input(**golden['input']))
    for stage, output in zip(stages, outputs, strict=True):
        assert_matches(output, golden[f'stage{stage + 1}_raw'])


@pytest.mark.parametrize('name', ['swin_tiny_det', 'gmf_tiny', 'gmf_small', 'vmamba_tiny'])
def test_the_classifiers_norm_is_the_last_output_norm(name):
    family, variant = name.split('_')[:2]
    (backbone, convert), golden = FAMILIES[family], load_golden(name)
    model = backbone(variant).eval()
    model.load_state_dict(convert(official_state(family, variant)))
    with torch.no_grad():
        (output,) = model(golden_input(**golden['input']))
    assert_matches(output, golden['stage4_norm'])


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('variant', VARIANTS)
def test_conversion_leaves_nothing_over(family, variant):
    backbone, convert = FAMILIES[family]
    shapes = official_shapes(f'{family}_{variant}_keys')
    with torch.device('meta'):
        model = backbone(variant)
        state = convert({key: torch.empty(shape) for key, shape in shapes.items()})
    expected = {key: value.shape for key, value in model.state_dict().items()}
    assert {key: value.shape for key, value in state.items()} == expected


@pytest.fixture(scope='module', params=FAMILIES)
def tiny_file(request, tmp_path_factory):
    """Family, its official tiny checkpoint, and the path of that."""
    state = official_state(request.param, 'tiny')
    path = tmp_path_factory.mktemp(request.param) / 'tiny.pth'
    torch.save({'model': state, 'epoch': 300}, path)
    return request.param, state, path


@pytest.mark.parametrize('num_stages', [1, 2, 4])
def test_init_cfg_loads_an_official_file(tiny_file, num_stages):
    family, state, path = tiny_file
    backbone, convert = FAMILIES[family]
    init_cfg = dict(type='OfficialPretrained', checkpoint=str(path))
    model = backbone('tiny', num_stages, init_cfg=init_cfg)
    model.init_weights()
    loaded, expected = model.state_dict(), convert(state)
    fresh = loaded.keys() - expected.keys()
    assert {key.split('.')[0] for key in fresh} <= {f'norm{num_stages - 1}'}
    assert bool(fresh) == (num_stages < 4)
    assert all(torch.equal(loaded[key], expected[key]) for key in loaded.keys() - fresh)


def test_another_variants_file_is_refused(tiny_file):
    family, _, path = tiny_file
    init_cfg = dict(type='OfficialPretrained', checkpoint=str(path))
    with pytest.raises(CheckpointError, match='misshapen'):
        FAMILIES[family][0]('base', num_stages=1, init_cfg=init_cfg).init_weights()
