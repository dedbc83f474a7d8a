"""`trunchier report`: the paper's tables from its numbers, and what it refuses."""

import csv
import io
from pathlib import Path
from xml.etree import ElementTree

import cv2
import mmengine
import pytest
import torch
import yaml
from report import __main__ as report
from report import curves, results, tables, work_dirs
from safetensors.torch import load_file

from trunchier import zoo
from trunchier.files.shipped import asset

ROOT = Path(__file__).resolve().parents[2]
HALF = 0.05 + 1e-9  # of the last printed digit

# Cells of Table 2 that do not follow from Tables 3 and 4, with what follows.
SCORES_MISPRINTED = {
    ('PhiM2D', 'VMHMR2.0-T', 'S4 Phi'): 79.67,
    ('PhiM2D', 'VMHMR2.0-T', 'S3 Phi'): 78.53,
    ('PhiM3D', 'GMFHMR2.0-S', 'S2 Phi'): 60.45,
    ('PhiM3D', 'VMHMR2.0-T', 'S3 ΔPhi'): -0.27,
}
# Changes of costs that differ from those of our counts by more than 0.2.
GMF = [f'GMF{task}-{size}' for task in ('Pose', 'HMR2.0') for size in 'BST']
WITH_UNUSED_LAYERS = {(encoder, f'S{n} ΔP') for encoder in GMF for n in (3, 2)}
ROW_OF_ANOTHER_MODEL = {('VMHMR2.0-T', 'S3 ΔP'), ('VMHMR2.0-T', 'S3 ΔF')}


@pytest.fixture(scope='module')
def printed():
    """{(score, encoder): {column: number}} of the paper's Table 2."""
    with open(ROOT / 'tests' / 'golden' / 'table2.csv', encoding='utf-8') as file:
        return {
            (row.pop('table'), row.pop('encoder')): {k: float(v) for k, v in row.items()}
            for row in csv.DictReader(file)
        }


def test_scores_of_table_2_follow_from_tables_3_and_4_except_misprints(printed):
    found = {each.model: tables.scores(each) for each in results.shipped('paper')}
    values, wrong = 0, {}
    for (score, encoder), row in printed.items():
        of = {n: found[f'{encoder}-S{n}'][score] for n in tables.STAGES}
        computed = {f'S{n} Phi': value for n, value in of.items()}
        changes = {f'S{n} ΔPhi': 100 * (of[n] / of[4] - 1) for n in (3, 2)}
        values += len(computed)
        for names, allowed in ((computed, HALF), (changes, 0.1)):  # a change is of rounded scores
            wrong |= {
                (score, encoder, name): round(value, 2)
                for name, value in names.items()
                if abs(value - row[name]) > allowed
            }
    assert values == 81
    assert wrong == SCORES_MISPRINTED


def test_changes_of_costs_agree_in_58_of_72_cells_and_14_are_explained(printed):
    counted, errors = tables.costs(), {}
    for (score, encoder), row in printed.items():
        if score == 'PhiM3D':  # repeats the costs of PhiM2D
            continue
        for letter, key in (('P', 'params_m'), ('F', 'gmacs')):
            of = {n: getattr(counted[f'{encoder}-S{n}'], key) for n in tables.STAGES}
            for n in (3, 2):
                name = f'S{n} Δ{letter}'
                errors[encoder, name] = abs(100 * (of[n] / of[4] - 1) - row[name])
    assert len(errors) == 72
    assert sum(error < HALF for error in errors.values()) == 44
    differs = {cell for cell, error in errors.items() if error > 0.2}
    assert differs == WITH_UNUSED_LAYERS | ROW_OF_ANOTHER_MODEL and len(differs) == 14


def test_the_paper_as_results_is_the_paper_as_metafiles():
    found = {each.model: each for each in results.shipped('paper')}
    assert [*found] == [*zoo.models()]
    for task, row in zoo.TASKS.items():
        text = (ROOT / 'configs' / row.folder / 'metafile.yml').read_text()
        for model in yaml.safe_load(text)['Models']:
            data, result = model['Metadata'], found[model['Alias']]
            assert result.task == task
            assert (result.params_m, result.gmacs, result.fps) == (
                data['Paper Parameters (M)'], data['Paper GFLOPs'], data['Paper FPS (A100)']
            )  # fmt: skip
            quoted = [v for each in model['Results'] for v in each['Metrics'].values()]
            factor = 100 if 'AP' in model['Results'][0]['Metrics'] else 1
            assert [*result.metrics.values()] == pytest.approx([factor * v for v in quoted])


