"""A disk that is full or cannot be written ends training with an error that names the path."""

from people import write_shards
from small_trainings import mesh

from trunchier.weights.load import read_weights

LIMIT = 100_000  # bytes of a file: less than a checkpoint, more than a log


def test_a_checkpoint_that_does_not_fit_leaves_the_former_one(server, tmp_path):
    write_shards(tmp_path / 'shards')
    cfg = mesh(tmp_path)
    cfg.train_dataloader.update(num_workers=0, persistent_workers=False)
    cfg.train_cfg.max_iters = 4
    cfg.dump(tmp_path / 'mesh.py')
    work = tmp_path / 'work'
    arguments = tmp_path / 'log', 'train.py', tmp_path / 'mesh.py', '--resume', '--work-dir'
    assert server.run(*arguments, work, '--cfg-options', 'train_cfg.max_iters=2') == 0
    assert (work / 'iter_2.pth').stat().st_size > LIMIT

    # A file cannot become larger, as on a full disk.
    assert server.run(*arguments, work, file_limit=LIMIT) == 1
    log = (tmp_path / 'log').read_text()
    assert f"File too large: '{work / 'iter_4.pth'}'" in log
    assert [path.name for path in work.rglob('*.pth')] == ['iter_2.pth']
    assert read_weights(work / 'iter_2.pth')['meta']['iter'] == 2
    assert (work / 'last_checkpoint').read_text() == str(work / 'iter_2.pth')
    assert server.run(*arguments, work) == 0
    assert (work / 'last_checkpoint').read_text() == str(work / 'iter_4.pth')

    # Nobody, root neither, can write below a file.
    (tmp_path / 'file').touch()
    assert server.run(*arguments, tmp_path / 'file' / 'work') == 1
    assert f'nothing can be written to {tmp_path}/file/work' in (tmp_path / 'log').read_text()
