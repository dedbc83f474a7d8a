"""Training that is killed at any moment resumes, and ends as if nothing had happened."""

import contextlib
import os
import random
import re
import signal
import time

import pytest
import torch
from people import write_shards
from small_trainings import draw_people, mesh, pose

from trunchier.weights.load import read_weights

SETTINGS = {'pose': 'epoch_4.pth', 'mesh': 'iter_8.pth'}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """pose.py and mesh.py, and what they train on."""
    folder = tmp_path_factory.mktemp('kills')
    write_shards(folder / 'shards')
    mesh(folder).dump(folder / 'mesh.py')
    draw_people(folder)
    (folder / 'pose.py').write_text(pose(folder))
    return folder


@pytest.fixture(scope='module')
def whole(server, folder):
    """{task: its last checkpoint after a training that nothing disturbed}, and what is beside."""
    found = dict(seconds={}, files={})
    for task, last in SETTINGS.items():
        begin = time.monotonic()
        code = train(server, folder, task, 'whole')
        assert code == 0, (folder / f'whole_{task}.log').read_text()[-3000:]
        work = folder / f'whole_{task}'
        found[task] = read_weights(work / last)
        found['seconds'][task] = time.monotonic() - begin
        found['files'][task] = {path.name for path in work.glob('*.pth')}
    return found


def train(server, folder, task, name, **options):
    work = folder / f'{name}_{task}'
    arguments = 'train.py', folder / f'{task}.py', '--work-dir', work, '--resume'
    return server.run(work.with_suffix('.log'), *arguments, **options)


def same(a, b):
    """Equal in all tensors and numbers, to the last bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize('task', SETTINGS)
def test_a_training_killed_while_it_writes_resumes_and_ends_the_same(task, server, folder, whole):
    # The second checkpoint is written but not renamed; then it stands but nothing points to it.
    second = 'epoch_2' if task == 'pose' else 'iter_4'
    for kill_at in (rf'os.rename \.{second}', r'open \.last_checkpoint'):
        code = train(server, folder, task, 'killed', kill_at=kill_at)
        log = (folder / f'killed_{task}.log').read_text()
        assert code == -9, log[-3000:]
    assert train(server, folder, task, 'killed') == 0
    assert_same_end(folder / f'killed_{task}', task, whole)


def assert_same_end(work, task, whole):
    last = work / SETTINGS[task]
    found = read_weights(last)
    assert same(found['state_dict'], whole[task]['state_dict'])
    assert same(found['optimizer'], whole[task]['optimizer'])
    assert (work / 'last_checkpoint').read_text() == str(last)
    assert {path.name for path in work.glob('*.pth')} == whole['files'][task]
    assert not list(work.glob('.*.part*'))


@pytest.mark.slow
@pytest.mark.parametrize('task', SETTINGS)
def test_forty_random_kills_lose_nothing(task, server, folder, whole):
    seed = random.randrange(1 << 30)
    print(f'{task}, seed {seed}')
    draw, seconds, killed, ended = random.Random(seed), whole['seconds'][task], 0, 0
    while killed < 40:
        work = folder / f'random{ended}_{task}'
        arguments = work.with_suffix('.log'), 'train.py', folder / f'{task}.py'
        arguments = *arguments, '--work-dir', work, '--resume'
        if draw.random() < 0.5:
            moment = draw.randint(1, 12)
            code = server.run(*arguments, kill_at=moment)
        else:
            moment = draw.uniform(0.1, 0.7) * seconds
            child = server.start(*arguments)
            time.sleep(moment)
            with contextlib.suppress(ProcessLookupError):  # it has ended
                os.kill(child, signal.SIGKILL)
            code = server.wait()
        log = work.with_suffix('.log').read_text()
        assert code in (0, -signal.SIGKILL), f'seed {seed}\n{log[-3000:]}'
        files = sorted(path.name for path in work.glob('*.pth'))
        event = re.findall(r'killed at (.*)', log) or [f'{moment:.1f} s']
        print(f'{killed:2} {task} {"ended" if code == 0 else event[0]}: {files}', flush=True)
        if code == 0:
            ended += 1
            assert_same_end(work, task, whole)
        killed += code != 0
    assert train(server, folder, task, f'random{ended}') == 0
    assert_same_end(folder / f'random{ended}_{task}', task, whole)