def test_every_encoder_has_one_selected_truncation_in_each_task():
    selected = [name.rpartition('-')[0] for name in tables.selection()]
    truncated = {name.rpartition('-')[0] for name in zoo.models() if tables.stages(name)}
    assert sorted(selected) == sorted(truncated) and len(selected) == 18


def test_formats_have_the_same_cells(capsys):
    printed = {}
    for kind in tables.FORMATS:
        report.main(['table3', '--format', kind])
        printed[kind] = capsys.readouterr().out
    rows = list(csv.reader(io.StringIO(printed['csv'])))
    cells = [row[1:] for row in rows[1:]]
    assert cells[0] == ['SwinPose-B-S4', '92.0', '19.1', '284', '75.1', '80.4']
    lines = [line.strip('| ').split(' | ') for line in printed['markdown'].splitlines()[4:]]
    assert lines == cells and len(cells) == 31
    latex = [line.removesuffix(r' \\') for line in printed['latex'].splitlines() if ' & ' in line]
    assert [line.split(' & ') for line in latex[1:]] == cells


def test_selected_cells_are_bold_and_the_table_goes_to_a_file(tmp_path):
    report.main(['table2', '--out', str(tmp_path / 'table2.md')])
    text = (tmp_path / 'table2.md').read_text(encoding='utf-8')
    (row,) = (line for line in text.splitlines() if line.startswith('| GMFPose-B |'))
    assert row.split(' | ')[-2:] == ['**79.6**', '-0.2 |'] and row.count('**') == 2


HEAD = 'model,source,protocol,coco/AP,coco/AR\n'
S4, S3 = 'SwinPose-T-S4,ours,val2017,70,75\n', 'SwinPose-T-S3,ours,val2017,63,68\n'


@pytest.fixture
def file(tmp_path):
    def write(text):
        path = tmp_path / 'mine.csv'
        path.write_text(text, encoding='utf-8')
        return str(path)

    return write


def test_own_results_make_the_same_tables(file, capsys):
    report.main(['table2', '--format', 'csv', '--from', file(HEAD + S4 + S3)])
    head, row = csv.reader(io.StringIO(capsys.readouterr().out))
    cells = dict(zip(head, row, strict=True))
    assert (cells['S4 Phi'], cells['S3 Phi'], cells['S3 ΔPhi']) == ('72.5', '65.5', '-9.7')
    assert (cells['S3 P'], cells['S2 Phi'], cells['S2 P']) == ('14.8', '', '')
    report.main(['table3', '--from', file(HEAD + S3)])
    assert '| SwinPose-T-S3 | 14.8 | 5.3 |  | 63.0 | 68.0 |' in capsys.readouterr().out


@pytest.mark.parametrize(
    'text, told',
    [
        (HEAD + 'SwinPose-T-S5,ours,x,70,75\n', "line 2: no model 'SwinPose-T-S5'; did you mean"),
        ('model,coco/AP\n', 'no column source, protocol'),
        ('', 'no column model'),
        (HEAD.replace('coco/AR', 'recall'), "unknown column 'recall'"),
        (HEAD + 'SwinPose-T-S4,ours,x,good,75\n', "line 2, coco/AP: 'good' is no number"),
        (HEAD + 'SwinPose-T-S4,ours,x,nan,75\n', 'leave the cell empty'),
        (HEAD + 'SwinPose-T-S4,ours,x,0.7,0.75\n', 'coco/AP is 0.7; give %'),
        (HEAD + 'SwinPose-T-S4,ours,x,70\n', 'line 2: expected as many cells'),
        (HEAD + S4 + S3.replace('val2017', 'mine'), r"'val2017': SwinPose-T-S4; 'mine': SwinPose"),
        (HEAD + S4 + S4, 'more than one result of SwinPose-T-S4'),
        (HEAD + S4 + 'SwinPose-T-S3,ours,val2017,63,\n', r'SwinPose-T-S3 \(ours\) lacks coco/AR'),
        (HEAD, 'no result of a truncated model'),
        (HEAD + '"SwinPose', 'unexpected end of data'),
    ],
)  # fmt: skip
def test_results_that_make_no_table_are_refused_by_name(file, text, told):
    with pytest.raises(SystemExit, match=told):
        report.main(['table2', '--from', file(text)])


