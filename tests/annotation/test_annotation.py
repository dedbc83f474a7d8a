"""A folder of images and a teacher give a data set, whoever does the work and whoever dies."""

import json
import os
import shutil
import signal
import sys

import cv2
import forked
import numpy as np
import pytest
from benchmark.annotation import TrivialTeacher
from small_models import noise

from trunchier.annotation import annotate as annotating
from trunchier.annotation.annotate import annotate
from trunchier.annotation.filters import Thresholds
from trunchier.annotation.merge import merge
from trunchier.annotation.views import Views
from trunchier.annotation.work import (
    Claims,
    OtherRun,
    Shard,
    Workplace,
    parse_shard,
    shard_of_job,
    units,
)
from trunchier.conventions import COCO_17
from trunchier.inference.detection import GivenBoxes, whole_image

SETTINGS = dict(model='trivial', digest='0', keypoints=list(COCO_17))


@pytest.fixture
def photos(tmp_path):
    """Twelve images, one of them broken and one the copy of another."""
    folder = tmp_path / 'photos'
    (folder / 'more').mkdir(parents=True)
    for index in range(10):
        name = f'{index}.png' if index < 6 else f'more/{index - 6}.png'
        cv2.imwrite(str(folder / name), noise(40, 30, seed=index))
    (folder / 'broken.jpg').write_bytes(b'no image')
    shutil.copy(folder / '0.png', folder / 'again.png')
    return folder


def run(photos, out, **options):
    work = Workplace(out, SETTINGS)
    progress = annotate([str(photos)], work, Views(TrivialTeacher()), whole_image, **options)
    return work, progress


def read(out):
    return json.loads((out / 'person_keypoints.json').read_text())


def test_a_folder_becomes_a_data_set(photos, tmp_path):
    work, progress = run(photos, tmp_path / 'out')
    assert (progress.done, progress.people, progress.unreadable) == (12, 11, 1)
    merged = merge(work)
    assert merged.counts == {'kept': 10, 'duplicate': 1} and merged.missing == []
    ((where, why),) = merged.unreadable
    assert where.endswith('broken.jpg') and 'decode' in why
    content = read(tmp_path / 'out')
    assert [each['id'] for each in content['annotations']] == list(range(1, 11))
    for image, person in zip(content['images'], content['annotations'], strict=True):
        assert (tmp_path / 'out' / image['file_name']).is_file()
        assert (image['width'], image['height']) == (30, 40)
        assert person['bbox'] == [0, 0, 30, 40] and person['num_keypoints'] == 17
        assert person['keypoints'][:3] == [15, 20, 2] and person['keypoint_scores'] == [1] * 17
    report = (tmp_path / 'out/report.html').read_text()
    assert '<svg' in report and 'duplicate' in report and 'broken.jpg' in report
    assert cv2.imread(str(tmp_path / 'out/sheet.jpg')).shape[0] > 256


def test_finished_inputs_are_skipped_and_changed_ones_are_not(photos, tmp_path):
    run(photos, tmp_path / 'out')
    cv2.imwrite(str(photos / '3.png'), noise(50, 30, seed=99))
    work, progress = run(photos, tmp_path / 'out')
    assert (progress.done, progress.before) == (1, 11)
    merge(work)
    assert sorted(each['height'] for each in read(tmp_path / 'out')['images']) == [40] * 9 + [50]


def test_boxes_of_the_data_set_are_read_back(photos, tmp_path):
    work, _ = run(photos, tmp_path / 'out')
    merge(work)
    boxes = GivenBoxes.of(tmp_path / 'out/person_keypoints.json')
    found = [unit.source for unit in units([str(photos)], tmp_path / 'out')]
    missing = boxes.missing(found)
    assert missing == ['again', 'broken']


def test_another_model_is_refused_by_name(photos, tmp_path):
    run(photos, tmp_path / 'out')
    with pytest.raises(OtherRun, match=r'by trivial \(weights of digest 0\), not by VMPose \(1\)'):
        Workplace(tmp_path / 'out', SETTINGS | dict(model='VMPose', digest='1'))
    with pytest.raises(OtherRun, match='mirrored was None, is False'):
        Workplace(tmp_path / 'out', SETTINGS | dict(mirrored=False))
    with pytest.raises(FileNotFoundError, match='holds no run'):
        Workplace(tmp_path / 'nothing')


