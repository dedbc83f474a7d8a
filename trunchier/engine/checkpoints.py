"""Checkpoints that survive a kill at any moment, and a resume that takes the newest whole one."""

import logging
import math
import os
import re
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmengine.runner.checkpoint import _load_checkpoint
from mmengine.runner.loops import EpochBasedTrainLoop

from ..files import whole_file

RESUMABLE = {'meta', 'state_dict', 'message_hub', 'optimizer'}  # keys of such a checkpoint


class WholeFileBackend(LocalBackend):
    """Local files that are complete or absent: written beside, flushed to the disk, renamed."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        with whole_file(filepath) as part, open(part, 'wb') as file:
            file.write(obj)
            file.flush()
            os.fsync(file.fileno())
        if hasattr(os, 'O_DIRECTORY'):  # Windows opens no folders
            folder = os.open(Path(filepath).parent, os.O_RDONLY | os.O_DIRECTORY)
            os.fsync(folder)  # so that the new name is on the disk, too
            os.close(folder)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        self.put(obj.encode(encoding), filepath)


register_backend('whole', WholeFileBackend, force=True)


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook, safe against a kill or a full disk at any moment.

    A checkpoint is written beside, flushed to the disk and renamed; then `last_checkpoint`; only
    then the outdated one is removed. The same holds for the best one. `resume` without a file takes
    the newest checkpoint of the work dir that can be read and names those passed over. A validation
    that a kill prevented is run first, so that the best checkpoint is not missed.
    """

    _step = None  # number and meta of the last regular checkpoint
    _former_best: dict = {}
    _resumed = None  # the file that this class has chosen

    def before_run(self, runner: Runner) -> None:
        """Choose the checkpoint to resume from."""
        if not runner._resume:
            return
        given = runner._load_from
        if given is None:
            found = newest_checkpoint(self._folder(runner), self.filename_tmpl)
            runner._load_from = self._resumed = found
        elif '://' not in str(given) and not Path(given).is_file():
            present = sorted(path.name for path in Path(given).parent.glob('*.pth'))
            raise FileNotFoundError(f'no checkpoint {given} to resume; found there: {present}')

    def _folder(self, runner):
        if self.out_dir is None:
            return Path(runner.work_dir)
        return Path(self.out_dir, os.path.basename(runner.work_dir.rstrip(os.sep)))

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        if type(self.file_backend) is LocalBackend and not self.backend_args:
            self.backend_args = dict(backend='whole')
            self.file_backend = WholeFileBackend()
            if is_main_process():  # what a kill left
                for part in Path(self.out_dir).glob('.*.part*'):
                    part.unlink(missing_ok=True)
                if self._resumed is not None:
                    self._point_to(runner, self._resumed)
                self._remove(runner.message_hub.runtime_info.get('outdated_ckpts', ()))
        if self._must_validate(runner):
            print_log('validating first: the run that is resumed had not finished to', 'current')
            runner.val_loop.run()

    def _must_validate(self, runner):
        loop, info = runner.train_loop, runner.message_hub.runtime_info
        done, last = self._done(runner), loop.max_epochs if self.by_epoch else loop.max_iters
        return (
            info.get('validated', done) < done
            and isinstance(loop, EpochBasedTrainLoop) == self.by_epoch
            and runner._val_loop is not None
            and done >= loop.val_begin
            and (done % loop.val_interval == 0 or done == last)
        )

    def _done(self, runner):
        """Epochs or iterations that are done, outside of them."""
        return runner.epoch if self.by_epoch else runner.iter

    def _save_checkpoint_with_step(self, runner, step, meta):
        """Save, point to it, remove what it replaces; after an interval and for a new best one."""
        hub = runner.message_hub
        outdated = self._outdated_best()
        if self.max_keep_ckpts > 0 and step not in list(self.keep_ckpt_ids)[-1:]:
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                former = self.filename_tmpl.format(self.keep_ckpt_ids.popleft())
                outdated.append(self.file_backend.join_path(self.out_dir, former))
            self.keep_ckpt_ids.append(step)
            hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        hub.update_info('last_ckpt', self.last_ckpt)
        hub.update_info('outdated_ckpts', outdated)
        hub.update_info('validated', hub.runtime_info.get('validated', 0))
        self._step = step, dict(meta)
        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if is_main_process():
            self._point_to(runner, self.last_ckpt)
            self._remove(outdated)

    def _point_to(self, runner, path):
        WholeFileBackend().put_text(path, Path(runner.work_dir, 'last_checkpoint'))

    def _remove(self, paths):
        for path in paths:
            if self.file_backend.isfile(path):
                self.file_backend.remove(path)
            elif self.file_backend.isdir(path):  # of deepspeed
                self.file_backend.rmtree(path)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, Any] | None = None) -> None:
        """Save the best one, and note in the last checkpoint that this validation is done."""
        done = self._done(runner)
        runner.message_hub.update_info('validated', done)
        step, self._step = self._step, None
        super().after_val_epoch(runner, metrics)
        if step is not None and step[0] == done and self._step is None:
            self._save_checkpoint_with_step(runner, *step)

    def _save_best_checkpoint(self, runner, metrics):
        """As mmengine's, which removes the former best one too early: it is hidden meanwhile."""
        if not self.save_best:
            return
        self._former_best = self._best()
        self._set_best(dict.fromkeys(self._former_best))
        super()._save_best_checkpoint(runner, metrics)
        if is_main_process():
            self._remove(self._outdated_best())
        kept = {key: path or self._former_best[key] for key, path in self._best().items()}
        self._set_best(kept)
        self._former_best = {}

    def _best(self):
        """{indicator: path or None}"""
        if len(self.key_indicators) == 1:
            return {0: self.best_ckpt_path}
        return dict(self.best_ckpt_path_dict)

    def _set_best(self, paths):
        if len(self.key_indicators) == 1:
            self.best_ckpt_path = paths[0]
        else:
            self.best_ckpt_path_dict = paths

    def _outdated_best(self):
        best = self._best() if self._former_best else {}
        pairs = [(path, best[key]) for key, path in self._former_best.items()]
        return [path for path, new in pairs if path and new and path != new]