# --- work_dirs ------------------------------------------------------------------------------------
CONFIG = """
test_dataloader = dict(batch_size=32, dataset=dict(
    ann_file='annotations/person_keypoints_val2017.json',
    data_root='data/coco/', type='CocoDataset'))
test_evaluator = dict(ann_file='data/coco/a.json', type='CocoMetric')
model = dict(test_cfg=dict(flip_test=True), type='TopdownPoseEstimator')
"""


@pytest.fixture
def work_dir(tmp_path):
    def write(name, *runs, config=CONFIG):
        folder = tmp_path / name
        (folder / 'x').mkdir(parents=True)
        (folder / f'td-hm_{name}_mine.py').touch()
        for number, (file, text) in enumerate(runs):
            run = folder / f'2026_{number}'
            (run / 'vis_data').mkdir(parents=True)
            (run / file.format(run.name)).write_text(text)
            (run / 'vis_data' / 'config.py').write_text(config)
        return str(folder)

    return write


TRAINING = (
    'vis_data/scalars.json',
    (
        '{"loss": 0.5, "step": 1}\n{"coco/AP": 0.1, "coco/AR": 0.2, "step": 1}\n'
        '{"loss": 0.4, "step": 2}\n{"coco/AP": 0.63, "coco/AP .5": 0.8, "coco/AR": 0.68}\n'
        '{"loss": 0.'
    ),
)
TEST = '{}.json', '{"coco/AP": 0.7, "coco/AR": 0.75, "time": 0.3}'


def test_runs_make_the_tables(work_dir, capsys):
    """Of a training its last validation, of a test its metrics; the newest that has any."""
    swin, swin_s3 = work_dir('swin-t-s4', TRAINING, TEST), work_dir('swin-t-s3', TRAINING)
    report.main(['table2', '--format', 'csv', '--from', swin, swin_s3])
    head, row = csv.reader(io.StringIO(capsys.readouterr().out))
    cells = dict(zip(head, row, strict=True))
    assert (cells['S4 Phi'], cells['S3 Phi'], cells['S3 ΔPhi']) == ('72.5', '65.5', '-9.7')


@pytest.mark.parametrize(
    'changed', [('flip_test=True', 'flip_test=False'), ('val2017.json', 'minival.json')]
)
def test_runs_that_were_tested_otherwise_are_not_compared(work_dir, changed):
    other = work_dir('swin-t-s3', TEST, config=CONFIG.replace(*changed))
    with pytest.raises(SystemExit, match='results of 2 protocols cannot be compared'):
        report.main(['table2', '--from', work_dir('swin-t-s4', TEST), other])


def test_folders_of_data_and_batch_sizes_are_no_part_of_the_protocol(work_dir):
    moved = CONFIG.replace('data/coco/', 'elsewhere/').replace('32', '8')
    paths = work_dir('swin-t-s4', TEST), work_dir('swin-t-s3', TEST, config=moved)
    assert len({work_dirs.read_result(path).protocol for path in paths}) == 1


