import pytest
import torch
from convert_weights import main
from golden_rule import golden_state, official_shapes

from trunchier.models import TruncatedSwin
from trunchier.weights.inspection import stated_facts
from trunchier.weights.load import load_checkpoint, read_official, save_weights


def test_the_written_file_loads_as_the_official_one(tmp_path):
    state = golden_state(official_shapes('swin_tiny_keys'))
    torch.save(dict(model=state, epoch=300), tmp_path / 'official.pth')
    main([str(tmp_path / 'official.pth'), str(tmp_path / 'clean.safetensors')])
    models = [TruncatedSwin('tiny', num_stages=2) for _ in range(2)]
    for model, name in zip(models, ('official.pth', 'clean.safetensors'), strict=True):
        load_checkpoint(model, tmp_path / name)
    first, second = (model.state_dict() for model in models)
    assert all(torch.equal(v, second[k]) for k, v in first.items() if not k.startswith('norm'))


def test_an_unreadable_source_writes_nothing(tmp_path):
    (tmp_path / 'page.pth').write_text('<html>')
    with pytest.raises(SystemExit, match='page.pth cannot be read'):
        main([str(tmp_path / 'page.pth'), str(tmp_path / 'clean.pth')])
    assert not (tmp_path / 'clean.pth').exists()


def test_what_the_source_says_of_its_model_and_crops_is_kept(tmp_path):
    facts = dict(model='SwinPose-T-S2', input_size=[128, 96])
    state = golden_state(official_shapes('swin_tiny_keys'))
    save_weights(state, tmp_path / 'a.pth', stated=facts)
    main([str(tmp_path / 'a.pth'), str(tmp_path / 'b.safetensors'), '--half'])
    assert stated_facts(tmp_path / 'b.safetensors') == stated_facts(tmp_path / 'a.pth')
    assert stated_facts(tmp_path / 'b.safetensors')['model'] == 'SwinPose-T-S2'


def whole_vitpose_plus():
    """One block, with three experts and the heads of the first three data sets."""
    shapes = official_shapes('vitpose_small_keys')
    shapes = {k: s for k, s in shapes.items() if 'blocks.' not in k or 'blocks.0.' in k}
    for key in [key for key in shapes if '.mlp.fc2.' in key]:
        shapes[key] = (192, *shapes[key][1:])
        shapes |= {key.replace('fc2', f'experts.{number}'): shapes[key] for number in range(3)}
    for key in [key for key in shapes if key.startswith('keypoint_head.')]:
        size = shapes[key]
        for number, count in enumerate((14, 16)):
            name = key.replace('keypoint_head', f'associate_keypoint_heads.{number}')
            shapes[name] = (count, *size[1:]) if 'final_layer' in key else size
    return golden_state(shapes)


def test_an_expert_of_vitpose_plus_is_taken_with_its_head(tmp_path):
    whole = whole_vitpose_plus()
    torch.save(dict(state_dict=whole), tmp_path / 'whole.pth')
    main([str(tmp_path / 'whole.pth'), str(tmp_path / 'mpii.pth'), '--expert', 'mpii'])
    state = read_official(tmp_path / 'mpii.pth')
    parts = (whole[f'backbone.blocks.0.mlp.{each}.weight'] for each in ('fc2', 'experts.2'))
    assert torch.equal(state['backbone.layers.0.ffn.layers.1.weight'], torch.cat([*parts]))
    head = whole['associate_keypoint_heads.1.final_layer.weight']
    assert len(head) == 16 and torch.equal(state['head.final_layer.weight'], head)
    assert not any('expert' in key or 'associate' in key for key in state)


def test_an_expert_that_is_not_in_the_file_is_an_error(tmp_path):
    torch.save(dict(state_dict=whole_vitpose_plus()), tmp_path / 'whole.pth')
    with pytest.raises(SystemExit, match=r'expert wholebody: the file has no .mlp.experts.5.\*?'):
        main([str(tmp_path / 'whole.pth'), str(tmp_path / 'a.pth'), '--expert', 'wholebody'])
    assert not (tmp_path / 'a.pth').exists()
