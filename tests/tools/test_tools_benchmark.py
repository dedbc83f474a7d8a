"""The benchmark measures what it says; here on the smallest work, for its own correctness alone."""

import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from trunchier import zoo

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / 'tools'), str(ROOT / 'tools' / 'benchmark')]
import benchmark.__main__ as benchmark  # noqa: E402
import networks  # noqa: E402
import timing  # noqa: E402

QUICK = ('--rounds', '1', '--seconds', '0', '--device', 'cpu')
SMALL = ('--size', '64', '48')


def run(*arguments, out):
    """The one table of a command, as its JSON has it."""
    benchmark.main([*arguments, *QUICK, '--format', 'json', '--out', str(out)])
    report = json.loads(out.read_text())
    assert {'date', 'torch', 'CPU', 'threads', 'oneDNN', 'linear layers'} <= set(
        report['environment']
    )
    (table,) = report['tables']
    assert table['command'].startswith(arguments[0])
    return table['rows']


# --- timing --------------------------------------------------------------------------------------


def test_tasks_take_turns():
    calls = []
    tasks = {name: lambda name=name: calls.append(name) for name in 'ab'}
    times = timing.interleaved(tasks, rounds=4, at_least=0)
    assert {name: len(each.seconds) for name, each in times.items()} == dict(a=4, b=4)
    runs = ''.join(calls)
    assert 'ab' in runs[-8:]
    assert 'ba' in runs[-8:], 'who begins changes from round to round'


def test_seconds_are_those_of_one_call():
    times = timing.interleaved({'nap': lambda: time.sleep(0.01)}, rounds=3, at_least=0.03)
    assert 0.01 <= times['nap'].median < 0.05


def test_median_and_spread_by_hand():
    times = timing.Times([1.0, 2.0, 3.0, 4.0, 100.0])
    assert times.median == 3
    assert times.spread == pytest.approx((4 - 2) / 2 / 3)
    assert timing.Times([2.0]).spread == 0


@pytest.mark.skipif(not Path('/proc/self/clear_refs').exists(), reason='needs Linux')
def test_peak_memory_sees_what_was_freed_again():
    with timing.peak_memory() as peak:
        block = np.ones(25_000_000)
        del block
    assert 195e6 < peak() < 260e6


def test_table_leaves_absent_values_empty():
    table = timing.markdown(dict(a='A', b='B'), [dict(a=1234.5), dict(a='x', b=0.12345)])
    assert table == '| A | B |\n|---|---|\n| 1234 |  |\n| x | 0.123 |\n'


# --- networks ------------------------------------------------------------------------------------


def test_names_by_pattern():
    assert list(networks.names(['VM*-T-S2'])) == ['VMPose-T-S2', 'VMHMR2.0-T-S2']
    assert list(networks.names(['vit-b', 'swin-t-s2'], 'backbone')) == ['swin-t-s2', 'vit-b']
    assert len(networks.names(['all'])) == 62
    assert len(networks.names(['mesh'])) == 31
    with pytest.raises(ValueError, match="no network is called 'resnet'"):
        networks.names(['all', 'resnet'])


def test_macs_by_hand():
    tokens, width, hidden = 192, 384, 4 * 384
    layer = tokens * (4 * width**2 + 2 * width * hidden) + 2 * tokens**2 * width
    wanted = tokens * 768 * width + 12 * layer
    assert networks.macs('vit-s', part='backbone') == wanted


@pytest.mark.parametrize('task', zoo.TASKS)
@pytest.mark.parametrize('name', ['swin-t-s4', 'vit-s'])
def test_network_ends_as_the_task_wants(name, task):
    with torch.no_grad():
        output = networks.build(name, task)(torch.randn(1, 3, 256, 192))
    if task == 'pose':
        assert output.shape == (1, 17, 64, 48)
    else:
        assert output['body_pose'].shape == (1, 23, 3, 3)


