"""The tools that write files, stopped, killed, on a full disk and where they may not write.

Each run is a fork of this process, so that none imports and compiles anew. A target is complete or
as before, and the next run succeeds. CASES is the table of the tools: a new one is a row.
"""

import hashlib
import multiprocessing
import os
import pickle
import random
import re
import signal
import sys
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from forked import Run, ended, full_disk, killed_at, until, without_privileges
from interrupted import interrupted_at

pytest.importorskip('numba', reason='rendering requires numba')

import convert_smpl  # noqa: E402
import convert_weights  # noqa: E402
import export  # noqa: E402
import make_pose_prior  # noqa: E402
import make_shards  # noqa: E402
import make_synthetic  # noqa: E402

from trunchier.files import processes  # noqa: E402
from trunchier.files.shipped import asset  # noqa: E402
from trunchier.models.mesh.body import EMBEDDED_BODY, read_body  # noqa: E402
from trunchier.synthetic import coco  # noqa: E402

SYNTHETIC = ('--num', 12, '--size', 64, '--workers', 2)
SEED = 20261121

# Tool, its arguments (words in braces are files of `sources`), name of its target
CASES = {
    'synthetic':   (make_synthetic, (*SYNTHETIC, '--out', '{out}'), 'set'),
    'shards':      (make_shards, ('{people}', '--per-shard', 3, '--out', '{out}'), 'shards'),
    'people npz':  (make_shards, ('{people}', '--to', 'npz', '--out', '{out}'), 'people.npz'),
    'smpl':        (convert_smpl, ('{smpl}', '--out', '{out}'), 'SMPL.npz'),
    'pth':         (convert_weights, ('{weights}', '{out}'), 'weights.pth'),
    'safetensors': (convert_weights, ('{weights}', '{out}'), 'weights.safetensors'),
    'export':      (export, ('VMPose-T-S2', '--output', '{out}'), 'model.pt'),
    'onnx':        (export, ('VMPose-T-S2', '--output', '{out}'), 'model.onnx'),
    'prior':       (make_pose_prior, ('--num', 2, '--out', '{out}'), 'assets'),
}  # fmt: skip
EXPORTS = 'export', 'onnx'
QUICK = [pytest.param(name, marks=pytest.mark.slow) if name in EXPORTS else name for name in CASES]


@pytest.fixture(scope='module')
def sources(tmp_path_factory):
    """Small inputs of the tools; writing the people compiles the kernels that forks inherit."""
    folder = tmp_path_factory.mktemp('sources')
    (folder / 'smpl').mkdir()
    cv2.setNumThreads(1)
    body = read_body(EMBEDDED_BODY)
    extra = body.pop('J_regressor_extra')
    body['kintree_table'] = body['kintree_table'].astype(np.int64)
    (folder / 'smpl' / 'SMPL_NEUTRAL.pkl').write_bytes(pickle.dumps(body))
    (folder / 'smpl' / 'SMPL_to_J19.pkl').write_bytes(pickle.dumps(extra))
    coco.write_coco(folder / 'people', num=6, size=64)
    return dict(
        smpl=folder / 'smpl',
        weights=asset('VMPose-T-S2.safetensors'),
        people=folder / 'people',
        home=folder,
    )


@pytest.fixture
def run_tool(sources, tmp_path):
    """Start a run whose processes end with the test."""
    runs = []
    (tmp_path / 'out').mkdir()

    def run_tool(*arguments, **options):
        runs.append(Run(tmp_path / 'log', *arguments, **options))
        return runs[-1]

    yield run_tool
    for run in runs:
        run.end()


@pytest.fixture
def start(sources, tmp_path, run_tool):
    """Start a tool of CASES, with its target in `folder`; returns the run and the target."""

    def start(name, prepare=None, folder=tmp_path / 'out'):
        tool, arguments, target = CASES[name]
        target = Path(folder, target)
        arguments = [str(each).format(**sources, out=target) for each in arguments]
        return run_tool(tool.main, *arguments, prepare=prepare), target

    return start


