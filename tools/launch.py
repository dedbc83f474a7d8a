"""Shared by tools/train.py and tools/test.py: arguments, config changes, loading."""

import argparse
import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import idle_threads  # noqa: F401  before torch
import torch
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.runner import Runner

from trunchier.engine.hooks import forget_ends_of_workers
from trunchier.files import check_writable, shipped
from trunchier.files.processes import clean_end
from trunchier.weights.find import find_config
from trunchier.weights.load import CheckpointError, load_checkpoint


def parser(command: str, description: str) -> argparse.ArgumentParser:
    """The common arguments of mmpose's train.py and test.py."""
    parser = argparse.ArgumentParser(
        prog=f'trunchier {command}',
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add('config', help='config file, or the name of a model or an encoder')
    add('--task', help='pose or mesh: task of an encoder that is named in place of a config')
    add('--work-dir', help='folder for logs, checkpoints and results')
    add('--show-dir', help='draw predictions into this folder')
    add('--show', action='store_true', help='show predictions in a window')
    add('--interval', type=int, default=1, help='draw every n-th sample')
    add('--wait-time', type=float, default=1, help='seconds that a window stays open')
    settings = (
        'settings of the config to override, such as model.backbone.with_cp=True; lists as '
        'key="[a,b]" or key=a,b'
    )
    add('--cfg-options', nargs='+', action=Settings, default={}, help=settings)
    add('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    add('--local_rank', '--local-rank', type=int, default=0)
    return parser


class Settings(DictAction):
    """KEY=VALUE ...; what cannot be parsed is an error of the command line."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: list[str],
        option_string: str | None = None,
    ) -> None:
        try:
            super().__call__(parser, namespace, values, option_string)
        except (AssertionError, RecursionError, ValueError) as error:
            raise argparse.ArgumentError(self, f'{values}: {error}') from error


def is_file(config: str) -> bool:
    """Whether a config is named by its path, not by its model."""
    return config.endswith(('.py', '.json', '.yaml', '.yml'))


def merge(cfg: Config, args: argparse.Namespace) -> None:
    """Write the common arguments into the config; `finish` adds --cfg-options."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg.launcher = args.launcher
    name = Path(args.config).stem if is_file(args.config) else args.config
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or str(Path('work_dirs', name))
    if args.show or args.show_dir:
        draw = hook(cfg, 'visualization', 'PoseVisualizationHook')
        draw.update(enable=True, show=args.show, out_dir=args.show_dir, interval=args.interval)
        if args.show:
            draw.wait_time = args.wait_time


def read_config(name: str, task: str | None) -> Config:
    """The config of a path or, by its name, of a model or an encoder.

    Paths are those of this folder, then of the package. Ends the program if there is none.
    """
    if not is_file(name):
        try:
            return find_config(name, task).cfg
        except (ImportError, ValueError) as error:
            raise SystemExit(f'error: {error}') from error
    inside = shipped.of_repository(name)
    if not Path(name).is_file() and not inside.is_file():
        raise SystemExit(f'error: no config {name} (from {Path.cwd()}), nor in the package')
    return Config.fromfile(name if Path(name).is_file() else str(inside))


def check_data(cfg: Config, *loaders: str) -> None:
    """End the program with what to do if annotations of a data set are missing.

    Args:
        loaders: of 'train', 'val' and 'test'; those that the config leaves out are skipped.
    """
    for name in loaders:
        datasets = [(cfg.get(f'{name}_dataloader') or {}).get('dataset') or {}]
        while datasets:
            dataset = datasets.pop()
            datasets += dataset.get('datasets') or [*filter(None, [dataset.get('dataset')])]
            root, file = dataset.get('data_root') or '', dataset.get('ann_file')
            if not isinstance(file, str) or not file or '://' in f'{root}{file}':
                continue
            path = Path(root, file)
            if not path.exists():
                raise SystemExit(
                    f'error: no annotations {path} (from {Path.cwd()}), which {name}_dataloader '
                    'names. Put the data set there ("Data" in the documentation says what goes '
                    'where), or name another folder: --cfg-options '
                    f'{name}_dataloader.dataset.data_root=DIR. Without any download: '
                    '`trunchier make-synthetic` makes people to train on'
                )


def finish(cfg: Config, args: argparse.Namespace) -> None:
    """Apply --cfg-options over everything else, then what safety and a missing GPU require.

    Raises:
        ValueError: settings that do not fit the config.
    """
    try:
        cfg.merge_from_dict(args.cfg_options)
        _add_hooks(cfg)
    except (AssertionError, AttributeError, LookupError, RecursionError, TypeError) as error:
        reason = f'{type(error).__name__}: {error}'
        raise ValueError(f'--cfg-options do not fit the config: {reason}') from error
    if args.launcher != 'none' and get_device() == 'cpu':
        distribute_on_cpu(cfg)


def _add_hooks(cfg):
    checkpoint = cfg.get('default_hooks', {}).get('checkpoint')
    if checkpoint and checkpoint.get('type') == 'CheckpointHook':
        checkpoint.type = 'SafeCheckpointHook'
    hooks = cfg.get('custom_hooks') or []
    if not any(hook['type'] == 'WorkerHook' for hook in hooks):
        cfg.custom_hooks = [*hooks, dict(type='WorkerHook')]


def hook(cfg: Config, name: str, kind: str) -> ConfigDict:
    """Config of the default hook `name`; ValueError if there is none."""
    hooks = cfg.get('default_hooks', {})
    if name not in hooks:
        raise ValueError(
            f'the config has the default hooks {sorted(hooks)}; this option requires '
            f"default_hooks = dict({name}=dict(type='{kind}'))"
        )
    return hooks[name]


def distribute_on_cpu(cfg: Config) -> None:
    """Use gloo between processes and wrap the model without the GPU ids that mmengine passes."""
    if cfg.launcher != 'pytorch':
        raise ValueError(
            f'--launcher {cfg.launcher} requires GPUs, but none is visible; on CPU use '
            'tools/dist_train.sh or tools/dist_test.sh (--launcher pytorch)'
        )
    if cfg.pop('sync_bn', None):
        print_log(
            'SyncBN is not supported on CPU: each process keeps its own batch statistics', 'current'
        )
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group('gloo')
    wrapper = dict(type='MMDistributedDataParallel', broadcast_buffers=False)
    wrapper['find_unused_parameters'] = cfg.get('find_unused_parameters', False)
    cfg.model_wrapper_cfg = dict(cfg.get('model_wrapper_cfg') or wrapper, device_ids=None)


def load_safely(runner: Runner, strict: bool, official: bool = False) -> None:
    """Make `runner` raise CheckpointError where keys or shapes differ, which mmengine only logs.

    `official`: also load files in other layouts, all but the discriminator.
    """
    load = runner.load_checkpoint

    def checked(filename, *args, **kwargs):
        try:
            return load(str(filename), *args, **kwargs, strict=strict)
        except Exception as error:
            if 'do not match exactly' not in str(error):  # mmengine's message about keys and shapes
                raise
            text = f'{filename} does not fit the model of this config; is it of another variant?\n'
            if not official:
                raise CheckpointError(f'{text}{error}') from error
        model = getattr(runner.model, 'module', runner.model)
        discriminator = model._modules.pop('discriminator', None)  # only training needs it
        try:
            load_checkpoint(model, filename)
        except CheckpointError as error:
            raise CheckpointError(f'{text}{error}') from None
        finally:
            if discriminator is not None:
                model.discriminator = discriminator

    runner.load_checkpoint = checked


@contextlib.contextmanager
def guarded(work_dir: str) -> Iterator[None]:
    """Run a training or a test: signals end it cleanly, errors of the disk name the folder."""
    try:
        with clean_end():
            check_writable(work_dir)
            yield
    except EOFError as error:
        raise RuntimeError('a DataLoader worker was killed as it handed a batch over') from error
    except ConnectionError as error:
        raise RuntimeError('a DataLoader worker, or another rank, was killed') from error
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(work_dir)) from error
    finally:
        forget_ends_of_workers()  # an error of torch for one would cut the report of the first
    if torch.distributed.is_initialized():
        leave_process_group()


def leave_process_group() -> None:
    """Leave it together with the others: its threads may abort a process that just exits."""
    torch.distributed.barrier()
    # Torch 2.1 waits in vain, 1 in 100 times, if a thread still needs Python to end the barrier.
    time.sleep(0.1)
    torch.distributed.destroy_process_group()
