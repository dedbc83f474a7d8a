"""The benchmark measures what it says; here on minimal work, for its own correctness only."""

import json
import os
import re
import subprocess
import sys
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import flops
import numpy as np
import pytest
import torch
from benchmark import (
    busy,
    cold,
    commands,
    latency,
    models,
    networks,
    peers,
    report,
    soak,
    subnormal,
    timing,
)
from benchmark import train as training
from report.results import read_csv

from trunchier.deploy import export
from trunchier.inference import pipeline, sources
from trunchier.inference.pipeline import Stage
from trunchier.inference.sources import read

ROOT = Path(__file__).resolve().parents[2]
QUICK = ('--rounds', '1', '--seconds', '0', '--device', 'cpu')
SMALL = ('--size', '64', '48')


def run(*arguments, out):
    """The one table of a command, as its JSON has it."""
    commands.main([*arguments, *QUICK, '--json', str(out)])
    report = json.loads(out.read_text())
    assert {'date', 'torch', 'CPU', 'threads', 'oneDNN', 'linear layers'} <= set(
        report['environment']
    )
    (table,) = report['tables']
    assert table['command'].startswith(arguments[0])
    return table['rows']


# --- timing --------------------------------------------------------------------------------------


def test_the_order_of_tasks_rotates():
    calls = []
    tasks = {name: lambda name=name: calls.append(name) for name in 'ab'}
    times = timing.interleaved(tasks, rounds=4, at_least=0)
    assert {name: len(each.seconds) for name, each in times.items()} == dict(a=4, b=4)
    runs = ''.join(calls)
    assert 'ab' in runs[-8:]
    assert 'ba' in runs[-8:], 'the first task changes from round to round'


def test_seconds_are_those_of_one_call(monkeypatch):
    clock, calls = [0.0], []

    def task():
        clock[0] += 0.01
        calls.append(clock[0])

    monkeypatch.setattr(timing, 'time', SimpleNamespace(perf_counter=lambda: clock[0]))
    times = timing.interleaved({'task': task}, rounds=3, at_least=0.04)
    assert times['task'].seconds == pytest.approx([0.01] * 3)
    assert len(calls) == 1 + 1 + 3 * 4, 'warm-up, one to find the number of calls, 3 rounds of 4'


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
    table = report.markdown(dict(a='A', b='B'), [dict(a=1234.5), dict(a='x', b=0.12345)])
    assert table == '| A | B |\n|---|---|\n| 1234 |  |\n| x | 0.123 |\n'


# --- networks ------------------------------------------------------------------------------------


def test_names_by_pattern():
    assert networks.names(['VM*-T-S2']) == ['VMPose-T-S2', 'VMHMR2.0-T-S2']
    assert networks.names(['vit-b', 'swin-t-s2'], 'backbone') == ['swin-t-s2', 'vit-b']
    assert len(networks.names(['all'])) == 62
    assert len(networks.names(['mesh'])) == 31
    with pytest.raises(ValueError, match="no network is called 'resnet'"):
        networks.names(['all', 'resnet'])


def test_macs_by_hand():
    pytest.importorskip('mmpretrain')
    tokens, width, hidden = 192, 384, 4 * 384
    layer = tokens * (4 * width**2 + 2 * width * hidden) + 2 * tokens**2 * width
    expected = tokens * 768 * width + 12 * layer
    assert networks.macs(networks.build('vit-s', 'meta')) == expected


@pytest.mark.parametrize('name', ['SwinPose-T-S4', 'ViTPose-S'])
def test_a_pose_network_ends_with_heatmaps(name):
    pytest.importorskip('mmpose')
    with torch.no_grad():
        (heatmaps,) = networks.build(name)(torch.randn(1, 3, 256, 192))
    assert heatmaps.shape == (1, 17, 64, 48)


def test_a_mesh_network_ends_with_smpl_parameters():
    with torch.no_grad():
        output = networks.build('SwinHMR2.0-T-S4')(torch.randn(1, 3, 256, 192))
    assert {(1, 23, 3, 3), (1, 10)} < {tuple(each.shape) for each in output}


def test_flops_are_counted_as_executed_and_as_in_the_paper():
    network, backbone = (flops.row(name, networks.SIZE) for name in ('VMHMR2.0-T-S2', 'vm-t-s2'))
    assert round(network['paper'], 1) == 1.6, 'Table 4'
    for row in (network, backbone):
        assert 0.9 < row['executed'] / row['paper'] < 1, 'norms and scans count in the paper only'
    assert all(network[key] > backbone[key] for key in ('params', 'executed', 'paper'))