@pytest.mark.parametrize('text', ['test_evaluator = open("canary", "w")', 'import os', 'a ='])
def test_a_dumped_config_is_never_executed(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('config.py').write_text(text if text == 'import os' else f'{CONFIG}{text}\n')
    with pytest.raises(ValueError, match='config.py: no dumped config'):
        work_dirs.protocol(Path('config.py'))
    assert not Path('canary').exists()


@pytest.mark.parametrize(
    'name, runs, told',
    [
        ('swin-t-s9', [TEST], 'expected the config of one model'),
        ('swin-t-s3', [], 'no run with AP, AR'),
        ('swin-t-s3', [('{}.json', 'pickle')], r'2026_0.json, line 1: not what mmengine logs'),
        ('swin-t-s3', [('{}.json', '{"coco/AP": NaN, "coco/AR": 0.1}')], 'coco/AP is not finite'),
    ],
)
def test_folders_without_a_result_say_what_is_missing(work_dir, name, runs, told):
    with pytest.raises(SystemExit, match=told):
        report.main(['table3', '--from', work_dir(name, *runs)])


# --- figures -------------------------------------------------------------------------------------
SVG = '{http://www.w3.org/2000/svg}'


def ticks(axes, kind):
    """[(position, value)] of the labeled ticks of an axes of an SVG: kind 'x' or 'y'."""
    found = []
    for tick in axes.iter(f'{SVG}g'):
        if tick.get('id', '').startswith(f'{kind}tick'):
            used, labels = tick.find(f'.//{SVG}use'), [*tick.iter(f'{SVG}text')]
            if labels:
                number = float(''.join(labels[0].itertext()).replace('−', '-'))
                found.append((float(used.get(kind)), number))
    return found


def circles(axes, root):
    """{model: (x, y, radius)} in units of the SVG; equal circles share one path."""
    paths = {each.get('id'): each for each in root.iter(f'{SVG}path')}
    found = {}
    for group in axes.iter(f'{SVG}g'):
        name = group.get('id', '').partition('/')[2]
        if name:
            used = group.find(f'.//{SVG}use')
            path = paths[used.get('{http://www.w3.org/1999/xlink}href')[1:]]
            radius = float(path.get('d').split()[2])  # M 0 radius
            found[name] = float(used.get('x')), float(used.get('y')), radius
    return found


def read_axes(axes, root):
    """{model: (x, y, area)} by the labels of the axes; x is logarithmic."""
    (x0, a), *_, (x1, b) = ticks(axes, 'x')
    (y0, c), *_, (y1, d) = ticks(axes, 'y')
    return {
        name: (a * (b / a) ** ((x - x0) / (x1 - x0)), c + (d - c) * (y - y0) / (y1 - y0), r * r)
        for name, (x, y, r) in circles(axes, root).items()
    }


def test_circles_of_figure_1_are_where_the_table_says(tmp_path):
    report.main(['figure1', '--out', str(tmp_path / 'a.svg')])
    root = ElementTree.parse(tmp_path / 'a.svg').getroot()
    paper = {each.model: each for each in results.shipped('paper')}
    paper |= {each.model: each for each in results.shipped('others', known=False)}
    counted = tables.costs()
    here = {each.model: each.fps for each in results.shipped('cpu')}
    vit_b = {task: here[row.paper_name('vit-b')] for task, row in zoo.TASKS.items()}
    seen = {}
    for axes in root.iter(f'{SVG}g'):
        task, _, column = axes.get('id', '').partition('-')
        if task not in zoo.TASKS or '/' in column:
            continue
        metric = {'mesh': 'h36m-val-p2/PA-MPJPE', 'pose': 'coco/AP'}[task]
        seen[axes.get('id')] = found = read_axes(axes, root)
        for name, (x, y, area) in found.items():
            row = paper[name]
            costs = dict(gmacs=counted.get(name, row).gmacs, fps=row.fps)
            costs['here'] = here.get(name, 0) / vit_b[task]
            where = costs[column], row.metrics[metric]
            assert (x, y) == pytest.approx(where, rel=2e-3), (column, name)
            reference = found[next(iter(found))][2] / paper[next(iter(found))].params_m
            assert area == pytest.approx(reference * row.params_m, rel=1e-3)
    chosen = {*tables.selection(), *(name for name in zoo.models() if not tables.stages(name))}
    for task in zoo.TASKS:
        of_task = {name for name in chosen if zoo.models()[name][1] == task}
        assert {*seen[f'{task}-fps']} == of_task
        assert {*seen[f'{task}-gmacs']} - of_task <= {*paper} - {*zoo.models()}
        assert {*seen[f'{task}-here']} == {*here} & of_task
    assert {'ViPNAS-Res50', 'SimCC-Res50'} <= {*seen['pose-gmacs']}


def test_own_results_are_drawn_whole_and_a_figure_is_the_same_every_time(file, tmp_path):
    for out in (['a.svg', 'a.png'], ['b.svg']):
        out = [str(tmp_path / name) for name in out]
        report.main(['figure1', '--from', file(HEAD + S4 + S3), '--out', *out])
    assert (tmp_path / 'a.svg').read_bytes() == (tmp_path / 'b.svg').read_bytes()
    assert (tmp_path / 'a.png').read_bytes()[:4] == b'\x89PNG'
    root = ElementTree.parse(tmp_path / 'a.svg').getroot()
    (axes,) = (each for each in root.iter() if each.get('id') == 'pose-gmacs')
    assert {*read_axes(axes, root)} == {
        'SwinPose-T-S4',
        'SwinPose-T-S3',
    }  # S4 is not of the selection


def test_figures_refuse_what_they_cannot_draw(file, tmp_path):
    with pytest.raises(SystemExit, match=r"no format '.doc'; name it .svg"):
        report.main(['figure1', '--out', str(tmp_path / 'a.doc')])
    text = 'model,source,protocol,mine/AP\nSwinPose-T-S4,ours,mine,70\n'
    with pytest.raises(SystemExit, match='no coco/AP of SwinPose-T-S4, which the figure shows'):
        report.main(['figure1', '--from', file(text)])


def test_curves_of_resumed_trainings_are_one_line_by_iterations(work_dir, tmp_path):
    def log(*steps, value):
        losses = ''.join(f'{{"loss": {1 / step}, "step": {step}}}\n' for step in steps)
        return 'vis_data/scalars.json', f'{losses}{{"coco/AP": {value}, "step": 1}}\n'

    test = 'vis_data/scalars.json', '{"coco/AP": 0.9, "step": 0}\n'
    folder = work_dir('swin-t-s3', log(10, 20, value=0.1), log(20, 30, value=0.5), test)
    found = curves.read(Path(folder))
    assert found == {
        'loss': [(10, 1 / 10), (20, 1 / 20), (30, 1 / 30)],
        'coco/AP': [(20, pytest.approx(10)), (30, pytest.approx(50))],
    }
    report.main(['curve', folder, '--out', str(tmp_path / 'c.svg')])
    ids = {each.get('id') for each in ElementTree.parse(tmp_path / 'c.svg').getroot().iter()}
    assert {'loss/swin-t-s3', 'coco/AP/swin-t-s3'} <= ids
    with pytest.raises(SystemExit, match='no loss and no metric was logged'):
        report.main(['curve', work_dir('swin-t-s4', test)])


def test_sheets_take_the_best_checkpoint_and_refuse_other_folders(work_dir):
    folder = Path(work_dir('swin-t-s3'))
    (folder / 'last_checkpoint').write_text('/elsewhere/epoch_2.pth')
    with pytest.raises(SystemExit, match='expected one config and a checkpoint'):
        report.main(['figure4', 'a.jpg', '--from', str(folder)])
    (folder / 'epoch_2.pth').touch()
    config = folder / 'td-hm_swin-t-s3_mine.py'
    assert work_dirs.checkpoint_of(folder) == (config, folder / 'epoch_2.pth')
    (folder / 'best_coco_AP_epoch_1.pth').touch()
    assert work_dirs.checkpoint_of(folder)[1].name == 'best_coco_AP_epoch_1.pth'
    with pytest.raises(SystemExit, match='SwinPose-T-S3 is no mesh model'):
        report.main(['figure5', 'a.jpg', '--from', str(folder)])


@pytest.mark.slow
def test_figure_4_shows_each_model_on_each_image(tmp_path):
    weights = load_file(asset('VMPose-T-S2.safetensors'))
    image = cv2.imread(str(ROOT / 'docs' / 'demo.jpg'))
    cv2.imwrite(str(tmp_path / 'a.jpg'), image[:256, :192])
    shipped = next((ROOT / 'configs' / 'embedded').glob('td-hm_vm-t-s2_*.py'))
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        config = mmengine.Config.fromfile(shipped)
        config.dump(folder / shipped.name)
        torch.save({'state_dict': weights}, folder / 'best_1.pth')
    out = tmp_path / 'sheet.png'
    folders = [str(tmp_path / '0'), str(tmp_path / '1')]
    with pytest.raises(SystemExit) as stopped:
        report.main(['figure4', str(tmp_path / 'a.jpg'), '--from', *folders, '--out', str(out)])
    assert not stopped.value.code
    sheet = cv2.imread(str(out))
    assert sheet.shape[1] > 3 * 150  # the image and the drawings of two models
