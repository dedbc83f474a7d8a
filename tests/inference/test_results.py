"""Interrupted runs leave valid files, and resumed they give the result of an uninterrupted run."""

import json
import shutil

import cv2
import numpy as np
import pytest
from small_models import CONFIGS, noise, write_clip

from trunchier.conventions import person
from trunchier.inference import results
from trunchier.inference.sources import import_av

FRAMES, SEGMENT = 21, 6
BOXES = [[10, 10, 60, 90], [70, 5, 120, 90]]


@pytest.fixture(scope='module', params=['pose', 'mesh'])
def infer(request, weights, inferencer_types):
    task = request.param
    # Smoothing and tracking depend on earlier frames, also of the interrupted run.
    options = dict(smooth=True, device='cpu', batch_size=2)
    return inferencer_types[task](CONFIGS[task](), weights[task], **options)


@pytest.fixture(scope='module')
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp('clip') / 'clip.mp4', frames=FRAMES)


@pytest.fixture(autouse=True)
def short_segments(monkeypatch):
    monkeypatch.setattr(results, 'SEGMENT', SEGMENT)


def run(infer, given, out, stop=None, **options):
    """Predict into `out`; `stop`: after so many frames."""
    # On black, what compression changes is small beside what is drawn.
    options = dict(black_background=True, save=('json', 'npz', 'video', 'images')) | options
    found = infer(given, out_dir=out, bboxes=BOXES, **options)
    count = 0
    for count, _ in enumerate(found, 1):  # noqa: B007
        if count == stop:
            found.close()
            break
    return count


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob('*') if p.is_file())


def read_video(path):
    with import_av().open(str(path)) as container:
        return [frame.to_ndarray(format='bgr24') for frame in container.decode(video=0)]


def assert_same(found, expected):
    """Equal predictions and, up to compression, equal images."""
    for name in ('predictions/clip.json', 'run.json'):
        assert json.loads((found / name).read_text()) == json.loads((expected / name).read_text())
    with (
        np.load(found / 'predictions/clip.npz') as a,
        np.load(expected / 'predictions/clip.npz') as b,
    ):
        assert a.files == b.files
        for name in a.files:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    images = [read_video(f / 'visualizations/clip.mp4') for f in (found, expected)]
    assert len(images[0]) == len(images[1]) == FRAMES
    for a, b in zip(*images, strict=True):
        assert np.abs(a.astype(int) - b).mean() < 3


@pytest.fixture(scope='module')
def whole(infer, clip, tmp_path_factory):
    """Files of an uninterrupted run."""
    folder = tmp_path_factory.mktemp('whole')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, 'SEGMENT', SEGMENT)
        assert run(infer, clip, folder) == FRAMES
    return folder


def test_a_video_leaves_its_files_and_nothing_unfinished(whole):
    assert files(whole) == [
        'predictions/clip.json', 'predictions/clip.npz', 'run.json', 'visualizations/clip.mp4',
    ]  # fmt: skip
    assert not list(whole.glob('.*'))
    content = json.loads((whole / 'predictions/clip.json').read_text())
    predicted = content['instance_info']
    assert content['meta_info']['image_size'] == [128, 96] and content['meta_info']['fps'] == 10
    assert [frame['frame_id'] for frame in predicted] == list(range(FRAMES))
    assert [person['track_id'] for person in predicted[-1]['instances']] == [0, 1]
    with np.load(whole / 'predictions/clip.npz') as arrays:
        np.testing.assert_array_equal(arrays['frame'], np.repeat(np.arange(FRAMES), 2))
        assert arrays['fps'] == 10
        assert not [name for name in arrays.files if name.startswith(('raw_', 'camera_'))]


@pytest.mark.parametrize('stop', [1, SEGMENT, 13])
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


def test_a_killed_run_loses_at_most_a_segment(infer, clip, whole, tmp_path, monkeypatch):
    """Killed: nothing is cleaned up."""
    with monkeypatch.context() as patch:
        patch.setattr(results.Saver, 'interrupt', lambda self: None)
        run(infer, clip, tmp_path, stop=SEGMENT + 2)
    left = run(infer, clip, tmp_path, resume=True)
    assert FRAMES - 2 * SEGMENT - 9 <= left <= FRAMES - SEGMENT
    assert_same(tmp_path, whole)