@pytest.mark.parametrize('package', ['mmpose', 'mmpretrain'])
def test_stand_ins_are_the_same_function(package, monkeypatch):
    pytest.importorskip(package)
    theirs = networks.build('vit-s')
    monkeypatch.setattr(networks, 'stood_in_for', lambda: [package])
    ours = networks.build('vit-s')
    assert type(ours.backbone) is not type(theirs.backbone) or type(ours.head) is not type(
        theirs.head
    )
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.05)
        ours.load_state_dict(theirs.state_dict())
        images = torch.randn(2, 3, 256, 192)
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-4)


# --- commands ------------------------------------------------------------------------------------


@pytest.fixture
def peer(tmp_path):
    """A peer that does ten times our work, and nothing for Swin; its scan is our own."""
    (tmp_path / 'peer.py').write_text(
        'import torch\n'
        'from helper import networks\n'
        'from trunchier.ops import selective_scan\n'
        'class Tenfold(torch.nn.Module):\n'
        '    def __init__(self, name):\n'
        '        super().__init__()\n'
        "        self.ours = networks.build(name, part='backbone')\n"
        '    def forward(self, images):\n'
        '        return [self.ours(images) for _ in range(10)]\n'
        'def build(name):\n'
        "    return None if 'swin' in name else Tenfold(name)\n"
    )
    (tmp_path / 'helper.py').write_text('import networks\n')
    return f'tenfold={tmp_path}'


def test_models_beside_a_peer(peer, tmp_path):
    rows = run(
        *('models', '--part', 'backbone', '--models', 'vm-t-s2', 'swin-t-s2', *SMALL),
        *('--batch', '1', '2', '--dtype', 'fp32', '--against', peer),
        out=tmp_path / 'table.json',
    )
    assert [(row['name'], row['who'], row['batch']) for row in rows] == [
        *(('swin-t-s2', 'ours', batch) for batch in (1, 2)),
        *(('vm-t-s2', who, batch) for batch in (1, 2) for who in ('ours', 'tenfold')),
    ]
    ours = [row for row in rows if row['name'] == 'vm-t-s2' and row['who'] == 'ours']
    for row in ours:
        assert row['fps'] == pytest.approx(1e3 * row['batch'] / row['ms'])
        assert row['gmacs'] == pytest.approx(row['gmac'] * row['fps'])
        assert 3 < row['x tenfold'] < 30
    assert 'x tenfold' not in rows[0]


def test_deployed_models_on_request(tmp_path, monkeypatch):
    deployed = []
    build = networks.build_deployed

    def listed(*args):
        deployed.append(build(*args))
        return deployed[-1]

    monkeypatch.setattr(networks, 'build_deployed', listed)
    (row,) = run(
        *('models', '--models', 'SwinPose-T-S2', *SMALL, '--deploy'), out=tmp_path / 't.json'
    )
    assert row['ms'] > 0
    (network,) = deployed
    assert network.backbone.deployed
    assert network.neck.deployed
    left = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert left == []


def test_peer_that_fails_leaves_the_others(tmp_path):
    (tmp_path / 'peer.py').write_text(
        'import torch\n'
        'class Broken(torch.nn.Module):\n'
        '    def forward(self, images):\n'
        "        raise RuntimeError('no CUDA here')\n"
        'def build(name):\n'
        '    return Broken()\n'
    )
    rows = run(
        *('models', '--part', 'backbone', '--models', 'swin-t-s2', *SMALL),
        *('--against', f'broken={tmp_path}'),
        out=tmp_path / 'table.json',
    )
    assert rows[0]['ms'] > 0
    assert rows[1]['mode'] == 'no: RuntimeError: no CUDA here'
    assert 'ms' not in rows[1]


def test_paper_ratios_are_those_of_its_tables():
    ratios = benchmark.paper_fps()
    assert len(ratios) == 62
    assert ratios['ViTPose-B'] == ratios['HMR2.0-B'] == 1
    assert ratios['VMPose-T-S2'] > ratios['VMPose-T-S4'] > 1


def test_train_tells_memory(tmp_path):
    rows = run(
        *('train', '--part', 'backbone', '--models', 'swin-t-s2', '--batch', '1', *SMALL),
        *('--dtype', 'fp32', 'bf16'),
        out=tmp_path / 'table.json',
    )
    assert [row['dtype'] for row in rows] == ['fp32', 'bf16']
    assert all(row['fps'] > 0 and row['megabytes'] > 1 for row in rows)