def test_models_without_a_formula_have_executed_macs_only(monkeypatch, capsys):
    monkeypatch.setattr(
        flops, 'build', lambda name, device: torch.nn.Conv2d(3, 5, 1, device='meta')
    )
    flops.main(['mine', '--size', '10', '20'])
    assert capsys.readouterr().out.splitlines()[-1] == '| mine | 2e-05 | 3e-06 |  |'


# --- commands ------------------------------------------------------------------------------------


@pytest.fixture
def peer(tmp_path):
    """A peer that does ten times our work, without Swin; its scan is ours."""
    (tmp_path / 'peer.py').write_text(
        'import torch\n'
        'import helper\n'
        'from trunchier.ops import selective_scan\n'
        'class Tenfold(torch.nn.Module):\n'
        '    def __init__(self, name):\n'
        '        super().__init__()\n'
        '        self.ours = helper.build(name)\n'
        '    def forward(self, images):\n'
        '        return [self.ours(images) for _ in range(10)]\n'
        'def build(name):\n'
        "    return None if 'swin' in name else Tenfold(name)\n"
    )
    (tmp_path / 'helper.py').write_text('from benchmark.networks import build\n')
    return f'tenfold={tmp_path}'


def test_models_are_timed_beside_a_peer(peer, tmp_path):
    rows = run(
        *('models', '--part', 'backbone', '--models', 'vm-t-s2', 'swin-t-s2', *SMALL),
        *('--batch', '1', '2', '--dtype', 'fp32', '--against', peer),
        out=tmp_path / 'table.json',
    )
    assert [(row['name'], row['who'], row['batch']) for row in rows] == [
        *(('swin-t-s2', 'ours', batch) for batch in (1, 2)),
        *(('vm-t-s2', who, batch) for batch in (1, 2) for who in ('ours', 'tenfold')),
    ]
    for row, peer in (rows[2:4], rows[4:6]):
        assert row['fps'] == pytest.approx(1e3 * row['batch'] / row['ms'])
        assert row['gmacs'] == pytest.approx(row['gmac'] * row['fps'])
        assert row['x tenfold'] == peer['ms'] / row['ms']
    assert 'x tenfold' not in rows[0]


def test_deployed_models_on_request(tmp_path, monkeypatch):
    pytest.importorskip('mmpose')
    built, build = [], networks.build
    monkeypatch.setattr(networks, 'build', lambda *args: built.append(build(*args)) or built[-1])
    arguments = 'models', '--models', 'SwinPose-T-S2', *SMALL, '--deploy'
    (row,) = run(*arguments, out=tmp_path / 't.json')
    assert row['ms'] > 0
    norms = [
        sum(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())
        for network in built
    ]
    assert norms == [2, 0], 'one to count, one deployed'


def test_a_peer_that_fails_does_not_stop_the_others(tmp_path):
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


def test_ratios_of_the_papers_fps():
    ratios = models.paper_fps()
    assert len(ratios) == 62
    assert ratios['ViTPose-B'] == ratios['HMR2.0-B'] == 1
    assert ratios['VMPose-T-S2'] > ratios['VMPose-T-S4'] > 1


def test_training_reports_memory(tmp_path):
    rows = run(
        *('train', '--part', 'backbone', '--models', 'swin-t-s2', '--batch', '1', *SMALL),
        *('--dtype', 'fp32', 'bf16'),
        out=tmp_path / 'table.json',
    )
    assert [row['dtype'] for row in rows] == ['fp32', 'bf16']
    assert all(row['fps'] > 0 and row['megabytes'] > 1 for row in rows)


def test_training_step_changes_every_weight():
    module = networks.build('swin-t-s2')
    args = commands.parse_args(['train', *SMALL])
    before = [parameter.clone() for parameter in module.parameters()]
    training.training_step(module, 'fp32', 2, args)()
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