def test_nobody_in_any_image_is_an_error_that_says_what_to_try(photos, tmp_path):
    work = Workplace(tmp_path / 'out', SETTINGS)
    nobody = lambda frame: np.empty((0, 5), np.float32)  # noqa: E731
    annotate([str(photos)], work, Views(TrivialTeacher()), nobody)
    with pytest.raises(ValueError, match=r'no person was found in any image \(12 inputs.*detector'):
        merge(work)


def test_keypoints_are_taken_by_name_or_refused(photos, tmp_path):
    names = [*COCO_17[1:], 'tail']
    work = Workplace(tmp_path / 'out', SETTINGS | dict(keypoints=names))
    annotate([str(photos)], work, Views(TrivialTeacher()), whole_image)
    with pytest.raises(ValueError, match=r'the teacher has no nose .*--own-keypoints'):
        merge(work)
    merge(work, own_keypoints=True)
    assert read(tmp_path / 'out')['categories'][0]['keypoints'] == names


# --- Shards and claims ----------------------------------------------------------------------------
ARRAY = dict(SLURM_ARRAY_TASK_COUNT='4')


def test_each_input_belongs_to_one_shard(photos, tmp_path):
    keys = [unit.key for unit in units([str(photos)], tmp_path)]
    assert len(set(keys)) == 12
    for key in keys:
        assert sum(key in Shard(index, 5) for index in range(5)) == 1


@pytest.mark.parametrize(
    ('variables', 'shard'),
    [
        ({}, (0, 1)),
        (dict(SLURM_ARRAY_TASK_ID='2') | ARRAY, (2, 4)),
        (dict(SLURM_ARRAY_TASK_ID='3', SLURM_ARRAY_TASK_MIN='1') | ARRAY, (2, 4)),
        (dict(RANK='1', WORLD_SIZE='8'), (1, 8)),
        (dict(JOB_COMPLETION_INDEX='5', JOB_COMPLETIONS='6', RANK='0', WORLD_SIZE='1'), (5, 6)),
    ],
)  # fmt: skip
def test_jobs_say_which_shard_they_are(variables, shard):
    assert shard_of_job(variables) == Shard(*shard)


def test_wrong_shards_say_what_is_wanted():
    assert parse_shard('3/8') == Shard(3, 8)
    for text in ('8/8', '1', 'a/b', '0/0'):
        with pytest.raises(ValueError, match='INDEX/COUNT'):
            parse_shard(text)
    with pytest.raises(ValueError, match='JOB_COMPLETIONS is not'):
        shard_of_job(dict(JOB_COMPLETION_INDEX='0'))


def test_claims_of_the_living_hold_and_those_of_the_dead_do_not(tmp_path):
    with Claims(tmp_path) as first, Claims(tmp_path) as second:
        assert first.take('a') and not second.take('a')
        assert second.holder('a').endswith(f' {os.getpid()}')
        first.release('a')
        assert second.take('a')
        os.utime(second.own, (0, 0))  # no heartbeat since 1970
        assert first.take('a')
        first.own.write_text('elsewhere 1')
        assert first.take('b') and second.holder('b') == 'elsewhere 1'
    assert list(tmp_path.iterdir()) == []


# --- Kills ----------------------------------------------------------------------------------------
def work_in_a_fork(photos, out, index, prepare=None):
    def main():
        run(photos, out, shard=Shard(index, 4), take_over=index == 3)

    return forked.Run(out.parent / f'{out.name}-{index}.log', main, prepare=prepare)