def test_training_step_changes_every_weight():
    args = benchmark.parse_args(['train', *SMALL])
    module = networks.build('swin-t-s2', 'mesh', 'backbone')
    before = [parameter.clone() for parameter in module.parameters()]
    benchmark.training_step(module, 'fp32', 2, args)()
    for old, new in zip(before, module.parameters(), strict=True):
        assert not torch.equal(old, new)


def test_scan_compares_backends_and_peers(peer, tmp_path):
    rows = run(
        *('scan', '--lengths', '12', '7', '--channels', '16', '--against', peer),
        *('--backends', 'torch', 'reference'),
        out=tmp_path / 'table.json',
    )
    found = [(row['op'], row['length'], row['who']) for row in rows]
    one = [('selective_scan', 12, who) for who in ('torch', 'reference', 'tenfold')]
    two = [('selective_scan_2d', 12, who) for who in ('torch', 'reference')]
    assert found[:5] == one + two
    assert {op for op, length, _ in found if length == 7} == {'selective_scan'}, '7 is no map'
    assert all(row['both'] > 0 and row['forward'] > 0 for row in rows if row['who'] == 'reference')


def test_scaling_fits_exponents(tmp_path):
    assert benchmark.slope([1, 2, 4], [3, 12, 48]) == pytest.approx(2)
    assert np.isnan(benchmark.slope([1, 2], [0, 1]))
    rows = run(
        *('scaling', '--models', 'swin-t-s2', '--sides', '64', '128', '--batch', '1', '2'),
        out=tmp_path / 'table.json',
    )
    assert [(r['what'], r['batch'], r['size']) for r in rows] == [
        ('batch', 1, '64 x 48'), ('batch', 2, '64 x 48'),
        ('pixels', 1, '64 x 48'), ('pixels', 1, '128 x 96'),
    ]  # fmt: skip
    assert [index for index, row in enumerate(rows) if 'ms_exponent' in row] == [1, 3]


def test_files_beside_their_models(tmp_path):
    pytest.importorskip('mmpose')
    rows = run(
        *('export', '--models', 'SwinPose-T-S2', '--batch', '1', '2', '--to', 'torchscript'),
        out=tmp_path / 'table.json',
    )
    assert [(row['name'], row['batch']) for row in rows] == [
        ('SwinPose-T-S2', 1), ('SwinPose-T-S2', 2)
    ]  # fmt: skip
    for row in rows:
        assert float(row['error']) < 1e-4
        assert row['ratio'] == pytest.approx(row['eager'] / row['file'])
        assert row['deployed'] > 0


def test_files_are_checked_alone_and_failures_listed(tmp_path, monkeypatch):
    pytest.importorskip('mmpose')
    monkeypatch.setitem(benchmark.exporting.TOLERANCES, 'fp32', 0.0)
    (row,) = run(
        *('export', '--models', 'SwinPose-T-S2', '--to', 'torchscript', '--check-only'),
        out=tmp_path / 'failed.json',
    )
    assert 'computes something else' in row['failed']
    monkeypatch.undo()
    (row,) = run(
        *('export', '--models', 'SwinPose-T-S2', '--to', 'torchscript', '--check-only'),
        out=tmp_path / 'checked.json',
    )
    assert float(row['error']) < 1e-4
    assert 'eager' not in row


def test_data_by_stage(tmp_path):
    pytest.importorskip('mmpose')
    pytest.importorskip('numba')
    rows = run(
        *('data', '--num', '4', '--size', '160', '120', '--workers', '1'),
        out=tmp_path / 'table.json',
    )
    stages = [(row['what'], row['stage']) for row in rows]
    for what, first in (('pose', 'LoadImage'), ('mesh', 'read and check')):
        place = stages.index((what, first))
        assert stages[place + 2] == (what, 'of it: decode JPEG')
        assert (what, 'collate') in stages
        assert (what, 'loader, 1 workers') in stages
    assert all(row['rate'] > 0 for row in rows)


