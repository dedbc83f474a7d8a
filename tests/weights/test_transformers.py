"""ViTPose and ViTPose++ of `transformers` as a second reference: files that it saves, read here."""

import pytest
import torch

from trunchier.compat import patches
from trunchier.models.backbones.vit import PlainViT
from trunchier.weights.find import build_model, find
from trunchier.weights.load import load_checkpoint

transformers = pytest.importorskip('transformers', minversion='4.56')
pytest.importorskip('mmpose')
EXPERTS = 6
WIDTH = 192  # of an expert's part


def test_mmpretrain_is_imported_beside_it():
    outcome = patches.OUTCOMES['mmpretrain_beside_new_transformers']
    assert outcome.applied and 'lacks what mmpretrain imports' in outcome.reason


def theirs(folder, num_experts, simple):
    """ViTPose-S of random weights, in float64, and its file; data set k has expert k."""
    torch.manual_seed(0)
    backbone = transformers.VitPoseBackboneConfig(
        hidden_size=384, num_attention_heads=12, num_experts=num_experts, part_features=WIDTH,
        layer_norm_eps=1e-6, out_indices=[12],
    )  # fmt: skip
    cfg = transformers.VitPoseConfig(
        backbone_config=backbone, use_simple_decoder=simple, num_labels=17
    )
    model = transformers.VitPoseForPoseEstimation(cfg).eval()
    for name, parameter in model.named_parameters():
        spread = 0.3 if 'norm' in name else 0.05
        parameter.data.normal_(1.0 if name.endswith('norm.weight') else 0.0, spread)
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 2.0)  # means and variances of batches
    model.save_pretrained(folder)
    return model.double(), folder / 'model.safetensors'


@pytest.fixture
def image():
    return torch.randn(1, 3, 256, 192, dtype=torch.float64)


@pytest.mark.parametrize('simple', [False, True])
@pytest.mark.parametrize('experts', [1, EXPERTS])
def test_heatmaps_are_equal(tmp_path, image, experts, simple):
    model, path = theirs(tmp_path, experts, simple)
    found = find(None, path)
    assert found.name == 'ViTPose-S'
    ours = build_model(found.cfg)
    load_checkpoint(ours, path, expert=found.expert)
    ours.double()
    with torch.no_grad():
        index = torch.zeros(1, dtype=torch.long) if experts > 1 else None
        expected = model(image, dataset_index=index).heatmaps
        heatmaps = ours.head(ours.extract_feat(image))
    assert expected.std() > 1e-3
    torch.testing.assert_close(heatmaps, expected, rtol=0, atol=1e-7)


def test_every_expert_gives_the_features_of_its_data_set(tmp_path, image):
    model, path = theirs(tmp_path, EXPERTS, simple=False)
    ours = PlainViT('small', experts=dict(num=EXPERTS, width=WIDTH)).eval()
    load_checkpoint(ours, path)
    ours.double()
    seen = []
    for number in range(EXPERTS):
        with torch.no_grad():
            (expected,) = model.backbone(image, dataset_index=torch.tensor([number])).feature_maps
            (found,) = ours(image, number)
        seen.append(found)
        tokens = found.flatten(2).transpose(1, 2)
        torch.testing.assert_close(tokens, expected, rtol=0, atol=1e-7)
    assert not torch.allclose(seen[0], seen[1], atol=1e-2)
