import pytest
import torch
from torch import nn

from trunchier import zoo
from trunchier.models import StageAdapter, create_model


@pytest.mark.parametrize('num_stages, size', [(4, (8, 6)), (3, (16, 12)), (2, (32, 24))])
def test_every_stage_is_resampled_to_a_sixteenth(num_stages, size):
    channels = 5 if num_stages == 3 else 7
    (out,) = StageAdapter(channels, 5, num_stages)((torch.randn(2, channels, *size),))
    assert out.shape == (2, 5, 16, 12)


def test_stage_3_is_passed_on_unchanged():
    x = torch.randn(1, 5, 4, 3)
    adapter = StageAdapter(5, 5, 3)
    assert adapter((x,))[0] is x
    assert not list(adapter.parameters())


def test_stage_4_is_a_2x2_deconvolution():
    """Each input cell becomes a block of 2x2 cells, and no other cell touches that block."""
    adapter, x = StageAdapter(3, 2, 4), torch.randn(1, 3, 4, 3)
    (out,) = adapter((x,))
    weight, bias = adapter.proj.weight, adapter.proj.bias
    for i, j in ((0, 0), (3, 2)):
        block = torch.einsum('c,cokl->okl', x[0, :, i, j], weight) + bias[:, None, None]
        assert torch.allclose(out[0, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2], block, atol=1e-6)


def test_stage_2_is_a_2x2_convolution():
    adapter, x = StageAdapter(3, 2, 2), torch.randn(1, 3, 4, 6)
    (out,) = adapter((x,))
    cell = (x[0, :, 2:4, 4:6] * adapter.proj.weight).sum((1, 2, 3)) + adapter.proj.bias
    assert torch.allclose(out[0, :, 1, 2], cell, atol=1e-6)


def test_a_map_of_odd_size_is_padded():
    (out,) = StageAdapter(3, 2, 2)((torch.randn(1, 3, 5, 3),))
    assert out.shape == (1, 2, 3, 2)


@pytest.mark.parametrize('num_stages', [0, 1, 5])
def test_other_stages_are_refused(num_stages):
    with pytest.raises(ValueError, match=f'2, 3 or 4, got {num_stages}'):
        StageAdapter(3, 3, num_stages)


def test_stage_3_cannot_change_channels():
    with pytest.raises(ValueError, match='must be 3, got 4'):
        StageAdapter(3, 4, 3)


@pytest.mark.parametrize('name', ['swin-t-s4', 'gmf-t-s3', 'vm-t-s2', 'vit-s'])
def test_one_word_gives_every_encoder_the_simple_decoder(name):
    pytest.importorskip('mmpretrain')
    cfg = zoo.model_cfg(name, decoder='simple')
    with torch.device('meta'):
        model = create_model(zoo.paper_name(name, 'pose'), head=cfg['head'], neck=cfg['neck'])
        heatmaps = model.head(model.extract_feat(torch.empty(1, 3, 256, 192)))
    assert heatmaps.shape == (1, 17, 64, 48)
    channels = zoo.encoder(name).decoder_channels
    assert sum(p.numel() for p in model.head.parameters()) == 17 * (9 * channels + 1)


def test_the_simple_decoder_upsamples_what_is_positive():
    x = torch.randn(1, 8, 4, 3)
    (y,) = StageAdapter(8, 8, 3, simple=True)((x,))
    assert torch.equal(y, nn.functional.interpolate(x.clamp(min=0), size=(16, 12), mode='bilinear'))
    with pytest.raises(ValueError, match='give classic or, for poses, simple'):
        zoo.model_cfg('vm-t-s2', 'mesh', 'simple')
