"""What tools/train.py and tools/test.py share: arguments, what they change, careful loading."""

import argparse
import os
import re
from pathlib import Path

import torch
from mmengine.config import DictAction
from mmengine.device import get_device
from mmengine.logging import print_log

import trunchier  # noqa: F401  registers our models for configs that do not import them
from trunchier.files import local_file
from trunchier.weights.load import CheckpointError, read_weights


def parser(description):
    """The arguments that mmpose's train.py and test.py have in common, less the positional ones."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config file')
    parser.add_argument('--work-dir', help='folder for logs, checkpoints and results')
    parser.add_argument('--show-dir', help='draw predictions into this folder')
    parser.add_argument('--show', action='store_true', help='show predictions in a window')
    parser.add_argument('--interval', type=int, default=1, help='draw one sample out of so many')
    parser.add_argument('--wait-time', type=float, default=1, help='seconds that a window stays')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        help='settings of the config to override, such as model.backbone.with_cp=True; lists as '
        'key="[a,b]" or key=a,b',
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    return parser


def merge(cfg, args):
    """Write the common arguments into the config; --cfg-options come last, in `finish`."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg.launcher = args.launcher
    cfg.work_dir = (
        args.work_dir or cfg.get('work_dir') or str(Path('work_dirs', Path(args.config).stem))
    )
    if args.show or args.show_dir:
        draw = hook(cfg, 'visualization', 'PoseVisualizationHook')
        draw.update(enable=True, show=args.show, out_dir=args.show_dir, interval=args.interval)
        if args.show:
            draw.wait_time = args.wait_time


def finish(cfg, args):
    """--cfg-options, which win over everything, then what a machine without GPU needs."""
    cfg.merge_from_dict(args.cfg_options)
    if args.launcher != 'none' and get_device() == 'cpu':
        distribute_on_cpu(cfg)


def hook(cfg, name, kind):
    """The config of default hook `name`, or an error that tells how to add it."""
    hooks = cfg.get('default_hooks', {})
    if name not in hooks:
        raise ValueError(
            f'the config has the default hooks {sorted(hooks)}; this needs '
            f"default_hooks = dict({name}=dict(type='{kind}'))"
        )
    return hooks[name]


def distribute_on_cpu(cfg):
    """Processes talk by gloo, and the model is wrapped without naming GPUs, as mmengine would."""
    if cfg.launcher != 'pytorch':
        raise ValueError(
            f'--launcher {cfg.launcher} needs GPUs, and none is visible; on CPU use '
            'tools/dist_train.sh or tools/dist_test.sh (--launcher pytorch)'
        )
    if cfg.pop('sync_bn', None):
        print_log('on CPU each process keeps its own batch statistics: no SyncBN', 'current')
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group('gloo')
    wrapper = dict(type='MMDistributedDataParallel', broadcast_buffers=False)
    wrapper['find_unused_parameters'] = cfg.get('find_unused_parameters', False)
    cfg.model_wrapper_cfg = dict(cfg.get('model_wrapper_cfg') or wrapper, device_ids=None)


def load_with_care(runner, strict):
    """Have `runner` load weights only, also from http(s) addresses, which mmengine would unpickle.

    Args:
        strict (bool): refuse a checkpoint with other keys or shapes than the model's, where
            mmengine would only log the difference.
    """
    load = runner.load_checkpoint

    def load_checkpoint(filename, *args, **kwargs):
        path = str(filename)
        if re.match(r'https?://', path) or '://' not in path:
            path = str(local_file(path))
        try:
            return load(path, *args, **kwargs, strict=strict)
        except Exception as error:
            if 'do not match exactly' not in str(error):  # mmengine's words for keys and shapes
                read_weights(path)  # says what is wrong, if it is the file
                raise
            raise CheckpointError(
                f'{filename} does not fit the model of this config; is it of another variant?\n'
                f'{error}'
            ) from error

    runner.load_checkpoint = load_checkpoint
