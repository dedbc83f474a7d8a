"""Write a trained model as a file that runs without this package, and check that it does.

    python tools/export.py VMPose-T-S2 work_dirs/vm/best.pth --dynamic-batch
    python tools/export.py configs/mesh/hmr2_swin-t-s3_8xb48-1000k_mix-256x192.py mesh.pth \\
        --format torch-export --output mesh.pt2 --with-body

CONFIG is a config or a paper's name, CHECKPOINT its weights (or `random` with --allow-random, to
measure). The file takes normalised crops and gives heatmaps, or SMPL parameters and the crop's
camera; docs/export.md says what stands before and after. It is compared with the model on random
crops and is not written where they differ. bf16 goes into the formats of torch alone.
"""

import argparse
import logging
import sys
import warnings
from pathlib import Path

import torch
from benchmark.timing import interleaved

from trunchier.deploy import export as exporting
from trunchier.models.create import build_model
from trunchier.weights.find import find, find_config
from trunchier.weights.load import load_checkpoint


def main(arguments=None):
    args = parse_args(arguments)
    # mmengine and mmpose announce each file that they load.
    logging.getLogger('mmengine').setLevel(logging.ERROR)
    try:
        report = export(args)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        sys.exit(f'error: {error}')
    print(report)


def parse_args(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('config', help="config file, or the paper's name of a model")
    add('checkpoint', help='weights of this model, or random')
    add('--format', choices=exporting.FORMATS, default='onnx', help='default: onnx')
    add('--precision', choices=exporting.PRECISIONS, default='fp32', help='default: fp32')
    add('--dynamic-batch', action='store_true', help='any number of crops at a time; else one')
    add('--output', type=Path, metavar='FILE', help='default: NAME.onnx, .pt or .pt2 here')
    add('--with-body', action='store_true', help='mesh: vertices, joints and keypoints too')
    add('--body-model', metavar='FILE', help='your SMPL, as tools/convert_smpl.py writes it')
    add('--allow-random', action='store_true', help='let CHECKPOINT be `random`')
    add(
        '--tolerance',
        type=float,
        metavar='X',
        help='largest error in standard deviations of an output (default: '
        + ', '.join(f'{value:g} for {name}' for name, value in exporting.TOLERANCES.items())
        + ')',
    )
    return parser.parse_args(arguments)


def export(args):
    """Write the file; returns what to tell about it."""
    name, task, cfg, _ = find_config(args.config)
    if args.body_model is not None:
        if task == 'pose':
            raise ValueError(f'{name} is a pose model and has no body; leave --body-model out')
        cfg.model.body_model = dict(path=args.body_model)
    model = build_model(cfg)
    meta, weights = None, args.checkpoint
    if args.checkpoint == 'random':
        if not args.allow_random:
            raise ValueError('random weights predict nothing; --allow-random, if they will do')
    else:
        path = find(args.config, args.checkpoint).weights
        meta, weights = load_checkpoint(model, path), path.name
    if task == 'pose' and meta is None:
        meta = _meta_of(cfg)
    output = args.output or Path(name + exporting.FORMATS[args.format])
    done = exporting.export(
        model,
        output,
        exporting.describe(cfg, name, meta, weights),
        args.format,
        args.precision,
        args.dynamic_batch,
        args.with_body,
        args.tolerance,
    )
    lines = [f'{output}: {done["bytes"] / 1e6:.1f} MB']
    if done['nodes'] is not None:
        lines[0] += f', {done["nodes"]} nodes, opset {exporting.OPSET}'
    lines.append(f'largest error in standard deviations: {exporting.format_errors(done["errors"])}')
    lines.append(_speed(model, output, args))
    if args.with_body:
        lines.append(
            'the file holds the body model: one made from SMPL may be passed on only as far as '
            "SMPL's licence goes"
        )
    return '\n'.join(lines)


def _meta_of(cfg):
    """The keypoints of the data set that the config names."""
    from mmpose.apis.inference import dataset_meta_from_config

    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # that the file of keypoints is mmpose's own
        return dataset_meta_from_config(cfg, 'test')


def _speed(model, output, args):
    """Milliseconds of one crop, in the file's runtime and in this process."""
    exported = exporting.Exported(output)
    width, height = exported.metadata['input_size']
    images = torch.randn(1, 3, height, width)
    graph = exporting.Graph(model, with_body=args.with_body)
    with torch.no_grad():
        times = interleaved(
            {'eager': lambda: graph(images), 'file': lambda: exported(images.numpy())}
        )
    runtime = 'onnxruntime' if args.format == 'onnx' else args.format
    file, eager = times['file'].median, times['eager'].median
    return (
        f'one crop, {torch.get_num_threads()} threads: {runtime} {1e3 * file:.1f} ms, '
        f'eager fp32 {1e3 * eager:.1f} ms ({eager / file:.2f} x as fast)'
    )


if __name__ == '__main__':
    main()