def test_exponents_of_time_and_memory(tmp_path):
    assert models.slope([1, 2, 4], [3, 12, 48]) == pytest.approx(2)
    assert np.isnan(models.slope([1, 2], [0, 1]))
    rows = run(
        *('models', '--part', 'backbone', '--models', 'swin-t-s2', 'swin-t-s3'),
        *('--heights', '64', '128', '--batch', '1'),
        out=tmp_path / 'table.json',
    )
    assert [(r['name'], r['size']) for r in rows] == [
        (name, size) for name in ('swin-t-s3', 'swin-t-s2') for size in ('64 x 48', '128 x 96')
    ]
    assert [index for index, row in enumerate(rows) if 'ms_exponent' in row] == [1, 3]


def test_exported_files_are_timed_beside_their_models(tmp_path):
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


def test_check_only_compares_files_and_lists_failures(tmp_path, monkeypatch):
    pytest.importorskip('mmpose')
    monkeypatch.setitem(export.TOLERANCES, 'fp32', 0.0)
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
        assert stages.index((what, first)) < stages.index((what, f'of {first}: decode JPEG'))
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


def test_latency_of_frames_one_at_a_time_and_overlapped(tmp_path):
    pytest.importorskip('av')
    rows = run(
        *('latency', '--model', 'VMPose-T-S2', '--frames', '1', '--people', '1'),
        out=tmp_path / 'table.json',
    )
    (row,) = rows
    assert 0 < row['p50'] <= row['p95'] <= row['p99']
    assert row['share'] == pytest.approx(row['rate'] * row['alone'] / 1e3)
    assert 'network' in row['stages']


def test_masks_and_decays_are_timed_where_their_exponentials_are_subnormal(tmp_path):
    rows = run('subnormal', '--backends', 'torch', out=tmp_path / 'table.json')
    assert [row['op'] for row in rows] == ['window_attention', 'selective_scan_2d']
    assert all(row['ratio'] == row['subnormal'] / row['ordinary'] for row in rows)
    smallest = torch.finfo(torch.float32).smallest_normal
    assert 0 < np.exp(-np.float32(subnormal.DEPTH)) < smallest


def test_a_frame_is_admitted_when_the_last_one_is_done():
    inside, most = [0], []

    def enter(items):
        for item in items:
            inside[0] += 1
            yield item

    def leave(items):
        for item in items:
            most.append(inside[0])
            inside[0] -= 1
            yield item

    clip = np.zeros((5, 4, 4, 3), np.uint8)

    class ThreeStages:  # as a Run
        stages = [
            Stage('read', lambda found: chain.from_iterable(map(read, found))),
            Stage('enter', enter),
            Stage('leave', leave),
        ]

        def __call__(self, found):
            return pipeline.run(self.stages, found, pipeline.Stopwatch())

    seconds = latency.latencies(ThreeStages(), sources.find(clip))
    assert len(seconds) == 5 and most == [1] * 5


@pytest.mark.slow
def test_cold_processes_tell_their_steps(tmp_path):
    rows = run('cold', '--models', 'VMPose-T-S2', '--exported', out=tmp_path / 'table.json')
    in_torch, exported = rows
    assert in_torch['torch'] > 0 and 'torch' not in exported
    assert exported['megabytes'] < in_torch['megabytes'] / 2
    for row in rows:
        steps = [row[step] for step in cold.STEPS if step in row]
        assert row['total'] == pytest.approx(sum(steps))


@pytest.mark.slow
def test_speed_beside_busy_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(busy, 'WARM_UP', 1)
    rows = run(
        *('busy', '--models', 'VMHMR2.0-T-S2', 'VMPose-T-S2', '--batch', '1'),
        *('--processes', '1', '--waiting', 'ours', '--threads', '1'),
        out=tmp_path / 'table.json',
    )
    assert [(row['task'], row['waiting']) for row in rows] == [
        ('training', 'ours'), ('prediction', 'ours')
    ]  # fmt: skip
    for row in rows:
        assert row['keeps'] == pytest.approx(100 * row['idle'] / row['busy'])


def test_busy_processes_run_only_when_asked_for_and_end():
    with busy.busy_processes(2) as switch:
        switch(True)
        switch(False)
        made = [int(each) for each in CHILDREN.read_text().split()]
        assert len(made) >= 2
    left = [int(each) for each in CHILDREN.read_text().split()]
    assert len(left) == len(made) - 2


CHILDREN = Path(f'/proc/self/task/{os.getpid()}/children')