def test_a_run_killed_before_joining_segments_only_joins_them(
    infer, clip, whole, tmp_path, monkeypatch
):
    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(results.writers, 'concatenate_videos', killed)
        with pytest.raises(KeyboardInterrupt):
            run(infer, clip, tmp_path)
    assert run(infer, clip, tmp_path, resume=True) == 0
    assert_same(tmp_path, whole)


@pytest.mark.parametrize('content', ['[]', '[{}]', 'no JSON', '[' * 100_000, '"text"', ''])
def test_a_folder_whose_description_is_no_description_is_refused(infer, clip, tmp_path, content):
    (tmp_path / 'run.json').write_text(content)
    with pytest.raises(ValueError, match=r'run\.json was not written by a run'):
        run(infer, clip, tmp_path, resume=True)
    assert not (tmp_path / '.lock').exists() and (tmp_path / 'run.json').read_text() == content


def test_damaged_segments_are_predicted_again(infer, clip, whole, tmp_path):
    run(infer, clip, tmp_path, stop=3 * SEGMENT + 2)
    first, second = sorted(tmp_path.glob('.clip.part/*.npz'))[:2]
    second.write_bytes(second.read_bytes()[:-200])
    left = run(infer, clip, tmp_path, resume=True)
    assert left == FRAMES - SEGMENT  # all after the first
    assert_same(tmp_path, whole)


def test_without_resume_a_run_starts_again(infer, clip, tmp_path):
    run(infer, clip, tmp_path, stop=13)
    assert run(infer, clip, tmp_path, stop=2) == 2
    assert sum(len(read_video(p)) for p in tmp_path.glob('.clip.part/*.mp4')) < 13


def test_a_finished_run_is_not_repeated(infer, clip, whole, tmp_path):
    shutil.copytree(whole, tmp_path / 'out')
    assert run(infer, clip, tmp_path / 'out', resume=True) == 0


def test_images_that_are_done_are_not_repeated(infer, tmp_path):
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
    with pytest.raises(ValueError, match=r'another run \(painting: .*resume it with its options'):
        run(infer, clip, tmp_path, resume=True, draw_bbox=True)


def test_frames_of_a_video_as_images(infer, clip, tmp_path):
    list(infer(clip, out_dir=tmp_path, save=['images']))
    expected = [f'visualizations/clip/{i:06d}.jpg' for i in range(FRAMES)]
    assert files(tmp_path) == ['run.json', *expected]


def test_a_full_disk_ends_the_run_and_keeps_what_was_done(
    infer, clip, whole, tmp_path, monkeypatch
):
    """The second segment finds the disk full; with space again, the run resumes."""
    write, calls = results.save_npz, []

    def full(path, **arrays):
        calls.append(path)
        if len(calls) >= 2:
            raise OSError(28, 'No space left on device')
        write(path, **arrays)

    with monkeypatch.context() as patch:
        patch.setattr(results, 'save_npz', full)
        with pytest.raises(OSError, match='No space left'):
            run(infer, clip, tmp_path)
    assert len(list(tmp_path.glob('.clip.part/*.npz'))) == 1
    assert run(infer, clip, tmp_path, resume=True) == FRAMES - SEGMENT
    assert_same(tmp_path, whole)


def test_saved_fields_have_the_shapes_of_a_person():
    fields = person()
    people = {name: np.zeros((2, *fields[name].shape)) for name in fields}
    for name in ('global_orient', 'body_pose'):
        people[name] += np.eye(3)
    record = results.to_record(people)
    for name in ('keypoints', 'keypoint_scores', 'betas', 'joints'):
        assert record[name].shape == (2, *fields[name].shape)
    assert record['transl'].shape == (2, *fields['translation'].shape)
    pose = np.concatenate([record['global_orient'], record['body_pose']], axis=1)
    assert pose.shape == (2, *fields['pose'].shape)
    assert not pose.any()
