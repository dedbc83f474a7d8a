"""A training goes on with fewer processes: the same samples and, to rounding, the same weights."""

import json
import os
import socket
import subprocess
import sys

import people
import pytest
import small_trainings
import torch
from fork_server import ROOT

from trunchier.weights.load import read_weights

pytestmark = pytest.mark.slow
ITERATIONS = 8
# Notes the samples of each process and step; kills process 1 before step 5, once.
HOOK = """
import json, os, signal
from mmengine.dist import get_dist_info
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class Notes(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        rank, world = get_dist_info()
        folder, marker = runner.work_dir, os.path.join(runner.work_dir, 'killed')
        if rank == 1 and runner.iter == 5 and not os.path.exists(marker):
            open(marker, 'w').close()
            os.kill(os.getpid(), signal.SIGKILL)
        sums = [int(image.sum()) for image in data_batch['inputs']]
        with open(os.path.join(folder, f'samples-{rank}.jsonl'), 'a') as file:
            file.write(json.dumps([runner.iter, sums]) + '\\n')
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A config that trains on shards, and what one process makes of it."""
    folder = tmp_path_factory.mktemp('elastic')
    people.write_shards(folder / 'shards', shards=2, members=8)
    (folder / 'notes.py').write_text(HOOK)
    cfg = small_trainings.mesh(folder)
    cfg.model.backbone.drop_path_rate = 0.0  # random numbers of a rank
    cfg.model.loss = dict(reduction='mean')  # a sum over the samples of a process would differ
    cfg.optim_wrapper.optimizer = dict(type='SGD', lr=1e-4)  # 0.01 diverges, and so does rounding
    cfg.custom_imports.imports = [*cfg.custom_imports.imports, 'notes']
    cfg.custom_hooks = [*cfg.get('custom_hooks', []), dict(type='Notes')]
    cfg.train_dataloader.update(num_workers=0, persistent_workers=False)
    cfg.train_cfg.max_iters = ITERATIONS
    cfg.default_hooks.checkpoint.update(interval=2, max_keep_ckpts=9)
    cfg.default_hooks.logger.interval = cfg.log_processor.window_size = 1
    cfg.dump(folder / 'cfg.py')
    assert train(folder, [sys.executable, ROOT / 'tools/train.py'], 'whole') == 0
    return folder


def train(folder, command, work_dir, *arguments):
    path = os.pathsep.join([str(folder), str(ROOT), os.environ.get('PYTHONPATH', '')])
    environment = dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=path)
    command = [*command, 'cfg.py', '--work-dir', work_dir, '--total-batch', 4, *arguments]
    done = subprocess.run(
        [*map(str, command)], cwd=folder, env=environment, capture_output=True, text=True
    )
    (folder / f'{work_dir}.log').write_text(done.stdout + done.stderr)
    return done.returncode


def torchrun(count):
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    command = [sys.executable, '-m', 'torch.distributed.run', f'--nproc_per_node={count}']
    return [*command, f'--master_port={port}', ROOT / 'tools/train.py']


def samples(folder):
    """{step: sums of the images of all processes}; of a step that was repeated, the last."""
    found = {}
    for path in folder.glob('samples-*.jsonl'):
        for step, sums in map(json.loads, path.read_text().splitlines()):
            found.setdefault(step, {})[path.name] = sums
    return {step: sorted(sum(ranks.values(), [])) for step, ranks in found.items()}


def losses(folder):
    """{step: loss} of the newest log."""
    log = max(folder.glob('*/vis_data/scalars.json'))
    rows = map(json.loads, log.read_text().splitlines())
    return {row['step']: row['loss'] for row in rows if 'loss' in row}


def assert_close(found, wanted):
    found, wanted = (read_weights(path)['state_dict'] for path in (found, wanted))
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.allclose(found[name], value, rtol=1e-4, atol=1e-5), name


def test_two_processes_of_which_one_dies_and_then_one_train_as_one(folder):
    assert train(folder, torchrun(2), 'two', '--launcher', 'pytorch') != 0
    assert (folder / 'two/killed').exists() and not (folder / 'two/iter_6.pth').exists()
    assert_close(folder / 'two/iter_4.pth', folder / 'whole/iter_4.pth')
    assert {len(sums) for sums in samples(folder / 'two').values()} <= {2, 4}
    (folder / 'two/samples-1.jsonl').rename(folder / 'two/then.jsonl')
    (folder / 'two/samples-0.jsonl').unlink()
    command = [sys.executable, ROOT / 'tools/train.py']
    assert train(folder, command, 'two', '--resume') == 0
    resumed, whole = samples(folder / 'two'), samples(folder / 'whole')
    assert resumed == {step: whole[step] for step in range(4, ITERATIONS)}
    assert_close(folder / 'two/iter_8.pth', folder / 'whole/iter_8.pth')
    found, wanted = losses(folder / 'two'), losses(folder / 'whole')
    assert sorted(found) == list(range(5, 9))
    assert [found[step] for step in found] == pytest.approx([wanted[s] for s in found], rel=1e-4)


def test_a_batch_that_cannot_be_shared_is_refused(folder):
    assert train(folder, torchrun(3), 'three', '--launcher', 'pytorch') != 0
    assert '--total-batch 4 cannot be shared by 3 processes' in (folder / 'three.log').read_text()


def test_ray_train_begins_again_when_a_worker_dies(folder):
    pytest.importorskip('ray.train', reason="pip install 'trunchier[ray]'")
    command = [sys.executable, ROOT / 'tools/ray_train.py']
    assert train(folder, command, 'ray', '--workers', 2, '--min-workers', 1) == 0
    assert (folder / 'ray/killed').exists()
    assert samples(folder / 'ray') == samples(folder / 'whole')
    assert_close(folder / 'ray/iter_8.pth', folder / 'whole/iter_8.pth')
