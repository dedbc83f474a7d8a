"""What the documents say runs."""

import re
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope

ROOT = Path(__file__).resolve().parents[1]


def test_the_worked_example_of_a_backbone_runs():
    pytest.importorskip('mmpose')
    init_default_scope('mmpose')
    names = {}
    for block in re.findall(r'```python\n(.*?)```', (ROOT / 'docs/extending.md').read_text(), re.S):
        exec(compile(block, 'docs/extending.md', 'exec'), names)
    model = MODELS.build(names['model'])
    heatmaps = model(torch.randn(1, 3, 256, 192), None, mode='tensor')
    assert heatmaps.shape == (1, 17, 64, 48)
    heatmaps.sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    depth, depths = model.backbone.get_layer_depth('stages.1.blocks.0.mlp.0.weight')
    assert (depth, depths) == (2, 4)


@pytest.mark.parametrize('document', ['README.md', *sorted(p.name for p in ROOT.glob('docs/*.md'))])
def test_links_lead_somewhere(document):
    path = ROOT / document if document == 'README.md' else ROOT / 'docs' / document
    links = re.findall(r'\]\(([^)#]+)\)', path.read_text())
    local = [link for link in links if not link.startswith(('http', 'mailto'))]
    assert [link for link in local if not (path.parent / link).exists()] == []
