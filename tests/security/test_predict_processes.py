"""Signals, a second run in one folder, full disks: what is done stays whole and can be resumed."""

import contextlib
import gc
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile

import cv2
import numpy as np
import pytest
from small_models import mesh_config, noise, pose_config, write_clip, write_weights

from trunchier.files.lock import FolderInUse
from trunchier.inference import command, results
from trunchier.inference.mesh import MeshInferencer
from trunchier.inference.pose import PoseInferencer
from trunchier.inference.sources import import_av

FRAMES, SEGMENT, ASKED = 200, 5, 12
PATIENCE = 120  # seconds that a process which hangs is waited for

# The command; it says what it has saved, and waits for the test after ASKED frames.
DRIVER = f"""
import sys
from trunchier.inference import command, results

add, results.SEGMENT = results.Saver.add, {SEGMENT}

def told(*given):
    add(*given)
    print('saved', flush=True)
    if given[1].index == {ASKED} - 1:
        sys.stdin.read()

results.Saver.add = told
sys.exit(command.main(sys.argv[1:]))
"""


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    """Arguments that name a small model, by task."""
    folder, found = tmp_path_factory.mktemp('models'), {}
    for task, config in (('pose', pose_config), ('mesh', mesh_config)):
        cfg, path = config(), folder / f'{task}_model.py'
        cfg.dump(path)
        write_weights(cfg, folder / f'{task}.pth')
        weights = str(folder / f'{task}.pth')
        found[task] = ['--device', 'cpu', '--model', str(path), '--weights', weights]
    return found


@pytest.fixture(scope='module')
def inferencers(models):
    kinds = dict(pose=PoseInferencer, mesh=MeshInferencer)
    return {task: kinds[task](*given[3::2], device='cpu') for task, given in models.items()}


@pytest.fixture(scope='module')
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp('clip') / 'clip.mp4', FRAMES, 48, 64)


def run(*given):
    return command.main([str(each) for each in given])


@contextlib.contextmanager
def started(*given, **options):
    """The command in a process group of its own, that has saved ASKED frames and waits."""
    process = subprocess.Popen(
        [sys.executable, '-W', 'ignore', '-c', DRIVER, *map(str, given)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, **options,
    )  # fmt: skip
    try:
        for _ in range(ASKED):
            assert process.stdout.readline() == 'saved\n', process.communicate()[1]
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def frames_of(path):
    with import_av().open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def assert_whole_segments(folder):
    """Every segment has its frames in both of its files, and nothing else is left."""
    done = 0
    for path in sorted(folder.glob('*.npz')):
        start, end = map(int, path.stem.split('-'))
        assert start == done and frames_of(path.with_suffix('.mp4')) == end - start
        with np.load(path) as arrays:
            assert arrays['frame'].tolist() == list(range(start, end))
        done = end
    names = {p.suffix for p in folder.iterdir()}
    assert names <= {'.npz', '.mp4'} and not list(folder.glob('.*'))
    return done


def assert_stopped(process, number, folder):
    """It ends, with all of its children, and leaves whole segments."""
    process.send_signal(number)
    out, errors = process.communicate(timeout=PATIENCE)  # it goes on saving, then ends
    assert process.returncode == 128 + number
    assert errors.strip().splitlines()[-1].startswith('interrupted; continue with the same')
    assert f'stopped by {signal.Signals(number).name}' in errors
    with pytest.raises(ProcessLookupError):  # no child is left
        os.killpg(process.pid, 0)
    done = assert_whole_segments(folder / '.clip.part')
    assert ASKED + out.count('saved') == done < FRAMES
    assert not (folder / '.lock').exists() and not (folder / 'predictions/clip.json').exists()


def assert_complete(folder):
    predicted = json.loads((folder / 'predictions/clip.json').read_text())
    assert len(predicted['instance_info']) == FRAMES
    assert frames_of(folder / 'visualizations/clip.mp4') == FRAMES


def test_a_second_run_is_refused_and_the_first_can_be_terminated_and_resumed(
    models, clip, tmp_path, capsys
):
    given = [clip, '--out-dir', tmp_path, '--quiet', *models['pose']]
    with started(*given) as first:
        before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*') if p.is_file()}
        assert run(*given) == command.EXIT_ERROR
        last = capsys.readouterr().err.strip().splitlines()[-1]
        assert f'{tmp_path} is in use by another run (process {first.pid})' in last
        assert all(p.stat().st_mtime_ns == time for p, time in before.items())
        assert_stopped(first, signal.SIGTERM, tmp_path)
    assert run(*given, '--resume') == 0
    assert_complete(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGHUP])
def test_other_signals_stop_a_run_too(models, clip, tmp_path, number):
    given = [clip, '--out-dir', tmp_path, '--quiet', *models['pose']]
    default = lambda: signal.signal(number, signal.SIG_DFL)  # noqa: E731  as of a shell
    with started(*given, preexec_fn=default) as process:
        assert_stopped(process, number, tmp_path)


