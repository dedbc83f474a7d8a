"""Interrupted runs leave valid files and go on to the very result of one that was not."""

import json
import shutil

import cv2
import numpy as np
import pytest
from small_models import mesh_config, noise, pose_config, write_clip, write_weights

from trunchier.inference import results as saving
from trunchier.inference.inferencer import MeshInferencer, PoseInferencer
from trunchier.inference.sources import import_av

FRAMES, STRETCH = 21, 6
BOXES = [[10, 10, 60, 90], [70, 5, 120, 90]]


@pytest.fixture(scope='module', params=['pose', 'mesh'])
def infer(request, tmp_path_factory):
    path = tmp_path_factory.mktemp('weights') / 'a.pth'
    config = dict(pose=pose_config, mesh=mesh_config)[request.param]()
    kind = dict(pose=PoseInferencer, mesh=MeshInferencer)[request.param]
    write_weights(config, path)
    # Smoothing and tracking remember the past: what is resumed must too.
    return kind(config, path, smooth=True, device='cpu', batch_size=2)


@pytest.fixture(scope='module')
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp('clip') / 'clip.mp4', frames=FRAMES)


@pytest.fixture(autouse=True)
def short_stretches(monkeypatch):
    monkeypatch.setattr(saving, 'STRETCH', STRETCH)


def run(infer, given, out, stop=None, **options):
    """Predict into `out`; `stop`: after so many frames."""
    results = infer(given, out_dir=out, bboxes=BOXES, save=('json', 'npz', 'video', 'images'),
                    **options)  # fmt: skip
    count = 0
    for count, _ in enumerate(results, 1):  # noqa: B007
        if count == stop:
            results.close()
            break
    return count


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob('*') if p.is_file())


def read_video(path):
    with import_av().open(str(path)) as container:
        return [frame.to_ndarray(format='bgr24') for frame in container.decode(video=0)]


def assert_same(found, wanted):
    """Folders with the same predictions and, but for compression, the same pictures."""
    for name in ('predictions/clip.json', 'run.json'):
        assert json.loads((found / name).read_text()) == json.loads((wanted / name).read_text())
    with (
        np.load(found / 'predictions/clip.npz') as a,
        np.load(wanted / 'predictions/clip.npz') as b,
    ):
        assert a.files == b.files
        for name in a.files:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    pictures = [read_video(f / 'visualizations/clip.mp4') for f in (found, wanted)]
    assert len(pictures[0]) == len(pictures[1]) == FRAMES
    for a, b in zip(*pictures, strict=True):
        assert np.abs(a.astype(int) - b).mean() < 3


@pytest.fixture(scope='module')
def whole(infer, clip, tmp_path_factory):
    """What a run leaves that nobody interrupts."""
    folder = tmp_path_factory.mktemp('whole')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saving, 'STRETCH', STRETCH)
        assert run(infer, clip, folder) == FRAMES
    return folder


def test_a_video_leaves_its_files_and_nothing_unfinished(whole):
    assert files(whole) == [
        'predictions/clip.json', 'predictions/clip.npz', 'run.json', 'visualizations/clip.mp4',
    ]  # fmt: skip
    assert not list(whole.glob('.*'))
    predicted = json.loads((whole / 'predictions/clip.json').read_text())
    assert [frame['frame_id'] for frame in predicted] == list(range(FRAMES))
    assert [person['track_id'] for person in predicted[-1]['instances']] == [0, 1]
    with np.load(whole / 'predictions/clip.npz') as arrays:
        np.testing.assert_array_equal(arrays['frame'], np.repeat(np.arange(FRAMES), 2))
        assert arrays['fps'] == 10
        assert not [name for name in arrays.files if name.startswith(('raw_', 'camera_'))]