def newest_checkpoint(folder: str | Path, template: str) -> str | None:
    """The newest checkpoint of a folder that can be read; None if there is none at all.

    Newest is what `last_checkpoint` names, unless a later number was written after it.

    Args:
        template: name of the files, with {} for the number.

    Raises:
        RuntimeError: there are checkpoints, but none can be read.
    """
    pattern = re.sub(r'\\\{.*?\\\}', r'(\\d+)', re.escape(template))
    found = {}  # path -> number, time
    for path in Path(folder).glob('*'):
        match = re.fullmatch(pattern, path.name)
        if match and path.is_file():
            found[path] = int(match[1]), path.stat().st_mtime_ns
    pointer = Path(folder, 'last_checkpoint')
    last = pointer.read_text(errors='replace').strip() if pointer.is_file() else ''
    number, time = found.get(Path(folder, os.path.basename(last)), (math.inf, math.inf))

    def age(path):
        later = found[path][0] > number and found[path][1] >= time
        return later, found[path][0] == number, found[path][::-1]

    passed_over = []
    for path in sorted(found, key=age, reverse=True):
        reason = unreadable(path)
        if reason is None:
            for text in passed_over:
                print_log(f'passed over {text}', 'current', logging.WARNING)
            return str(path)
        passed_over.append(f'{path}: {reason}')
    if passed_over:
        raise RuntimeError(
            'no checkpoint can be read, delete them to begin anew: ' + '; '.join(passed_over)
        )
    print_log(f'no {template} in {folder} to resume: training begins at the start', 'current')
    return None


def unreadable(path: Path) -> str | None:
    """Why training cannot resume from a file; None if it can."""
    try:
        content = _load_checkpoint(str(path), map_location='cpu')
    except Exception as error:  # of torch, pickle, zipfile: whatever a damaged file causes
        return f'{type(error).__name__}: {error}'.split('\n')[0]
    missing = RESUMABLE - set(content) if isinstance(content, dict) else RESUMABLE
    return f'without {sorted(missing)}' if missing else None