def test_memory_of_long_runs_is_flat_or_not_by_hand():
    def samples(megabytes):
        return [
            dict(seconds=6.0 * i, megabytes=m, files=9, threads=4 + i % 2)
            for i, m in enumerate(megabytes)
        ]

    growing = np.linspace(100, 200, 101)
    flat = soak.summary(samples([*growing[::10], *[200] * 90]))
    assert flat['minutes'] == pytest.approx(10) and flat['samples'] == 101
    assert flat['flat'] and flat['range'] == flat['change'] == 0
    assert (flat['files'], flat['threads']) == ('9 to 9', '4 to 5')
    found = soak.summary(samples(growing))
    assert not found['flat'] and found['range'] == pytest.approx(found['change'], rel=1e-6)
    assert found['change'] == pytest.approx(100 * 80 / 155, rel=0.02)


@pytest.mark.skipif(not CHILDREN.exists(), reason='needs Linux')
def test_a_process_is_counted_with_its_children():
    alone = soak.usage(os.getpid())
    with subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE) as child:
        both = soak.usage(os.getpid())
        child.communicate(b'\n')
    assert both['threads'] == alone['threads'] + 1
    assert both['megabytes'] > alone['megabytes'] and both['files'] > alone['files']
    assert soak.usage(child.pid) is None


@pytest.mark.slow
def test_long_runs_of_prediction_and_training(tmp_path):
    plot = tmp_path / 'soak.svg'
    rows = run(
        *('soak', '--frames', '4', '--iterations', '10', '--batch', '2', '--every', '0.2'),
        *('--plot', str(plot)),
        out=tmp_path / 'table.json',
    )
    assert [row['reached'] for row in rows] == [4, 10]
    assert plot.read_text().startswith('<?xml')


def test_all_continues_after_a_failure(tmp_path, monkeypatch):
    monkeypatch.setitem(
        commands.ALL,
        'cpu',
        ('pipeline --model Nobody-T-S2', 'scan --lengths 4 --channels 8 --backends torch'),
    )
    out = tmp_path / 'folder' / 'table.md'
    commands.main(['all', *QUICK, '--out', str(out), '--json', str(tmp_path / 'table.json')])
    text = out.read_text()
    assert "Not measured: ValueError: no model 'Nobody-T-S2'" in text
    assert '    python tools/benchmark scan --lengths 4' in text
    assert '| selective_scan | 4 | 8 |' in text
    assert len(json.loads((tmp_path / 'table.json').read_text())['tables']) == 2


def test_all_passes_peers_to_the_commands_that_take_them(peer, tmp_path, monkeypatch):
    lines = 'scan --lengths 4 --channels 8 --backends torch', 'data --num 0'
    monkeypatch.setitem(commands.ALL, 'cpu', lines)
    out = tmp_path / 'table.json'
    commands.main(['all', *QUICK, '--against', peer, '--json', str(out)])
    scan, data = json.loads(out.read_text())['tables']
    assert 'tenfold' in {row['who'] for row in scan['rows']}
    assert 'against' not in data['command']


def test_help_and_the_scan_need_only_torch_and_mmengine(tmp_path):
    absent = ('mmcv', 'mmdet', 'mmpose', 'mmpretrain', 'numba', 'onnxruntime', 'av', 'smplx')
    script = f"""
import runpy, sys
sys.modules |= dict.fromkeys({absent})  # importing these fails
sys.argv = ['benchmark', 'scan', '--lengths', '4', '--channels', '8', '--backends', 'torch']
sys.argv += {QUICK!r}
runpy.run_path({str(ROOT / 'tools' / 'benchmark')!r}, run_name='__main__')
"""
    done = subprocess.run(
        [sys.executable, '-c', script], capture_output=True, text=True, cwd=tmp_path
    )
    assert '| selective_scan | 4 | 8 |' in done.stdout, done.stderr


@pytest.mark.parametrize('kind', commands.ALL)
def test_all_runs_valid_commands(kind):
    for line in commands.ALL[kind]:
        args = commands.parse_args(line.split())
        if 'models' in args:
            assert networks.names(args.models, getattr(args, 'part', 'network'))