@pytest.mark.slow
def test_a_killed_run_leaves_no_lock(models, clip, tmp_path):
    given = [clip, '--out-dir', tmp_path, '--quiet', *models['pose']]
    with started(*given) as process:
        process.kill()
        process.wait()
        assert run(*given, '--resume') == 0
    assert_complete(tmp_path)


def test_two_runs_of_one_process_in_one_folder_are_refused_too(inferencers, clip, tmp_path):
    infer = inferencers['pose']
    first = infer(clip, out_dir=tmp_path)
    next(first)
    second = infer(clip, out_dir=tmp_path)
    with pytest.raises(FolderInUse, match='in use by another run'):
        next(second)
    first.close()


def test_a_run_that_is_never_started_keeps_nobody_out(inferencers, clip, tmp_path):
    infer = inferencers['pose']
    unused = infer(clip, out_dir=tmp_path)
    assert not (tmp_path / 'run.json').exists()
    assert len(list(infer(clip, out_dir=tmp_path, frames=slice(2)))) == 2
    unused.close()
    assert (tmp_path / 'run.json').exists() and not (tmp_path / '.lock').exists()
    next(infer(clip, out_dir=tmp_path))


# --- full and unwritable disks --------------------------------------------------------------------
@contextlib.contextmanager
def files_of_at_most(size):
    """Writing beyond `size` bytes fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    'task, given, save, size, named',
    [
        ('pose', 'photo.png', 'json', 700, 'predictions/photo.json'),
        ('pose', 'photo.png', 'npz', 700, 'predictions/photo.npz'),
        ('pose', 'photo.png', 'images', 700, 'visualizations/photo.jpg'),
        ('mesh', 'photo.png', 'glb', 50_000, 'meshes/photo.glb'),
        ('mesh', 'photo.png', 'obj', 50_000, 'meshes/photo_0.obj'),
        ('pose', 'clip.mp4', 'video', 700, '.clip.part/.growing.mp4'),
        ('pose', 'clip.mp4', 'json', 700, '.clip.part/00000000-00000020.npz'),
        ('pose', 'photo.png', 'json', 10, 'run.json'),
    ],
)
def test_a_full_disk_is_an_error_that_names_the_file_and_can_be_resumed_from(
    inferencers, tmp_path, monkeypatch, task, given, save, size, named
):
    monkeypatch.setattr(results, 'SEGMENT', 20)
    cv2.imwrite(str(tmp_path / 'photo.png'), noise(60, 80))
    write_clip(tmp_path / 'clip.mp4', frames=40)
    infer, out = inferencers[task], tmp_path / 'out'
    with pytest.raises(OSError, match='File too large') as error, files_of_at_most(size):
        list(infer(tmp_path / given, out_dir=out, save=(save,)))
    assert error.value.filename == str(out / named)
    del error
    gc.collect()  # of what was being written; its errors would come in the middle of another test
    kept = {str(p.relative_to(out)) for p in out.rglob('*') if p.is_file()}
    assert kept <= {'run.json', '.clip.part/.growing.mp4'} - ({named} if size < 100 else set())
    list(infer(tmp_path / given, out_dir=out, save=(save,), resume=True))
    assert not list(out.glob('.*')) and any(p.stat().st_size > size for p in out.rglob('*'))


def test_a_full_disk_for_temporary_files_is_named(models, tmp_path, capsys):
    cv2.imwrite(str(tmp_path / 'photo.png'), noise(60, 80))
    with files_of_at_most(10):
        code = run(tmp_path / 'photo.png', '--out-dir', tmp_path / 'out', *models['pose'])
    assert code == command.EXIT_ERROR
    assert f'a temporary file below {tempfile.gettempdir()}' in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_needs_no_home_folder(models, tmp_path):
    """Below /proc nobody can create a file."""
    cv2.imwrite(str(tmp_path / 'photo.png'), noise(60, 80))
    given = [tmp_path / 'photo.png', '--out-dir', tmp_path / 'out', *models['pose']]
    nowhere = {name: f'/proc/none/{name}' for name in ('HOME', 'XDG_CACHE_HOME', 'XDG_CONFIG_HOME')}
    code = 'import sys; from trunchier.inference.command import main; sys.exit(main(sys.argv[1:]))'
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code, *map(str, given)],
        env=os.environ | nowhere, stderr=subprocess.PIPE, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'out/predictions/photo.json').exists()


def test_a_folder_that_cannot_be_written_is_named_before_any_work(models, tmp_path, capsys):
    cv2.imwrite(str(tmp_path / 'photo.png'), noise(60, 80))
    given = [tmp_path / 'photo.png', '--out-dir', '/proc/none/out', *models['pose']]
    assert run(*given) == command.EXIT_ERROR
    assert 'nothing can be written to /proc/none/out' in capsys.readouterr().err
