"""Test a checkpoint; the arguments are those of mmpose's tools/test.py.

trunchier test CONFIG CHECKPOINT [--work-dir DIR] [--out FILE] [--dump FILE] ...
trunchier test VMPose-T-S2 CHECKPOINT ...                       a model by its name
trunchier test CONFIG MODEL.onnx [--runtime openvino] ...       an exported file
tools/dist_test.sh CONFIG CHECKPOINT GPUS [the same arguments]  in a checkout: on several GPUs
"""

import mmengine
import torch
from launch import check_data, finish, guarded, hook, load_safely, merge, parser, read_config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from trunchier.deploy.calibration import calibration_crops
from trunchier.deploy.fuse import DEPLOYED, deploy
from trunchier.deploy.graph import describe
from trunchier.deploy.runtime import FORMATS, ExportedNetwork, compute_by
from trunchier.weights.find import find_config


def parse_args():
    arguments = parser('test', __doc__)
    add = arguments.add_argument
    add('checkpoint', help='checkpoint, or a .onnx file that was exported')
    add('--out', help='write the metrics to this .json, .yaml or .pkl file')
    add('--dump', help='write the predictions to this .pkl file')
    add('--precision', choices=DEPLOYED, help='test trunchier.deploy(model, precision=...), on CPU')
    fixed = 'of --precision int8: scales that are found on synthetic people beforehand'
    add('--fixed-scales', action='store_true', help=fixed)
    add('--runtime', choices=('onnxruntime', 'openvino'), help='of an exported file')
    worst = 'draw the samples with the worst loss or accuracy'
    add('--badcase', action='store_true', help=worst)
    return arguments.parse_args()


def merge_args(cfg, args):
    merge(cfg, args)
    exported = args.checkpoint.endswith(FORMATS['onnx'])
    if exported and args.precision:
        raise ValueError(
            f'{args.checkpoint} has the precision that it was exported in; leave out --precision'
        )
    if args.fixed_scales and args.precision != 'int8':
        raise ValueError('--fixed-scales is for --precision int8')
    if args.runtime and not exported:
        raise ValueError(
            f'--runtime is for .onnx files, not {args.checkpoint}: write one by trunchier export'
        )
    if exported or args.precision:  # of an averaged model, whose weights checkpoints hold
        hooks = cfg.get('custom_hooks') or []
        cfg.custom_hooks = [each for each in hooks if each['type'] != 'EMAHook']
    cfg.load_from = None if exported else args.checkpoint
    cfg.resume = False
    if args.badcase:
        analyze_bad_cases(cfg, args)
    if args.dump:
        if not args.dump.endswith(('.pkl', '.pickle')):
            raise ValueError(
                f'--dump writes a pickle; got {args.dump}, expected a name that ends in .pkl'
            )
        evaluators = cfg.test_evaluator
        evaluators = evaluators if isinstance(evaluators, (list, tuple)) else [evaluators]
        cfg.test_evaluator = [*evaluators, dict(type='DumpResults', out_file_path=args.dump)]
    finish(cfg, args)


def analyze_bad_cases(cfg, args):
    worst = hook(cfg, 'badcase', 'BadCaseAnalysisHook')
    worst.update(enable=True, show=args.show, interval=args.interval)
    if args.show:
        # One window at a time: the hook that shows all samples is off.
        cfg.default_hooks.visualization.show = False
        worst.wait_time = args.wait_time
    kinds = dict(loss=cfg.model.head.get('loss'), accuracy=cfg.test_evaluator)
    kind = worst.get('metric_type', 'loss')
    if kind not in kinds:
        raise ValueError(f'default_hooks.badcase.metric_type is {kind!r}; expected {[*kinds]}')
    worst.metric = worst.get('metric') or kinds[kind]


class Deploy(Hook):
    """Deploys the model, whose checkpoint has been loaded.

    Args:
        crops: that give fixed scales of int8, or None.
    """

    def __init__(self, precision, crops):
        self.precision, self.crops = precision, crops

    def before_test(self, runner):
        deploy(runner.model, inplace=True, precision=self.precision, calibration=self.crops)


class ComputeBy(Hook):
    """Lets an exported file compute what the model would."""

    def __init__(self, path, runtime):
        self.network = ExportedNetwork(path, runtime=runtime)

    def before_test(self, runner):
        model = getattr(runner.model, 'module', runner.model)
        compute_by(model, self.network, self.network.metadata['outputs'])


class WriteMetrics(Hook):
    """Writes the metrics; runs after all other hooks, which may add to them."""

    priority = 'LOWEST'

    def __init__(self, path):
        self.path = path

    def after_test_epoch(self, runner, metrics=None):
        if metrics is not None and runner.rank == 0:
            mmengine.dump(metrics, self.path)


def main():
    args = parse_args()
    cfg = read_config(args.config, args.task)
    merge_args(cfg, args)
    check_data(cfg, 'test')
    with guarded(cfg.work_dir):
        runner = Runner.from_cfg(cfg)
        if args.out:
            runner.register_hook(WriteMetrics(args.out))
        if args.precision:
            facts = describe(find_config(cfg)) if args.fixed_scales else None
            crops = torch.from_numpy(calibration_crops(facts)) if facts else None
            runner.register_hook(Deploy(args.precision, crops))
        if cfg.load_from:
            load_safely(runner, strict=True, official=True)
        else:
            runner.register_hook(ComputeBy(args.checkpoint, args.runtime))
        runner.test()


if __name__ == '__main__':
    main()
