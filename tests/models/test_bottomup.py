"""Training of mmpose's associative embedding on our encoders."""

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, init_default_scope
from small_models import ROOT, SWIN
from small_trainings import draw_people

from trunchier.models import MaskedMSELoss, build_model

CONFIGS = sorted((ROOT / 'configs' / 'bottomup').glob('*.py'))


def test_heatmaps_count_where_people_are_annotated_only():
    output, target = torch.rand(2, 2, 17, 8, 8).unbind()
    mask = torch.rand(2, 1, 8, 8) > 0.3
    errors = [
        float((output - target)[image, joint, y, x] ** 2) * bool(mask[image, 0, y, x])
        for image, joint, y, x in np.ndindex(2, 17, 8, 8)
    ]
    loss = MaskedMSELoss()(output, target, torch.ones(5, 17), mask)  # of five people
    assert float(loss) == pytest.approx(np.mean(errors), rel=1e-5)


def two_people(folder):
    """The pictures of `draw_people`, with a second person in each, in one place."""
    draw_people(folder)
    content = (folder / 'people.json').read_text()
    content = Config.fromstring(content, '.json')
    for each in list(content.annotations):
        second = dict(each, id=100 + each.id, keypoints=[30, 8, 2] * 17)
        content.annotations.append(second)
    content.dump(folder / 'people.json')


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_a_config_trains(path, tmp_path):
    """Its pipeline, model and losses, with a small encoder, on pictures of 64 x 64."""
    two_people(tmp_path)
    cfg = Config.fromfile(path)
    init_default_scope('mmpose')
    torch.manual_seed(0)
    np.random.seed(0)
    cfg.model.update(init_cfg=None)
    cfg.model.backbone = dict(type='TruncatedSwin', arch=SWIN, num_stages=3)
    cfg.model.neck.update(in_channels=64, out_channels=64, num_stages=3)
    cfg.model.head.update(in_channels=64, deconv_out_channels=(16, 16))
    dataset = dict(cfg.train_dataloader.dataset, data_root='', data_prefix=dict(img=f'{tmp_path}/'))
    dataset['ann_file'] = f'{tmp_path}/people.json'
    small = dict(input_size=(64, 64), heatmap_size=(16, 16))
    for step in dataset['pipeline']:
        if 'input_size' in step:
            step.input_size = (64, 64)
        if 'encoder' in step:
            step.encoder.update(small)
    data = DATASETS.build(dataset)
    model = build_model(cfg).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    first = None
    for _ in range(8):
        batch = model.data_preprocessor(pseudo_collate([data[i] for i in range(4)]), True)
        losses = model(**batch, mode='loss')
        total, _ = model.parse_losses(losses)
        first = first or total.item()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    assert set(losses) == {'loss_kpt', 'loss_pull', 'loss_push'}
    assert all(losses.values()) and total.item() < first
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