def test_pipeline_beside_the_network_alone(tmp_path):
    pytest.importorskip('mmpose')
    pytest.importorskip('av')
    rows = run('pipeline', '--frames', '2', '--batch', '2', out=tmp_path / 'table.json')
    assert [row['what'] for row in rows][:2] == ['network alone', 'video to results']
    assert rows[1]['share'] == pytest.approx(rows[1]['rate'] / rows[0]['rate'])
    assert {'stage network', 'stage crop', 'stage decode'} <= {row['what'] for row in rows}


def test_all_goes_on_after_a_failure(tmp_path, monkeypatch):
    monkeypatch.setitem(
        benchmark.ALL,
        'cpu',
        ('pipeline --model Nobody-T-S2', 'scan --lengths 4 --channels 8 --backends torch'),
    )
    out = tmp_path / 'folder' / 'table.md'
    benchmark.main(['all', *QUICK, '--out', str(out), '--json', str(tmp_path / 'table.json')])
    text = out.read_text()
    assert 'Not measured: ValueError: no pose model' in text
    assert '    python tools/benchmark scan --lengths 4' in text
    assert '| selective_scan | 4 | 8 |' in text
    assert len(json.loads((tmp_path / 'table.json').read_text())['tables']) == 2


def test_all_times_peers_where_there_can_be_one(peer, tmp_path, monkeypatch):
    lines = 'scan --lengths 4 --channels 8 --backends torch', 'data --num 0'
    monkeypatch.setitem(benchmark.ALL, 'cpu', lines)
    out = tmp_path / 'table.json'
    benchmark.main(['all', *QUICK, '--against', peer, '--format', 'json', '--out', str(out)])
    scan, data = json.loads(out.read_text())['tables']
    assert 'tenfold' in {row['who'] for row in scan['rows']}
    assert 'against' not in data['command']


def test_all_knows_its_own_commands():
    for lines in benchmark.ALL.values():
        for line in lines:
            args = benchmark.parse_args(line.split())
            if 'models' in args and args.command != 'pipeline':
                part = getattr(args, 'part', 'backbone')
                assert networks.names(args.models, part)


def test_the_example_of_a_peer_has_what_is_installed_and_leaves_out_the_rest(monkeypatch):
    pytest.importorskip('mmpretrain')
    for name in ('VMAMBA', 'GROUPMIXFORMER', 'FOURD_HUMANS'):
        monkeypatch.delenv(name, raising=False)
    build = benchmark.load_peers([f'official={ROOT / "examples"}'], 'build')['official']
    for name in ('swin-t-s2', 'SwinPose-T-S2', 'ViTPose-S'):
        part = 'backbone' if name in zoo.ENCODERS else 'network'
        ((encoder, task),) = networks.names([name], part).values()
        ours = networks.build(encoder, task, part)
        images = torch.randn(1, 3, *networks.SIZE)
        with torch.no_grad():
            theirs = build(name)
            found = theirs(images)
            found = found[-1] if isinstance(found, tuple) else found
            assert found.shape == ours(images).shape
        sizes = [sum(p.numel() for p in model.parameters()) for model in (theirs, ours)]
        assert sizes[0] == sizes[1]
    assert build('gmf-t-s2') is None and build('VMPose-B-S4') is None
    assert build('SwinHMR2.0-T-S2') is None


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['models', '--models', 'resnet'], "no network is called 'resnet'"),
        (['models', '--against', 'here'], "--against wants NAME=DIR, got 'here'"),
        (['models', '--against', 'x=/nowhere'], 'no /nowhere/peer.py'),
        (['models', '--compile', 'graph'], 'captures a CUDA graph'),
        (['scan', '--backends', 'cuda'], "no backend 'cuda'"),
        (['scan', '--backends', 'triton'], 'needs CUDA tensors'),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments, message):
    with pytest.raises(SystemExit, match=message):
        benchmark.main([*arguments, *QUICK])


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_gpu_that_is_absent_is_refused(capsys):
    with pytest.raises(SystemExit):
        benchmark.main(['models', '--device', 'cuda'])
    assert 'torch finds no GPU' in capsys.readouterr().err


def test_other_files_are_no_peers(tmp_path):
    (tmp_path / 'peer.py').write_text('')
    with pytest.raises(ValueError, match='neither build'):
        benchmark.load_peers([f'x={tmp_path}'], 'build')