def digest(path):
    """Names and content of a file or folder; times within zip files are left out."""
    files = sorted(p for p in path.rglob('*') if p.is_file()) if path.is_dir() else [path]
    return [(p.name, hashlib.sha256(content(p)).hexdigest()) for p in files]


def content(path):
    if path.suffix != '.npz':
        return path.read_bytes()
    with np.load(path, allow_pickle=False) as arrays:
        return b''.join(name.encode() + arrays[name].tobytes() for name in arrays.files)


def names(folder):
    return [path.name for path in folder.iterdir()]


# --- Signals --------------------------------------------------------------------------------------
@pytest.fixture
def endless(tmp_path, run_tool):
    """Start a long make_synthetic; returns it when images have been written."""

    def start():
        arguments = '--num', 10**6, '--size', 64, '--workers', 2, '--out', tmp_path / 'out' / 'set'
        run = run_tool(make_synthetic.main, *arguments)
        until(
            lambda: any(tmp_path.glob('out/.set.part/images/000050.jpg')),
            f'the first images; {run.log.read_text()}',
        )
        workers = run.workers()
        assert len(workers) == 2
        return run, workers

    return start


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_workers_and_leaves_nothing(endless, tmp_path, number):
    run, workers = endless()
    run.kill(number)
    assert run.wait() == 128 + number
    assert all(map(ended, workers))
    assert run.log.read_text() == f'stopped by {number.name}\n'
    assert names(tmp_path / 'out') == []