def test_the_example_of_a_peer_builds_only_what_is_installed(monkeypatch):
    pytest.importorskip('mmpretrain')
    for name in ('VMAMBA', 'GROUPMIXFORMER', 'FOURD_HUMANS'):
        monkeypatch.delenv(name, raising=False)
    build = peers.load_peers([f'official={ROOT / "examples"}'], 'build')['official']
    for name in ('swin-t-s2', 'SwinPose-T-S2', 'ViTPose-S'):
        theirs, ours = build(name), networks.build(name)
        images = torch.randn(1, 3, *networks.SIZE)
        with torch.no_grad():
            shapes = [
                [t.shape for t in training.tensors_in(m(images))[-1:]] for m in (theirs, ours)
            ]
        assert shapes[0] == shapes[1]
        sizes = [sum(p.numel() for p in model.parameters()) for model in (theirs, ours)]
        assert sizes[0] == sizes[1]
    assert build('gmf-t-s2') is None and build('VMPose-B-S4') is None
    assert build('SwinHMR2.0-T-S2') is None


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['models', '--models', 'resnet'], "no network is called 'resnet'"),
        (['models', '--against', 'here'], "--against requires NAME=DIR, got 'here'"),
        (['models', '--against', 'x=/nowhere'], 'no /nowhere/peer.py'),
        (['models', '--compile', 'graph'], 'captures a CUDA graph'),
        (['scan', '--backends', 'cuda'], "no backend 'cuda'"),
        (['scan', '--backends', 'triton'], 'needs CUDA tensors'),
    ],
)
def test_impossible_measurements_are_refused(arguments, message):
    with pytest.raises(SystemExit, match=message):
        commands.main([*arguments, *QUICK])


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_an_absent_gpu_is_refused(capsys):
    with pytest.raises(SystemExit):
        commands.main(['models', '--device', 'cuda'])
    assert 'torch finds no GPU' in capsys.readouterr().err


def test_a_peer_without_functions_is_refused(tmp_path):
    (tmp_path / 'peer.py').write_text('')
    with pytest.raises(ValueError, match='neither build'):
        peers.load_peers([f'x={tmp_path}'], 'build')


def test_lifters_on_fewer_frames_are_plotted(tmp_path):
    pytest.importorskip('mmpose')
    plot, out = tmp_path / 'lifting.svg', tmp_path / 'lifting.json'
    commands.main(
        [
            *('lifting', '--frames', '12', '--width', '16', '--rounds', '1', '--seconds', '0.001'),
            *('--plot', str(plot), '--json', str(out)),
        ]
    )
    assert plot.read_text().startswith('<?xml')
    (table,) = json.loads(out.read_text())['tables']
    rows = {(row['kind'], row['schedule']): row for row in table['rows']}
    assert rows['MixSTE', '']['tokens'] == 17 * 8 * 12
    assert rows['TPC TRA', '3: 4']['tokens'] == 17 * (3 * 12 + 5 * 4)
    assert rows['TPS TRI', '1: 3']['giga'] < rows['TPS TRI', '3: 4']['giga']


def test_motions_are_timed_by_kind_and_stage(tmp_path):
    out = tmp_path / 'motions.json'
    short = ('--rounds', '1', '--seconds', '0.001', '--threads', '1')
    commands.main(['motions', '--batch', '4', '--frames', '6', *short, '--json', str(out)])
    (table,) = json.loads(out.read_text())['tables']
    assert {row['kind'] for row in table['rows']} >= {'gait', 'planted', 'clip', 'fall'}
    assert all(row['rate'] > 0 for row in table['rows'])


def test_measured_speeds_become_results_by_their_ratio_to_vit_b(tmp_path):
    rows = [
        {'name': name, 'who': who, 'batch': batch, 'dtype': 'fp32', 'size': '256 x 192',
         'fps': fps, 'x ViT-B': ratio}
        for name, who, batch, fps, ratio in (
            ('VMPose-T-S2', 'ours', 1, 8.0, 4.0),  # ViT-B: 2 images/s
            ('ViTPose-S', 'ours', 1, 4.0, 1.0),  # ViT-B: 4
            ('VMPose-T-S2', 'peer', 1, 9.0, None), ('VMPose-T-S2', 'ours', 8, 9.0, 4.0),
        )
    ]  # fmt: skip
    args = SimpleNamespace(relative=True, deploy=True, device='cpu')
    models.write_results(tmp_path / 'cpu.csv', rows, args)
    found = {each.model: each for each in read_csv(tmp_path / 'cpu.csv')}
    assert {name: each.fps for name, each in found.items()} == {'VMPose-T-S2': 12, 'ViTPose-S': 3}
    assert found['ViTPose-S'].protocol == 'fp32, 256 x 192, deployed'
    assert re.search(r', \d+ threads?$', found['ViTPose-S'].device)
