"""Train a model; the arguments are those of mmpose's tools/train.py.

trunchier train CONFIG [--work-dir DIR] [--resume [CHECKPOINT]] [--amp] ...
trunchier train VMPose-T-S2 ...                      the recipe of a model, by its name
trunchier train convnext_tiny-s3 [--task mesh] ...   of an encoder of timm
tools/dist_train.sh CONFIG GPUS [the same arguments] in a checkout: on several GPUs
"""

import os

from launch import check_data, finish, guarded, load_safely, merge, parser, read_config
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.runner import Runner

from trunchier.ops.thread_choice import ThreadChoice

WRAPPERS = ('OptimWrapper', 'AmpOptimWrapper', 'AutocastOptimWrapper')


def parse_args():
    arguments = parser('train', __doc__)
    add = arguments.add_argument
    last = 'continue from this checkpoint; without a value, from the last one in the work dir'
    add('--resume', nargs='?', const='auto', help=last)
    mixed = 'mixed precision: float16 on GPU, bfloat16 on CPU'
    add('--amp', action='store_true', help=mixed)
    add('--no-validate', action='store_true', help='train only')
    scale = 'scale the learning rate with the batch size, from auto_scale_lr.base_batch_size'
    add('--auto-scale-lr', action='store_true', help=scale)
    total = 'samples of a step over all processes: a run goes on alike with another number of them'
    add('--total-batch', type=int, metavar='N', help=total)
    return arguments.parse_args()


def merge_args(cfg, args):
    merge(cfg, args)
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    if args.amp:
        mix_precision(cfg.optim_wrapper)
    if args.auto_scale_lr:
        if 'auto_scale_lr' not in cfg:
            raise ValueError(
                '--auto-scale-lr requires the batch size that the learning rate is meant for; add '
                'auto_scale_lr = dict(base_batch_size=...) to the config'
            )
        cfg.auto_scale_lr.enable = True
    if 'preprocess_cfg' in cfg:
        cfg.model.setdefault('data_preprocessor', cfg.preprocess_cfg)
    finish(cfg, args)
    if args.resume:  # also where the options name weights to start from
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume
    if args.total_batch:
        cfg.train_dataloader.batch_size = share(
            args.total_batch, int(os.environ.get('WORLD_SIZE', 1))
        )


def share(total, processes):
    """Samples of one process in a step of `total`."""
    if total < 1 or total % processes:
        raise ValueError(f'--total-batch {total} cannot be shared by {processes} processes')
    return total // processes


def mix_precision(wrapper):
    """Train in float16 with loss scaling; on a CPU, in bfloat16."""
    kind = wrapper.get('type', 'OptimWrapper')
    kind = kind if isinstance(kind, str) else kind.__name__
    if kind not in WRAPPERS:
        raise ValueError(f'--amp replaces {" or ".join(WRAPPERS)}; the config has {kind}')
    if get_device() == 'cpu':
        wrapper.type = 'AutocastOptimWrapper'
        wrapper.pop('loss_scale', None)
    else:
        wrapper.type = 'AmpOptimWrapper'
        wrapper.setdefault('loss_scale', 'dynamic')


class FollowLoad(Hook):
    """Trains with one thread while other processes use the cores, if that is faster."""

    def __init__(self):
        self.choice = ThreadChoice()

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.choice.begin()

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        before = self.choice.alone
        self.choice.end()
        if self.choice.alone is not before and not self.choice.tries:
            threads = 'one thread' if self.choice.alone else 'all threads'
            runner.logger.info(f'other processes use the cores: training continues on {threads}')


def main():
    args = parse_args()
    cfg = read_config(args.config, args.task)
    merge_args(cfg, args)
    check_data(cfg, 'train', *([] if args.no_validate else ['val']))
    with guarded(cfg.work_dir):
        runner = Runner.from_cfg(cfg)
        load_safely(runner, strict=bool(cfg.get('resume')))
        if get_device() == 'cpu':
            runner.register_hook(FollowLoad())
        runner.train()


if __name__ == '__main__':
    main()