@pytest.mark.parametrize('stop', [1, STRETCH, 13])
def test_an_interrupted_video_goes_on_to_the_same_result(infer, clip, whole, tmp_path, stop):
    run(infer, clip, tmp_path, stop=stop)
    assert files(tmp_path / 'predictions') == files(tmp_path / 'visualizations') == []
    done = 0
    for part in sorted(tmp_path.glob('.clip.part/*.mp4')):
        done += len(read_video(part))  # each opens by itself
    assert done >= stop
    assert run(infer, clip, tmp_path, resume=True) == FRAMES - done
    assert infer.report.done_before == done
    assert_same(tmp_path, whole)


def test_a_killed_run_loses_a_stretch_at_most(infer, clip, whole, tmp_path, monkeypatch):
    """Killed: nothing is tidied up."""
    with monkeypatch.context() as patch:
        patch.setattr(saving.Saver, 'interrupt', lambda self: None)
        run(infer, clip, tmp_path, stop=STRETCH + 2)
    left = run(infer, clip, tmp_path, resume=True)
    assert FRAMES - 2 * STRETCH - 9 <= left <= FRAMES - STRETCH
    assert_same(tmp_path, whole)


def test_a_run_killed_before_the_last_step_only_does_that(
    infer, clip, whole, tmp_path, monkeypatch
):
    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(saving.writers, 'concatenate_videos', killed)
        with pytest.raises(KeyboardInterrupt):
            run(infer, clip, tmp_path)
    assert run(infer, clip, tmp_path, resume=True) == 0
    assert_same(tmp_path, whole)


def test_without_resume_a_run_begins_anew(infer, clip, tmp_path):
    run(infer, clip, tmp_path, stop=13)
    assert run(infer, clip, tmp_path, stop=2) == 2
    assert sum(len(read_video(p)) for p in tmp_path.glob('.clip.part/*.mp4')) < 13


def test_a_finished_run_is_not_repeated(infer, clip, whole, tmp_path):
    shutil.copytree(whole, tmp_path / 'out')
    assert run(infer, clip, tmp_path / 'out', resume=True) == 0


def test_pictures_that_are_done_are_not_repeated(infer, tmp_path):
    for i in range(6):
        cv2.imwrite(str(tmp_path / f'{i}.png'), noise(64, 64, seed=i))
    out = tmp_path / 'out'
    stopped = run(infer, tmp_path, out, stop=2)
    for name in files(out):
        if name.endswith('.json'):
            json.loads((out / name).read_text())
    written = len(files(out / 'predictions')) // 2
    assert stopped <= written
    left = run(infer, tmp_path, out, resume=True)
    assert left <= 6 - stopped and infer.report.done_before == 6 - left
    assert len(files(out / 'predictions')) == 12 and len(files(out / 'visualizations')) == 6


def test_other_settings_do_not_resume(infer, clip, tmp_path):
    run(infer, clip, tmp_path, stop=2)
    with pytest.raises(ValueError, match=r'another run \(painting: .*repeat its options'):
        run(infer, clip, tmp_path, resume=True, draw_bbox=True)


def test_frames_of_a_video_as_pictures(infer, clip, tmp_path):
    list(infer(clip, out_dir=tmp_path, save=['images']))
    wanted = [f'visualizations/clip/{i:06d}.jpg' for i in range(FRAMES)]
    assert files(tmp_path) == ['run.json', *wanted]


def test_a_full_disk_ends_the_run_with_what_was_done(infer, clip, whole, tmp_path, monkeypatch):
    """The second stretch finds no room; with room again, the run goes on."""
    write, calls = saving.writers.write_npz, []

    def full(arrays, path):
        calls.append(path)
        if len(calls) >= 2:
            raise OSError(28, 'No space left on device')
        write(arrays, path)

    with monkeypatch.context() as patch:
        patch.setattr(saving.writers, 'write_npz', full)
        with pytest.raises(OSError, match='No space left'):
            run(infer, clip, tmp_path)
    assert len(list(tmp_path.glob('.clip.part/*.npz'))) == 1
    assert run(infer, clip, tmp_path, resume=True) == FRAMES - STRETCH
    assert_same(tmp_path, whole)
