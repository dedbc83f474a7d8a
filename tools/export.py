"""Write a trained model as a file that runs without this package, and check the file.

    trunchier export VMPose-T-S2 work_dirs/vm/best.pth --dynamic-batch
    trunchier export configs/mesh/hmr2_swin-t-s3_8xb48-1000k_mix-256x192.py mesh.pth \\
        --output mesh.pt2 --with-body

The file takes normalized crops and returns heatmaps, or SMPL parameters and the crop's camera;
docs/export.md describes the steps before and after. It is compared with the model on random crops,
and is not written if they differ. bf16 needs a format of torch.
"""

import argparse
import logging
import sys
from collections.abc import Callable
from functools import partial

import torch
from benchmark.timing import interleaved

from trunchier.deploy.export import OPSET, RANDOM, TOLERANCES, Written, export, format_errors
from trunchier.deploy.runtime import FORMATS
from trunchier.files.processes import clean_end


@clean_end()
def main(arguments: list[str] | None = None) -> None:
    options = vars(parse_args(arguments))
    allow_random, with_body = options.pop('allow_random'), options['with_body']
    # mmengine and mmpose announce each file that they load.
    logging.getLogger('mmengine').setLevel(logging.ERROR)
    try:
        if options['weights'] == RANDOM and not allow_random:
            raise ValueError('random weights predict nothing; add --allow-random to use them')
        print(report(export(**options), with_body))
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        sys.exit(f'error: {error}')


def parse_args(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='trunchier export',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add('model', help="the paper's name of a model, or a config file")
    add(
        'weights',
        metavar='checkpoint',
        nargs='?',
        help='weights of the model (default: those that ship with this package); '
        f'{RANDOM}: random weights, to measure speed',
    )
    add('--format', choices=FORMATS, help='file format (default: that of --output, else onnx)')
    add('--precision', choices=TOLERANCES, default='fp32', help='of weights and arithmetic')
    add(
        '--calibrate',
        metavar='DIR',
        help='int8: folder of photos of people, boxes by a COCO .json in it (default: synthetic)',
    )
    add('--dynamic-batch', action='store_true', help='accept any number of crops, not only one')
    add('--output', dest='path', metavar='FILE', help='file (default: NAME.onnx, .pt or .pt2)')
    add('--with-body', action='store_true', help='mesh: add vertices, joints and keypoints')
    add('--body-model', metavar='FILE', help='SMPL body, as trunchier convert-smpl writes it')
    add('--allow-random', action='store_true', help=f'accept `{RANDOM}` as CHECKPOINT')
    add(
        '--tolerance',
        type=float,
        metavar='X',
        help='largest error, in standard deviations of an output (default: '
        + ', '.join(f'{value:g} for {name}' for name, value in TOLERANCES.items())
        + ')',
    )
    return parser.parse_args(arguments)


def report(done: Written, with_body: bool) -> str:
    """Size, error and speed of a file."""
    lines = [f'{done.path}: {done.bytes / 1e6:.1f} MB']
    if done.nodes is not None:
        lines[0] += f', {done.nodes} nodes, opset {OPSET}'
    kind = 'root mean square' if done.network.metadata['precision'] == 'int8' else 'largest'
    lines.append(f'{kind} error in standard deviations: {format_errors(done.errors)}')
    if done.float32_layers:
        lines.append(f'left in fp32 for accuracy: {", ".join(done.float32_layers)}')
    lines.append(_speed(done))
    if with_body:
        lines.append(
            'the file contains the body model: one made from SMPL may be redistributed only as '
            "far as SMPL's license allows"
        )
    return '\n'.join(lines)


def _speed(done: Written):
    """Milliseconds of one crop, in the file's runtime and in this process."""
    width, height = done.network.metadata['input_size']
    images = torch.randn(1, 3, height, width)
    networks: dict[str, Callable] = dict(file=done.network, eager=done.module)
    times = interleaved({name: partial(each, images) for name, each in networks.items()})
    file, eager = times['file'].median, times['eager'].median
    return (
        f'one crop, {torch.get_num_threads()} threads: {done.network.runtime} {1e3 * file:.1f} ms, '
        f'eager fp32 {1e3 * eager:.1f} ms ({eager / file:.2f} x as fast)'
    )


if __name__ == '__main__':
    main()
