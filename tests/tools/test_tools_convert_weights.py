import pytest
import torch
from convert_weights import main
from golden_rule import golden_state, official_shapes

from trunchier.files import shipped
from trunchier.models import TruncatedSwin
from trunchier.weights.inspection import stated_facts
from trunchier.weights.load import load_checkpoint, save_weights


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


def test_a_file_can_state_that_it_is_that_of_the_package(tmp_path):
    save_weights(golden_state(official_shapes('swin_tiny_keys')), tmp_path / 'a.pth')
    out = tmp_path / 'b.safetensors'
    main([str(tmp_path / 'a.pth'), str(out), '--shipped', 'VMPose-T-S2'])
    stated = stated_facts(shipped.asset('VMPose-T-S2.safetensors'))
    assert stated_facts(out) == {key: stated[key] for key in ('model', 'config')}