@pytest.mark.parametrize('moments', [(3, 8), (5, 14), (11, 6)])
def test_killed_workers_leave_their_inputs_to_others(photos, tmp_path, moments):
    cv2.setNumThreads(1)
    whole, _ = run(photos, tmp_path / 'whole')
    merge(whole)
    out = tmp_path / 'parted'
    Workplace(out, SETTINGS)
    killed = [
        work_in_a_fork(photos, out, index, lambda at=at: forked.killed_at(at, out))
        for index, at in enumerate(moments)
    ]
    others = [work_in_a_fork(photos, out, index) for index in (2, 3)]
    assert [each.wait() for each in killed] == [-signal.SIGKILL] * 2
    assert [each.wait() for each in others] == [0, 0], [each.log.read_text() for each in others]
    before = {path: path.stat().st_mtime_ns for path in out.rglob('*.npz') if path.stem[0] != '.'}
    work, progress = run(photos, out)
    assert (progress.done, progress.before) == (12 - len(before), len(before))
    assert progress.held == {}
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())
    merged = merge(work)
    assert merged.missing == [] and merged.counts == {'kept': 10, 'duplicate': 1}
    for name in ('person_keypoints.json', 'sheet.jpg'):
        assert (out / name).read_bytes() == (tmp_path / 'whole' / name).read_bytes()
    assert list((out / 'claims').glob('[!.]*')) == []


def test_merging_names_what_is_missing_and_who_has_it(photos, tmp_path):
    work, _ = run(photos, tmp_path / 'out', shard=Shard(0, 2))
    left = [unit for unit in units([str(photos)], work.out) if unit.key not in Shard(0, 2)]
    with Claims(work.claims) as claims:
        claims.take(left[0].key)
        merged = merge(work)
    assert [name for name, _ in merged.missing] == [unit.file_name for unit in left]
    assert merged.missing[0][1].startswith('held by ') and merged.missing[1][1] == 'not done'
    assert left[1].file_name in (work.out / 'report.html').read_text()


def test_a_full_disk_leaves_whole_parts_and_no_claims(photos, tmp_path):
    out = tmp_path / 'out'
    Workplace(out, SETTINGS)

    def main():
        try:
            run(photos, out)
        except OSError as error:
            sys.exit(str(error))

    full = forked.Run(tmp_path / 'log', main, prepare=lambda: forked.full_disk(1000))
    assert full.wait() == 1 and 'File too large' in full.log.read_text()
    assert list((out / 'claims').iterdir()) == [] and list(out.rglob('*.npz')) == []
    _, progress = run(photos, out)
    assert progress.done == 12


def test_a_damaged_part_is_made_again(photos, tmp_path):
    work, _ = run(photos, tmp_path / 'out')
    part = work.part(next(units([str(photos)], work.out)))
    part.write_bytes(part.read_bytes()[:100])
    ((_, why),) = merge(work).missing
    assert 'damaged' in why
    assert run(photos, work.out)[1].done == 1


# --- Videos and turned images ---------------------------------------------------------------------
def test_frames_of_videos_become_images(tmp_path):
    pytest.importorskip('av')
    from trunchier.inference.writers import VideoWriter

    (tmp_path / 'in').mkdir()
    writer = VideoWriter(tmp_path / 'in/clip.mp4', 10, (40, 30))
    for index in range(6):
        writer.write(noise(40, 30, seed=index // 2))  # each picture twice
    writer.close()
    work, progress = run(tmp_path / 'in', tmp_path / 'out')
    assert progress.people == 6
    assert merge(work, Thresholds()).counts == {'kept': 3, 'duplicate': 3}
    names = [image['file_name'] for image in read(work.out)['images']]
    assert [name[-10:] for name in names] == ['000000.jpg', '000002.jpg', '000004.jpg']
    assert all(cv2.imread(str(work.out / name)).shape == (40, 30, 3) for name in names)


def test_photos_that_exif_turns_are_written_upright(tmp_path):
    image = pytest.importorskip('PIL.Image')
    exif = image.Exif()
    exif[274] = 6
    (tmp_path / 'in').mkdir()
    image.fromarray(noise(40, 30)).save(tmp_path / 'in/turned.jpg', exif=exif)
    work, _ = run(tmp_path / 'in', tmp_path / 'out')
    merge(work)
    (entry,) = read(work.out)['images']
    assert entry['file_name'].startswith(annotating.IMAGES + '/')
    assert (entry['width'], entry['height']) == (40, 30)
