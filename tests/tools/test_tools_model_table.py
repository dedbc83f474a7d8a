"""The table of models: every row agrees with the paper's printed digits or explains why not."""

import csv
import io
import json
import sys
from pathlib import Path

import model_table
import paper_costs
import pytest
import torch

from trunchier import zoo
from trunchier.models.create import create_backbone
from trunchier.zoo.costs import COSTS

pytest.importorskip('mmpose')
ROOT = Path(__file__).resolve().parents[2]

EXPLAINED = {
    'pose': {'SwinPose-B-S3', 'VMPose-S-S2'} | {f'GMFPose-{s}-S{n}' for s in 'BST' for n in (3, 2)},
    'mesh': {'SwinHMR2.0-B-S3', 'SwinHMR2.0-T-S3', 'SwinHMR2.0-T-S2', 'VMHMR2.0-T-S3'}
    | {'VMHMR2.0-S-S2'}
    | {f'GMFHMR2.0-{s}-S{n}' for s in 'BST' for n in (3, 2)},
}


@pytest.fixture(scope='module')
def rows():
    return {task: [model_table.row(name, task) for name in zoo.ENCODERS] for task in zoo.TASKS}


@pytest.mark.parametrize('task', zoo.TASKS)
def test_rows_agree_with_the_paper_or_explain_why_not(rows, task):
    for row in rows[task]:
        differs = (
            model_table.rounded(row['params_m']) != row['paper_params_m']
            or model_table.rounded(row['gflops']) != row['paper_gflops']
        )
        assert not differs or row['note'], row
        assert 'unexplained' not in row['note'], row
    assert {row['name'] for row in rows[task] if row['note']} == EXPLAINED[task]


@pytest.mark.parametrize('task', zoo.TASKS)
def test_the_costs_of_the_zoo_are_those_that_are_counted(rows, task):
    counted = {row['name']: (row['params_m'], row['gflops']) for row in rows[task]}
    assert counted == {name: costs for name, costs in COSTS.items() if name in counted}


def test_the_counts_among_the_results_are_those_that_are_counted(rows):
    text = model_table.as_results([row for task in zoo.TASKS for row in rows[task]])
    assert text == (ROOT / 'results' / 'counts.csv').read_text(), (
        'run python tools/model_table.py --format results --out results/counts.csv'
    )


@pytest.mark.parametrize('task', zoo.TASKS)
def test_parts_add_up(rows, task):
    for row in rows[task]:
        for unit in ('params_m', 'gflops'):
            parts = sum(row[f'{part}_{unit}'] for part in model_table.PARTS)
            assert parts == pytest.approx(row[unit], abs=0.02)


def test_decoders_of_the_mesh_models_are_table_1s(rows):
    sizes = {row['name']: row['decoder_params_m'] for row in rows['mesh']}
    table_1 = {'HMR2.0-H': 39.5, 'HMR2.0-L': 19.1, 'HMR2.0-B': 7.0, 'HMR2.0-S': 2.3}
    assert {name: model_table.rounded(sizes[name]) for name in table_1} == table_1


def test_formats_hold_the_same_rows(rows):
    table = rows['pose'][:3]
    lines = model_table.as_markdown(table).splitlines()
    assert len(lines) == 2 + 3 and lines[2].startswith('| SwinPose-B-S4 | 91.99 |')
    read = list(csv.DictReader(io.StringIO(model_table.as_csv(table))))
    assert [float(row['params_m']) for row in read] == [row['params_m'] for row in table]
    assert list(read[0])[:7] == [
        'name', 'config', 'params_m', 'gflops', 'paper_params_m', 'paper_gflops', 'note'
    ]  # fmt: skip


@pytest.mark.parametrize('task', zoo.TASKS)
def test_the_page_of_models_shows_the_table_as_the_tool_prints_it(rows, task):
    page = (ROOT / 'docs' / 'models.md').read_text()
    assert model_table.as_markdown(rows[task]) in page, 'run python docs/generate.py'


def test_the_tool_writes_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, 'ENCODERS', ['swin-t-s2', 'vm-t-s2'])
    command = ['model_table.py', '--task', 'pose', '--format', 'json', '--out']
    monkeypatch.setattr(sys, 'argv', [*command, str(tmp_path / 'table.json')])
    model_table.main()
    table = json.loads((tmp_path / 'table.json').read_text())
    assert [row['name'] for row in table] == ['SwinPose-T-S2', 'VMPose-T-S2']
    assert [path.name for path in tmp_path.iterdir()] == ['table.json']


@pytest.mark.parametrize('name', ['swin-t-s4', 'gmf-t-s4', 'vm-t-s4'])
def test_maps_of_odd_images_are_rounded_up(name):
    backbone = create_backbone(name)
    size, rounded_up = (255, 191), (256, 192)
    assert paper_costs.model_costs(backbone, size) == paper_costs.model_costs(backbone, rounded_up)


def test_a_backbone_without_a_formula_is_named():
    class Strange:
        backbone = head = object()

    with pytest.raises(TypeError, match='no cost formula for the backbone object'):
        paper_costs.model_costs(Strange())


@pytest.mark.parametrize('name', ['swin-t-s2', 'gmf-t-s2', 'vm-t-s2'])
def test_trained_parameters_by_kind_add_up_to_those_of_the_blocks(name):
    header, _, row = model_table.freezing([name]).splitlines()
    assert header == '| backbone | all | mixers frozen | FFNs frozen |'
    whole, mixer, ffn = (int(cell.replace(',', '')) for cell in row.split('|')[2:5])
    with torch.device('meta'):
        model = create_backbone(name)
    blocks = sum(
        p.numel()
        for stage in model.stages
        for key, p in stage.blocks.named_parameters()
        if '.cpe.' not in key  # position encodings, in GroupMixFormer only, are neither
    )
    assert (whole - mixer) + (whole - ffn) == blocks