def test_workers_end_with_a_killed_parent_and_the_next_run_takes_over(endless, start, tmp_path):
    run, workers = endless()
    os.kill(workers[0], signal.SIGSTOP)  # stopped ones, too
    run.kill(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    until(lambda: all(map(ended, workers)), 'the end of the workers')
    assert names(tmp_path / 'out') == ['.set.part']
    run, _ = start('synthetic')
    assert run.wait() == 0, run.log.read_text()
    assert names(tmp_path / 'out') == ['set']


def test_a_killed_worker_ends_the_run_with_an_error_that_says_so(endless, tmp_path):
    run, workers = endless()
    os.kill(workers[1], signal.SIGKILL)
    assert run.wait() == 1
    text = run.log.read_text()
    assert f'worker process {workers[1]} was killed by SIGKILL before its work was done' in text
    assert 'Traceback' not in text
    assert all(map(ended, workers)) and names(tmp_path / 'out') == []


def test_a_stopped_worker_ends_the_run_with_an_error_that_says_so(sources):
    def stop(item):
        os.kill(os.getpid(), signal.SIGSTOP)

    made = processes.in_processes(stop, range(4), workers=2, method='fork', patience=1)
    with pytest.raises(
        RuntimeError, match=r'worker process \d+ has sent nothing for 1 s: it is sto'
    ):
        next(made)
    assert multiprocessing.active_children() == []


def test_exceptions_of_the_work_are_raised_with_their_place(sources):
    made = processes.in_processes(int, ['1', '2', 'three', '4'], workers=2, method='fork')
    assert [next(made), next(made)] == [1, 2]
    with pytest.raises(ValueError, match='three') as caught:
        next(made)
    assert 'in a worker process' in str(caught.value.__cause__)


def test_the_loop_ends_wherever_a_signal_interrupts_it(sources, run_tool):
    def interrupt_everywhere():
        lines = 0
        while True:
            made = processes.in_processes(str, range(12), workers=1, method='fork')
            next(made)
            if not interrupted_at(lines + 1, made):
                break
            lines += 1
        print('lines:', lines)

    run = run_tool(interrupt_everywhere)
    assert run.wait() == 0, run.log.read_text()
    assert int(run.log.read_text().removeprefix('lines: ')) > 30


# --- Kills, full disks, folders that cannot be written --------------------------------------------
def complete(start, name, reference={}):  # noqa: B006  each tool once
    """Digest of a complete target."""
    if name not in reference:
        run, target = start(name)
        assert run.wait() == 0, run.log.read_text()
        reference[name] = digest(target)
        remove(target)
    return reference[name]


def remove(path):
    for each in sorted(path.rglob('*'), reverse=True) if path.is_dir() else ():
        each.rmdir() if each.is_dir() else each.unlink()
    path.rmdir() if path.is_dir() else path.unlink()


def kill_once(start, tmp_path, name, generator):
    expected = complete(start, name)
    moment = generator.randrange(1, 16 if len(expected) > 1 else 4)
    where = f'{name}, killed at file event {moment} (seed {SEED})'
    run, target = start(name, partial(killed_at, moment, tmp_path / 'out'))
    killed = run.wait()
    assert killed in (0, -signal.SIGKILL), f'{where}: {run.log.read_text()}'
    if target.exists():
        assert digest(target) == expected, where
        remove(target)
    run, target = start(name)
    assert run.wait() == 0, f'{where}; the next run: {run.log.read_text()}'
    assert digest(target) == expected, where
    assert names(tmp_path / 'out') == [target.name], where
    remove(target)
    return killed


@pytest.mark.parametrize('name', ['synthetic', 'shards', 'smpl', 'pth'])
def test_a_killed_tool_leaves_its_target_absent_or_whole(start, tmp_path, name):
    assert kill_once(start, tmp_path, name, random.Random(f'{SEED} {name}')) in (0, -9)


@pytest.mark.slow
@pytest.mark.parametrize(
    'name', ['synthetic', 'shards', 'people npz', 'smpl', 'pth', 'safetensors']
)
def test_many_kills_of_each_tool_leave_its_target_absent_or_whole(start, tmp_path, name):
    generator = random.Random(f'{SEED} {name}, many')
    ends = [kill_once(start, tmp_path, name, generator) for _ in range(12)]
    assert ends.count(-signal.SIGKILL) >= 6


@pytest.mark.parametrize('name', QUICK)
def test_a_full_disk_is_an_error_that_names_the_path(start, tmp_path, name):
    run, target = start(name, partial(full_disk, 10**6 if name in EXPORTS else 500))
    assert run.wait() == 1
    text = run.log.read_text()
    assert str(target) in text and 'Traceback' not in text, text
    assert re.search('File too large|disk', text), text
    assert names(tmp_path / 'out') == ([target.name] if name == 'prior' else []), text


@pytest.mark.parametrize('name', QUICK)
def test_a_folder_without_permission_is_an_error_that_names_the_path(start, tmp_path, name):
    locked = tmp_path / 'locked'
    locked.mkdir()
    locked.chmod(0o555)

    def prepare():  # the working folder and the home as well
        without_privileges()
        os.chdir(locked)
        os.environ['HOME'] = str(locked)

    run, target = start(name, prepare, folder=locked)
    assert run.wait() == 1
    text = run.log.read_text()
    assert str(locked) in text and 'Permission denied' in text and 'Traceback' not in text, text
    assert names(locked) == []


def test_the_body_cannot_be_written_to_a_full_disk(tmp_path, run_tool):
    pytest.importorskip('smplx')

    def prepare():
        # Packages that only making the body from its sources needs; the body is the shipped one.
        for name in ('anny', 'fast_simplification'):
            sys.modules.setdefault(name, type(sys)(name)).Anny = None
        import build_body

        build_body.build = partial(read_body, EMBEDDED_BODY)
        full_disk(2000)

    def main():
        sys.argv[1:] = ['--out', str(tmp_path / 'out' / 'body.npz')]
        sys.modules['build_body'].main()

    run = run_tool(main, prepare=prepare)
    assert run.wait() == 1
    assert (
        f"error: [Errno 27] File too large: '{tmp_path / 'out' / 'body.npz'}'"
        in run.log.read_text()
    )
    assert names(tmp_path / 'out') == []
