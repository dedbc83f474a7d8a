"""tools/compare.py: one budget, resumable runs, scores with intervals, a table and a plot."""

import json
import xml.etree.ElementTree as ElementTree

import compare
import compare_recipes
import numpy as np
import pytest
from report import work_dirs

from trunchier.files.lock import FolderLock
from trunchier.synthetic.coco import write_coco

NAMES = ['vm-t-s2', 'vm-t-s3', 'vm-t-s3+simple']


@pytest.fixture
def given(tmp_path):
    """Arguments of a study of NAMES, whose folders of people exist."""
    for name in ('train', 'test'):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'annotations.json').write_text('{}')
    people = ['--train', tmp_path / 'train', '--test', tmp_path / 'test', '--rounds', 0]
    return [str(each) for each in (*people, '--out', tmp_path / 'out', '--size', '64x64')]


def finish(folder, found):
    """What a training leaves: 40 people of 10 keypoints, of whom `found` are right."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [[i, 'whole', int(found[i]), 10] for i in range(40)]
    (folder / 'people.json').write_text(json.dumps(dict(thr=0.1, people=rows)))


def test_finished_runs_are_scored_without_training_and_drawn(given, tmp_path, capsys):
    rng = np.random.default_rng(0)
    deep = rng.integers(3, 10, 40)
    for seed in (0, 1):
        finish(tmp_path / 'out' / 'runs' / f'vm-t-s2-seed{seed}', deep - 2 - seed)
        finish(tmp_path / 'out' / 'runs' / f'vm-t-s3-seed{seed}', deep)
        finish(tmp_path / 'out' / 'runs' / f'vm-t-s3+simple-seed{seed}', deep // 2)
    compare.main([*given, '--seeds', '0', '1', '--', *NAMES])
    assert capsys.readouterr().out.count('done before') == 6
    rows = json.loads((tmp_path / 'out' / 'results.json').read_text())['rows']
    scores = {row['name']: row['score'] for row in rows}
    assert scores['vm-t-s3'] == pytest.approx(10 * deep.mean())
    assert scores['vm-t-s2'] == pytest.approx(10 * (deep - 2.5).mean())
    for row in rows:
        low, high = row['interval']
        assert low < row['score'] < high and row['seeds'] == len(row['by_seed']) == 2
    by_name = {row['name']: row for row in rows}
    assert by_name['vm-t-s2']['parameters'] < by_name['vm-t-s3']['parameters']
    assert by_name['vm-t-s3+simple']['gmacs'] < by_name['vm-t-s3']['gmacs']
    table = (tmp_path / 'out' / 'table.md').read_text()
    # Every person lost 2.5 keypoints: paired over people, the difference is certain.
    assert '| vm-t-s2 | vm-t-s3 | 25.0 | -25.0 [-25.0, -25.0] |' in table
    lines = [line for line in table.splitlines() if line.startswith('| vm-t-s')]
    assert lines[0].startswith('| vm-t-s3 |') and 'command: trunchier compare vm-t-s2' in table
    drawn = ElementTree.parse(tmp_path / 'out' / 'plot.svg').getroot()
    texts = ElementTree.tostring(drawn, 'unicode')
    assert all(name in texts for name in NAMES)


def test_runs_of_another_budget_are_not_mixed_in(given, tmp_path):
    args = compare.parser().parse_args([*given, 'vm-t-s2'])
    (tmp_path / 'out').mkdir()
    compare.check_budget(tmp_path / 'out' / 'budget.json', args)
    compare.check_budget(tmp_path / 'out' / 'budget.json', args)
    args.steps = 99
    with pytest.raises(ValueError, match=r'another budget \(steps 750, now 99\); name another'):
        compare.check_budget(tmp_path / 'out' / 'budget.json', args)


@pytest.mark.parametrize(
    'name, words',
    [
        ('vm-t-s9', 'did you mean vm-t-s'),
        ('vm-t-s2+pretty', "no change 'pretty'; choose .simple, .parts, .hard"),
        ('vm-t-s2+revisit', 'only .hard has images to show again'),
        ('vm-t-s2+hard-fog', "no ingredient 'fog'; there are crowd"),
        ('nowhere.py', 'no config nowhere.py'),
    ],
)
def test_a_wrong_name_is_reported_before_anything_is_trained(given, tmp_path, name, words):
    with pytest.raises(SystemExit, match=words):
        compare.main([*given, 'vm-t-s2', name])
    assert not (tmp_path / 'out').exists()


def test_absent_people_and_odd_sizes_are_reported(given, tmp_path, capsys):
    (tmp_path / 'test' / 'annotations.json').unlink()
    with pytest.raises(SystemExit, match='test/annotations.json; see trunchier make-synthetic'):
        compare.main([*given, 'vm-t-s2'])
    with pytest.raises(SystemExit):
        compare.main([*given, 'vm-t-s2', '--size', '100x70'])
    assert '100x70: give multiples of 32' in capsys.readouterr().err


def test_parts_and_decoders_change_what_they_say(given):
    args = compare.parser().parse_args([*given, 'vm-t-s2', '--test-parts'])
    plain, changed = (compare.config(name, args) for name in ('vm-t-s2', 'vm-t-s2+simple+parts'))
    steps = [
        [step['type'] for step in cfg.train_dataloader.dataset.pipeline] for cfg in (plain, changed)
    ]
    assert steps[1] == [steps[0][0], 'CropBodyPart', *steps[0][1:]]
    assert plain.val_dataloader.dataset.pipeline[1]['by_id']
    assert changed.model.neck.simple and not changed.model.head.deconv_out_channels
    assert plain.model.head.decoder == changed.model.head.decoder
    assert plain.model.backbone.init_cfg is None


def test_the_stream_is_trained_on_without_an_ingredient_and_tested_with_all(given):
    args = compare.parser().parse_args([*given, 'vm-t-s2', '--test', 'stream'])
    whole, cut = (
        compare.config(name, args) for name in ('vm-t-s2+hard', 'vm-t-s2+hard-cutout-crowd+ema')
    )
    steps = [
        {step['type'] for step in dataset.pipeline}
        for dataset in (whole.train_dataloader.dataset, cut.train_dataloader.dataset)
    ]
    assert steps[0] - steps[1] == {'CutOut'}
    assert cut.train_dataloader.dataset.regime.crowd == 0
    assert [each.type for each in cut.custom_hooks if each not in whole.custom_hooks] == ['EMAHook']
    again = compare.config('vm-t-s2+hard+revisit', args)
    assert again.train_dataloader.sampler.type == 'RevisitSampler'
    assert again.train_dataloader.dataset == whole.train_dataloader.dataset
    assert again.custom_hooks[-1]['type'] == 'RevisitHook'
    tested, trained = whole.test_dataloader.dataset, whole.train_dataloader.dataset
    assert tested == cut.test_dataloader.dataset and tested.seed != trained.seed
    assert tested.regime == trained.regime
    assert steps[0] - {step['type'] for step in tested.pipeline} == set(
        compare_recipes.AUGMENTATION
    )
    sizes = {tuple(step.input_size) for step in tested.pipeline if 'input_size' in step}
    assert sizes == {(64, 64)}


def test_differences_to_one_model_are_paired_on_every_test(given, tmp_path, capsys):
    found = np.random.default_rng(0).integers(3, 9, 40)
    for name, gain in (('vm-t-s2+hard', 0), ('vm-t-s2+hard-held', 1)):
        run = tmp_path / 'out' / 'runs' / f'{name}-seed0'
        finish(run, found + gain)
        (run / 'people.json').rename(run / 'people-test.json')
        finish(run, found - gain)
    test = str(tmp_path / 'test')
    options = ['--test', 'stream', '--also', test, '--against', 'vm-t-s2+hard']
    compare.main([*given, *options, '--', 'vm-t-s2+hard', 'vm-t-s2+hard-held'])
    table = (tmp_path / 'out' / 'table.md').read_text()
    assert '| vm-t-s2+hard-held | -10.0 [-10.0, -10.0] | +10.0 [+10.0, +10.0] |' in table
    assert f'{10 * found.mean():.1f} [' in table and ' | test | params' in table
    with pytest.raises(SystemExit, match='against vm-t-s4 is none of vm-t-s2.hard'):
        compare.main([*given, *options[:-1], 'vm-t-s4', '--', 'vm-t-s2+hard'])


def test_runs_are_those_of_models_that_sheets_and_tables_know(tmp_path):
    run = compare.folder(tmp_path, 'swin-t-s3', 1)
    run.mkdir(parents=True)
    compare.config_of(run).touch()
    assert work_dirs.model_of(run) == 'SwinPose-T-S3'


def test_a_run_that_another_study_trains_is_left_to_it(given, tmp_path, capsys):
    run = tmp_path / 'out' / 'runs' / 'vm-t-s2-seed0'
    run.mkdir(parents=True)
    lock = FolderLock(run)
    try:
        with pytest.raises(SystemExit, match='1 trainings failed'):
            compare.main(['vm-t-s2', *given])
    finally:
        lock.release()
    assert 'FAILED: ' in (out := capsys.readouterr().out) and 'is in use by another run' in out
    assert [*run.iterdir()] == []


@pytest.mark.slow
def test_a_study_trains_goes_on_and_reports_what_failed(tmp_path):
    for seed, name in enumerate(('train', 'test')):
        write_coco(num=8, out=tmp_path / name, seed=seed, size=96, workers=1)
    people = ['--train', tmp_path / 'train', '--test', tmp_path / 'test', '--out', tmp_path / 'out']
    options = ['--steps', 4, '--batch-size', 4, '--size', '64x64', '--rounds', 1]
    given = [str(each) for each in ('vm-t-s2', *people, *options)]
    compare.main(given)
    run = tmp_path / 'out' / 'runs' / 'vm-t-s2-seed0'
    before = (run / 'people.json').read_text()
    (run / 'people.json').unlink()  # as if it had been interrupted before its test
    compare.main(given)
    assert 'resumed' in (run / 'train.log').read_text().lower()
    assert (run / 'people.json').read_text() == before
    (row,) = json.loads((tmp_path / 'out' / 'results.json').read_text())['rows']
    assert row['ms'] > 0
    images = [*(tmp_path / 'train' / 'images').iterdir()]
    for image in images:
        image.write_bytes(b'no image')
    with pytest.raises(SystemExit, match='1 trainings failed'):
        compare.main([*given, '--seeds', '0', '1'])
